"""Augmentation of a batch of weights, on their device (paper, section 2).

Every view of every network gets its own permutation, erased block and noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from representation.recipes import Augmentation
from zootools.architectures import Schema


class Views(NamedTuple):
    """Augmented copies of a batch, and the same copies before erasing and noise; the two never share memory."""

    augmented: Tensor
    """float ``[copies * n, N]``, the first copies of all networks first."""
    clean: Tensor
    """float ``[copies * n, N]``, in the same permuted order, before erasing and noise."""


class Augmenter(nn.Module):
    """Draws views of flat weights: permutation, then noise, then erasing.

    Permutations of the hidden layers are drawn uniformly from the whole group, independently per layer and
    network: the outputs of a layer move together with the matching inputs of the next (equation 1), from a
    convolution to a linear layer in blocks of height times width. The network computes the same function as before.
    """

    def __init__(self, schema: Schema, settings: Augmentation) -> None:
        super().__init__()
        self.schema, self.settings = schema, settings

    def views(self, weights: Tensor, generator: torch.Generator | None = None, copies: int = 2) -> Views:
        """Return views of ``weights`` ``[n, N]``, which are not changed; no view shares memory with them."""
        if self.settings.identical and copies > 1:
            once = self.views(weights, generator, copies=1)
            return Views(once.augmented.repeat(copies, 1), once.clean.repeat(copies, 1))
        clean = weights.repeat(copies, 1)
        if self.settings.permute:
            clean = clean.gather(1, self.permutations(len(clean), weights.device, generator))
        augmented = clean.clone()
        if self.settings.noise:
            noise = torch.randn(augmented.shape, generator=generator, device=weights.device, dtype=weights.dtype)
            augmented.add_(noise, alpha=self.settings.noise)
        if self.settings.erase_probability:
            augmented.masked_fill_(self.erased(len(clean), weights.device, generator), 0)
        return Views(augmented, clean)

    def permutations(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw random permutations; return indices, int64 ``[count, N]``, one row per network.

        ``weights.gather(1, index)`` are the permuted networks, in the flat order of `Schema.parameters`.
        """
        orders = [self._orders(position, count, device, generator) for position in range(len(self.schema.layers) - 1)]
        return flat_index(self.schema, orders, count, device)

    def _orders(self, position: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draw orders of the neurons of a hidden layer, int64 ``[count, outputs]``."""
        outputs = self.schema.layers[position].outputs
        if self.settings.orders is None:
            return _random_orders(count, outputs, device, generator)
        # On the CPU and with a seed of its own, so that every training draws from the same orders.
        few = _random_orders(
            self.settings.orders, outputs, torch.device("cpu"), torch.Generator().manual_seed(position)
        )
        return few.to(device)[torch.randint(len(few), (count,), generator=generator, device=device)]

    def erased(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw the mask of erased weights, bool ``[count, N]``: in each chosen row one block of the flat vector.

        The length of the block is uniform between the bounds, its start uniform among the possible ones.
        """
        size, settings = self.schema.size, self.settings
        chosen, length, start = torch.rand(3, count, 1, generator=generator, device=device)
        length = size * (settings.erase_lower + (settings.erase_upper - settings.erase_lower) * length)
        length = length.round().where(chosen < settings.erase_probability, 0)
        start = (start * (size - length + 1)).floor()
        place = torch.arange(size, device=device)
        return (place >= start) & (place < start + length)


def flat_index(schema: Schema, orders: Sequence[Tensor], count: int, device: torch.device) -> Tensor:
    """Return the index, int64 ``[count, N]``, for which ``weights.gather(1, index)`` are networks in another order.

    ``orders`` has the order of the neurons of every hidden layer in every network, int64 ``[count, outputs]``
    (`Schema.permutation_index`, for many networks).
    """
    parts, offset = [], 0
    columns = torch.arange(schema.layers[0].fan_in, device=device).expand(count, -1)
    for position, layer in enumerate(schema.layers):
        last = position == len(schema.layers) - 1
        rows = torch.arange(layer.outputs, device=device).expand(count, -1) if last else orders[position]
        kernel = offset + rows[:, :, None] * layer.fan_in + columns[:, None, :]
        parts.append(rearrange(kernel, "n outputs inputs -> n (outputs inputs)"))
        offset += layer.outputs * layer.fan_in
        if layer.bias:
            parts.append(offset + rows)
            offset += layer.outputs
        if not last:
            following = schema.layers[position + 1]
            block = following.fan_in // layer.outputs  # kernel elements, or height times width, per output
            columns = rows[:, :, None] * block + torch.arange(block, device=device)
            columns = rearrange(columns, "n outputs block -> n (outputs block)")
    return torch.cat(parts, dim=1)


def _random_orders(count: int, outputs: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    # 62 random bits per neuron: two are never equal, so their order is a uniform permutation.
    return torch.randint(2**62, (count, outputs), generator=generator, device=device).argsort(dim=1)
