"""A graph network over neurons, in the manner of neural graphs (Kofinas et al. 2024)."""

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import GraphBlock, perceptron
from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import standardised
from zootools.architectures import Schema

WIDTH = 32
"""Features of a neuron, and of an edge."""
BLOCKS = 3
"""Updates of the graph."""
HIDDEN = 256
"""Units of the hidden layer that reads the pooled features."""


class GraphNetwork(nn.Module):
    """Neurons with biases are nodes, their weights are edges: three updates, mean and maximum of each layer, a head."""

    def __init__(self, schema: Schema, outputs: int) -> None:
        super().__init__()
        graph = self.graph = NeuronGraph(schema)
        self.layers = nn.Parameter(torch.randn(len(graph.nodes), WIDTH))
        """Features of the neurons of each layer before their biases are added."""
        self.biases = nn.ModuleList(nn.Linear(count, WIDTH) if count else nn.Identity() for count in graph.biases)
        self.edges = nn.ModuleList(nn.Linear(edge.features, WIDTH) for edge in graph.edges)
        self.blocks = nn.ModuleList(GraphBlock(WIDTH) for _ in range(BLOCKS))
        self.head = perceptron(2 * WIDTH * len(graph.nodes), HIDDEN, outputs)

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for flat weights ``[n, N]``."""
        edges, biases = self.graph.split(weights)
        neurons = [
            layer.expand(len(weights), count, -1) for layer, count in zip(self.layers, self.graph.nodes, strict=True)
        ]
        for place, bias in enumerate(biases):
            if bias is not None:
                neurons[place + 1] = neurons[place + 1] + self.biases[place](bias)
        edges = [layer(edge) for layer, edge in zip(self.edges, edges, strict=True)]
        for block in self.blocks:
            neurons, edges = block(neurons, edges)
        return self.head(torch.cat([part for x in neurons for part in (x.mean(dim=1), x.amax(dim=1))], dim=1))


class NeuronGraphs(TrainedMethod):
    """A graph network over neurons."""

    name, invariant = "graph-network", True

    def network(self, train: Examples) -> nn.Module:
        return standardised(
            GraphNetwork(self.problem.schema, self.problem.outputs), self.problem.schema, train.networks
        )
