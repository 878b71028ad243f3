"""Linear probes of features that need no training: the weights, their statistics, their principal components."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from representation.benchmark.methods.method import Examples, Method, Population
from representation.evaluation.baselines import (
    Baseline,
    LinearPca,
    PaperStatistics,
    RawWeights,
    UnfitError,
    UnterthinerStatistics,
)
from representation.evaluation.probes import LinearMap, fit_ridge, fit_softmax_lbfgs
from representation.networks import Networks

COMPONENTS = 128
"""Most principal components."""
MOST_SOLVED = 20_000
"""Limit of min(rows, features) of a ridge regression, which would take hours above it."""


class LinearProbe(Method):
    """Standardised features, and ridge regression or a softmax layer, whose penalty is chosen on validation."""

    trains: ClassVar[bool] = False
    probe: LinearMap

    @abstractmethod
    def features(self, population: Population) -> Networks:
        """Return the features ``[n, d]`` of networks."""

    def fit_features(self, train: Examples) -> None:
        """Fit what `features` needs to the training examples; by default nothing."""

    def fit(self, train: Examples, validation: Examples) -> None:
        self.fit_features(train)
        features = self.features(train)
        if min(features.shape) > MOST_SOLVED:
            raise UnfitError(f"{features.shape[0]} networks x {features.shape[1]} features: too large")
        fitted = features, train.labels[:, None]
        judged: tuple[Networks, Tensor] = features[torch.arange(0)], train.labels[:0, None]
        if len(validation):
            judged = (self.features(validation), validation.labels[:, None])
        if not self.problem.classes:
            self.probe = fit_ridge(fitted, judged, standardise=True)
        else:
            self.probe = fit_softmax_lbfgs(fitted, judged, [len(self.problem.classes)])

    def predict(self, population: Population) -> Tensor:
        features = self.features(population)
        if self.problem.classes:
            return self.probe.classes(features, heads=1)[:, 0]
        return self.probe(features)[:, 0]

    @property
    def parameters(self) -> int:
        return self.probe.weights.numel() + self.probe.offset.numel()


class BaselineProbe(LinearProbe):
    """A linear probe of one of the baselines of `representation.evaluation.baselines`."""

    def baseline(self) -> Baseline:
        """Return the baseline, not fitted."""
        raise NotImplementedError

    def fit_features(self, train: Examples) -> None:
        self._baseline = self.baseline()
        self._baseline.fit(train.networks, self.problem.schema)

    def features(self, population: Population) -> Networks:
        return self._baseline.embed(population.networks)


class Weights(BaselineProbe):
    """W: the weights themselves."""

    name, invariant = "W", False

    def baseline(self) -> Baseline:
        return RawWeights()


class PaperLayerStatistics(BaselineProbe):
    """s(W): mean, variance and quantiles 1, 25, 50, 75, 99 % of each layer's weights."""

    name, invariant = "s(W)", True

    def baseline(self) -> Baseline:
        return PaperStatistics()


class UnterthinerLayerStatistics(BaselineProbe):
    """Mean, variance, minimum, quartiles and maximum of each layer's weights and of its biases."""

    name, invariant = "s(W)-Unterthiner", True

    def baseline(self) -> Baseline:
        return UnterthinerStatistics()


class PrincipalComponents(BaselineProbe):
    """The first 128 principal components of the training weights."""

    name, invariant = "PCA", False

    def baseline(self) -> Baseline:
        return LinearPca(COMPONENTS)

    @property
    def parameters(self) -> int:
        return super().parameters + self.problem.schema.size * (self.probe.weights.shape[0] + 1)
