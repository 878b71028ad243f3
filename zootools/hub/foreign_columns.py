"""The columns of a Parquet file of another tool: which are read, and as which types.

Every Arrow type has a decision (`property_type`): it is read, or left out with a reason. An extension type is read as
its storage type; a class that is registered for it is not called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.arrow_types import is_number
from zootools.errors import SpecError
from zootools.hub.foreign_memory import Memory
from zootools.storage.tables import SPLITS

MAX_TEXT = 10_000
"""Bytes that a text may have as a property."""

IDENTITY = ("model_id", "epoch", "split")
"""Columns that say what a row is."""
_COMPUTED = ("status", "stack", "row")
"""Columns of every zoo that are computed here."""

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_LEFT_OUT: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_temporal, "a date, time or duration"),
    (pa.types.is_nested, "nested"),
    (pa.types.is_binary, "binary"),
    (pa.types.is_large_binary, "binary"),
    (pa.types.is_binary_view, "binary"),
    (pa.types.is_fixed_size_binary, "binary"),
)


@dataclass
class Column:
    """A column of a file that is read."""

    index: int
    """The number of the field in the schema of Arrow."""
    name: str
    kind: pa.DataType
    """The type as which it is read."""
    leaf: int
    """The number of the column in Parquet, where a nested field has several."""

    def most_values(self, schema: Schema) -> int:
        """Return how many values a row may have: one, or in a list one for each output of the network."""
        return max(1, schema.classes) if pa.types.is_list(self.kind) else 1


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of an extension type, and any other type unchanged."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def property_type(kind: pa.DataType) -> pa.DataType | str:
    """Return the type as which a property of an Arrow type is read, or the reason why it is left out.

    Booleans stay. Whole numbers become int64, or uint64 where they need it, and stay exact; a float16 becomes a
    float32; a decimal number becomes the nearest float64, or an int64 where it has no digits after the point. Texts
    become strings, categories (dictionaries) their values; lists of numbers, such as the F scores of the classes, lists
    of float64. A column without any value has the type null.
    """
    kind = stored_type(kind)
    if _is_list(kind) and is_number(kind.value_type):
        return pa.list_(pa.float64())
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


# --- which columns ------------------------------------------------------------------------------------


def leaves_of(fields: pa.Schema) -> list[int]:
    """Return the number of the first column in Parquet of each field, and at the end the number of all columns."""

    def count(kind: pa.DataType) -> int:
        kind = stored_type(kind)
        return sum(count(kind.field(i).type) for i in range(kind.num_fields)) if pa.types.is_nested(kind) else 1

    return [0, *np.cumsum([count(kind) for kind in fields.types], dtype=int).tolist()]


def weights_column(path: Path, fields: pa.Schema, schema: Schema) -> str:
    """Return the name of the weights column: ``weights``, or else the only list with as many floats as parameters."""
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


def _is_list(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in _LISTS)


def _is_float_list(kind: pa.DataType) -> bool:
    return _is_list(kind) and pa.types.is_floating(kind.value_type)


def property_columns(fields: pa.Schema, leaves: list[int], weights: str) -> tuple[list[Column], dict[str, str]]:
    """Return the columns that are read besides the weights, and the reasons why others are not."""
    columns, left_out = [], {}
    for index, (name, kind) in enumerate(zip(fields.names, fields.types, strict=True)):
        read_as = property_type(kind)
        if name == weights:
            continue
        if fields.names.count(name) > 1:
            left_out[name] = "occurs twice"
        elif name in _COMPUTED:
            left_out[name] = "a zoo has a computed column of this name"
        elif isinstance(read_as, str):
            left_out[name] = read_as
        elif name in IDENTITY and pa.types.is_list(read_as):
            left_out[name] = f"nested ({kind})"[:80]
        else:
            columns.append(Column(index, name, read_as, leaves[index]))
    return columns, left_out


# --- their values -------------------------------------------------------------------------------------


class UnfitError(Exception):
    """A value of a column does not fit its type; the column is left out."""


def weight_values(
    path: Path, name: str, lists: pa.Array, schema: Schema, position: int
) -> npt.NDArray[np.floating[Any]]:
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


def property_values(array: pa.Array, kind: pa.DataType, path: Path, memory: Memory) -> pa.Array:
    """Return a chunk of a column with the type as which it is read. Raises UnfitError for a value that does not fit."""
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
        raise UnfitError(f"a number does not fit into {kind}") from error
    if pa.types.is_list(kind) and made.flatten().null_count:
        raise UnfitError("a list in which a number is missing")
    made.validate(full=True)  # a text may not be UTF-8
    return made


def _count_texts(array: pa.Array, path: Path, memory: Memory) -> None:
    """Take the memory for the texts of a chunk, one for each row. Raises UnfitError for a text that is too long."""
    words = array.dictionary if pa.types.is_dictionary(array.type) else array
    if pa.types.is_string_view(words.type):
        words = words.cast(pa.large_string())
    lengths = pc.fill_null(pc.binary_length(words), 0)
    if pa.types.is_dictionary(array.type):
        lengths = pc.fill_null(lengths.take(array.indices), 0)
    longest = pc.max(lengths).as_py() or 0
    if longest > MAX_TEXT:
        raise UnfitError(f"a text of {longest} bytes; a property has {MAX_TEXT} at most")
    memory.take(path, pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def narrowed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return uint64 as int64 where all values fit."""
    if pa.types.is_uint64(column.type) and (pc.max(column).as_py() or 0) < 1 << 63:
        return column.cast(pa.int64())
    return column


# --- the columns that are used as what they are called --------------------------------------------------


def _model_ids(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids as strings; whole numbers are accepted, also as floats, as pandas writes them next to missing ones."""
    _check_present(path, "model_id", column)
    if pa.types.is_boolean(column.type):
        raise SpecError(f"{path}: the column model_id holds truth values; expected texts or whole numbers")
    if pa.types.is_floating(column.type):
        column = cast_column(path, "model_id", column, pa.int64(), "a text or a whole number")
    return column.cast(pa.string())


def _epochs(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    _check_present(path, "epoch", column)
    expected = "a whole number from 0 to 2147483647"
    if pa.types.is_boolean(column.type):
        raise SpecError(f"{path}: the column epoch holds truth values; expected {expected}")
    column = cast_column(path, "epoch", column, pa.int32(), expected)
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


IDENTITY_VALUES = {"model_id": _model_ids, "epoch": _epochs, "split": _splits}


def _check_present(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise SpecError(
            f"{path}: the column {name} has no value (null) in row {row}, counted from 0; every checkpoint needs one"
        )


def cast_column(path: Path, name: str, column: pa.ChunkedArray, kind: pa.DataType, expected: str) -> pa.ChunkedArray:
    """Return a column with another type. Raises SpecError naming the first row that does not fit."""
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
    """Return the first row that does not fit, by bisection; ``fits(first, end)`` says whether a range of rows fits."""
    first = 0
    while count > 1:
        half = count // 2
        if fits(first, first + half):
            first, count = first + half, count - half
        else:
            count = half
    return first
