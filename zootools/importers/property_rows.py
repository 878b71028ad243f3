"""Columns of properties from rows of Python values."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from zootools.errors import SpecError


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the table of some rows; a property that a row does not have is null.

    Raises SpecError for a property that is a number in one row and a text in another one.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names or {"model": None, "epoch": None}:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, float) for value in values):  # Arrow refuses large integers beside floats
            values = [float(value) if isinstance(value, int) else value for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise SpecError(f"the property {name}: {error}") from None
    return pa.table(columns)
