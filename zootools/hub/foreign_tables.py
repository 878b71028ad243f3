"""Parquet files of a population of another tool: reading one within a limit of memory, and joining several.

The memory that a file takes is computed from the headers of its pages before anything is unpacked, so a small file
cannot take all memory.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.arrow_types import is_number
from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import open_regular
from zootools.hub.foreign_columns import (
    IDENTITY,
    IDENTITY_VALUES,
    Column,
    UnfitError,
    cast_column,
    leaves_of,
    narrowed,
    property_columns,
    property_values,
    weight_values,
    weights_column,
)
from zootools.hub.foreign_memory import Memory
from zootools.memory import available_memory, gigabytes
from zootools.storage.parquet_guard import DELTA_LENGTHS, PREFIXES, ColumnPages, column_pages

MAX_ROWS = 10_000_000
BATCH_BYTES = 64 << 20
BATCH_ROWS = 1 << 16
READ_BYTES = 8 << 20


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; errors inside the block become errors of zootools that name the file.

    Raises DamagedZooError for a file that cannot be read, SpecError where memory does not suffice.
    """
    try:
        with open_regular(path) as file:
            yield file
    except MemoryError as error:
        raise SpecError(f"{path}: does not fit into memory; {gigabytes(available_memory())} are free") from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DamagedZooError(f"{path}: cannot be read ({reason})") from error


@dataclass
class Part:
    """The content of one file: a row is a checkpoint."""

    path: Path
    names: list[str]
    """The names of all columns of the file."""
    identity: dict[str, pa.ChunkedArray]
    """The columns of `IDENTITY` that the file has: model_id (string), epoch (int32), split (string); without nulls."""
    properties: dict[str, pa.ChunkedArray]
    """The properties, with types that `property_type` returns."""
    left_out: dict[str, str]
    """The columns that were not read, and why."""
    weights_name: str
    weights: npt.NDArray[np.float32]
    """float32 ``[rows, parameters]``."""


@dataclass(frozen=True)
class FileLayout:
    """The columns that are read from one file, and their pages."""

    path: Path
    rows: int
    schema: Schema
    weights: Column
    columns: Sequence[Column]
    """The columns that are read besides the weights."""
    pages: Sequence[ColumnPages]
    """The pages of every column of Parquet (`Column.leaf`)."""
    names: list[str]
    """The names of all columns of the file."""
    left_out: dict[str, str]
    """The columns that are not read, and why."""

    @property
    def order(self) -> list[Column]:
        """All columns that are read, in the order of the file."""
        return sorted([self.weights, *self.columns], key=lambda column: column.index)

    @property
    def texts(self) -> list[Column]:
        """The columns that are read as texts."""
        return [column for column in self.columns if column.kind == pa.string()]


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    with opened(path) as file:
        return list(pq.ParquetFile(file).schema_arrow.names)


def read_part(path: Path, schema: Schema, memory: Memory) -> Part | None:
    """Read one file; return None for a file without rows.

    Raises SpecError for a file that does not fit the schema or ``memory``, or whose identity columns cannot be used;
    DamagedZooError for a file that cannot be read, or whose content contradicts its footer.
    """
    with opened(path) as file:
        layout = file_layout(path, file, schema)
        if layout is None:
            return None
        memory.take(path, checked_size(layout))
        left_out = layout.left_out
        flat, arrays = _read(file, layout, left_out, memory)
    properties = {name: narrowed(pa.chunked_array(chunks)) for name, chunks in arrays.items()}
    for wanted in IDENTITY:
        if wanted in left_out:
            raise SpecError(f"{path}: the column {wanted} cannot be used: {left_out[wanted]}")
    identity = {name: IDENTITY_VALUES[name](path, properties.pop(name)) for name in IDENTITY if name in properties}
    return Part(path, layout.names, identity, properties, left_out, layout.weights.name, flat)


def file_layout(path: Path, file: BufferedReader, schema: Schema) -> FileLayout | None:
    """Return the columns of an open file that are read; None for a file without rows.

    Raises SpecError for a file that does not fit the schema, ValueError for one whose pages contradict its footer.
    """
    parquet = pq.ParquetFile(file)
    rows, fields = parquet.metadata.num_rows, parquet.schema_arrow
    if not rows:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages = column_pages(data)
    if rows > MAX_ROWS:
        raise SpecError(f"{path}: {rows} rows, more than the {MAX_ROWS} that a file may have")
    leaves = leaves_of(fields)
    if leaves[-1] != parquet.metadata.num_columns or len(pages) != leaves[-1]:
        raise ValueError(f"its {len(pages)} columns are not those of its schema")
    name = weights_column(path, fields, schema)
    number = fields.names.index(name)
    weights = Column(number, name, fields.types[number], leaves[number])
    columns, left_out = property_columns(fields, leaves, name)
    for column in columns:
        if pa.types.is_list(column.kind) and pages[column.leaf].values > rows * column.most_values(schema):
            left_out[column.name] = f"lists of more than {schema.classes} numbers, one for each output of the network"
    columns = [column for column in columns if column.name not in left_out]
    return FileLayout(path, rows, schema, weights, columns, pages, fields.names, left_out)


def checked_size(layout: FileLayout) -> int:
    """Compare the values in the pages with the number that the rows need; return the bytes that all of them take.

    Raises DamagedZooError, SpecError or ValueError for pages with more values or bytes.
    """
    path, rows, pages = layout.path, layout.rows, layout.pages
    for column in layout.columns:
        held, most = pages[column.leaf], rows * column.most_values(layout.schema)
        if held.values > most:
            raise DamagedZooError(f"{path}: has more than the {rows} rows that it claims")
        if column.kind != pa.string() and held.exceeds(most):
            raise ValueError(f"the {most} values of {column.name!r} take {held.unpacked} bytes")
    name, size = layout.weights.name, layout.schema.size
    held, needed = pages[layout.weights.leaf], rows * size
    if held.values > needed:
        raise SpecError(
            f"{path}: the lists in {name} do not all have {size} values, as the schema wants: "
            f"found {held.values} in {rows} rows"
        )
    if held.exceeds(needed):
        raise ValueError(f"the {needed} values of {name!r} take {held.unpacked} bytes")
    numbers = 8 * sum(rows * c.most_values(layout.schema) for c in layout.columns if c.kind != pa.string())
    return 4 * needed + numbers + sum(pages[column.leaf].unpacked for column in layout.texts)


def _read(
    file: BufferedReader, layout: FileLayout, left_out: dict[str, str], memory: Memory
) -> tuple[npt.NDArray[np.float32], dict[str, list[pa.Array]]]:
    """Return the weights ``[rows, parameters]``, and the chunks of the properties by name.

    A column with a value that does not fit its type is left out, and ``left_out`` gets the reason.
    """
    path, rows, schema = layout.path, layout.rows, layout.schema
    flat = np.empty((rows, schema.size), np.float32)
    arrays: dict[str, list[pa.Array]] = {column.name: [] for column in layout.columns}
    position = 0
    order = layout.order
    for batch in batches(file, layout):
        if position + len(batch) > rows:
            raise DamagedZooError(f"{path}: has more than the {rows} rows that it claims")
        for column, array in zip(order, batch.columns, strict=True):
            if column is layout.weights:
                flat[position : position + len(batch)] = weight_values(path, column.name, array, schema, position)
            elif column.name in arrays:
                try:
                    arrays[column.name].append(property_values(array, column.kind, path, memory))
                except UnfitError as error:
                    left_out[column.name] = str(error)
                    del arrays[column.name]
        position += len(batch)
    if position != rows:
        raise DamagedZooError(f"{path}: has {position} rows, and claims {rows}")
    return flat, arrays


def batches(file: BufferedReader, layout: FileLayout, groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows of the columns of a layout, in its order; the checksums of pages are verified.

    ``groups`` are the row groups that are read, all by default. A batch has at most `BATCH_BYTES` of weights.
    """
    # Texts are read as dictionaries, so that a text of many rows is not copied to each. pyarrow cannot do so with
    # delta encodings; of these only few rows are read at once.
    deltas = {DELTA_LENGTHS, PREFIXES}
    with_deltas = [column for column in layout.texts if layout.pages[column.leaf].encodings & deltas]
    longest = max((layout.pages[column.leaf].longest for column in with_deltas), default=1)
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    shared = [parquet.schema.column(text.leaf).path for text in layout.texts if text not in with_deltas]
    # With a buffer a column is read piece by piece; without one a whole row group of it would be in memory.
    parquet = pq.ParquetFile(file, read_dictionary=shared, page_checksum_verification=True, buffer_size=READ_BYTES)
    return iter(
        parquet.reader.iter_batches(
            max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * layout.schema.size), BATCH_BYTES // max(1, longest))),
            row_groups=range(parquet.metadata.num_row_groups) if groups is None else groups,
            column_indices=[column.leaf for column in layout.order],
            use_threads=True,
        )
    )


# --- files together -----------------------------------------------------------------------------------


def joined(parts: Sequence[Part]) -> tuple[dict[str, pa.ChunkedArray], dict[str, str]]:
    """Return the properties of all files, concatenated, and the columns that are left out, with the reason.

    The columns may be in any order. Numbers of different types get a type that holds all of them exactly. Raises
    SpecError for files with different columns.
    """
    first = parts[0]
    for part in parts[1:]:
        _check_same_columns(first, part)
    left_out = {name: reason for part in parts for name, reason in part.left_out.items()}
    columns = {}
    for name in first.properties:
        if name in left_out:
            continue
        kind = _common(name, parts)
        if pa.types.is_null(kind):
            left_out[name] = "no row has a value"
            continue
        chunks = [chunk for part in parts for chunk in _as_common(name, part, kind).chunks]
        columns[name] = pa.chunked_array(chunks, kind)
    return columns, left_out


def _check_same_columns(first: Part, other: Part) -> None:
    """Raise SpecError for a column that only one of two files has, but for split, which may be in the file's name."""
    for here, there in ((first, other), (other, first)):
        missing = [name for name in here.names if name not in there.names and name not in ("split", here.weights_name)]
        if missing:
            raise SpecError(f"{there.path}: has no column {missing[0]!r}, which {here.path} has")
    if first.weights_name != other.weights_name:
        raise SpecError(
            f"{other.path}: its weights are in {other.weights_name!r}, those of {first.path} in {first.weights_name!r}"
        )


def _common(name: str, parts: Sequence[Part]) -> pa.DataType:
    """Return the type of a property in all files together. Raises SpecError where there is none."""
    kinds = {part.properties[name].type: part for part in parts}
    kinds.pop(pa.null(), None)
    if not kinds:
        return pa.null()
    if len(kinds) == 1:
        return next(iter(kinds))
    if all(pa.types.is_integer(kind) for kind in kinds):
        return pa.uint64()
    if all(map(is_number, kinds)):
        return pa.float64()
    (a, here), (b, there) = list(kinds.items())[:2]
    raise SpecError(f"{there.path}: the column {name!r} holds {b} values, and {a} values in {here.path}")


def _as_common(name: str, part: Part, kind: pa.DataType) -> pa.ChunkedArray:
    return cast_column(
        part.path, repr(name), part.properties[name], kind, f"what fits into {kind}, as in the other files"
    )
