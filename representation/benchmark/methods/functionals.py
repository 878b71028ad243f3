"""NFN_NP and NFN_HNP (Zhou et al. 2023): neural functionals, networks of equivariant linear layers."""

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import Features, PermutationLinear, pooled, rectified
from representation.encoders.graph import NeuronGraph
from representation.encoders.standard import standardised
from representation.evaluation.baselines import UnfitError
from zootools.architectures import Schema

CHANNELS = (1, 8, 8, 5)
"""Channels of the weights, and after each of the three layers; the paper has 16, 16 and 5, and three times the work."""
WIDTH = 1000
"""Units of each of the two hidden layers that read the pooled numbers."""
MOST_PARAMETERS = 20_000_000
"""NFN_HNP has a matrix of the square of all weights of a neuron of the first layer, which many pixels make huge."""


class Positions(nn.Module):
    """Adds learned numbers to the weights of each node of the image and of the logits, and to the biases of these."""

    def __init__(self, graph: NeuronGraph, channels: int) -> None:
        super().__init__()
        first, last = graph.edges[0], graph.edges[-1]
        self.below = nn.Parameter(torch.randn(first.below, channels * first.features))
        self.above = nn.Parameter(torch.randn(last.above, 1, channels * last.features))
        self.bias = nn.Parameter(torch.randn(last.above, channels * graph.biases[-1]))

    def forward(self, edges: list[Tensor], biases: list[Tensor | None]) -> Features:
        """Return edges and biases with the numbers added."""
        edges = [edges[0] + self.below, *edges[1:]]
        bias = biases[-1]
        return [*edges[:-1], edges[-1] + self.above], [*biases[:-1], None if bias is None else bias + self.bias]


class Functional(nn.Module):
    """Equivariant layers 1 - 8 - 8 - 5 with ReLU, invariant pooling, then 1000 - 1000 - outputs with ReLU.

    Where each pixel's channel and each class is a node, a learned number is added to the weights of each before every
    layer: a permutation of these would change the function of the network.
    """

    def __init__(self, schema: Schema, outputs: int, single_ends: bool) -> None:
        super().__init__()
        self.graph = NeuronGraph(schema, single_ends)
        first, last = self.graph.edges[0], self.graph.edges[-1]
        self.layers, self.positions = nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(CHANNELS):
            self.layers.append(PermutationLinear(self.graph, before, after))
            if not single_ends:
                self.positions.append(Positions(self.graph, before))
        pooled_from = [first.below * first.features, *(edge.features for edge in self.graph.edges[1:-1])]
        pooled_from += [last.above * last.features, *self.graph.biases[:-1], last.above * self.graph.biases[-1]]
        features = CHANNELS[-1] * sum(pooled_from)
        self.head = nn.Sequential(
            *(nn.Linear(features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()), nn.Linear(WIDTH, outputs)
        )

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for flat weights ``[n, N]``."""
        edges, biases = self.graph.split(weights)
        for number, layer in enumerate(self.layers):
            if len(self.positions):
                edges, biases = self.positions[number](edges, biases)
            edges, biases = rectified(*layer(edges, biases))
        return self.head(pooled(edges, biases))


class NfnHnp(TrainedMethod):
    """NFN_HNP (Zhou et al. 2023): equivariant to permutations of hidden neurons; channels 8, 8, 5, then 1000, 1000."""

    name, invariant = "NFN-HNP", True
    single_ends: ClassVar[bool] = True

    def network(self, train: Examples) -> nn.Module:
        schema, outputs = self.problem.schema, self.problem.outputs
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in Functional(schema, outputs, self.single_ends).parameters())
        if size > MOST_PARAMETERS:
            raise UnfitError(f"it would have {size:,} parameters for these networks; at most {MOST_PARAMETERS:,}")
        return standardised(Functional(schema, outputs, self.single_ends), schema, train.networks)


class NfnNp(NfnHnp):
    """NFN_NP (Zhou et al. 2023): equivariant in pixels and classes too, which learned positions tell apart."""

    name = "NFN-NP"
    single_ends = False
