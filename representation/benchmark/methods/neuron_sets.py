"""Deep sets (Zaheer et al. 2017): a network is a list of sets of neurons, and a neuron a set of weights."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import means, perceptron
from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import standardised
from zootools.architectures import Schema

WIDTH = 64
"""Features of a weight, and of a neuron."""
HIDDEN = 256
"""Units of the hidden layer that reads the pooled features."""


class NeuronSets(nn.Module):
    """Features of each weight are pooled for both its neurons, those of a neuron in its layer, as mean and maximum.

    A raw token of a neuron changes when the neurons of the layer below are permuted; a set of weights does not.
    """

    def __init__(self, schema: Schema, outputs: int) -> None:
        super().__init__()
        graph = self.graph = NeuronGraph(schema)
        self.edges = nn.ModuleList(nn.Linear(edge.features, WIDTH) for edge in graph.edges)
        self.below = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in graph.edges)
        self.above = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in graph.edges)
        self.biases = nn.ModuleList(nn.Linear(count, WIDTH) if count else nn.Identity() for count in graph.biases)
        self.neurons = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in graph.nodes)
        self.head = perceptron(2 * WIDTH * len(graph.nodes), HIDDEN, outputs)

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for flat weights ``[n, N]``."""
        sums: list[list[Tensor]] = [[] for _ in self.graph.nodes]
        for place, (edge, bias) in enumerate(zip(*self.graph.split(weights), strict=True)):
            features = F.relu(self.edges[place](edge))
            sums[place].append(self.above[place](means(features, dim=1)))
            sums[place + 1].append(self.below[place](means(features, dim=2)))
            if bias is not None:
                sums[place + 1].append(self.biases[place](bias))
        neurons = [F.relu(functools.reduce(torch.add, parts)) for parts in sums]
        neurons = [F.relu(layer(x)) for layer, x in zip(self.neurons, neurons, strict=True)]
        return self.head(torch.cat([part for x in neurons for part in (x.mean(dim=1), x.amax(dim=1))], dim=1))


class DeepSets(TrainedMethod):
    """Deep sets (Zaheer et al. 2017): a layer is a set of neurons, a neuron a set of weights; 64 features."""

    name, invariant = "DeepSets", True

    def network(self, train: Examples) -> nn.Module:
        return standardised(NeuronSets(self.problem.schema, self.problem.outputs), self.problem.schema, train.networks)
