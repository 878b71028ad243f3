"""A network on the flat weights, with and without permuted views of them in its training."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.standard import Standardiser
from representation.networks import in_memory
from representation.recipes import Augmentation
from representation.training.augmentation import Augmenter

WIDTH = 512
"""Units of each of the two hidden layers."""


class FlatNetwork(nn.Module):
    """Standardised flat weights, then 512 - 512 - outputs with ReLU."""

    def __init__(self, standardiser: Standardiser, inputs: int, outputs: int) -> None:
        super().__init__()
        self.standardiser = standardiser
        self.layers = nn.Sequential(
            *(nn.Linear(inputs, WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            nn.Linear(WIDTH, outputs),
        )

    def forward(self, weights: Tensor) -> Tensor:
        """Return the outputs ``[B, outputs]`` for flat weights ``[B, N]``."""
        return self.layers(self.standardiser(weights))


class FlatMlp(TrainedMethod):
    """The flat weights, each standardised by itself."""

    name, invariant = "MLP", False

    def network(self, train: Examples) -> nn.Module:
        standardiser = Standardiser(self.problem.schema.size)
        standardiser.fit(in_memory(train.networks))
        return FlatNetwork(standardiser, self.problem.schema.size, self.problem.outputs)


class PermutedMlp(TrainedMethod):
    """The same, trained on randomly permuted networks; a layer is standardised as a whole."""

    name, invariant = "MLP-permuted", False

    def network(self, train: Examples) -> nn.Module:
        self._augmenter = Augmenter(self.problem.schema, Augmentation(erase_probability=0.0))
        standardiser = Standardiser(self.problem.schema.size)
        standardiser.fit_layers(train.networks, self.problem.schema)
        return FlatNetwork(standardiser, self.problem.schema.size, self.problem.outputs)

    def views(self, batch: Examples, generator: torch.Generator) -> Examples:
        permuted = self._augmenter.views(in_memory(batch.networks), generator, copies=1).clean
        return replace(batch, networks=permuted)
