"""Questions about types of Arrow that several modules ask."""

import pyarrow as pa


def is_number(kind: pa.DataType) -> bool:
    """Return whether values of a type are numbers."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
