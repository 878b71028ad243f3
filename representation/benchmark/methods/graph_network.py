"""A graph network over neurons, in the manner of neural graphs (Kofinas et al. 2024)."""

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import perceptron
from representation.encoders.graph import NeuronGraph
from representation.encoders.graph_blocks import GraphBlock
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
        self.blocks = nn.ModuleList(GraphBlock(graph, WIDTH) for _ in range(BLOCKS))
        self.head = perceptron(2 * WIDTH * len(graph.nodes), HIDDEN, outputs)

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for flat weights ``[n, N]``."""
        count = len(weights)
        edges, biases = self.graph.split(weights)
        nodes = [layer.expand(size, count, -1) for layer, size in zip(self.layers, self.graph.nodes, strict=True)]
        for place, bias in enumerate(biases):
            if bias is not None:
                nodes[place + 1] = nodes[place + 1] + self.biases[place](bias.transpose(0, 1))
        neurons = torch.cat(nodes).flatten(0, 1)
        features = [layer(edge.flatten(1, 2).transpose(0, 1)) for layer, edge in zip(self.edges, edges, strict=True)]
        joined = torch.cat(features).flatten(0, 1)
        for block in self.blocks:
            neurons, joined = block(neurons, joined)
        found = neurons.view(-1, count, WIDTH).split(self.graph.nodes)
        return self.head(torch.cat([part for x in found for part in (x.mean(dim=0), x.amax(dim=0))], dim=1))


class NeuronGraphs(TrainedMethod):
    """Neural graphs (Kofinas et al. 2024): neurons are nodes, weights are edges; three updates of 32 features."""

    name, invariant = "graph-network", True

    def network(self, train: Examples) -> nn.Module:
        return standardised(
            GraphNetwork(self.problem.schema, self.problem.outputs), self.problem.schema, train.networks
        )
