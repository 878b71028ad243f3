"""Statistics of the layers of a network, standardised: an input of the set encoder, and a target of losses."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import Standardiser

QUANTILES = 9
"""Evenly spaced quantiles, minimum and maximum among them, of a layer."""
FITTED_AT_ONCE = 4096
"""Networks whose statistics are computed at once."""


class LayerStatistics(nn.Module):
    """Mean, variance and quantiles of the weights and of the biases of each layer; no permutation changes them."""

    def __init__(self, graph: NeuronGraph) -> None:
        super().__init__()
        self.graph = graph
        sizes = [edge.above * edge.below * edge.features for edge in graph.edges]
        sizes += [edge.above * count for edge, count in zip(graph.edges, graph.biases, strict=True) if count]
        self.length = sum(2 + min(QUANTILES, size) for size in sizes)
        """Number of statistics."""
        self.standardiser = Standardiser(self.length)

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Set the constants that standardise the statistics, from training weights in blocks ``[rows, N]``."""
        parts = itertools.chain.from_iterable(rows.split(FITTED_AT_ONCE) for rows in blocks)
        self.standardiser.fit(torch.cat([self._unscaled(rows) for rows in parts]))

    def forward(self, weights: Tensor) -> Tensor:
        """Return the statistics of flat weights ``[n, N]``, float32 ``[n, length]``."""
        return self.standardiser(self._unscaled(weights))

    def _unscaled(self, weights: Tensor) -> Tensor:
        found = []
        for part in itertools.chain(*self.graph.split(weights)):
            if part is None:
                continue
            values = part.flatten(1).float().sort(dim=1).values
            last = values.shape[1] - 1
            place = torch.linspace(0, last, min(QUANTILES, last + 1), device=values.device)
            below = place.long()
            quantiles = torch.lerp(values[:, below], values[:, (below + 1).clamp_max(last)], place - below)
            mean = values.mean(dim=1, keepdim=True)
            found += [mean, (values - mean).square().mean(dim=1, keepdim=True), quantiles]
        return torch.cat(found, dim=1)
