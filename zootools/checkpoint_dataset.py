"""The checkpoints of a zoo as a data set of PyTorch."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zootools.arrow_types import is_number
from zootools.errors import SpecError, did_you_mean
from zootools.storage.mapped_weights import WeightRows

Item = dict[str, Any]
"""A checkpoint: its weights, float32 ``[parameters]``, and the values of columns.

Numbers and truth values are tensors of no dimension, lists tensors of one; texts are texts.
"""


class CheckpointDataset(Dataset[Item]):
    """Weights and columns of checkpoints (`zootools.Zoo.dataset`); weights are read when an item is requested.

    Args:
        weights: the weights of the checkpoints.
        metadata: their metadata, one row each.
        columns: the columns of an item.

    Raises SpecError for a column that does not exist, or whose values a loader cannot collate.
    """

    def __init__(self, weights: WeightRows, metadata: pa.Table, columns: Sequence[str] = ()) -> None:
        if isinstance(columns, str):
            raise SpecError(f"columns: found the text {columns!r}; expected a list of names, such as [{columns!r}]")
        for name in columns:
            if name not in metadata.column_names:
                raise SpecError(f"columns: found {name!r}{did_you_mean(name, metadata.column_names)}")
        self.weights = weights
        self.columns = {name: _collatable(name, metadata[name].combine_chunks()) for name in columns}

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: int) -> Item:
        """Return one checkpoint. Raises IndexError beyond the last one, DamagedZooError for damaged weights."""
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several checkpoints, read together; a loader calls this for a batch."""
        weights = torch.from_numpy(self.weights.take(indices))
        values = {name: _values(column, indices) for name, column in self.columns.items()}
        return [
            {"weights": row, **{name: value[place] for name, value in values.items()}}
            for place, row in enumerate(weights)
        ]


Column: TypeAlias = npt.NDArray[Any] | pa.Array
"""Numbers ``[rows]`` or ``[rows, elements]`` as an array of NumPy; texts, ``[rows]``, as one of Arrow."""


def _values(column: Column, indices: Sequence[int]) -> Tensor | list[str]:
    if isinstance(column, np.ndarray):
        return torch.from_numpy(column[np.asarray(indices, np.int64)])
    return [column[index].as_py() for index in indices]


def _collatable(name: str, column: pa.Array) -> Column:
    kind = column.type
    if is_number(kind):
        return column.to_numpy(zero_copy_only=False).copy()
    if column.null_count:
        count = f"{column.null_count:,} of {len(column):,} values of type {kind} are not known"
        raise SpecError(f'columns: {name}: {count}; zoo.where("{name} is not null") leaves their checkpoints out')
    if pa.types.is_boolean(kind):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if pa.types.is_list(kind) and is_number(kind.value_type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) == 1:
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).copy()
        if not lengths:
            return np.empty((0, 0))
        bounds = f"{min(lengths)} to {max(lengths)}"
        raise SpecError(f"columns: {name}: its lists have {bounds} elements; expected the same number in all")
    raise SpecError(f"columns: {name}: is of type {kind}; expected numbers, texts, truth values, or lists of numbers")
