"""The properties of an imported population: one table of all its blocks, with the types that a zoo can store."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zootools.arrow_types import is_number
from zootools.errors import SpecError
from zootools.hub.foreign_columns import property_type
from zootools.importers.importer import Constant, LeftOut
from zootools.storage.imported import COLUMN_TYPES, MAX_COLUMNS, MAX_TEXT, OWN_COLUMNS, SOURCE_MODEL, Column, ColumnKind

KEYS = ("model", "epoch", "split")
"""Columns of a block that say what a row is."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_KINDS: dict[pa.DataType, ColumnKind] = {kind: name for name, kind in COLUMN_TYPES.items()}
GAP = ("train_accuracy", "test_accuracy", "generalization_gap")


def merged(
    tables: Sequence[pa.Table], constants: Mapping[str, Constant], classes: int
) -> tuple[pa.Table, list[LeftOut]]:
    """Return the properties of all blocks as one table without the columns `KEYS`, and the columns that are left out.

    A number that is not finite becomes null. Numbers of different types get float64; a column that no block or only
    some have is null elsewhere. The generalization gap is computed if only the two accuracies are there.

    Raises SpecError for a column that holds texts in one block and numbers in another, for an accuracy that is not a
    fraction, and for a constant whose name a column has already.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    left_out: list[LeftOut] = []
    for name in dict.fromkeys(name for table in tables for name in table.column_names if name not in KEYS):
        taken = [known for known in columns if known.lower() == name.lower()]
        column: pa.ChunkedArray | str = (
            f"has nearly the name of {taken[0]}" if taken else _refused_name(name) or _column(name, tables, classes)
        )
        if isinstance(column, str):
            left_out.append(LeftOut(f"column {name}", column))
        elif len(columns) + len(constants) + 2 >= MAX_COLUMNS:
            left_out.append(LeftOut(f"column {name}", f"is one of more than {MAX_COLUMNS} columns"))
        else:
            columns[name] = column
    rows = sum(table.num_rows for table in tables)
    for name, value in constants.items():
        reason = "the population has a column of this name" if name in columns else _refused_name(name)
        if reason is not None:
            raise SpecError(f"--set {name}: {reason}")
        kind = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]
        columns[name] = pa.chunked_array([pa.array([value], kind).take(pa.array(np.zeros(rows, np.int32)))])
    train, test, gap = GAP
    if gap not in columns and all(name in columns and is_number(columns[name].type) for name in (train, test)):
        columns[gap] = pc.subtract(columns[train].cast(pa.float64()), columns[test].cast(pa.float64()))
    for name, column in columns.items():
        if name.endswith("_accuracy") and is_number(column.type):
            columns[name] = _fractions(name, column.cast(pa.float64()))
    return pa.table(columns) if columns else pa.table({"": pa.nulls(rows)}).select([]), left_out


def columns_of(table: pa.Table) -> list[Column]:
    """Return the columns of a `merged` table, as the record of an import has them."""
    return [Column(name=name, kind=_KINDS[table[name].type]) for name in table.column_names]


def _refused_name(name: str) -> str | None:
    if name in OWN_COLUMNS or name == SOURCE_MODEL:
        return "has the name of a column of every zoo"
    return None if _NAME.fullmatch(name) else "has a name that is not a word of ASCII letters, digits and underscores"


def _column(name: str, tables: Sequence[pa.Table], classes: int) -> pa.ChunkedArray | str:
    """Return a column of all tables with a type of `COLUMN_TYPES`, or the reason why it is left out."""
    parts = [table[name] if name in table.column_names else None for table in tables]
    kinds: set[pa.DataType] = set()
    for part in parts:
        if part is not None:
            kind = _read_as(part.type)
            if isinstance(kind, str):
                return kind
            kinds.add(kind)
    kinds.discard(pa.null())
    if not kinds:
        return "has no value in any row"
    if len(kinds) > 1:
        if kinds != {pa.int64(), pa.float64()}:
            first, second = sorted(map(str, kinds))[:2]
            raise SpecError(f"the column {name!r} holds {first} values in some rows and {second} values in others")
        kinds = {pa.float64()}
    (kind,) = kinds
    chunks: list[pa.Array] = []
    for part, table in zip(parts, tables, strict=True):
        try:
            chunks += [pa.nulls(table.num_rows, kind)] if part is None else _values(part, kind)
        except pa.ArrowInvalid:
            return f"has a value that does not fit into {kind}"
    column = pa.chunked_array(chunks, kind)
    if kind == pa.string() and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_TEXT:
        return f"has a text of more than {MAX_TEXT} bytes"
    if pa.types.is_list(kind) and (pc.max(pc.list_value_length(column)).as_py() or 0) > classes:
        return f"has lists of more than {classes} numbers, one for each output of the network"
    return column if column.null_count < len(column) else "has no finite value in any row"


def _read_as(kind: pa.DataType) -> pa.DataType | str:
    """Return the type of `COLUMN_TYPES` as which a type is read, null for a column of nulls, or why it is not read."""
    read = property_type(kind)
    if isinstance(read, str):
        return f"is {read}"
    if pa.types.is_integer(read):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(read) else read


def _values(part: pa.ChunkedArray, kind: pa.DataType) -> Iterator[pa.Array]:
    """Yield the chunks of a column with another type; numbers that are not finite become null, empty lists too."""
    for chunk in part.chunks:
        array = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_decimal(array.type):
            array = array.cast(pa.string())  # whose digits become the nearest float64; a direct cast may miss it
        array = array.cast(kind)
        if pa.types.is_floating(kind):
            array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, kind))
        elif pa.types.is_list(kind):
            values: list[Any] = [
                row if row and all(value is not None and np.isfinite(value) for value in row) else None
                for row in array.to_pylist()
            ]
            array = pa.array(values, kind)
        yield array


def _fractions(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return accuracies. Raises SpecError for one that is not a fraction."""
    bounds = pc.min_max(column).as_py()
    for value in (bounds["min"], bounds["max"]):
        if value is not None and not 0 <= value <= 1:
            raise SpecError(
                f"the column {name} holds {value:g}; expected fractions from 0 to 1 (percentages are divided by 100)"
            )
    return column
