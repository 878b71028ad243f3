"""Statistics of the layers of a network, standardised: an input of the set encoder, and a target of losses."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import Standardiser

QUANTILES = 9
"""Evenly spaced quantiles, minimum and maximum among them, of a layer."""
BULK = 3.0
"""Compressed statistics are linear up to about this many deviations from the median, and logarithmic beyond."""
FITTED_AT_ONCE = 4096
"""Networks whose statistics are computed at once."""


class LayerStatistics(nn.Module):
    """Mean, variance and quantiles of the weights and of the biases of each layer; no permutation changes them.

    They have mean 0 and variance 1 over the training networks. If they are compressed before, the few networks of a
    zoo of hyper-parameters whose weights are huge do not make all others look alike.
    """

    below: Tensor
    above: Tensor
    share: Tensor
    order: Tensor

    def __init__(self, graph: NeuronGraph, compressed: bool) -> None:
        super().__init__()
        self.sizes = graph.sizes
        counts = [min(QUANTILES, size) for size in self.sizes]
        self.length = sum(2 + count for count in counts)
        """Number of statistics."""
        self.bulk = Standardiser(self.length) if compressed else None
        """By median and quartiles; None if the statistics are not compressed."""
        self.standardiser = Standardiser(self.length)
        below, above, share = [], [], []
        for start, size, count in zip(_starts(self.sizes), self.sizes, counts, strict=True):
            place = np.linspace(0, size - 1, count)
            lower = place.astype(np.int64)
            below.append(start + lower)
            above.append(start + np.minimum(lower + 1, size - 1))
            share.append((place - lower).astype(np.float32))
        parts, firsts = len(counts), _starts(counts)
        # First the weights of all layers, then their biases: an order that stored encoders rely on.
        sequence = sorted(range(parts), key=lambda part: graph.are_biases[part])
        columns = [
            [part, parts + part, *(2 * parts + firsts[part] + place for place in range(counts[part]))]
            for part in sequence
        ]
        # Not persistent: they follow from the schema. From NumPy, so that they are no meta tensors either.
        self.register_buffer("below", torch.from_numpy(np.concatenate(below)), persistent=False)
        self.register_buffer("above", torch.from_numpy(np.concatenate(above)), persistent=False)
        self.register_buffer("share", torch.from_numpy(np.concatenate(share)), persistent=False)
        order = np.array(list(itertools.chain(*columns)), np.int64)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Set the constants that standardise the statistics, from training weights in blocks ``[rows, N]``."""
        parts = itertools.chain.from_iterable(rows.split(FITTED_AT_ONCE) for rows in blocks)
        values = torch.cat([self._unscaled(rows) for rows in parts])
        if self.bulk is not None:
            self.bulk.fit_quartiles(values)
        self.standardiser.fit(self._compressed(values))

    def forward(self, weights: Tensor) -> Tensor:
        """Return the statistics of flat weights ``[n, N]``, float32 ``[n, length]``."""
        if not len(weights):
            return weights.new_zeros(0, self.length)
        return self.standardiser(self._compressed(self._unscaled(weights)))

    def _compressed(self, values: Tensor) -> Tensor:
        return values if self.bulk is None else BULK * torch.asinh(self.bulk(values) / BULK)

    def _unscaled(self, weights: Tensor) -> Tensor:
        parts = weights.float().split(self.sizes, dim=1)
        moments = [torch.var_mean(part, dim=1, correction=0) for part in parts]
        ascending = torch.cat([_sorted(part) for part in parts], dim=1)
        quantiles = torch.lerp(ascending.index_select(1, self.below), ascending.index_select(1, self.above), self.share)
        columns = [mean for _, mean in moments] + [variance for variance, _ in moments]
        return torch.cat([torch.stack(columns, dim=1), quantiles], dim=1).index_select(1, self.order)


def _sorted(values: Tensor) -> Tensor:
    """Return the rows of ``values`` ``[n, k]``, each in ascending order."""
    if values.is_cpu and not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy(), axis=1))  # about ten times faster, with vector instructions
    return values.sort(dim=1).values


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where consecutive parts of these sizes begin."""
    return list(itertools.accumulate(sizes[:-1], initial=0))
