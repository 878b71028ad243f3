"""Losses, accuracies and class-wise F scores of many models on the same images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from zootools.images.datasets import Subset

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of models on one set of images; float64 ``[models]``, `f1` ``[models, classes]``."""

    loss: FloatArray
    accuracy: FloatArray
    f1: FloatArray


def evaluate(
    logits_of: Callable[[Tensor], Tensor], subset: Subset, classes: int, batch_size: int, limits: npt.ArrayLike
) -> Scores:
    """Score M models on the first images of a subset.

    Args:
        logits_of: maps images ``[B, channels, height, width]`` to logits ``[M, B, classes]``.
        subset: the images.
        classes: number of classes.
        batch_size: images per call; the last batch may be smaller.
        limits: for each model the number of images that are scored, int ``[M]``.

    Returns:
        Mean cross-entropy, accuracy, and for each class the F score 2 tp / (2 tp + fp + fn), 0 where a class
        neither occurs nor is predicted.
    """
    limits = np.asarray(limits)
    models, count = len(limits), int(limits.max())
    device = subset.images.device
    limit = torch.as_tensor(limits, device=device)[:, None]
    loss = torch.zeros(models, dtype=torch.float64, device=device)
    confusion = torch.zeros(models * classes * classes, dtype=torch.int64, device=device)
    first_cell = torch.arange(models, device=device)[:, None] * classes * classes
    with torch.no_grad():
        for start in range(0, count, batch_size):
            # Full batches always: a last batch that ends at `count` would make the rounding depend on other models.
            stop = min(start + batch_size, len(subset))
            labels = subset.labels[start:stop]
            logits = logits_of(subset.images[start:stop])
            losses = F.cross_entropy(logits.reshape(-1, classes), labels.repeat(models), reduction="none").view(
                models, -1
            )
            counts = torch.arange(start, stop, device=device) < limit  # [M, B]
            # torch.where, not a product: a loss of infinity beyond the limit must not become NaN.
            loss += torch.where(counts, losses, 0).sum(dim=1, dtype=torch.float64)
            cells = first_cell + labels * classes + logits.argmax(dim=2)
            confusion.scatter_add_(0, cells.flatten(), counts.flatten().long())  # on CUDA, bincount would wait
    matrix = confusion.view(models, classes, classes).cpu().numpy()
    return scores_from_counts(loss.cpu().numpy(), matrix, limits)


def scores_from_counts(loss: FloatArray, confusion: npt.NDArray[np.int64], limits: npt.NDArray[np.int64]) -> Scores:
    """Return scores from sums of cross-entropies ``[M]`` and counts ``[M, label, prediction]`` of ``limits`` images."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    marked = confusion.sum(axis=1) + confusion.sum(axis=2)  # 2 tp + fp + fn
    return Scores(loss=loss / limits, accuracy=hits.sum(axis=1) / limits, f1=2 * hits / np.maximum(marked, 1))
