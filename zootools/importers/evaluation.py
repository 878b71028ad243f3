"""Accuracies of a sample of imported checkpoints on images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zootools.architectures import Schema
from zootools.architectures.networks import stacked_forward
from zootools.images.datasets import Subset

Weights = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

BATCH = 500


@dataclass(frozen=True)
class Sample:
    """Checkpoints that are evaluated, ordered by activation."""

    weights: Weights
    """float32 ``[n, parameters]``."""
    activations: tuple[str, ...]
    names: tuple[str, ...]
    """Model and epoch of each, for messages."""
    recorded: Floats | None = None
    """The recorded accuracy of each."""

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Scored:
    """Outcome of an evaluation of a sample."""

    accuracy: Floats
    """``[n]``"""
    matched: Floats
    """The same if the classes were renumbered in the one way that suits all checkpoints together, ``[n]``."""


def score(schema: Schema, sample: Sample, subset: Subset) -> Scored:
    """Return the accuracies of a sample on some images."""
    labels = subset.labels.numpy()
    confusion = np.zeros((len(sample), schema.classes, schema.classes), np.int64)
    with torch.no_grad():
        for group, activation in groups(sample):
            weights = tensors(schema, sample.weights[group])
            for start in range(0, len(subset), BATCH):
                logits = stacked_forward(schema, weights, subset.images[start : start + BATCH], activation)
                guesses = logits.argmax(dim=2).numpy()
                for index, guess in zip(range(len(sample))[group], guesses, strict=True):
                    np.add.at(confusion[index], (labels[start : start + BATCH], guess), 1)
    hits = np.diagonal(confusion, axis1=1, axis2=2).sum(axis=1)
    return Scored(hits / len(subset), _matched(confusion) / len(subset))


def groups(sample: Sample) -> list[tuple[slice, str]]:
    """Return the checkpoints of each activation: a slice, because the sample is ordered by it."""
    groups = []
    for activation in dict.fromkeys(sample.activations):
        first = sample.activations.index(activation)
        groups.append((slice(first, first + sample.activations.count(activation)), activation))
    return groups


def tensors(schema: Schema, weights: Weights) -> dict[str, Tensor]:
    """Return flat weights ``[n, parameters]`` as one tensor ``[n, *shape]`` for each parameter."""
    flat = torch.from_numpy(np.ascontiguousarray(weights))
    return {p.name: flat[:, p.offset : p.end].reshape(-1, *p.shape) for p in schema.parameters}


def _matched(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the hits of each model if its classes were renumbered by the assignment that is best for all together."""
    labels, guesses = linear_sum_assignment(-confusion.sum(axis=0))
    return confusion[:, labels, guesses].sum(axis=1)
