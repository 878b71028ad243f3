"""StatNN (Unterthiner et al. 2020): a network of two wide layers on the statistics of layers."""

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.standard import Standardiser
from representation.evaluation.baselines import UnterthinerStatistics

WIDTH = 1000
"""Units of each of the two hidden layers."""


class StatisticsNetwork(nn.Module):
    """Standardised statistics of the weights and biases of each layer, then 1000 - 1000 - outputs with ReLU."""

    def __init__(self, statistics: UnterthinerStatistics, train: Tensor, outputs: int) -> None:
        super().__init__()
        self.statistics, self.standardiser = statistics, Standardiser(train.shape[1])
        self.standardiser.fit(train)
        self.layers = nn.Sequential(
            *(nn.Linear(train.shape[1], WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            nn.Linear(WIDTH, outputs),
        )

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[B, outputs]`` for flat weights ``[B, N]``."""
        return self.layers(self.standardiser(self.statistics.embed(weights).float()))


class StatNN(TrainedMethod):
    """StatNN as in the papers on equivariant networks, which take it as their first opponent."""

    name, invariant = "StatNN", True

    def network(self, train: Examples) -> nn.Module:
        statistics = UnterthinerStatistics()
        statistics.fit(train.networks, self.problem.schema)
        return StatisticsNetwork(statistics, torch.as_tensor(statistics.embed(train.networks)), self.problem.outputs)
