"""The predicted class of every image, by many networks of one schema at once."""

import numpy as np
import numpy.typing as npt
import torch

from zootools.architectures import Schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.images.datasets import Subset
from zootools.native.kernel import ACTIVATIONS, Kernel, lane_array
from zootools.training.backend import Backend
from zootools.training.native import NativeBackend

Classes = npt.NDArray[np.int16]

_TOGETHER, _IMAGES = 16, 256
"""Networks and images of one product in PyTorch."""


def predict(
    schema: Schema, weights: npt.NDArray[np.float32], activation: str, subset: Subset, backend: Backend
) -> Classes:
    """Return the class that each network gives to each image, int16 ``[networks, images]``.

    Args:
        schema: the layers of the networks.
        weights: their flat weights, float32 ``[networks, parameters]``.
        activation: their activation.
        subset: the images; the labels are not read.
        backend: what computes: the compiled kernel if it is a `NativeBackend`, otherwise PyTorch on the CPU.
    """
    if isinstance(backend, NativeBackend):
        kernel = Kernel(backend.kernel, schema)
        starts = range(0, len(weights), kernel.width)
        parts = [_by_kernel(kernel, weights[start : start + kernel.width], activation, subset) for start in starts]
    else:
        starts = range(0, len(weights), _TOGETHER)
        parts = [_by_torch(schema, weights[start : start + _TOGETHER], activation, subset) for start in starts]
    return np.concatenate([np.empty((0, len(subset)), np.int16), *parts])


def _by_kernel(kernel: Kernel, weights: npt.NDArray[np.float32], activation: str, subset: Subset) -> Classes:
    """Return the classes by a kernel, which counts pairs of label and class.

    A call classifies as many images as there are classes, each with another label: the counts of a label are then those
    of one image.
    """
    classes, width, count = kernel.schema.classes, kernel.width, len(subset)
    lanes = lane_array((kernel.schema.size, width))
    lanes[:] = weights[np.minimum(np.arange(width), len(weights) - 1)].T
    confusion = np.zeros((width, classes, classes), np.int64)
    arguments = {
        "images": subset.images.numpy(),
        "labels": np.arange(count) % classes,
        "limits": np.full(width, count),
        "weights": lanes,
        "loss": np.zeros(width),
        "confusion": confusion,
        "activation": ACTIVATIONS.index(activation),
    }
    found = np.empty((width, count), np.int16)
    for start in range(0, count, classes):
        confusion[:] = 0
        stop = min(start + classes, count)
        kernel.evaluate(arguments, start, stop)
        found[:, start:stop] = confusion[:, : stop - start].argmax(axis=2)
    return found[: len(weights)]


def _by_torch(schema: Schema, weights: npt.NDArray[np.float32], activation: str, subset: Subset) -> Classes:
    views = parameter_views(schema, torch.from_numpy(np.ascontiguousarray(weights)))
    with torch.no_grad():
        parts = [
            stacked_forward(schema, views, images, activation).argmax(dim=2) for images in subset.images.split(_IMAGES)
        ]
    return torch.cat(parts, dim=1).numpy().astype(np.int16)
