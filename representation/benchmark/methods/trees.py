"""Gradient-boosted trees on the statistics of layers, by scikit-learn."""

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from representation.benchmark.methods.method import Examples, Method, Population
from representation.evaluation.baselines import UnterthinerStatistics

LEAVES = (7, 31)
"""Most leaves of a tree, to choose from."""
TREES, STEP = 500, 25
"""Most trees, and the step between the numbers of them to choose from."""


class Trees(Method):
    """Histogram gradient boosting on statistics of weights and biases.

    The number of leaves and of trees is the one with the best score on the validation split; without that split, the
    last ones are used.
    """

    name: ClassVar[str] = "trees"
    trains: ClassVar[bool] = False
    invariant: ClassVar[bool] = True

    def fit(self, train: Examples, validation: Examples) -> None:
        self._statistics = UnterthinerStatistics()
        self._statistics.fit(train.networks, self.problem.schema)
        features, labels, best = self._features(train), train.labels.numpy(), -math.inf
        for leaves in LEAVES:
            model = self._make(leaves)
            model.fit(features, labels)
            if best == -math.inf:
                self._model, self._leaves, self._trees = model, leaves, TREES
            if not len(validation):
                continue
            for trees, predicted in enumerate(model.staged_predict(self._features(validation)), start=1):
                if trees % STEP == 0:
                    score = self.problem.score(validation.labels, torch.from_numpy(predicted))
                    if score > best:  # False for NaN
                        best, self._model, self._leaves, self._trees = score, model, leaves, trees

    def predict(self, population: Population) -> Tensor:
        stages = enumerate(self._model.staged_predict(self._features(population)), start=1)
        return torch.from_numpy(next(predicted for trees, predicted in stages if trees == self._trees))

    @property
    def parameters(self) -> int:
        """Values of leaves and thresholds of inner nodes, at most."""
        return int(self._trees * self._model.n_trees_per_iteration_ * (2 * self._leaves - 1))

    def _features(self, population: Population) -> npt.NDArray[np.float64]:
        features: npt.NDArray[np.float64] = self._statistics.embed(population.networks).numpy()
        return features

    def _make(self, leaves: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if self.problem.classes else HistGradientBoostingRegressor
        return kind(max_iter=TREES, max_leaf_nodes=leaves, learning_rate=0.05, early_stopping=False, random_state=0)
