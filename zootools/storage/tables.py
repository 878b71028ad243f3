"""The tables of a zoo: their columns, their rows, and their division into files."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.spec import Hyperparameters, ZooSpec
from zootools.spec.model_configs import ModelConfig
from zootools.storage.imported import MAX_TEXT, OWN_COLUMNS, Imported, Origin
from zootools.storage.shards import ShardInfo, shard_name

SPLITS = ("train", "validation", "test")
STATUSES = ("ok", "diverged")
"""The status of a checkpoint is that of its model: all those of a model that diverged have the second."""
ROW_GROUP_BYTES = 40 << 20
FILE_BYTES = 500 << 20
_CATEGORICAL = ("activation", "init", "optimizer")
_SCORES = (
    *(f"{images}_{score}" for images in SPLITS for score in ("loss", "accuracy")),
    "generalization_gap",
    "test_f1",
)
"""The columns that come from the shards."""


MAX_DESCRIPTION = 10_000
"""Bytes that the description of a column may have; the footer of every table contains it."""


def metadata_schema(origin: Origin, class_names: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of a checkpoint's metadata, in order and with their types.

    The names of the classes that a zoo stores are the description of ``test_f1`` (Arrow metadata of the field), unless
    they are longer than `MAX_DESCRIPTION`.
    """
    if isinstance(origin, Imported):
        return origin.metadata_schema
    columns = _columns_of_spec(origin)
    text = f"one F score for each of the classes {json.dumps([*class_names], ensure_ascii=False)}".encode()
    if not class_names or len(text) > MAX_DESCRIPTION:
        return columns
    number = columns.get_field_index("test_f1")
    return columns.set(number, columns.field(number).with_metadata({"description": text}))


def _columns_of_spec(spec: ZooSpec) -> pa.Schema:
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


def imported_table(imported: Imported, shards: Iterable[tuple[int, ShardInfo]], stopped: Collection[str]) -> pa.Table:
    """Return the metadata of the checkpoints of an imported zoo: `metadata_table`, without a specification."""
    schema = imported.metadata_schema
    parts = [schema.empty_table()]
    for stack, info in shards:
        rows = len(info.model_ids)
        values = {
            **info.properties,
            "model_id": info.model_ids,
            "epoch": [info.epoch] * rows,
            "status": ["diverged" if model in stopped else "ok" for model in info.model_ids],
            "stack": [stack] * rows,
            "row": list(range(rows)),
        }
        parts.append(pa.table({name: values[name] for name in schema.names}, schema))
    return pa.concat_tables(parts)


def metadata_table(
    spec: ZooSpec,
    models: Mapping[str, ModelConfig],
    shards: Iterable[tuple[int, ShardInfo]],
    stopped: Collection[str],
    class_names: Sequence[str] = (),
) -> pa.Table:
    """Return the metadata of checkpoints, one row each, in the order of the shards and of their rows.

    Args:
        spec: the specification, which decides the columns.
        models: the models of the specification by id.
        shards: the stack number and the metadata of every shard.
        stopped: the ids of the diverged models.
        class_names: the names of the classes that the zoo stores.

    Raises DamagedZooError for unknown models, and for scores that are not those of the columns.
    """
    schema = metadata_schema(spec, class_names)
    parts = [schema.empty_table()]
    scores = {name for name in schema.names if name in _SCORES}
    for stack, info in shards:
        place = shard_name(stack, info.epoch)
        unknown = [model for model in info.model_ids if model not in models]
        if unknown:
            raise DamagedZooError(f"unknown model {unknown[0]}", path=place)
        if set(info.properties) != scores:  # another name could replace a column that the specification decides
            raise DamagedZooError(
                f"found the scores {sorted(info.properties)!s:.400}, expected {sorted(scores)}", path=place
            )
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
        for name in schema.names:
            if name in Hyperparameters.model_fields:
                values[name] = [getattr(model.hyperparameters, name) for model in of_rows]
            elif name not in values:
                raise DamagedZooError(f"has no {name}", path=place)
        try:
            parts.append(pa.table({name: values[name] for name in schema.names}, schema))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DamagedZooError(f"its scores are not those of a zoo ({error})", path=place) from error
    return pa.concat_tables(parts)


def split_files(schema: Schema, split: str, count: int) -> dict[str, range]:
    """Return the tables of a split by name, with the range of its rows that each contains.

    This is part of the format: the number of checkpoints, ``count``, and the layers alone decide which tables there
    must be.
    """
    if not count:
        return {}
    step = max(rows_per_group(schema), FILE_BYTES // _row_bytes(schema))
    pieces = -(-count // step)
    return {metadata_name(split): range(count)} | {
        f"data/{split}-{number:05d}-of-{pieces:05d}.parquet": range(number * step, min(count, (number + 1) * step))
        for number in range(pieces)
    }


def rows_per_group(schema: Schema) -> int:
    """Return the number of checkpoints in a row group of a table with weights; the last row group may have fewer."""
    return max(1, ROW_GROUP_BYTES // _row_bytes(schema))


def _row_bytes(schema: Schema) -> int:
    return 4 * schema.size + 200


def metadata_name(split: str) -> str:
    """Return the name of the table that has the metadata of a split."""
    return f"metadata/{split}-00000-of-00001.parquet"


def weights_schema(metadata: pa.Schema, schema: Schema) -> pa.Schema:
    """Return the metadata columns with the flat ``weights`` at the end."""
    return metadata.append(pa.field("weights", pa.list_(pa.float32(), schema.size)))


def check_scores(table: pa.Table, classes: int) -> None:
    """Raise ValueError for missing values, losses that are not finite, and impossible scores.

    Accuracies and F scores must be in [0, 1], and the generalization gap the difference of two accuracies.
    """
    columns = {name: table[name] for name in table.column_names}
    f1 = columns["test_f1"]
    if table.num_rows and pc.min_max(pc.list_value_length(f1)).as_py() != {"min": classes, "max": classes}:
        raise ValueError(f"test_f1: expected one score for each of {classes} classes")
    columns["test_f1"] = pc.list_flatten(f1)
    for name, column in columns.items():
        if column.null_count:
            raise ValueError(f"{name}: has missing values")
        if not pa.types.is_floating(column.type) or not len(column):
            continue
        bounds = pc.min_max(column).as_py()
        low, high = (0, 1) if name.endswith(("_accuracy", "_f1")) else (-math.inf, math.inf)
        finite = pc.all(pc.is_finite(column)).as_py()
        if not finite or bounds["min"] < low or bounds["max"] > high:
            raise ValueError(f"{name}: found values from {bounds['min']} to {bounds['max']}")
    gap = pc.subtract(table["train_accuracy"], table["test_accuracy"])
    if table.num_rows and pc.max(pc.abs(pc.subtract(gap, table["generalization_gap"]))).as_py() > 1e-12:
        raise ValueError("generalization_gap: is not train_accuracy - test_accuracy")


def check_properties(table: pa.Table, classes: int) -> None:
    """Raise ValueError for values that the metadata of an imported zoo cannot have.

    Identity, split and status are complete; a property may be unknown (null), but is finite where it is known. A list
    has at most one element for each of the ``classes``; splits and texts are those of a zoo.
    """
    for name in table.column_names:
        column = table[name]
        if name in OWN_COLUMNS and column.null_count:
            raise ValueError(f"{name}: has missing values")
        if pa.types.is_list(column.type):
            lengths = pc.min_max(pc.list_value_length(column)).as_py()
            if lengths["max"] is not None and not 1 <= lengths["min"] <= lengths["max"] <= classes:
                raise ValueError(f"{name}: found lists of up to {lengths['max']} numbers; expected 1 to {classes}")
            column = pc.list_flatten(column)
            if column.null_count:
                raise ValueError(f"{name}: has missing values")
        if pa.types.is_floating(column.type) and len(column) > column.null_count:
            bounds = pc.min_max(column).as_py()
            low, high = (0, 1) if name.endswith("_accuracy") else (-math.inf, math.inf)
            if bounds["min"] < low or bounds["max"] > high or not pc.all(pc.is_finite(column)).as_py():
                raise ValueError(f"{name}: found values from {bounds['min']} to {bounds['max']}")
        if pa.types.is_string(column.type) and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_TEXT:
            raise ValueError(f"{name}: a text has more than {MAX_TEXT} bytes")
    if not pc.all(pc.is_in(table["split"], pa.array(SPLITS))).as_py() and table.num_rows:
        raise ValueError(f"split: expected {', '.join(SPLITS)}")


def huggingface_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the columns in the form in which a data set card declares features."""
    names = {
        pa.string(): "string",
        pa.int64(): "int64",
        pa.int32(): "int32",
        pa.float64(): "float64",
        pa.bool_(): "bool",
    }
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
    """Return minimum, quartiles and maximum of the test accuracy at up to six epochs, without diverged models.

    Empty for the table of an imported zoo without test accuracies.
    """
    return {epoch: values.round(4).tolist() for epoch, values in _accuracy_quantiles(table).items()}


def is_accuracy_summary(summary: Mapping[str, list[float]], table: pa.Table) -> bool:
    """Whether a summary is that of `accuracy_summary`, up to the rounding, which depends on the version of numpy."""
    exact = _accuracy_quantiles(table)
    return summary.keys() == exact.keys() and all(
        np.allclose(summary[epoch], values, rtol=0, atol=0.5e-4 + 1e-9) for epoch, values in exact.items()
    )


def _accuracy_quantiles(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    if "test_accuracy" not in table.column_names or not pa.types.is_floating(table["test_accuracy"].type):
        return {}
    good = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["test_accuracy"])))
    epochs = np.unique(good["epoch"].to_numpy())
    chosen = epochs[np.unique(np.linspace(0, len(epochs) - 1, 6).round().astype(int))] if len(epochs) else epochs
    return {
        str(epoch): np.quantile(
            good.filter(pc.equal(good["epoch"], epoch))["test_accuracy"].to_numpy(), [0, 0.25, 0.5, 0.75, 1]
        )
        for epoch in chosen.tolist()
    }
