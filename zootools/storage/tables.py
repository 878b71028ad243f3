"""The metadata of a zoo as Arrow tables, and the Parquet files that `datasets.load_dataset` reads."""

import math
import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.spec import Hyperparameters, ZooSpec
from zootools.spec.model_configs import ModelConfig
from zootools.storage.build_state import ZooFolder
from zootools.storage.parquet_guard import OWN_ENCODINGS, check_pages, column_pages
from zootools.storage.shards import ShardInfo, gather_weights, shard_name
from zootools.storage.verified_files import FileInfo, VerifiedFiles, file_info

SPLITS = ("train", "validation", "test")
ROW_GROUP_BYTES = 40 << 20
FILE_BYTES = 500 << 20
GROUP_ROWS = 1 << 20
"""Rows of metadata in one row group, about 60 MB in a file."""
ROW_BYTES = 10_000
"""No row of metadata takes more in a file than this."""
MAX_STRING = 100
MAX_FOOTER = 1 << 20
"""Bytes of a footer that are parsed; a file has about a dozen row groups, each of which takes a few kilobytes there."""
_CATEGORICAL = ("activation", "init", "optimizer")
_SCORES = (
    *(f"{images}_{score}" for images in SPLITS for score in ("loss", "accuracy")),
    "generalization_gap",
    "test_f1",
)
"""The columns that come from the shards."""


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
    stopped: Collection[str],
) -> pa.Table:
    """Return one row per checkpoint, in the order of ``shards`` (stack number, info) and of their rows.

    Raises DamagedZooError for models that are not the specification's, and for scores that are not those of a shard.
    """
    schema = metadata_schema(spec)
    parts = [schema.empty_table()]
    scores = {name for name in schema.names if name in _SCORES}
    for stack, info in shards:
        place = shard_name(stack, info.epoch)
        unknown = [model for model in info.model_ids if model not in models]
        if unknown:
            raise DamagedZooError(f"unknown model {unknown[0]}", path=place)
        if set(info.properties) != scores:  # one of another name would take the place of what the specification says
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


def write_parquet(zoo: ZooFolder, shards: VerifiedFiles, schema: Schema, table: pa.Table) -> dict[str, FileInfo]:
    """Write both configurations of the data set, split by split; return size and sha256 of each file by name.

    ``metadata`` holds the table, ``checkpoints`` the same rows with the flat weights as a fixed-size list. A split
    without rows gets no file: one empty Parquet file makes ``load_dataset`` fail for all of them.
    Beside the table, and one split of it, memory stays at a few row groups, whatever the size of the zoo.
    """
    files: dict[str, FileInfo] = {}
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        for name, rows in split_files(schema, split, part.num_rows).items():
            group = part.slice(rows.start, len(rows))
            if name == metadata_name(split):
                files[name] = _write(zoo, name, part.schema, _groups(group, GROUP_ROWS))
            else:
                groups = _with_weights(shards, schema, group, rows_per_group(schema))
                files[name] = _write(zoo, name, weights_schema(part.schema, schema), groups)
    return files


def split_files(schema: Schema, split: str, count: int) -> dict[str, range]:
    """Return the tables of a split by name, given its number of checkpoints, and which of its rows each contains.

    The rows of a zoo alone decide it, so a reader knows which tables there must be; it is part of the format.
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
    """Return how many checkpoints a row group of a table with weights has; the last one of a file may have fewer."""
    return max(1, ROW_GROUP_BYTES // _row_bytes(schema))


def _row_bytes(schema: Schema) -> int:
    return 4 * schema.size + 200


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


def _with_weights(shards: VerifiedFiles, schema: Schema, table: pa.Table, rows_per_group: int) -> Iterator[pa.Table]:
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


def read_metadata(files: VerifiedFiles, spec: ZooSpec, rows: Mapping[str, int], classes: int) -> pa.Table:
    """Return the metadata of all splits, in the order of the shards and of their rows.

    ``rows`` says how many there are in each split. Nothing that a stranger may have put into the Parquet files
    costs more memory than so many rows do. Raises DamagedZooError for anything but the columns that the
    specification makes, with scores that are scores, split by split in the order of the shards.
    """
    expected = metadata_schema(spec)
    tables = [
        _read_split(files, expected, split, count, classes)
        for split, count in rows.items()
        if count or metadata_name(split) in files.files
    ]
    metadata = pa.concat_tables(tables) if tables else expected.empty_table()
    return metadata.sort_by([("stack", "ascending"), ("epoch", "ascending"), ("row", "ascending")])


def _read_split(files: VerifiedFiles, expected: pa.Schema, split: str, count: int, classes: int) -> pa.Table:
    name = metadata_name(split)
    path = files.folder / name
    data = files.read(name, limit=ROW_BYTES * count + (1 << 20))
    try:
        _check_footer(data, expected, count, -(-count // GROUP_ROWS))
        check_pages(data, values=count * classes)
        with _opened(data, expected) as parquet:
            table = _plain(parquet.read(), expected)
            check_scores(table, classes)
            _check_order(table, split)
            for group in range(parquet.num_row_groups):
                _check_statistics(parquet.metadata, group, table.slice(group * GROUP_ROWS, GROUP_ROWS))
    except (OSError, pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise DamagedZooError(_refusal(error), path=path) from error
    return table


def data_fault(files: VerifiedFiles, schema: Schema, name: str, rows: pa.Table, group: int) -> str | None:
    """Compare one row group of a table with weights with the shards; return what is wrong with it in words, or None.

    Args:
        files: the zoo's files.
        schema: the layers of every model.
        name: of the table.
        rows: the metadata of all its rows, as it must be.
        group: the number of the row group.

    The expected rows are made as `write_parquet` makes them, and compared by value, to the last bit: the bytes of a
    Parquet file also depend on the version of the library that wrote it. Memory stays at a few row groups.
    """
    step = rows_per_group(schema)
    (expected,) = _with_weights(files, schema, rows.slice(group * step, step), step)
    try:
        with files.open(name) as file:
            if os.fstat(file.fileno()).st_size < len(b"PAR1....PAR1"):
                raise ValueError("is not a Parquet file")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_footer(data, expected.schema, rows.num_rows, -(-rows.num_rows // step))
        pages = column_pages(data, OWN_ENCODINGS, group)
        for column, found_pages in zip(expected.column_names, pages, strict=True):
            if found_pages.unpacked > 2 * expected[column].nbytes + (1 << 20):
                raise ValueError(
                    f"the column {column} unpacks to {found_pages.unpacked} bytes, {found_pages.values} values"
                )
        with _opened(data, expected.schema) as parquet:
            found = _plain(parquet.read_row_group(group, use_threads=False), expected.schema)
            if found.num_rows != expected.num_rows:
                raise ValueError(f"row group {group} has {found.num_rows} rows, expected {expected.num_rows}")
            for column in expected.column_names:
                if not same_values(found[column], expected[column]):
                    return f"the column {column} is not what the shards and spec.yaml say (row group {group})"
            _check_statistics(parquet.metadata, group, expected)
    except (OSError, pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        return _refusal(error)
    return None


def _refusal(error: Exception) -> str:
    """Say why a table is refused: in the words of this module, or in those of the library that could not read it."""
    return str(error) if type(error) is ValueError else f"cannot be read ({error!s:.400})"


def same_values(first: pa.ChunkedArray, second: pa.ChunkedArray) -> bool:
    """Whether two columns of one type hold the same values in the same order, floats to the last bit."""
    if first.null_count or second.null_count or len(first) != len(second):
        return False
    if not pa.types.is_fixed_size_list(first.type) and not first.equals(second):
        return False
    one, two = _flat(first), _flat(second)
    if not pa.types.is_floating(one.type):
        return True  # `equals` has compared them
    bits = pa.uint32() if one.type == pa.float32() else pa.uint64()
    return one.type == two.type and bool(np.array_equal(one.view(bits).to_numpy(), two.view(bits).to_numpy()))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Return the values of a column, or of its lists, as one array; not copied if they are in one already."""
    listed = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    chunks = [chunk.flatten() if listed else chunk for chunk in column.chunks]
    if not chunks:
        return pa.array([], column.type.value_type if listed else column.type)
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _opened(data: bytes | mmap.mmap, expected: pa.Schema) -> pq.ParquetFile:
    """Open a Parquet file that has been checked.

    Strings are read as dictionaries: a long one that many rows repeat must not be copied to each of them.
    """
    strings = [field.name for field in expected if pa.types.is_string(field.type)]
    return pq.ParquetFile(pa.BufferReader(data), read_dictionary=strings, page_checksum_verification=True)


def _check_footer(data: bytes | mmap.mmap, expected: pa.Schema, rows: int, groups: int) -> None:
    """Raise ValueError unless a file has these columns, with nothing added to them, rows and row groups."""
    if data[-4:] != b"PAR1":
        raise ValueError("is not a Parquet file")
    if (length := int.from_bytes(data[-8:-4], "little")) > MAX_FOOTER:
        raise ValueError(f"its footer has {length} bytes, more than {MAX_FOOTER}")
    footer = pq.read_metadata(pa.BufferReader(data))
    notes = {*(footer.metadata or {})}
    # Some readers take the types of the format alone, others also those that are noted beside them.
    for columns in (footer.schema.to_arrow_schema(), pq.read_schema(pa.BufferReader(data))):
        if not columns.equals(expected):
            raise ValueError("has other columns than its specification makes")
        notes |= {*(columns.metadata or {}), *(key for field in columns for key in field.metadata or {})}
    if notes - {b"ARROW:schema", b"PARQUET:field_id"}:  # `datasets` would read columns of other types from some
        raise ValueError("has notes in its footer that no builder writes")
    if footer.num_rows != rows:
        raise ValueError(f"has {footer.num_rows} rows, the manifest says {rows}")
    if footer.num_row_groups != groups:
        raise ValueError(f"has {footer.num_row_groups} row groups, expected {groups}")


def _plain(table: pa.Table, expected: pa.Schema) -> pa.Table:
    """Return a table that was just read, with the expected types; ValueError for strings that no builder writes."""
    table.validate(full=True)
    for column in table.columns:
        for dictionary in (chunk.dictionary for chunk in column.chunks if pa.types.is_dictionary(chunk.type)):
            if (pc.max(pc.binary_length(dictionary)).as_py() or 0) > MAX_STRING:
                raise ValueError(f"a string is longer than {MAX_STRING} bytes")
    return table.cast(expected)


def _check_order(table: pa.Table, split: str) -> None:
    """Raise ValueError unless a table holds rows of one split only, ordered by stack, epoch and row."""
    if not pc.all(pc.equal(table["split"], split)).as_py():
        raise ValueError("has rows of another split")
    stack, epoch, row = (table[name].to_numpy().astype(np.int64) for name in ("stack", "epoch", "row"))
    # At most 100,000 stacks and epochs, and 4096 rows; what is beyond does not fit the manifest.
    if (np.diff((stack << 29) + (epoch << 12) + row) <= 0).any():
        raise ValueError("its rows are not in the order of the shards")


def _check_statistics(footer: pq.FileMetaData, group: int, table: pa.Table) -> None:
    """Raise ValueError where the smallest and largest values in a footer exclude rows of a row group.

    Readers skip row groups by them (``load_dataset(filters=...)``). Only a row group that has been read may be asked:
    pyarrow ends the process over some others.
    """
    for number, name in enumerate(table.column_names):
        statistics = footer.row_group(group).column(number).statistics
        if statistics is None:
            continue
        if statistics.null_count:
            raise ValueError(f"the statistics of the column {name} count missing values")
        if statistics.has_min_max:
            values = _flat(table[name])
            if pa.types.is_string(values.type):
                low, high = pc.min_max(values).as_py().values()
            else:
                low, high = values.to_numpy().min(), values.to_numpy().max()
            if not (statistics.min <= low and high <= statistics.max):
                raise ValueError(f"the statistics of the column {name} are not those of its values")


def check_scores(table: pa.Table, classes: int) -> None:
    """Raise ValueError for missing values, losses that are not finite, and scores that cannot be.

    Accuracies and F scores lie in [0, 1], and the gap is the difference of two accuracies.
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
    return {epoch: values.round(4).tolist() for epoch, values in _accuracy_quantiles(table).items()}


def is_accuracy_summary(summary: Mapping[str, list[float]], table: pa.Table) -> bool:
    """Whether these are the values of `accuracy_summary`, whichever version of numpy has computed and rounded them."""
    exact = _accuracy_quantiles(table)
    return summary.keys() == exact.keys() and all(
        np.allclose(summary[epoch], values, rtol=0, atol=0.5e-4 + 1e-9) for epoch, values in exact.items()
    )


def _accuracy_quantiles(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    good = table.filter(pc.equal(table["status"], "ok"))
    epochs = np.unique(good["epoch"].to_numpy())
    chosen = epochs[np.unique(np.linspace(0, len(epochs) - 1, 6).round().astype(int))] if len(epochs) else epochs
    return {
        str(epoch): np.quantile(
            good.filter(pc.equal(good["epoch"], epoch))["test_accuracy"].to_numpy(), [0, 0.25, 0.5, 0.75, 1]
        )
        for epoch in chosen.tolist()
    }
