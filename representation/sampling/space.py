"""The rows that a density is over: representations of networks, or their weights."""

from typing import Protocol

import torch
from torch import Tensor

from representation.encoders.encoder import VALUES_AT_ONCE, Encoder, largest_layer
from zootools.errors import SpecError


class Space(Protocol):
    """Maps networks to rows, and rows to networks."""

    def rows(self, weights: Tensor) -> Tensor:
        """Return the rows, float32 ``[n, d]``, of flat weights ``[n, N]``.

        Raises SpecError for weights that are not finite.
        """

    def weights(self, rows: Tensor) -> Tensor:
        """Return flat weights, float32 ``[n, N]``, of rows ``[n, d]``."""


class LatentSpace:
    """Representations by an encoder, and its decoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.eval()

    def rows(self, weights: Tensor) -> Tensor:
        """See `Space`."""
        return self.encoder.embed(weights)

    @torch.no_grad()
    def weights(self, rows: Tensor) -> Tensor:
        """See `Space`."""
        count = max(1, VALUES_AT_ONCE // largest_layer(self.encoder.schema, self.encoder.architecture))
        device = next(self.encoder.parameters()).device
        return torch.cat([self.encoder.decode(part.to(device)).float().cpu() for part in rows.split(count)])


class WeightSpace:
    """The weights themselves."""

    def rows(self, weights: Tensor) -> Tensor:
        """See `Space`."""
        if bad := int((~weights.isfinite()).any(dim=1).sum()):
            raise SpecError(f"{bad} of {len(weights):,} networks have weights that are NaN or infinite")
        return weights

    def weights(self, rows: Tensor) -> Tensor:
        """See `Space`."""
        return rows
