"""Updates of a graph of neurons (Kofinas et al. 2024), equivariant to the permutations of all hidden layers.

All neurons of n networks are one matrix ``[neurons * n, width]``, the neurons first and the networks inside, and so are
all edges: one product serves every layer, and the edges of a layer are contiguous. Neurons of two layers are all
connected, so that no list of edges is needed: their ends are broadcast, and messages are sums over an axis.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from representation.encoders.graph import NeuronGraph


class Place(NamedTuple):
    """Where the edges between two layers, and their neurons, are among all of them."""

    edges: slice
    above: slice
    below: slice
    shape: tuple[int, int]
    """The numbers of neurons above and below."""


def places(graph: NeuronGraph) -> list[Place]:
    """Return where the edges of each layer are: rows of a neuron above are consecutive."""
    nodes = list(itertools.accumulate(graph.nodes, initial=0))
    starts = list(itertools.accumulate((edge.above * edge.below for edge in graph.edges), initial=0))
    return [
        Place(
            slice(starts[place], starts[place + 1]),
            slice(nodes[place + 1], nodes[place + 2]),
            slice(nodes[place], nodes[place + 1]),
            (edge.above, edge.below),
        )
        for place, edge in enumerate(graph.edges)
    ]


class GraphBlock(nn.Module):
    """One update of all edges from their two ends, then of all neurons from their edges.

    An edge scales what a neuron sends along it, and adds to it, as in the published networks; here in both directions.
    All layers share the parameters.
    """

    def __init__(self, graph: NeuronGraph, width: int) -> None:
        """Args: ``width`` is the number of features of a neuron, and of an edge."""
        super().__init__()
        self.places, self.neurons, self.width = places(graph), sum(graph.nodes), width
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
        between = _Between.apply(self.of_edge(edges), upper, lower, self.places, self.neurons)
        edges = torch.addmm(edges, between, self.edge.weight.T)
        scales = self.upward(edges), self.downward(edges)
        received = _Received.apply(edges, *scales, up, down, self.places, self.neurons)
        return neurons + self.neuron(F.relu(kept + self.received(received))), edges


def _layer(place: Place, edges: Tensor, count: int) -> Tensor:
    """Return the edges of a layer as a view ``[above, below, n * width]``."""
    return edges.view(count, -1)[place.edges].view(*place.shape, -1)


class _Between(torch.autograd.Function):
    """ReLU(edges + upper + lower), in the place of the edges: autograd by itself would copy the edges of a layer."""

    @staticmethod
    def forward(
        context: Any, edges: Tensor, upper: Tensor, lower: Tensor, places: Sequence[Place], neurons: int
    ) -> Tensor:
        upper, lower = (part.reshape(neurons, -1) for part in (upper, lower))
        for place in places:
            layer = _layer(place, edges, places[-1].edges.stop)
            layer += upper[place.above, None]
            layer += lower[place.below]
        edges.clamp_min_(0)
        context.mark_dirty(edges)
        context.save_for_backward(edges)
        context.places, context.neurons = places, neurons
        return edges

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (edges,) = context.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient.contiguous(), edges, 0)
        ends = gradient.new_zeros(2, context.neurons, gradient.numel() // context.places[-1].edges.stop)
        for place in context.places:
            layer = _layer(place, gradient, context.places[-1].edges.stop)
            torch.sum(layer, dim=1, out=ends[0, place.above])
            torch.sum(layer, dim=0, out=ends[1, place.below])
        return gradient, *ends.view(2, -1, gradient.shape[1]), None, None


class _Received(torch.autograd.Function):
    """What each neuron receives from below and from above, ``[neurons * n, 4 * width]``: means over its edges.

    From each side the mean of what its neighbours send times the scale of the edge, and the mean of the edges.
    """

    @staticmethod
    def forward(context: Any, *arguments: Any) -> Tensor:
        edges, upward, downward, up, down, places, neurons = arguments
        total, width = places[-1].edges.stop, edges.shape[1]
        up, down = (part.reshape(neurons, -1) for part in (up, down))
        received = edges.new_zeros(4, neurons, up.shape[1])
        for place in places:
            above, below = place.shape
            layer, rising, falling = (_layer(place, part, total) for part in (edges, upward, downward))
            torch.div((rising * up[place.below]).sum(dim=1), below, out=received[0, place.above])
            torch.div(layer.sum(dim=1), below, out=received[1, place.above])
            torch.div((falling * down[place.above, None]).sum(dim=0), above, out=received[2, place.below])
            torch.div(layer.sum(dim=0), above, out=received[3, place.below])
        context.save_for_backward(upward, downward, up, down)
        context.places = places
        return received.view(4, -1, width).transpose(0, 1).reshape(-1, 4 * width)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        upward, downward, up, down = context.saved_tensors
        total, width = context.places[-1].edges.stop, upward.shape[1]
        parts = gradient.view(-1, 4, width).transpose(0, 1).reshape(4, len(up), -1)
        edges, rising, falling = (torch.empty_like(upward) for _ in range(3))
        ends = torch.zeros_like(up), torch.zeros_like(down)
        for place in context.places:
            above, below = place.shape
            from_below, layer_below = (parts[number, place.above, None] / below for number in (0, 1))
            from_above, layer_above = (parts[number, place.below] / above for number in (2, 3))
            torch.add(layer_below, layer_above, out=_layer(place, edges, total))
            torch.mul(from_below, up[place.below], out=_layer(place, rising, total))
            torch.mul(from_above, down[place.above, None], out=_layer(place, falling, total))
            torch.sum(from_below * _layer(place, upward, total), dim=0, out=ends[0][place.below])
            torch.sum(from_above * _layer(place, downward, total), dim=1, out=ends[1][place.above])
        return edges, rising, falling, *(end.view(-1, width) for end in ends), None, None
