"""Targets of probes: every property column of a zoo's metadata, as numbers or as class labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from zootools.arrow_types import is_number
from zootools.storage.imported import SOURCE_MODEL

IDENTITY = ("model_id", SOURCE_MODEL, "configuration_id", "seed", "split", "status", "stack", "row")
"""Columns that identify and locate a checkpoint; they are no properties of the network."""
MAX_LABELS = 100
"""Most labels, or elements of a list, of a property: a column with more holds names or time series."""


@dataclass(frozen=True)
class Target:
    """One property of all checkpoints of a table, in the order of its rows."""

    name: str
    values: Tensor
    """float64 ``[rows]``, NaN where unknown; for a categorical property the index into `classes`."""
    classes: tuple[str, ...] = ()
    """The labels of a categorical property; empty for a number."""

    @property
    def known(self) -> Tensor:
        """Mask of the rows where the property is known, bool ``[rows]``."""
        return ~self.values.isnan()

    def unfit(self) -> str:
        """Return why these rows cannot be learned or scored; an empty string if they can."""
        if len(self.classes) > MAX_LABELS:
            return f"{len(self.classes)} different labels"
        known = self.values[self.known]
        if not len(known):
            return "never a finite number" if len(self.values) else "without a row"
        if known.min() < known.max():
            return ""
        return f"constant ({self.classes[int(known[0])] if self.classes else f'{float(known[0]):g}'})"

    def numbered_as(self, classes: tuple[str, ...]) -> "Target":
        """Return the same labels as indices into other ``classes``, -1 for a label that is not among them."""
        if not self.classes:
            return self
        number = torch.tensor([float(classes.index(name)) if name in classes else -1.0 for name in self.classes])
        values = torch.where(self.known, number[self.values.nan_to_num().long()].double(), torch.nan)
        return Target(self.name, values, classes)


def inexact(column: pa.ChunkedArray) -> bool:
    """Return whether a column has integers that float64 cannot represent (absolute value above 2^53)."""
    if not pa.types.is_integer(column.type):
        return False
    bounds = pc.min_max(column).as_py()
    return max(abs(bounds["min"] or 0), abs(bounds["max"] or 0)) > 1 << 53


def read_targets(table: pa.Table) -> dict[str, Target]:
    """Return every property of a metadata table by name.

    Strings and truth values become class labels, numbers stay, and NaN, infinity and null become NaN; a list becomes
    one target per element, ``test_f1_0`` and so on. Columns of other types and lists longer than `MAX_LABELS` are
    skipped.
    """
    targets = {}
    for name in table.column_names:
        column = table[name]
        if name in IDENTITY:
            continue
        if pa.types.is_list(column.type) and is_number(column.type.value_type):
            for place, values in enumerate(_places(column)):
                targets[f"{name}_{place}"] = Target(f"{name}_{place}", values)
        elif is_number(column.type):
            targets[name] = Target(name, _numbers(column))
        elif any(is_it(column.type) for is_it in _LABELS):
            encoded = pc.cast(column, pa.string()).dictionary_encode().combine_chunks()
            names = encoded.dictionary.to_pylist()
            order = {old: new for new, old in enumerate(sorted(range(len(names)), key=lambda i: names[i]))}
            indices = [float("nan") if i is None else order[i] for i in encoded.indices.to_pylist()]
            targets[name] = Target(name, torch.tensor(indices, dtype=torch.float64), tuple(sorted(names)))
    return targets


_LABELS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)


def _numbers(column: pa.ChunkedArray) -> Tensor:
    values = pc.cast(column, pa.float64(), safe=False).to_numpy()  # integers above 2^53 are rounded
    return torch.from_numpy(np.where(np.isfinite(values), values, np.nan))


def _places(column: pa.ChunkedArray) -> Iterator[Tensor]:
    """Yield the values of each element of a list column; NaN where a list is shorter."""
    array = column.combine_chunks()
    lengths: npt.NDArray[np.int64] = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    flat = _numbers(pa.chunked_array([array.flatten()])).numpy()
    starts = np.cumsum(lengths) - lengths
    longest = int(lengths.max(initial=0))
    for place in range(longest if longest <= MAX_LABELS else 0):
        values = np.full(len(lengths), np.nan)
        values[lengths > place] = flat[(starts + place)[lengths > place]]
        yield torch.from_numpy(values)
