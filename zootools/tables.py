"""The metadata of a zoo as Arrow tables, and the Parquet files that `datasets.load_dataset` reads."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.checked import CheckedFiles, FileInfo, file_info
from zootools.errors import DamagedZooError
from zootools.parquet_pages import check_pages
from zootools.population import ModelConfig
from zootools.shards import ShardInfo, gather_weights
from zootools.spec import Hyperparameters, ZooSpec
from zootools.store import ZooFolder

SPLITS = ("train", "validation", "test")
ROW_GROUP_BYTES = 40 << 20
FILE_BYTES = 500 << 20
GROUP_ROWS = 1 << 20
"""Rows of metadata in one row group, about 60 MB in a file."""
ROW_BYTES = 10_000
"""No row of metadata takes more in a file than this."""
MAX_STRING = 100
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
    return list(Hyperparameters.model_fields).index(name)


def metadata_table(
    spec: ZooSpec,
    models: Mapping[str, ModelConfig],
    shards: Iterable[tuple[int, ShardInfo]],
    stopped: Mapping[str, Any],
) -> pa.Table:
    """Return one row per checkpoint, in the order of ``shards`` (stack number, info) and of their rows."""
    schema = metadata_schema(spec)
    parts = [schema.empty_table()]
    for stack, info in shards:
        unknown = [model for model in info.model_ids if model not in models]
        if unknown:
            raise DamagedZooError(f"stack {stack}, epoch {info.epoch}: unknown model {unknown[0]}")
        of_rows = [models[model_id] for model_id in info.model_ids]
        values: dict[str, list[Any]] = {
            "model_id": info.model_ids,
            "configuration_id": [model.configuration_id for model in of_rows],
            "seed": [model.seed for model in of_rows],
            "epoch": [info.epoch] * len(of_rows),
            "split": [model.split for model in of_rows],
            "status": ["diverged" if model_id in stopped else "ok" for model_id in info.model_ids],
            "stack": [stack] * len(of_rows),
            "row": list(range(len(of_rows))),
        }
        values |= {name: column for name, column in info.properties.items() if name not in values}
        place = f"stack {stack}, epoch {info.epoch}"
        for name in schema.names:
            if name in Hyperparameters.model_fields:
                values[name] = [getattr(model.hyperparameters, name) for model in of_rows]
            elif name not in values:
                raise DamagedZooError(f"{place}: has no {name}")
        try:
            parts.append(pa.table({name: values[name] for name in schema.names}, schema))
        except pa.ArrowException as error:
            raise DamagedZooError(f"{place}: its scores are not those of a zoo ({error})") from error
    return pa.concat_tables(parts)


def write_parquet(zoo: ZooFolder, shards: CheckedFiles, schema: Schema, table: pa.Table) -> dict[str, FileInfo]:
    """Write both configurations of the data set, split by split; return size and sha256 of each file by name.

    ``metadata`` holds the table, ``checkpoints`` the same rows with the flat weights as a fixed-size list. A split
    without rows gets no file: one empty Parquet file makes ``load_dataset`` fail for all of them.
    Beside the table, and one split of it, memory stays at a few row groups, whatever the size of the zoo.
    """
    files: dict[str, FileInfo] = {}
    rows_per_group = max(1, ROW_GROUP_BYTES // (4 * schema.size + 200))
    rows_per_file = max(rows_per_group, FILE_BYTES // (4 * schema.size + 200))
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        if not part.num_rows:
            continue
        name = metadata_name(split)
        files[name] = _write(zoo, name, part.schema, _groups(part, GROUP_ROWS))
        count = -(-part.num_rows // rows_per_file)
        for number in range(count):
            rows = part.slice(number * rows_per_file, rows_per_file)
            name = f"data/{split}-{number:05d}-of-{count:05d}.parquet"
            groups = _with_weights(shards, schema, rows, rows_per_group)
            files[name] = _write(zoo, name, weights_schema(part.schema, schema), groups)
    return files


def metadata_name(split: str) -> str:
    """Return the name of the one file of a split's metadata."""
    return f"metadata/{split}-00000-of-00001.parquet"


def weights_schema(metadata: pa.Schema, schema: Schema) -> pa.Schema:
    """Return the metadata columns with the flat ``weights`` at the end."""
    return metadata.append(pa.field("weights", pa.list_(pa.float32(), schema.size)))


def _groups(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Cut a table into pieces of so many rows, each in one chunk: what a file holds depends on its chunks, too."""
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows).combine_chunks()


def _with_weights(shards: CheckedFiles, schema: Schema, table: pa.Table, rows_per_group: int) -> Iterator[pa.Table]:
    for part in _groups(table, rows_per_group):
        flat = gather_weights(shards, schema, part["stack"], part["epoch"], part["row"])
        values = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), schema.size)
        yield part.append_column(weights_schema(table.schema, schema).field("weights"), values)


def _write(zoo: ZooFolder, name: str, schema: pa.Schema, groups: Iterable[pa.Table]) -> FileInfo:
    """Write one Parquet file, one row group per table.

    Floats are stored byte by byte (byte-stream-split) and compressed with zstd, which makes trained weights
    about a fifth smaller; dictionaries help the repeated strings only. Pages carry a checksum.
    """
    floats = [name for name in ("weights",) if name in schema.names]
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    with (
        zoo.file(name) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=strings,
            use_byte_stream_split=[f"{name}.list.element" for name in floats],
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    return file_info(zoo.path, name)


# --- reading -------------------------------------------------------------------------------------------


def read_metadata(files: CheckedFiles, spec: ZooSpec, rows: Mapping[str, int], classes: int) -> pa.Table:
    """Return the metadata of all splits, in the order of the shards and of their rows.

    ``rows`` says how many there are in each split. Nothing that a stranger may have put into the Parquet files
    costs more memory than so many rows do. Raises DamagedZooError for anything but the columns that the
    specification makes, with scores that are scores.
    """
    expected, tables = metadata_schema(spec), []
    strings = [field.name for field in expected if pa.types.is_string(field.type)]
    for split, count in rows.items():
        name, path = metadata_name(split), files.folder / metadata_name(split)
        if not count and name not in files.files:
            continue
        data = files.read(name, limit=ROW_BYTES * count + (1 << 20))
        try:
            footer = pq.read_metadata(pa.BufferReader(data))
            if not footer.schema.to_arrow_schema().equals(expected):
                raise DamagedZooError(f"{path}: has other columns than its specification makes")
            if footer.num_rows != count:
                raise DamagedZooError(f"{path}: has {footer.num_rows} rows, the manifest says {count}")
            check_pages(data, values=count * classes)
            # Strings as dictionaries: a long one that many rows repeat must not be copied to each of them.
            source = pa.BufferReader(data)
            with pq.ParquetFile(source, read_dictionary=strings, page_checksum_verification=True) as parquet:
                table = parquet.read()
            table.validate(full=True)
            for dictionary in (chunk.dictionary for name in strings for chunk in table[name].chunks):
                if (pc.max(pc.binary_length(dictionary)).as_py() or 0) > MAX_STRING:
                    raise ValueError(f"a string is longer than {MAX_STRING} bytes")
            table = table.cast(expected)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ValueError) as error:
            raise DamagedZooError(f"{path}: cannot be read ({error})") from error
        _check_scores(table, classes, path)
        tables.append(table)
    metadata = pa.concat_tables(tables) if tables else expected.empty_table()
    return metadata.sort_by([("stack", "ascending"), ("epoch", "ascending"), ("row", "ascending")])


def _check_scores(table: pa.Table, classes: int, path: Path) -> None:
    """Refuse missing values, losses that are not finite, accuracies and F scores outside of [0, 1]."""
    columns = {name: table[name] for name in table.column_names}
    f1 = columns["test_f1"]
    if table.num_rows and pc.min_max(pc.list_value_length(f1)).as_py() != {"min": classes, "max": classes}:
        raise DamagedZooError(f"{path}: test_f1: expected one score for each of {classes} classes")
    columns["test_f1"] = pc.list_flatten(f1)
    for name, column in columns.items():
        if column.null_count:
            raise DamagedZooError(f"{path}: {name}: has missing values")
        if not pa.types.is_floating(column.type) or not len(column):
            continue
        bounds = pc.min_max(column).as_py()
        low, high = (0, 1) if name.endswith(("_accuracy", "_f1")) else (-math.inf, math.inf)
        finite = pc.all(pc.is_finite(column)).as_py()
        if not finite or bounds["min"] < low or bounds["max"] > high:
            raise DamagedZooError(f"{path}: {name}: found values from {bounds['min']} to {bounds['max']}")


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
