"""The metadata of a zoo as Arrow tables, and the Parquet files that `datasets.load_dataset` reads."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.files import durable_path
from zootools.population import ModelConfig
from zootools.shards import ShardInfo, gather_weights
from zootools.spec import ZooSpec

SPLITS = ("train", "validation", "test")
ROW_GROUP_BYTES = 40 << 20
FILE_BYTES = 500 << 20
_CATEGORICAL = ("activation", "init", "optimizer")


def metadata_schema(spec: ZooSpec) -> pa.Schema:
    """Return the columns of a checkpoint's metadata, in order and with their types."""
    axes = sorted(set(spec.grid.axes) | set(spec.sample.axes if spec.sample else {}), key=_axis_order)
    scores = ["train_loss", "train_accuracy"]
    if spec.images.validation:
        scores += ["validation_loss", "validation_accuracy"]
    scores += ["test_loss", "test_accuracy", "generalization_gap"]
    return pa.schema(
        [
            ("model_id", pa.string()),
            ("configuration_id", pa.string()),
            ("seed", pa.int64()),
            ("epoch", pa.int32()),
            ("split", pa.string()),
            ("status", pa.string()),
            *((axis, pa.string() if axis in _CATEGORICAL else pa.float64()) for axis in axes),
            *((score, pa.float64()) for score in scores),
            ("test_f1", pa.list_(pa.float64())),
            ("stack", pa.int32()),
            ("row", pa.int32()),
        ]
    )


def _axis_order(name: str) -> int:
    from zootools.spec import Hyperparameters

    return list(Hyperparameters.model_fields).index(name)


def metadata_table(
    spec: ZooSpec,
    models: Mapping[str, ModelConfig],
    shards: Iterable[tuple[int, ShardInfo]],
    stopped: Mapping[str, Any],
) -> pa.Table:
    """Return one row per checkpoint, in the order of ``shards`` (stack number, info) and of their rows."""
    schema = metadata_schema(spec)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for stack, info in shards:
        unknown = [model for model in info.model_ids if model not in models]
        if unknown:
            raise DamagedZooError(f"stack {stack}, epoch {info.epoch}: unknown model {unknown[0]}")
        for row, model_id in enumerate(info.model_ids):
            model = models[model_id]
            values = {
                "model_id": model_id,
                "configuration_id": model.configuration_id,
                "seed": model.seed,
                "epoch": info.epoch,
                "split": model.split,
                "status": "diverged" if model_id in stopped else "ok",
                "stack": stack,
                "row": row,
            }
            for name, column in columns.items():
                if name in values:
                    column.append(values[name])
                elif name in info.properties:
                    column.append(info.properties[name][row])
                else:
                    column.append(getattr(model.hyperparameters, name))
    return pa.table(columns, schema)


def write_parquet(folder: Path, schema: Schema, table: pa.Table) -> dict[str, list[str]]:
    """Write both configurations of the data set, split by split, and return their files by configuration.

    ``metadata`` holds the table, ``checkpoints`` the same rows with the flat weights as a fixed-size list. A split
    without rows gets no file: one empty Parquet file makes ``load_dataset`` fail for all of them.
    Memory stays at a few row groups, whatever the size of the zoo.
    """
    files: dict[str, list[str]] = {"checkpoints": [], "metadata": []}
    rows_per_group = max(1, ROW_GROUP_BYTES // (4 * schema.size + 200))
    rows_per_file = max(rows_per_group, FILE_BYTES // (4 * schema.size + 200))
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split)).combine_chunks()
        if not part.num_rows:
            continue
        name = f"metadata/{split}-00000-of-00001.parquet"
        _write(folder / name, part.schema, [part])
        files["metadata"].append(name)
        count = -(-part.num_rows // rows_per_file)
        for number in range(count):
            rows = part.slice(number * rows_per_file, rows_per_file)
            name = f"data/{split}-{number:05d}-of-{count:05d}.parquet"
            _write(
                folder / name, weights_schema(part.schema, schema), _with_weights(folder, schema, rows, rows_per_group)
            )
            files["checkpoints"].append(name)
    return files


def weights_schema(metadata: pa.Schema, schema: Schema) -> pa.Schema:
    """Return the metadata columns with the flat ``weights`` at the end."""
    return metadata.append(pa.field("weights", pa.list_(pa.float32(), schema.size)))


def _with_weights(folder: Path, schema: Schema, table: pa.Table, rows_per_group: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows_per_group):
        part = table.slice(start, rows_per_group)
        flat = gather_weights(folder, schema, part["stack"], part["epoch"], part["row"])
        values = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), schema.size)
        yield part.append_column(weights_schema(table.schema, schema).field("weights"), values)


def _write(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    """Write one Parquet file, one row group per table.

    Floats are stored byte by byte (byte-stream-split) and compressed with zstd, which makes trained weights
    about a fifth smaller; dictionaries help the repeated strings only. Pages carry a checksum.
    """
    floats = [name for name in ("weights",) if name in schema.names]
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    with (
        durable_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=strings,
            use_byte_stream_split=[f"{name}.list.element" for name in floats],
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))


def huggingface_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the columns in the form in which a data set card declares features."""
    names = {pa.string(): "string", pa.int64(): "int64", pa.int32(): "int32", pa.float64(): "float64"}
    features: list[dict[str, Any]] = []
    for column in schema:
        if pa.types.is_fixed_size_list(column.type):
            features.append({"name": column.name, "list": "float32", "length": column.type.list_size})
        elif pa.types.is_list(column.type):
            features.append({"name": column.name, "list": names[column.type.value_type]})
        else:
            features.append({"name": column.name, "dtype": names[column.type]})
    return features


def accuracy_summary(table: pa.Table) -> dict[str, list[float]]:
    """Return minimum, quartiles and maximum of the test accuracy at some epochs, diverged models left out."""
    good = table.filter(pc.equal(table["status"], "ok"))
    epochs = np.unique(good["epoch"].to_numpy())
    chosen = epochs[np.unique(np.linspace(0, len(epochs) - 1, 6).round().astype(int))] if len(epochs) else epochs
    return {
        str(epoch): np.quantile(
            good.filter(pc.equal(good["epoch"], epoch))["test_accuracy"].to_numpy(), [0, 0.25, 0.5, 0.75, 1]
        )
        .round(4)
        .tolist()
        for epoch in chosen.tolist()
    }
