"""The weights of many checkpoints, of which rows are read from mapped shards when they are requested."""

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zootools.architectures import Schema
from zootools.storage.shards import Shard, gather_weights, open_shard
from zootools.storage.verified_files import VerifiedFiles

MAX_OPEN = 256
"""Shards that stay mapped; each needs a file descriptor, of which a process often has 1024."""


class WeightRows(Protocol):
    """Flat weights of checkpoints, read by rows."""

    def __len__(self) -> int:
        """Return the number of checkpoints."""

    def take(self, places: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return a copy of the weights of some checkpoints, float32 ``[places, parameters]``.

        ``places`` are indices, integers ``[places]``, negative ones from the end. Raises IndexError beyond the ends.
        """

    def read_all(self) -> npt.NDArray[np.float32]:
        """Return a copy of all weights, float32 ``[checkpoints, parameters]``; no file stays open."""


class MappedWeights:
    """`WeightRows` in the shards of a zoo. The last `MAX_OPEN` shards stay mapped.

    A copy by `pickle`, as a worker of a data loader gets it, has no open files.

    Args:
        files: the files of the zoo.
        schema: the layers of every model.
        stacks: the stack of each checkpoint, integers ``[checkpoints]``.
        epochs: the epoch of each checkpoint.
        rows: the row of each checkpoint in the shard of its stack and epoch.
    """

    def __init__(
        self, files: VerifiedFiles, schema: Schema, stacks: npt.ArrayLike, epochs: npt.ArrayLike, rows: npt.ArrayLike
    ) -> None:
        self.files, self.schema = files, schema
        self._place = np.stack([np.asarray(values, np.int64) for values in (stacks, epochs, rows)])
        self._open = OrderedDict[str, Shard]()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict[str, Shard]()}

    def __len__(self) -> int:
        return self._place.shape[1]

    def take(self, places: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return a copy of some rows. Raises DamagedZooError as `gather_weights` does."""
        stacks, epochs, rows = self._place[:, np.asarray(places, np.int64)]
        return gather_weights(self.files, self.schema, stacks, epochs, rows, opened=self._opened)

    def read_all(self) -> npt.NDArray[np.float32]:
        """Return a copy of all rows. Raises DamagedZooError as `gather_weights` does."""
        return gather_weights(self.files, self.schema, *self._place)

    def _opened(self, name: str) -> Shard:
        shard = self._open.pop(name, None)
        if shard is None:
            shard = open_shard(self.files, name, self.schema, small=0)
        self._open[name] = shard  # the last one used is the last one to be closed
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return shard
