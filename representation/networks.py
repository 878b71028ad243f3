"""Flat weights of many networks, in memory or in the mapped files of their zoo, read by row.

What trains on networks takes either. The same rows give the same bytes, so a result does not depend on where they are.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from zootools.memory import available_memory
from zootools.storage.mapped_weights import WeightRows
from zootools.zoo import Zoo

AT_ONCE = 1 << 23
"""Most weights that are converted to float64 at a time."""
CPU = torch.device("cpu")
SHARE = 1 / 3
"""Largest share of the available memory that weights are read into: leaving out some of them makes a second copy."""


class Networks(Protocol):
    """Flat weights, float32 ``[n, N]``: a tensor, or `MappedNetworks`."""

    @property
    def shape(self) -> torch.Size:
        """``[n, N]``."""

    @property
    def device(self) -> torch.device:
        """Where rows come out."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return some rows, given by their indices, int64 ``[rows]``."""

    def split(self, count: int, /) -> Iterable[Tensor]:
        """Return all rows in order, ``count`` at a time."""

    def to(self, device: torch.device, /) -> Any:
        """Return the same networks, whose rows come out on a device."""


@dataclass(frozen=True)
class MappedNetworks:
    """Checkpoints of a zoo whose weights stay in its files, and are copied from them when rows are asked for.

    Needs 32 bytes of memory for each checkpoint, beside the rows that are asked for. Files that were read stay mapped
    (`zootools.storage.mapped_weights`); the system can free the memory of their pages.
    """

    source: WeightRows
    places: Tensor
    """The checkpoints of ``source`` that these networks are, int64 ``[n]``."""
    size: int
    """Number of weights of a network."""
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> torch.Size:
        """``[n, N]``."""
        return torch.Size((len(self), self.size))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return some rows, given by their indices, int64 ``[rows]``; see `Networks`."""
        return torch.from_numpy(self.source.take(self.places[rows.cpu()].numpy())).to(self.device)

    def split(self, count: int) -> Iterator[Tensor]:
        """Yield all rows in order, ``count`` at a time."""
        for places in self.places.split(count):
            yield torch.from_numpy(self.source.take(places.numpy())).to(self.device)

    def to(self, device: torch.device) -> "MappedNetworks":
        """Return the same networks, whose rows come out on a device."""
        return replace(self, device=device)

    def part(self, rows: Tensor) -> "MappedNetworks":
        """Return some of the networks, given by indices or a mask; none is read."""
        return replace(self, places=self.places[rows.cpu()])


def read_networks(zoo: Zoo, share: float = SHARE) -> Networks:
    """Return the weights of a zoo's checkpoints: in memory if they take at most a share of what is available."""
    if 4 * len(zoo) * zoo.schema.size <= share * available_memory():
        return zoo.weights()
    return MappedNetworks(zoo.mapped_weights(), torch.arange(len(zoo)), zoo.schema.size)


def select(networks: Networks, rows: Tensor) -> Networks:
    """Return some networks, given by indices or a mask; those of mapped files are not read."""
    return networks.part(rows) if isinstance(networks, MappedNetworks) else networks[rows.to(networks.device)]


def in_memory(networks: Networks) -> Tensor:
    """Return the weights of networks, float32 ``[n, N]``; those of mapped files are read."""
    return networks if isinstance(networks, Tensor) else torch.cat(list(in_parts(networks)))


def hash_networks(digest: "hashlib._Hash", networks: Networks) -> None:
    """Add the weights of networks to a hash."""
    for rows in in_parts(networks):
        digest.update(rows.contiguous().numpy().data)


def in_parts(networks: Networks) -> Iterator[Tensor]:
    """Yield the rows of networks ``[n, N]``, at most `AT_ONCE` weights at a time."""
    yield from networks.split(max(1, AT_ONCE // networks.shape[1]))
