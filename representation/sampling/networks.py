"""Networks with given weights on the images of a zoo: predicted classes, accuracies, training."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from zootools.architectures import Schema
from zootools.images.datasets import ImageData, Subset
from zootools.spec import Hyperparameters, Training
from zootools.spec.model_configs import ModelConfig
from zootools.storage.records import Stop
from zootools.storage.shards import ShardInfo
from zootools.training.backend import Backend, StandardBackend
from zootools.training.predictions import Classes, predict
from zootools.training.stack import StackRun

Weights = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class Checkpoints(NamedTuple):
    """The networks of a stack at one epoch."""

    weights: Weights
    """float32 ``[networks, parameters]``, without the diverged ones."""
    info: ShardInfo
    stopped: dict[str, Stop]
    """The networks that have diverged, by id."""


@dataclass(frozen=True)
class Trainer:
    """How the networks of a zoo are run and trained."""

    schema: Schema
    hyperparameters: Hyperparameters
    images: ImageData
    training: Training
    """Size of a batch, and images that train scores are measured on; not the number of epochs."""
    backend: Backend
    epochs: int

    def predict(self, weights: Weights, subset: Subset) -> Classes:
        """Return the class that each network gives to each image, int16 ``[networks, images]``."""
        return predict(self.schema, weights, self.hyperparameters.activation, subset, self.backend)

    def accuracy(self, weights: Weights, subset: Subset) -> Floats:
        """Return the share of the images that each network classifies correctly, float64 ``[networks]``."""
        return np.equal(self.predict(weights, subset), subset.labels.numpy()).mean(axis=1)

    def train(self, weights: Weights, names: Sequence[str], seeds: Sequence[int]) -> Iterator[list[Checkpoints]]:
        """Train networks from given weights; yield the epochs of one group of networks after the other.

        Epoch 0 has the given weights. The groups are trained side by side by threads, and yielded in order.

        Args:
            weights: float32 ``[networks, parameters]``.
            names: their ids.
            seeds: their seeds, which decide the order of the images.
        """
        width = self.backend.width(self.schema) if isinstance(self.backend, StandardBackend) else 1
        groups = [slice(start, start + width) for start in range(0, len(weights), width)]
        # PyTorch computes the bits of one thread only if it has one thread; the kernel's calls are independent.
        workers = (os.cpu_count() or 1) if self.backend.name == "native" else 1

        def train(group: slice) -> list[Checkpoints]:
            return self._train(weights[group], names[group], seeds[group])

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(train, groups)

    def _train(self, weights: Weights, names: Sequence[str], seeds: Sequence[int]) -> list[Checkpoints]:
        models = [
            ModelConfig(name, "", seed, "train", self.hyperparameters) for name, seed in zip(names, seeds, strict=True)
        ]
        run = StackRun(self.schema, models, self.images, self.training, self.backend)
        run.restore(run.save() | {"weights": torch.from_numpy(np.ascontiguousarray(weights))}, 0, {})
        epochs = [Checkpoints(*run.checkpoint(), dict(run.stopped))]
        while run.epoch < self.epochs and not run.all_stopped:
            run.train_epoch()
            epochs.append(Checkpoints(*run.checkpoint(), dict(run.stopped)))
        return epochs
