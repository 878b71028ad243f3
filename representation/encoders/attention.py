"""The networks of encoders: transformers over tokens, feed-forward layers, projection heads (paper, section 3)."""

import itertools

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.standard import begin_at_zero
from representation.encoders.tokens import Tokenizer
from representation.recipes import Attention, FeedForward, Head
from zootools.architectures import Schema


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Return softmax(q k / sqrt(d)) v of tensors ``[n, heads, tokens, d]``, with dropout of the softmax."""
    if query.is_cpu and (dropout or query.dtype == torch.bfloat16):
        # For short sequences torch's fused kernels are up to ten times slower here than these operations.
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        return F.dropout(scores.softmax(dim=3), dropout) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class Block(nn.Module):
    """Pre-norm transformer block: multi-head self-attention, then Linear, ReLU, Linear."""

    def __init__(self, settings: Attention) -> None:
        super().__init__()
        width, self.heads = settings.width, settings.heads
        self.attention_dropout = settings.attention_dropout
        self.dropout = nn.Dropout(settings.dropout)
        self.before_attention = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.before_hidden = nn.LayerNorm(width, eps=1e-6)
        self.hidden = nn.Linear(width, settings.hidden)
        self.after_hidden = nn.Linear(settings.hidden, width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Return the outputs ``[n, queries, width]`` of the first ``queries`` tokens (all by default) of ``x``.

        All tokens are keys and values; only the outputs that no layer reads are not computed.
        """
        normed = self.before_attention(x)
        if queries is None:
            query, key, value = self._heads(self.query_key_value(normed), 3)
        else:
            x, width = x[:, :queries], x.shape[2]
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            (query,) = self._heads(F.linear(normed[:, :queries], weight[:width], bias[:width]), 1)
            key, value = self._heads(F.linear(normed, weight[width:], bias[width:]), 2)
        attended = attend(query, key, value, self.attention_dropout if self.training else 0.0)
        attended = rearrange(attended, "n heads tokens d -> n tokens (heads d)")
        x = x + self.dropout(self.after_attention(attended))
        hidden = self.dropout(F.relu(self.hidden(self.before_hidden(x))))
        return x + self.dropout(self.after_hidden(hidden))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cut ``[n, tokens, parts * width]`` into ``parts`` tensors ``[n, heads, tokens, width / heads]``."""
        shape = "n tokens (parts heads d) -> parts n heads tokens d"
        return rearrange(projected, shape, parts=parts, heads=self.heads).unbind()


class AttentionEncoder(nn.Module):
    """Tokens, learned positions, blocks, and a linear bottleneck: ``[n, N]`` to ``[n, L]``, z before its tanh."""

    def __init__(self, schema: Schema, settings: Attention) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(schema, settings.tokens)
        self.embeddings = nn.ModuleList(nn.Linear(width, settings.width) for _, width in self.tokenizer.shapes)
        self.compression_token = _positions(1, settings) if settings.compression_token else None
        length = self.tokenizer.length + settings.compression_token
        self.positions = _positions(length, settings)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.bottleneck = nn.Linear(settings.width * (1 if settings.compression_token else length), settings.length)
        if settings.skip == "linear":
            begin_at_zero(self.bottleneck)

    def forward(self, weights: Tensor) -> Tensor:
        groups = self.tokenizer.split(weights)
        x = torch.cat([embed(group) for embed, group in zip(self.embeddings, groups, strict=True)], dim=1)
        if self.compression_token is not None:
            token = repeat(self.compression_token.to(x.dtype), "token width -> n token width", n=len(x))
            x = torch.cat([token, x], dim=1)
        x = x + self.positions
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, queries=None if self.compression_token is None else 1)
        return self.bottleneck(rearrange(x, "n tokens width -> n (tokens width)"))


class AttentionDecoder(nn.Module):
    """Decoder: z ``[n, L]`` to a sequence, positions, blocks, and one Linear per group of tokens to ``[n, N]``."""

    def __init__(self, schema: Schema, settings: Attention) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(schema, settings.tokens)
        self.entrance = nn.Linear(settings.length, self.tokenizer.length * settings.width)
        self.positions = _positions(self.tokenizer.length, settings)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.exits = nn.ModuleList(nn.Linear(settings.width, width) for _, width in self.tokenizer.shapes)
        if settings.skip == "linear":
            begin_at_zero(*self.exits)

    def forward(self, z: Tensor) -> Tensor:
        x = rearrange(self.entrance(z), "n (tokens width) -> n tokens width", tokens=self.tokenizer.length)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        groups = x.split([count for count, _ in self.tokenizer.shapes], dim=1)
        return self.tokenizer.join([leave(group) for leave, group in zip(self.exits, groups, strict=True)])


def _positions(count: int, settings: Attention) -> nn.Parameter:
    positions = torch.empty(count, settings.width)
    if not positions.is_meta:  # with it, to load an encoder, these operations import torch's compiler: a second more
        positions.normal_().mul_(settings.positions_std)
    return nn.Parameter(positions)


def feed_forward_sizes(size: int, settings: FeedForward) -> list[int]:
    """Return the widths of the layers from ``size`` weights to z, in equal steps."""
    return list(np.linspace(size, settings.length, settings.layers + 1).round().astype(int).tolist())


def feed_forward(sizes: list[int], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU, dropout for each step from one size to the next; the last step is Linear only."""
    steps = [
        module
        for inputs, outputs in itertools.pairwise(sizes)
        for module in (nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
    ]
    return nn.Sequential(*steps[:-2])


def projection_head(latent: int, settings: Head) -> nn.Sequential:
    """Return the projection head of the contrast: z ``[n, L]`` to ``[n, outputs]``."""
    layers: list[nn.Module] = []
    for layer in range(settings.layers):
        inputs = latent if layer == 0 else settings.hidden
        layers += [nn.Linear(inputs, settings.hidden), nn.BatchNorm1d(settings.hidden), nn.ReLU()]
    last = nn.Linear(settings.hidden if settings.layers else latent, settings.outputs)
    for linear in [*layers[::3], last]:
        assert isinstance(linear, nn.Linear)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.constant_(linear.bias, 0.01)
    return nn.Sequential(*layers, last, nn.BatchNorm1d(settings.outputs))
