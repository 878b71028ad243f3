"""The set encoder: messages between neurons along their weights, equivariant to permutations of all hidden layers.

Its layers treat all neurons of a layer alike and pool over the axes that permutations move, as those of neural
functionals and of graph networks over neurons do. So what is pooled over all neurons at the end is invariant, exactly.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.equivariant import CHANNELS, Messages, perceptron, updated
from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import begin_at_zero
from representation.encoders.statistics import LayerStatistics
from representation.recipes import NeuronSet
from zootools.architectures import Schema

READ = 4
"""Numbers of each neuron that the part of z reads that is not invariant."""


class NeuronSetEncoder(nn.Module):
    """Standardised weights ``[n, N]`` to ``[n, L]``: first the invariant numbers of z, then the others."""

    def __init__(self, schema: Schema, settings: NeuronSet) -> None:
        super().__init__()
        graph = self.graph = NeuronGraph(schema)
        width = settings.width
        self.from_below = nn.ModuleList(nn.Linear(2 * edge.features, width) for edge in graph.edges)
        self.from_above = nn.ModuleList(nn.Linear(2 * edge.features, width) for edge in graph.edges)
        self.from_bias = nn.ModuleList(nn.Linear(count, width) if count else nn.Identity() for count in graph.biases)
        self.exchanges = nn.ModuleList(Messages(graph, settings) for _ in range(settings.blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in graph.nodes)
        self.statistics = LayerStatistics(graph, settings.compresses)
        pooled = 2 * width * len(graph.nodes) + self.statistics.length
        self.invariant = perceptron(pooled, settings.hidden, settings.compared)
        self.read = nn.ModuleList(nn.Linear(width, READ) for _ in graph.nodes)
        self.ordered = nn.Linear(READ * sum(graph.nodes), settings.length - settings.compared)
        begin_at_zero(self.ordered)

    def forward(self, weights: Tensor) -> Tensor:
        edges, biases = self.graph.split(weights)
        neurons = self.neurons(edges, biases)
        pooled = [part for x in neurons for part in (x.mean(dim=1), x.amax(dim=1))]
        pooled.append(self.statistics(weights).to(pooled[0].dtype))
        read = [layer(x).flatten(1) for layer, x in zip(self.read, neurons, strict=True)]
        return torch.cat([self.invariant(torch.cat(pooled, dim=1)), self.ordered(torch.cat(read, dim=1))], dim=1)

    def neurons(self, edges: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the features ``[n, neurons, width]`` of each layer's neurons, equivariant to permutations."""
        sums: list[list[Tensor]] = [[] for _ in self.graph.nodes]
        for place, (edge, bias) in enumerate(zip(edges, biases, strict=True)):
            squares = edge.square()
            sums[place].append(self.from_above[place](_moments(edge, squares, dim=1)))
            sums[place + 1].append(self.from_below[place](_moments(edge, squares, dim=2)))
            if bias is not None:
                sums[place + 1].append(self.from_bias[place](bias))
        found = [F.gelu(functools.reduce(torch.add, parts)) for parts in sums]
        for exchange in self.exchanges:
            found = exchange(found, edges)
        return [norm(x) for norm, x in zip(self.norms, found, strict=True)]


class NeuronSetDecoder(nn.Module):
    """z ``[n, L]`` to standardised weights ``[n, N]``: features of every neuron, and from them its weights.

    The weights between two hidden layers are sums of products of numbers of both neurons; image and logits have a
    single node, so that a sum of linear maps of both ends is enough there.
    """

    def __init__(self, schema: Schema, settings: NeuronSet) -> None:
        super().__init__()
        graph = self.graph = NeuronGraph(schema)
        self.width = width = settings.width
        self.entrances = nn.ModuleList(nn.Linear(settings.length, count * width) for count in graph.nodes)
        self.updates = nn.ModuleList(perceptron(2 * width, settings.hidden, width) for _ in graph.nodes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in graph.nodes)
        self.between = [edge.above > 1 and edge.below > 1 for edge in graph.edges]
        self.exits, self.factors = nn.ModuleList(), nn.ModuleList()
        for edge, between in zip(graph.edges, self.between, strict=True):
            self.exits.append(nn.Linear(width, edge.features * (CHANNELS if between else 1)))
            self.factors.append(nn.Linear(width, CHANNELS if between else edge.features))
            if not between:
                begin_at_zero(self.factors[-1])
        self.biases = nn.ModuleList(nn.Linear(width, count) if count else nn.Identity() for count in graph.biases)
        begin_at_zero(*self.exits, *self.biases)

    def forward(self, z: Tensor) -> Tensor:
        neurons = [F.gelu(layer(z).unflatten(1, (-1, self.width))) for layer in self.entrances]
        edges, biases = self.weights(neurons)
        return self.graph.join(edges, biases)

    def weights(self, neurons: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return edges and biases, as `NeuronGraph.split` does, of features ``[n, neurons, width]``; equivariant."""
        found = []
        for x, update, norm in zip(neurons, self.updates, self.norms, strict=True):
            found.append(norm(x + updated(update, x)))
        edges: list[Tensor] = []
        biases: list[Tensor | None] = []
        for place, (shape, between) in enumerate(zip(self.graph.edges, self.between, strict=True)):
            below, above = found[place], found[place + 1]
            upper, lower = self.exits[place](above), self.factors[place](below)
            if between:
                factors = upper.view(-1, shape.above * shape.features, CHANNELS)
                products = factors @ (lower * CHANNELS**-0.5).mT
                edges.append(products.view(-1, shape.above, shape.features, shape.below).transpose(2, 3))
            else:
                edges.append(upper[:, :, None] + lower[:, None])
            biases.append(self.biases[place](above) if self.graph.biases[place] else None)
        return edges, biases


def _moments(edges: Tensor, squares: Tensor, dim: int) -> Tensor:
    """Return the means of edges ``[n, above, below, features]`` and of their squares over one axis.

    ``[n, rest, 2 features]``."""
    return torch.cat([edges.mean(dim=dim), squares.mean(dim=dim)], dim=2)
