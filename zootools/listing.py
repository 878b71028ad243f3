"""The models of a zoo as a table of one row each, and that table as CSV, JSON or Parquet."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zootools.errors import SpecError, did_you_mean
from zootools.selection import Epoch
from zootools.text import printable
from zootools.zoo import Zoo

PLACES = ("stack", "row")
"""Columns that say where in a zoo the weights are; a table has them only if they are asked for."""


def model_table(
    zoo: Zoo,
    *,
    epoch: Epoch = "last",
    where: str | None = None,
    sort: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> pa.Table:
    """Return one row per model: its id, its configuration, and the scores of one of its checkpoints.

    Args:
        zoo: the models.
        epoch: which checkpoint: an epoch, ``"last"`` or ``"best"`` (`Zoo.at`). Models without it have no row.
        where: only the rows for which this condition holds (`Zoo.where`).
        sort: the columns to sort by, the first one first; with ``-`` before a name from the largest value down. Rows
            without a value come last. By default the rows have the order of the zoo.
        columns: the columns, in this order; by default all but `PLACES`.

    Raises SpecError, with the nearest column, for an unknown one or one whose values have no order.
    """
    chosen = zoo.at(epoch)
    if where is not None:
        chosen = chosen.where(where)
    table, keys = chosen.metadata, [(key.removeprefix("-"), key.startswith("-")) for key in sort]
    for name in (*(name for name, _ in keys), *columns):
        if name not in table.column_names:
            raise SpecError(f"columns: found {name!r:.80}{did_you_mean(name, table.column_names)}")
    if lists := [name for name, _ in keys if pa.types.is_nested(table.schema.field(name).type)]:
        raise SpecError(f"sort: {lists[0]} is a list of numbers; expected a column of single values")
    if keys:
        table = table.sort_by([(name, "descending" if down else "ascending") for name, down in keys])
    return table.select(list(columns) or [name for name in table.column_names if name not in PLACES])


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows by name of the column; numbers that JSON cannot express (NaN, infinity) become None."""
    return [{name: _finite(value) for name, value in row.items()} for row in table.to_pylist()]


def to_bytes(table: pa.Table, form: str) -> bytes:
    """Return a table as a file.

    The formats are ``csv`` (lists as JSON, unknown values empty, texts as `printable` shows them), ``json`` (one
    object, whose ``models`` is a list of objects) and ``parquet``. Raises SpecError for another one.
    """
    if form not in _FORMATS:
        raise SpecError(f"format: found {form!r:.80}{did_you_mean(form, _FORMATS)}")
    return _FORMATS[form](table)


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in table.to_pylist():
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue().encode()


def _json(table: pa.Table) -> bytes:
    return json.dumps({"models": rows_of(table)}).encode() + b"\n"


def _parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    return stream.getvalue().to_pybytes()


_FORMATS: dict[str, Callable[[pa.Table], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}


def _cell(value: Any) -> Any:
    """Return a value of a CSV file; a text of a stranger must not reach a terminal as it is."""
    return json.dumps(value) if isinstance(value, list) else printable(value, None) if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
