"""One Parquet file of a population of others: which columns are read and as what, and what that may cost.

Every Arrow type has a decision (`property_type`): it is read, or left out with a reason. What a file will take is
computed from the headers of its pages before anything is unpacked, so a small file cannot take all memory. An
extension type is read as what it is stored as; the class that somebody may have registered for it is not called.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.inside import open_inside
from zootools.memory import available_memory, gigabytes
from zootools.storage.parquet_guard import DELTA_LENGTHS, PREFIXES, ColumnPages, column_pages
from zootools.storage.tables import SPLITS

MAX_ROWS = 10_000_000
MAX_BYTES = 16 << 30
"""Memory that weights and properties may take, all files together."""
MAX_REPEATS, SMALL_FILE = 1000, 256 << 20
"""Files may unpack to a multiple of their size, and bytes besides; beyond it their content only repeats itself."""
MAX_TEXT = 10_000
"""Bytes of a text that is a property."""
BATCH_BYTES = 64 << 20
BATCH_ROWS = 1 << 16

IDENTITY = ("model_id", "epoch", "split")
"""Columns that are used as what they are called."""
_COMPUTED = ("status", "stack", "row")
"""Columns that a zoo has anyway, computed here."""

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LEFT_OUT: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_temporal, "a date, time or duration"),
    (pa.types.is_nested, "nested"),
    (pa.types.is_binary, "binary"),
    (pa.types.is_large_binary, "binary"),
    (pa.types.is_binary_view, "binary"),
    (pa.types.is_fixed_size_binary, "binary"),
)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return what an extension type is stored as, and any other type as it is."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def property_type(kind: pa.DataType) -> pa.DataType | str:
    """Return as which type a property of an Arrow type is read, or why it is left out.

    Booleans stay. Whole numbers become int64, or uint64 where they need it, and stay exact; a float16 becomes a
    float32; a decimal number becomes the nearest float64, or an int64 where it has no digits after the point. Texts
    become strings, categories (dictionaries) their values. A column without any value has the type null.
    """
    kind = stored_type(kind)
    if pa.types.is_dictionary(kind):
        return property_type(kind.value_type)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind) or pa.types.is_uint64(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64() if kind.bit_width == 64 else pa.float32()
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if any(is_it(kind) for is_it in _TEXTS):
        return pa.string()
    return next((f"{words} ({kind})"[:80] for is_it, words in _LEFT_OUT if is_it(kind)), f"of the type {kind}"[:80])


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file, without waiting for a pipe; errors become refusals that name it.

    Raises DamagedZooError for a file that cannot be read, SpecError where memory does not suffice.
    """
    real = Path(os.path.realpath(path))
    try:
        with open_inside(real.parent, real.name) as file:
            yield file
    except MemoryError as error:
        raise SpecError(f"{path}: does not fit into memory; {gigabytes(available_memory())} are free") from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DamagedZooError(f"{path}: cannot be read ({reason})") from error


class Memory:
    """How much memory the files of a population may still take."""

    def __init__(self, stored: int) -> None:
        """Take the size of the files, in bytes."""
        free, repeats = available_memory(), SMALL_FILE + MAX_REPEATS * stored
        self.left = min(MAX_BYTES, free, repeats)
        self.error: type[DamagedZooError | SpecError] = SpecError
        if self.left == repeats:
            self.error, self.why = DamagedZooError, f"is the most that files of {stored} bytes may take"
        else:
            self.why = "is free" if self.left == free else "is the most that a population of others may take"
        self.limit = self.left

    def take(self, path: Path, size: int) -> None:
        """Count what a file takes. Raises SpecError, or DamagedZooError where a small file only repeats itself."""
        if size > self.left:
            there = "" if self.left == self.limit else f" ({gigabytes(self.limit - self.left)} are taken already)"
            raise self.error(
                f"{path}: would take {gigabytes(size)} of memory; {gigabytes(self.limit)} {self.why}{there}"
            )
        self.left -= size


@dataclass
class Part:
    """What was read of one file: a row is a checkpoint."""

    path: Path
    names: list[str]
    """All columns of the file."""
    identity: dict[str, pa.ChunkedArray]
    """Those of `IDENTITY` that the file has: texts, int32, one of the splits; without nulls."""
    properties: dict[str, pa.ChunkedArray]
    """Of the types that `property_type` returns."""
    left_out: dict[str, str]
    """Columns that were not read, and why."""
    weights_name: str
    weights: npt.NDArray[np.float32]
    """``[rows, parameters]``"""


@dataclass
class _Column:
    """A column of a file that is read."""

    index: int
    """Among the fields of the file."""
    name: str
    kind: pa.DataType
    """As what it is read."""
    leaf: int
    """Its number among the columns of Parquet."""


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    with opened(path) as file:
        return list(pq.ParquetFile(file).schema_arrow.names)


def read_part(path: Path, schema: Schema, memory: Memory) -> Part | None:
    """Read one file; None for a file without rows.

    Raises SpecError for a file that does not fit the schema, or whose identity columns cannot be used, and
    DamagedZooError for one that is not as it claims.
    """
    with opened(path) as file:
        parquet = pq.ParquetFile(file)
        rows, fields = parquet.metadata.num_rows, parquet.schema_arrow
        if not rows:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pages = column_pages(data)
        if rows > MAX_ROWS:
            raise SpecError(f"{path}: {rows} rows, more than the {MAX_ROWS} that a file may have")
        leaves = _leaves(fields)
        if leaves[-1] != parquet.metadata.num_columns or len(pages) != leaves[-1]:
            raise ValueError(f"its {len(pages)} columns are not those of its schema")
        name = _weights_column(path, fields, schema)
        number = fields.names.index(name)
        weights = _Column(number, name, fields.types[number], leaves[number])
        columns, left_out = _columns(fields, leaves, name)
        _check_pages(path, rows, schema, weights, columns, pages, memory)
        flat, arrays = _read(file, path, rows, schema, weights, columns, pages, left_out, memory)
    properties = {name: _narrowed(pa.chunked_array(chunks)) for name, chunks in arrays.items()}
    for wanted in IDENTITY:
        if wanted in left_out:
            raise SpecError(f"{path}: the column {wanted} cannot be used: {left_out[wanted]}")
    identity = {name: _USE[name](path, properties.pop(name)) for name in IDENTITY if name in properties}
    return Part(path, fields.names, identity, properties, left_out, name, flat)


# --- which columns ------------------------------------------------------------------------------------


def _leaves(fields: pa.Schema) -> list[int]:
    """Return which column of Parquet each field begins with, and at the end how many there are."""

    def count(kind: pa.DataType) -> int:
        kind = stored_type(kind)
        return sum(count(kind.field(i).type) for i in range(kind.num_fields)) if pa.types.is_nested(kind) else 1

    return [0, *np.cumsum([count(kind) for kind in fields.types], dtype=int).tolist()]


def _weights_column(path: Path, fields: pa.Schema, schema: Schema) -> str:
    """Return the name of the column with the weights: ``weights``, or else the only list of floats that long."""
    kinds = {name: stored_type(kind) for name, kind in zip(fields.names, fields.types, strict=True)}
    fixed = {name: kind.list_size for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)}
    fitting = [n for n, kind in kinds.items() if _is_float_list(kind) and fixed.get(n, schema.size) == schema.size]
    if "weights" in kinds:
        if not _is_float_list(kinds["weights"]):
            raise SpecError(f"{path}: the column weights is {str(kinds['weights'])[:80]}; expected lists of floats")
        fitting = ["weights"]
    if len(fitting) != 1:
        lists = [name for name, kind in kinds.items() if _is_float_list(kind)]
        raise SpecError(
            f"{path}: expected a column named weights, or one list of {schema.size} floats; "
            f"found the lists {sorted(lists)} among {fields.names}"
        )
    if fields.names.count(fitting[0]) > 1:
        raise SpecError(f"{path}: the column {fitting[0]} with the weights occurs twice")
    if fixed.get(fitting[0], schema.size) != schema.size:
        raise SpecError(
            f"{path}: the lists in {fitting[0]} have {fixed[fitting[0]]} values, "
            f"the schema has {schema.size} parameters"
        )
    return fitting[0]


def _is_float_list(kind: pa.DataType) -> bool:
    lists = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_it(kind) for is_it in lists) and pa.types.is_floating(kind.value_type)


def _columns(fields: pa.Schema, leaves: list[int], weights: str) -> tuple[list[_Column], dict[str, str]]:
    """Return the columns that are read beside the weights, and why the others are not."""
    columns, left_out = [], {}
    for index, (name, kind) in enumerate(zip(fields.names, fields.types, strict=True)):
        read_as = property_type(kind)
        if name == weights:
            continue
        if fields.names.count(name) > 1:
            left_out[name] = "occurs twice"
        elif name in _COMPUTED:
            left_out[name] = "every zoo has a column of this name, which is computed"
        elif isinstance(read_as, str):
            left_out[name] = read_as
        else:
            columns.append(_Column(index, name, read_as, leaves[index]))
    return columns, left_out


# --- what it costs ------------------------------------------------------------------------------------


def _check_pages(
    path: Path,
    rows: int,
    schema: Schema,
    weights: _Column,
    columns: Sequence[_Column],
    pages: Sequence[ColumnPages],
    memory: Memory,
) -> None:
    """Compare what the pages of the columns contain with what the rows need, and count the memory they will take."""
    for column in columns:
        held = pages[column.leaf]
        if held.values > rows:
            raise DamagedZooError(f"{path}: has more than the {rows} rows that it claims")
        if column.kind != pa.string() and held.exceeds(rows):
            raise ValueError(f"the {rows} values of {column.name!r} take {held.unpacked} bytes")
    held, needed = pages[weights.leaf], rows * schema.size
    if held.values > needed:
        raise SpecError(
            f"{path}: the lists in {weights.name} do not all have {schema.size} values, as the schema wants: "
            f"found {held.values} in {rows} rows"
        )
    if held.exceeds(needed):
        raise ValueError(f"the {needed} values of {weights.name!r} take {held.unpacked} bytes")
    numbers = sum(8 * rows for column in columns if column.kind != pa.string())
    texts = sum(pages[column.leaf].unpacked for column in columns if column.kind == pa.string())
    memory.take(path, 4 * needed + numbers + texts)


# --- reading ------------------------------------------------------------------------------------------


def _read(
    file: BufferedReader,
    path: Path,
    rows: int,
    schema: Schema,
    weights: _Column,
    columns: Sequence[_Column],
    pages: Sequence[ColumnPages],
    left_out: dict[str, str],
    memory: Memory,
) -> tuple[npt.NDArray[np.float32], dict[str, list[pa.Array]]]:
    """Return the weights, and the properties by name in pieces; add to `left_out` what turns out not to be one."""
    texts = [pages[column.leaf] for column in columns if column.kind == pa.string()]
    # A text that many rows share is read as a dictionary, not copied to each; pyarrow cannot do so with deltas, of
    # which few rows are read at once.
    deltas = {DELTA_LENGTHS, PREFIXES}
    longest = max((held.longest for held in texts if held.encodings & deltas), default=1)
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    shared = [
        parquet.schema.column(column.leaf).path
        for column in columns
        if column.kind == pa.string() and not pages[column.leaf].encodings & deltas
    ]
    order = sorted([weights, *columns], key=lambda column: column.index)
    parquet = pq.ParquetFile(file, read_dictionary=shared, page_checksum_verification=True)
    batches = parquet.reader.iter_batches(
        max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * schema.size), BATCH_BYTES // max(1, longest))),
        row_groups=range(parquet.metadata.num_row_groups),
        column_indices=[column.leaf for column in order],
        use_threads=True,
    )
    flat = np.empty((rows, schema.size), np.float32)
    arrays: dict[str, list[pa.Array]] = {column.name: [] for column in columns}
    position = 0
    for batch in batches:
        if position + len(batch) > rows:
            raise DamagedZooError(f"{path}: has more than the {rows} rows that it claims")
        for column, array in zip(order, batch.columns, strict=True):
            if column is weights:
                flat[position : position + len(batch)] = _values(path, column.name, array, schema, position)
            elif column.name in arrays:
                try:
                    arrays[column.name].append(_property(array, column.kind, path, memory))
                except _UnfitError as error:
                    left_out[column.name] = str(error)
                    del arrays[column.name]
        position += len(batch)
    if position != rows:
        raise DamagedZooError(f"{path}: has {position} rows, and claims {rows}")
    return flat, arrays


class _UnfitError(Exception):
    """A column is left out because of its values."""


def _values(path: Path, name: str, lists: pa.Array, schema: Schema, position: int) -> npt.NDArray[np.floating[Any]]:
    """Return the weights of a batch ``[rows, parameters]``, NaN where one is missing."""
    if isinstance(lists, pa.ExtensionArray):
        lists = lists.storage
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != schema.size)).size:
        found = lengths[wrong[0]] if lengths[wrong[0]] >= 0 else "none"
        raise SpecError(
            f"{path}: the lists in {name} do not all have {schema.size} values, as the schema wants: "
            f"found {found} in row {position + wrong[0]}"
        )
    values: npt.NDArray[np.floating[Any]] = lists.flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and its row one that diverged
        return values.astype(np.float32, copy=False).reshape(-1, schema.size)


def _property(array: pa.Array, kind: pa.DataType, path: Path, memory: Memory) -> pa.Array:
    """Return a piece of a column as the type that it is read as. Raises _UnfitError where it cannot be."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if kind == pa.string():
        _count_texts(array, path, memory)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_decimal(array.type) and pa.types.is_floating(kind):
        array = array.cast(pa.string())  # whose digits become the nearest float64; a direct cast may miss it
    try:
        made = array.cast(kind)
    except pa.ArrowInvalid as error:
        if kind == pa.string():
            raise
        raise _UnfitError(f"a number does not fit into {kind}") from error
    made.validate(full=True)  # a text may not be UTF-8
    return made


def _count_texts(array: pa.Array, path: Path, memory: Memory) -> None:
    """Count the memory that the texts of a piece take, each row by itself."""
    words = array.dictionary if pa.types.is_dictionary(array.type) else array
    if pa.types.is_string_view(words.type):
        words = words.cast(pa.large_string())
    lengths = pc.fill_null(pc.binary_length(words), 0)
    if pa.types.is_dictionary(array.type):
        lengths = pc.fill_null(lengths.take(array.indices), 0)
    longest = pc.max(lengths).as_py() or 0
    if longest > MAX_TEXT:
        raise _UnfitError(f"a text of {longest} bytes; a property has {MAX_TEXT} at most")
    memory.take(path, pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _narrowed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return uint64 as int64 where all values fit."""
    if pa.types.is_uint64(column.type) and (pc.max(column).as_py() or 0) < 1 << 63:
        return column.cast(pa.int64())
    return column


# --- the columns that are used as what they are called --------------------------------------------------


def _model_ids(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids as texts; whole numbers serve too, also as pandas writes them beside missing ones, as floats."""
    _check_present(path, "model_id", column)
    if pa.types.is_boolean(column.type):
        raise SpecError(f"{path}: the column model_id holds truth values; expected texts or whole numbers")
    if pa.types.is_floating(column.type):
        column = _cast(path, "model_id", column, pa.int64(), "a text or a whole number")
    return column.cast(pa.string())


def _epochs(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    _check_present(path, "epoch", column)
    expected = "a whole number from 0 to 2147483647"
    if pa.types.is_boolean(column.type):
        raise SpecError(f"{path}: the column epoch holds truth values; expected {expected}")
    column = _cast(path, "epoch", column, pa.int32(), expected)
    if (negative := pc.index(pc.less(column, 0), True).as_py()) >= 0:
        raise SpecError(f"{path}: the column epoch holds {column[negative]} in row {negative}; expected {expected}")
    return column


def _splits(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    _check_present(path, "split", column)
    expected = f"expected {', '.join(SPLITS)}"
    if not pa.types.is_string(column.type):
        raise SpecError(f"{path}: the column split holds {column.type} values; {expected}")
    known = pc.is_in(column, pa.array(SPLITS))
    if (wrong := pc.index(known, False).as_py()) >= 0:
        raise SpecError(f"{path}: the column split holds {column[wrong].as_py()[:80]!r} in row {wrong}; {expected}")
    return column


_USE = {"model_id": _model_ids, "epoch": _epochs, "split": _splits}


def _check_present(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise SpecError(
            f"{path}: the column {name} has no value (null) in row {row}, counted from 0; every checkpoint needs one"
        )


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: pa.DataType, expected: str) -> pa.ChunkedArray:
    """Return a column as another type. Raises SpecError naming the first row that cannot be."""
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        row = _first(len(column), lambda first, end: _castable(column[first:end], kind))
    found = column[row].as_py()
    raise SpecError(f"{path}: the column {name} cannot be used: found {found!r:.80} in row {row}; expected {expected}")


def _castable(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _first(count: int, fits: Callable[[int, int], bool]) -> int:
    """Return the first row that does not fit; ``fits(first, end)`` says whether a range of rows does."""
    first = 0
    while count > 1:
        half = count // 2
        if fits(first, first + half):
            first, count = first + half, count - half
        else:
            count = half
    return first


# --- files together -----------------------------------------------------------------------------------


def joined(parts: Sequence[Part]) -> tuple[dict[str, pa.ChunkedArray], dict[str, str]]:
    """Return the properties of all files, rows one after the other, and which columns are left out, and why.

    The columns may come in any order, and numbers of different types become one that holds all of them exactly.
    Raises SpecError for files with different columns.
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
    """Raise SpecError for a column that one file has, and another one lacks; a split may follow from the name."""
    for here, there in ((first, other), (other, first)):
        missing = [name for name in here.names if name not in there.names and name not in ("split", here.weights_name)]
        if missing:
            raise SpecError(f"{there.path}: has no column {missing[0]!r}, which {here.path} has")
    if first.weights_name != other.weights_name:
        raise SpecError(
            f"{other.path}: its weights are in {other.weights_name!r}, those of {first.path} in {first.weights_name!r}"
        )


def _common(name: str, parts: Sequence[Part]) -> pa.DataType:
    """Return the type that holds a property of all files."""
    kinds = {part.properties[name].type: part for part in parts}
    kinds.pop(pa.null(), None)
    if not kinds:
        return pa.null()
    if len(kinds) == 1:
        return next(iter(kinds))
    if all(pa.types.is_integer(kind) for kind in kinds):
        return pa.uint64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return pa.float64()
    (a, here), (b, there) = list(kinds.items())[:2]
    raise SpecError(f"{there.path}: the column {name!r} holds {b} values, and {a} values in {here.path}")


def _as_common(name: str, part: Part, kind: pa.DataType) -> pa.ChunkedArray:
    return _cast(part.path, repr(name), part.properties[name], kind, f"what fits into {kind}, as in the other files")
