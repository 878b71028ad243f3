"""The models that are trained side by side, as arrays with one value per model.

All trainers take a group, so the numbers that a model is trained with are computed in one place.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.images.datasets import ImageData, Subset
from zootools.rng import data_order, dropout_key
from zootools.spec.model_configs import ModelConfig, training_count
from zootools.training.initialise import initial_weights

BETA1, BETA2 = 0.9, 0.999  # torch.optim.Adam

OPTIMIZER_STATE = {
    "adam": ("first_moment", "second_moment"),
    "sgd": ("momentum",),
    "rmsprop": ("second_moment",),
}
"""The state of each optimizer, besides the weights."""

SLOTS = {"first_moment": "first", "momentum": "first", "second_moment": "second"}
"""The array of the compiled kernels that holds each state."""

SUBSETS = ("train", "validation", "test")

Tick = Callable[[float], None]
"""Called repeatedly with the share of the epoch that is done, between 0 and 1."""


def check_image_tensors(schema: Schema, images: ImageData) -> None:
    """Refuse images that do not fit a schema, before a trainer indexes memory by them.

    `zootools.images.datasets` checks files and names them; this check is for images from any source.

    Raises SpecError for images that are not float32 ``[count, *schema.input_shape]``, for labels that are not int64
    ``[count]`` in 0 to ``schema.classes`` - 1, and if there are no training or no test images.
    """
    for name in SUBSETS:
        subset: Subset = getattr(images, name)
        pictures, labels = subset.images, subset.labels
        shape, count = tuple(pictures.shape[1:]), pictures.shape[0] if pictures.dim() else 0
        if pictures.dtype != torch.float32 or shape != schema.input_shape:
            raise SpecError(
                f"the {name} images are {_kind(pictures)}, expected float32 [{count}, "
                f"{', '.join(map(str, schema.input_shape))}] for the architecture {schema.name}"
            )
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise SpecError(f"the {name} labels are {_kind(labels)}, expected int64 [{count}], one for every image")
        least, most = (int(labels.min()), int(labels.max())) if count else (0, 0)
        if least < 0 or most >= schema.classes:
            raise SpecError(f"the {name} labels are {least} to {most}, expected 0 to {schema.classes - 1}")
    for name in ("train", "test"):
        if not len(getattr(images, name)):
            raise SpecError(f"there are no {name} images, expected at least 1")


def groups_of(models: Sequence[ModelConfig], width: int) -> list[Sequence[ModelConfig]]:
    """Divide models into groups of at most ``width``, of one activation and optimizer each, in their order."""
    runs = [list(run) for _, run in itertools.groupby(models, structure_of)]
    return [run[start : start + width] for run in runs for start in range(0, len(run), width)]


def structure_of(model: ModelConfig) -> tuple[str, str]:
    """Return what the models of a group share: activation and optimizer."""
    return model.hyperparameters.activation, model.hyperparameters.optimizer


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class Group:
    """``width`` models of one schema; if ``models`` are fewer, copies of the last are added.

    Args:
        schema: the layers that all models share.
        models: the models, 1 to ``width``.
        images: the data.
        batch_size: samples of one step.
        width: number of models that the trainer trains side by side.
        train_metrics_images: number of images, from the first of each model's share, on which train scores are
            measured; all by default.

    Raises SpecError if the images do not fit the schema (`check_image_tensors`).
    """

    def __init__(
        self,
        schema: Schema,
        models: Sequence[ModelConfig],
        images: ImageData,
        batch_size: int,
        width: int,
        train_metrics_images: int | None = None,
    ) -> None:
        check_image_tensors(schema, images)
        if not 0 < len(models) <= width:
            raise ValueError(f"expected 1 to {width} models, found {len(models)}")
        self.schema, self.images, self.batch_size = schema, images, batch_size
        self.count = len(models)
        self.structures = sorted({structure_of(model) for model in models})
        self.models = [*models, *[models[-1]] * (width - self.count)]
        hyper = [model.hyperparameters for model in self.models]
        self.lr = np.array([h.lr for h in hyper])
        self.momentum = np.array([h.momentum for h in hyper], np.float32)
        self.dropout = np.array([h.dropout for h in hyper])
        decay = np.array([h.weight_decay for h in hyper], np.float32)
        self.decay = np.stack([decay, decay + np.array([2 * h.l2 for h in hyper], np.float32)])
        """Factors of the decay, float32 ``[2, M]``: row 0 for biases (coupled L2), row 1 for kernels (``l2`` added)."""
        self.train_counts = np.array([training_count(len(images.train), h.train_fraction) for h in hyper])
        self.steps = -(-self.train_counts // batch_size)
        self.metrics_counts = np.minimum(self.train_counts, train_metrics_images or len(images.train))

    @property
    def activation(self) -> str:
        """The activation that all models share. Raises ValueError if they have several."""
        return self._only("activation", {activation for activation, _ in self.structures})

    @property
    def optimizer(self) -> str:
        """The optimizer that all models share. Raises ValueError if they have several."""
        return self._only("optimizer", {optimizer for _, optimizer in self.structures})

    @staticmethod
    def _only(what: str, found: set[str]) -> str:
        if len(found) > 1:
            raise ValueError(f"expected models of one {what}, found {', '.join(sorted(found))}")
        return next(iter(found))

    def initial_weights(self) -> npt.NDArray[np.float32]:
        """Return the weights at epoch 0, float32 ``[M, parameters]``."""
        return np.stack([initial_weights(self.schema, m.hyperparameters, m.seed) for m in self.models])

    def is_kernel(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the parameters of kernels (not biases), bool ``[parameters]``."""
        return np.concatenate([np.full(p.size, p.name.endswith(".weight")) for p in self.schema.parameters])

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return the index of each model's image by position, int32 ``[steps * batch_size, M]``; 0 beyond its count."""
        return np.ascontiguousarray(self.order_by_model(epoch).T)

    def order_by_model(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return `order` with one row per model, int32 ``[M, steps * batch_size]``."""
        order = np.zeros((len(self.models), int(self.steps.max()) * self.batch_size), np.int32)
        drawn: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        for row, model, count in zip(order, self.models, self.train_counts.tolist(), strict=True):
            key = (model.seed, count)
            if key not in drawn:
                drawn[key] = data_order(model.seed, epoch, count)
            row[:count] = drawn[key]
        return order

    def step_sizes(self, epoch: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return step sizes, and factors of the root of Adam's second moment, float32 ``[steps, M]`` each.

        For Adam the step size includes the correction of the first moment; for the others the step size is the learning
        rate and the factor is 1.
        """
        steps = int(self.steps.max())
        if self.optimizer != "adam":
            rates = np.tile(self.lr.astype(np.float32), (steps, 1))
            return rates, np.ones_like(rates)
        time = (epoch - 1) * self.steps + np.arange(1, steps + 1)[:, None]
        rates = self.lr / (1 - BETA1**time)
        return rates.astype(np.float32), (1 / np.sqrt(1 - BETA2**time)).astype(np.float32)

    def dropout_keys(self, epoch: int) -> dict[str, npt.NDArray[np.uint32]]:
        """Return the keys of `zootools.rng.dropout_bits` by layer, uint32 ``[M]``; empty if no model drops units."""
        if not self.dropout.any():
            return {}
        return {
            layer.name: np.array([dropout_key(m.seed, epoch, layer.name) for m in self.models], np.uint32)
            for layer in self.schema.layers
            if layer.dropout
        }

    def dropout_thresholds(self) -> npt.NDArray[np.uint32]:
        """Return for each model the threshold of the bits of dropped units, uint32 ``[M]``."""
        return np.array([int(rate * 2**32) for rate in self.dropout], np.uint32)


class OrdersAhead:
    """Draws `Group.order_by_model` of the next epoch in a thread, while a device computes the current one."""

    def __init__(self, group: Group) -> None:
        self._group, self._thread = group, ThreadPoolExecutor(1)
        self._drawn: dict[int, Future[npt.NDArray[np.int32]]] = {}

    def of(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return the order of an epoch, which may have been drawn during the epoch before."""
        drawn = self._drawn.pop(epoch, None) or self._thread.submit(self._group.order_by_model, epoch)
        order = drawn.result()
        self._drawn = {epoch + 1: self._thread.submit(self._group.order_by_model, epoch + 1)}
        return order
