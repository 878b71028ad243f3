"""Updates of a graph of neurons (Kofinas et al. 2024), equivariant to the permutations of all hidden layers.

All neurons of n networks are one matrix ``[neurons * n, width]``, the neurons first and the networks inside, and so are
all edges: one product serves every layer, and the edges of a layer are contiguous. Neurons of two layers are all
connected, so that no list of edges is needed: their ends are broadcast, and messages are sums over an axis.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from representation.encoders.graph import NeuronGraph


class Layout:
    """Where the neurons and the edges of each layer are among all of them: edges of a neuron above are consecutive."""

    def __init__(self, graph: NeuronGraph) -> None:
        self.nodes = graph.nodes
        self.neurons = sum(graph.nodes)
        self.shapes = [(above, below) for below, above in itertools.pairwise(graph.nodes)]
        self.sizes = [above * below for above, below in self.shapes]
        self.edges = sum(self.sizes)

    def layers(self, edges: Tensor) -> list[Tensor]:
        """Return the edges ``[edges * n, width]`` of each layer as a view ``[above, below, n * width]``."""
        parts = edges.view(self.edges, -1).split(self.sizes)
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def neighbours(self) -> Tensor:
        """Return how many neurons are below each neuron, and how many above, float32 ``[2, neurons]``; 1 for none."""
        below = [1, *self.nodes[:-1]], [*self.nodes[1:], 1]
        return torch.tensor([list(self._repeated(counts)) for counts in below], dtype=torch.float32)

    def _repeated(self, counts: list[int]) -> Iterator[int]:
        for count, size in zip(counts, self.nodes, strict=True):
            yield from itertools.repeat(count, size)


class GraphBlock(nn.Module):
    """One update of all edges from their two ends, then of all neurons from their edges.

    An edge scales what a neuron sends along it, and adds to it, as in the published networks; here in both directions.
    All layers share the parameters.
    """

    neighbours: Tensor

    def __init__(self, graph: NeuronGraph, width: int) -> None:
        """Args: ``width`` is the number of features of a neuron, and of an edge."""
        super().__init__()
        self.layout, self.width = Layout(graph), width
        self.register_buffer("neighbours", self.layout.neighbours(), persistent=False)
        self.norm = nn.LayerNorm(width)
        self.of_neuron = nn.Linear(width, 6 * width)
        """What a neuron gives to edges below and above it, sends upward and downward, and keeps (twice as much)."""
        self.of_edge = nn.Linear(width, width)
        self.edge = nn.Linear(width, width, bias=False)
        self.upward = nn.Linear(width, width)
        self.downward = nn.Linear(width, width)
        self.received = nn.Linear(4 * width, 2 * width, bias=False)
        self.neuron = nn.Linear(2 * width, width)

    def forward(self, neurons: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return new neurons ``[neurons * n, width]`` and edges ``[edges * n, width]``."""
        upper, lower, up, down, kept = self.of_neuron(self.norm(neurons)).split([*[self.width] * 4, 2 * self.width], 1)
        between = _Between.apply(self.of_edge(edges), upper, lower, self.layout)
        edges = torch.addmm(edges, between, self.edge.weight.T)
        scales = self.upward(edges), self.downward(edges)
        received = _Received.apply(edges, *scales, up, down, self.layout, self.neighbours)
        return neurons + self.neuron(F.relu(kept + self.received(received))), edges


class _Between(torch.autograd.Function):
    """ReLU(edges + upper + lower), in the place of the edges: autograd by itself would copy the edges of a layer."""

    @staticmethod
    def forward(context: Any, edges: Tensor, upper: Tensor, lower: Tensor, layout: Layout) -> Tensor:
        above, below = (part.reshape(layout.neurons, -1).split(layout.nodes) for part in (upper, lower))
        for place, layer in enumerate(layout.layers(edges)):
            layer += above[place + 1].unsqueeze(1)
            layer += below[place]
        edges.clamp_min_(0)
        context.mark_dirty(edges)
        context.save_for_backward(edges)
        context.layout = layout
        return edges

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (edges,) = context.saved_tensors
        layout: Layout = context.layout
        gradient = torch.ops.aten.threshold_backward(gradient.contiguous(), edges, 0)
        ends = gradient.new_zeros(2, layout.neurons, gradient.numel() // layout.edges)
        above, below = (end.split(layout.nodes) for end in ends)
        for place, layer in enumerate(layout.layers(gradient)):
            torch.sum(layer, dim=1, out=above[place + 1])
            torch.sum(layer, dim=0, out=below[place])
        return gradient, *ends.view(2, -1, gradient.shape[1]), None


class _Received(torch.autograd.Function):
    """What each neuron receives from below and from above, ``[neurons * n, 4 * width]``: means over its edges.

    From each side the mean of what its neighbours send times the scale of the edge, and the mean of the edges.
    """

    @staticmethod
    def forward(context: Any, *arguments: Any) -> Tensor:
        edges, upward, downward, up, down, layout, neighbours = arguments
        up, down = (part.reshape(layout.neurons, -1) for part in (up, down))
        received = edges.new_zeros(4, layout.neurons, up.shape[1])
        scaled_up, edges_up, scaled_down, edges_down = (part.split(layout.nodes) for part in received)
        sent_up, sent_down = up.split(layout.nodes), down.split(layout.nodes)
        layers = zip(*(layout.layers(part) for part in (edges, upward, downward)), strict=True)
        for place, (layer, rising, falling) in enumerate(layers):
            torch.sum(rising * sent_up[place], dim=1, out=scaled_up[place + 1])
            torch.sum(layer, dim=1, out=edges_up[place + 1])
            torch.sum(falling * sent_down[place + 1].unsqueeze(1), dim=0, out=scaled_down[place])
            torch.sum(layer, dim=0, out=edges_down[place])
        received.unflatten(0, (2, 2)).div_(neighbours[:, None, :, None])
        context.save_for_backward(upward, downward, up, down, neighbours)
        context.layout = layout
        return received.view(4, -1, edges.shape[1]).transpose(0, 1).reshape(-1, 4 * edges.shape[1])

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        upward, downward, up, down, neighbours = context.saved_tensors
        layout, width = context.layout, upward.shape[1]
        parts = gradient.view(-1, 4, width).transpose(0, 1).reshape(2, 2, layout.neurons, -1)
        parts.div_(neighbours[:, None, :, None])
        scaled_up, edges_up, scaled_down, edges_down = (part.split(layout.nodes) for part in parts.flatten(0, 1))
        sent_up, sent_down = up.split(layout.nodes), down.split(layout.nodes)
        found = [torch.empty_like(upward) for _ in range(3)]
        layers = zip(*(layout.layers(part) for part in (*found, upward, downward)), strict=True)
        ends = torch.zeros_like(up), torch.zeros_like(down)
        ends_up, ends_down = (end.split(layout.nodes) for end in ends)
        for place, (edges, rising, falling, scale_up, scale_down) in enumerate(layers):
            from_below, from_above = scaled_up[place + 1].unsqueeze(1), scaled_down[place]
            torch.add(edges_up[place + 1].unsqueeze(1), edges_down[place], out=edges)
            torch.mul(from_below, sent_up[place], out=rising)
            torch.mul(from_above, sent_down[place + 1].unsqueeze(1), out=falling)
            torch.sum(from_below * scale_up, dim=0, out=ends_up[place])
            torch.sum(from_above * scale_down, dim=1, out=ends_down[place + 1])
        return *found, *(end.view(-1, width) for end in ends), None, None
