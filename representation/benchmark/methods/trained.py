"""Methods that train a network on the networks: one loop for all of them.

A method with a network of its own is a subclass of `TrainedMethod` with `TrainedMethod.network`.
"""

import copy
import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples, Method, Population
from representation.evaluation.baselines import UnfitError
from representation.training.optimizer import Adam, one_cycle
from zootools.rng import stream

PREDICTED_AT_ONCE = 512
"""Networks that are predicted at once."""
STEPS = 2000
"""The budget of a training: as many whole epochs as these steps allow, at least one."""


class TrainedMethod(Method):
    """Adam on the squared error of the standardised number, or on the cross-entropy of the classes.

    The epoch with the best score on the validation split is kept; without that split, the last one. All random numbers
    follow from the seed: initialisation and dropout draw from torch's global generator, which the run seeds.
    """

    trains: ClassVar[bool] = True
    epochs: ClassVar[int] = 30
    """Passes over the training examples, at most; fewer where they would be more than `STEPS`."""
    batch_size: ClassVar[int] = 32
    lr: ClassVar[float] = 1e-3
    """The highest learning rate, of one cycle over the whole training."""
    weight_decay: ClassVar[float] = 0.0
    module: nn.Module

    @abstractmethod
    def network(self, train: Examples) -> nn.Module:
        """Return the network: flat weights, float32 ``[B, N]``, to ``[B, problem.outputs]``; constants are fitted."""

    def outputs(self, batch: Population) -> Tensor:
        """Return the outputs ``[B, problem.outputs]`` of the network; by default of the flat weights alone."""
        return self.module(batch.networks)

    def views(self, batch: Examples, generator: torch.Generator) -> Examples:
        """Return the batch that a step is trained on: an augmentation; by default the batch itself."""
        return batch

    def fit(self, train: Examples, validation: Examples) -> None:
        """Train the network; see `Method.fit`. Raises UnfitError if the loss is no longer finite."""
        draws = stream(self.problem.seed, "benchmark", self.name)
        torch.manual_seed(int(draws.integers(2**63)))
        generator = torch.Generator().manual_seed(int(draws.integers(2**63)))
        self._scale(train.labels)
        self.module = self.network(train)
        optimizer = Adam([self.module], self.lr, self.weight_decay, None)
        steps = math.ceil(len(train) / self.batch_size)
        epochs = min(self.epochs, max(1, STEPS // steps))
        best, kept = -math.inf, None
        for epoch in range(epochs):
            order = torch.randperm(len(train), generator=generator)
            self.module.train()
            for step, index in enumerate(order.split(self.batch_size)):
                factor = one_cycle((epoch * steps + step + 1) / (epochs * steps + 1))
                optimizer.rates = tuple(factor * rate for rate in optimizer.highest)
                batch = self.views(train.rows(index), generator)
                loss = self._loss(self.outputs(batch), batch.labels)
                if not loss.isfinite():
                    raise UnfitError(f"its loss is no longer finite in epoch {epoch + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if len(validation):
                score = self.problem.score(validation.labels, self.predict(validation))
                if score > best:  # False for NaN
                    best, kept = score, copy.deepcopy(self.module.state_dict())
        if kept is not None:
            self.module.load_state_dict(kept)

    def predict(self, population: Population) -> Tensor:
        """Return the predictions of the kept epoch; see `Method.predict`."""
        self.module.eval()
        with torch.no_grad():
            outputs = torch.cat([self.outputs(batch) for batch in population.split(PREDICTED_AT_ONCE)])
        if self.problem.classes:
            return outputs.argmax(dim=1)
        return outputs[:, 0].double() * self._deviation + self._mean

    @property
    def parameters(self) -> int:
        """The number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _scale(self, labels: Tensor) -> None:
        """Set the constants that standardise numbers."""
        if not self.problem.classes:
            deviation = float(labels.std(correction=0))
            self._mean, self._deviation = float(labels.mean()), deviation if deviation > 0 else 1.0

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.problem.classes:
            return nn.functional.cross_entropy(outputs, labels)
        return nn.functional.mse_loss(outputs[:, 0], ((labels - self._mean) / self._deviation).float())
