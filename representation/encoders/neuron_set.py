"""The set encoder: messages between neurons along their weights, equivariant to permutations of all hidden layers.

Its layers treat all neurons of a layer alike and pool over the axes that permutations move, as those of neural
functionals and of graph networks over neurons do. So what is pooled over all neurons at the end is invariant, exactly.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import begin_at_zero
from representation.encoders.statistics import LayerStatistics
from representation.recipes import NeuronSet
from zootools.architectures import Schema

CHANNELS = 16
"""Numbers of a neuron that a message carries along each weight."""
READ = 4
"""Numbers of each neuron that the part of z reads that is not invariant."""


class Messages(nn.Module):
    """One exchange between neurons: each gets messages along its weights, and the mean of its layer.

    A message is the sum over the neighbours of what they carry times the weights between, as in a forward and in a
    backward pass of the network. Only hidden layers exchange messages: image and logits have a single node. All
    neurons of a layer share the parameters.
    """

    def __init__(self, graph: NeuronGraph, settings: NeuronSet) -> None:
        super().__init__()
        width = settings.width
        self.between = [edge.above > 1 and edge.below > 1 for edge in graph.edges]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in graph.nodes)
        exchanging = [any(self.between[max(place - 1, 0) : place + 1]) for place in range(len(graph.nodes))]
        self.carried = nn.ModuleList(nn.Linear(width, CHANNELS) if some else nn.Identity() for some in exchanging)
        self.updates = nn.ModuleList()
        for place in range(len(graph.nodes)):
            messages = [
                edge.features * CHANNELS
                for edge, between in list(zip(graph.edges, self.between, strict=True))[max(place - 1, 0) : place + 1]
                if between
            ]
            self.updates.append(perceptron(2 * width + sum(messages), settings.hidden, width))

    def forward(self, neurons: Sequence[Tensor], edges: Sequence[Tensor]) -> list[Tensor]:
        """Return new features ``[n, neurons, width]`` of each layer, from the old ones and the edges."""
        normed = [norm(x) for norm, x in zip(self.norms, neurons, strict=True)]
        carried = [layer(x) for layer, x in zip(self.carried, normed, strict=True)]
        messages: list[list[Tensor]] = [[] for _ in neurons]
        for place, edge in enumerate(edges):
            if self.between[place]:
                _, above, below, features = edge.shape
                edge = edge.to(carried[0].dtype)
                # Matrix products for each network: [above * f, below] by [below, c], [below * f, above] by [above, c].
                upward = edge.transpose(2, 3).flatten(1, 2) @ carried[place]
                downward = edge.flatten(2).mT @ carried[place + 1]
                messages[place + 1].append(upward.view(-1, above, features * CHANNELS) * below**-0.5)
                messages[place].append(downward.view(-1, below, features * CHANNELS) * above**-0.5)
        updates = zip(neurons, self.updates, normed, messages, strict=True)
        return [old + updated(update, x, *parts) for old, update, x, parts in updates]


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
        self.statistics = LayerStatistics(graph)
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


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def updated(layers: nn.Module, x: Tensor, *messages: Tensor) -> Tensor:
    """Return what a `perceptron` gives for features ``[n, neurons, width]`` beside their mean, and messages.

    The product with the mean, the same for all neurons of a layer, is computed once; nothing is copied side by side.
    """
    assert isinstance(layers, nn.Sequential)
    first, activation, last = layers
    assert isinstance(first, nn.Linear)
    width = x.shape[2]
    own, common, *others = first.weight.split([width, width, *(part.shape[2] for part in messages)], dim=1)
    if x.shape[1] == 1:
        hidden = F.linear(x, own + common, first.bias)
    else:
        hidden = F.linear(x, own) + F.linear(x.mean(dim=1, keepdim=True), common, first.bias)
    for part, weight in zip(messages, others, strict=True):
        hidden = hidden + F.linear(part, weight)
    outputs: Tensor = last(activation(hidden))
    return outputs


def _moments(edges: Tensor, squares: Tensor, dim: int) -> Tensor:
    """Return the means of edges ``[n, above, below, features]`` and of their squares over one axis.

    ``[n, rest, 2 features]``."""
    return torch.cat([edges.mean(dim=dim), squares.mean(dim=dim)], dim=2)
