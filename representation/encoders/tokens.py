"""Weights as a sequence of tokens, defined by the layer schema alone, and back."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from zootools.architectures import Schema


class Tokenizer(nn.Module):
    """Cuts flat weights into tokens and joins tokens into flat weights (paper, section 3 and figure 2).

    A neuron token holds the incoming weights of one neuron or kernel, and its own bias last; its length differs
    from layer to layer, so tokens come in one group per layer. A weight token is a single weight; there is one
    group. Nothing is padded or stored twice, so `join` is the exact inverse of `split`.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, schema: Schema, kind: Literal["neuron", "weight"] = "neuron") -> None:
        super().__init__()
        single = np.arange(schema.size)[:, None]
        groups = list(schema.neuron_tokens().values()) if kind == "neuron" else [single]
        self.shapes: tuple[tuple[int, int], ...] = tuple((len(rows), rows.shape[1]) for rows in groups)
        """Number of tokens, and weights per token, of each group."""
        order = torch.from_numpy(np.concatenate([rows.reshape(-1) for rows in groups]))
        # Not persistent: they follow from the schema.
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", torch.argsort(order), persistent=False)

    @property
    def length(self) -> int:
        """Number of tokens of one network."""
        return sum(count for count, _ in self.shapes)

    def split(self, weights: Tensor) -> list[Tensor]:
        """Cut flat weights ``[n, N]`` into one tensor per group: ``[n, tokens, weights of a token]``."""
        flat = weights.index_select(1, self.order).split([count * width for count, width in self.shapes], dim=1)
        return [
            rearrange(group, "n (tokens weights) -> n tokens weights", tokens=count)
            for group, (count, _) in zip(flat, self.shapes, strict=True)
        ]

    def join(self, tokens: Sequence[Tensor]) -> Tensor:
        """Join tokens, as `split` returns them, to flat weights ``[n, N]``."""
        flat = [rearrange(group, "n tokens weights -> n (tokens weights)") for group in tokens]
        return torch.cat(flat, dim=1).index_select(1, self.inverse)
