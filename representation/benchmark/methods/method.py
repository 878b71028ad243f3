"""What a method of the benchmark is: a class with `Method.fit` and `Method.predict`.

`representation.benchmark.runs` makes one object for each task and seed, fits it to the training split, lets it choose
on the validation split, and asks once for predictions on the test split. A method never gets a label of the test split.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from representation.benchmark.metrics import METRICS
from representation.evaluation.baselines import UnfitError
from representation.networks import Networks, select
from zootools.architectures import Schema
from zootools.architectures.networks import ACTIVATIONS, parameter_views, stacked_forward

NAMES = tuple(ACTIVATIONS)
"""The activation functions in the order of `Population.activations`."""


@dataclass(frozen=True)
class Problem:
    """What is to be predicted, from which networks."""

    schema: Schema
    """The layers of every network."""
    target: str
    """The name of the predicted property."""
    classes: tuple[str, ...]
    """The labels of a categorical property; empty for a number."""
    metric: str
    """A key of `METRICS`, by which a method chooses on the validation split."""
    seed: int = 0
    """Of everything that the method draws at random."""

    @property
    def outputs(self) -> int:
        """How many numbers a network that is trained for the problem returns: one for each class, or one."""
        return len(self.classes) or 1

    def score(self, truth: Tensor, predicted: Tensor) -> float:
        """Return the metric of predictions ``[rows]``; NaN where it is not defined."""
        return METRICS[self.metric](truth, predicted)


@dataclass(frozen=True)
class Population:
    """Networks of one schema, without what is to be predicted."""

    networks: Networks
    """Flat weights, float32 ``[n, N]``, in memory or in the files of a zoo."""
    activations: Tensor
    """The activation function of each network as an index into `NAMES`, int64 ``[n]``; -1 where it is not known."""

    def __len__(self) -> int:
        return len(self.networks)

    def rows(self, index: Tensor) -> Self:
        """Return some of the networks, given by their indices, int64 ``[rows]``, or by a mask."""
        return replace(self, networks=select(self.networks, index), activations=self.activations[index])

    def split(self, count: int) -> Iterator[Self]:
        """Yield all networks in order, ``count`` at a time."""
        for index in torch.arange(len(self)).split(count):
            yield self.rows(index)

    def run(self, schema: Schema, images: Tensor) -> Tensor:
        """Return the logits of all networks, in evaluation mode, float32 ``[n, B, classes]``.

        Gradients reach ``images``, which are ``[B, channels, height, width]``. Raises UnfitError if the activation
        function of a network is not known.
        """
        if not len(self) or int(self.activations.min()) < 0:
            raise UnfitError("the networks cannot be run: their activation functions are not recorded")
        parts, places = [], []
        for number in self.activations.unique().tolist():
            place = (self.activations == number).nonzero()[:, 0]
            weights = parameter_views(schema, self.networks[place])
            parts.append(stacked_forward(schema, weights, images, NAMES[number]))
            places.append(place)
        return torch.cat(parts)[torch.cat(places).argsort()]


@dataclass(frozen=True)
class Examples(Population):
    """Networks and what is to be predicted from them."""

    labels: Tensor
    """float64 ``[n]``, or for a categorical property the index of its label, int64 ``[n]``."""

    def rows(self, index: Tensor) -> Self:
        """Return some of the examples, given by their indices, int64 ``[rows]``, or by a mask."""
        return replace(super().rows(index), labels=self.labels[index])


class Method(ABC):
    """A way to predict a property of a network from its weights."""

    name: ClassVar[str]
    """The name on the command line and in results."""
    trains: ClassVar[bool]
    """Whether the predictions depend on the seed; a method without that is run for seed 0 only."""
    invariant: ClassVar[bool]
    """Whether a permutation of hidden neurons changes no prediction, apart from rounding."""
    runs: ClassVar[bool] = False
    """Whether it runs the networks, and so knows their activation functions (`Population.run`)."""
    shared_seconds: float = 0.0
    """Processor seconds of what `fit` did not compute, because another method had computed it in this process."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def fit(self, train: Examples, validation: Examples) -> None:
        """Fit to the training examples, and choose by the validation examples, which may have no rows.

        Raises UnfitError if it cannot be fitted to them.
        """

    @abstractmethod
    def predict(self, population: Population) -> Tensor:
        """Return predictions ``[n]``: numbers, or for a categorical property the indices of labels."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of fitted parameters."""
