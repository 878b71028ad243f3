"""The models that are trained side by side, as arrays with one value per model.

Every trainer takes a group and nothing else, so what a model is trained with is worked out in one place.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.images.datasets import ImageData, Subset
from zootools.rng import data_order, dropout_key
from zootools.spec.model_configs import ModelConfig
from zootools.training.initialise import initial_weights
from zootools.training.reference import training_count

BETA1, BETA2 = 0.9, 0.999  # torch.optim.Adam

OPTIMIZER_STATE = {
    "adam": ("first_moment", "second_moment"),
    "sgd": ("momentum",),
    "rmsprop": ("second_moment",),
}
"""What each optimizer remembers, beside the weights."""

SUBSETS = ("train", "validation", "test")

Tick = Callable[[float], None]
"""Told now and then how much of the epoch is done, as a share between 0 and 1."""


def check_images(schema: Schema, images: ImageData) -> None:
    """Refuse images that a network of this schema cannot be trained with; what trains would index memory by them.

    `zootools.images.datasets` compares files with what is expected, and names them. This check is for images from
    anywhere.

    Raises SpecError for images that are not float32 ``[count, *schema.input_shape]``, for labels that are not int64
    ``[count]`` in 0 to ``schema.classes`` - 1, and where there are no training or no test images.
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


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class Group:
    """Up to ``width`` models of one schema, activation and optimizer; missing ones are copies of the last.

    Args:
        schema: the layers that all models share.
        models: what to train.
        images: the data.
        batch_size: samples of one step.
        width: how many the trainer trains side by side.
        train_metrics_images: train scores are taken on the first so many images of each model's share.

    Raises SpecError when the images do not fit the schema (`check_images`).
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
        check_images(schema, images)
        if not 0 < len(models) <= width:
            raise ValueError(f"expected 1 to {width} models, found {len(models)}")
        structures = {(m.hyperparameters.activation, m.hyperparameters.optimizer) for m in models}
        if len(structures) > 1:
            raise ValueError(f"the models of a stack share activation and optimizer, found {sorted(structures)}")
        ((self.activation, self.optimizer),) = structures
        self.schema, self.images, self.batch_size = schema, images, batch_size
        self.count = len(models)
        self.models = [*models, *[models[-1]] * (width - self.count)]
        hyper = [model.hyperparameters for model in self.models]
        self.lr = np.array([h.lr for h in hyper])
        self.momentum = np.array([h.momentum for h in hyper], np.float32)
        self.dropout = np.array([h.dropout for h in hyper])
        decay = np.array([h.weight_decay for h in hyper], np.float32)
        self.decay = np.stack([decay, decay + np.array([2 * h.l2 for h in hyper], np.float32)])
        """What a bias and a kernel add to their gradient per unit: coupled L2 on all, ``l2`` on kernels, ``[2, M]``."""
        self.train_counts = np.array([training_count(len(images.train), h) for h in hyper])
        self.steps = -(-self.train_counts // batch_size)
        self.metrics_counts = np.minimum(self.train_counts, train_metrics_images or len(images.train))

    def initial_weights(self) -> npt.NDArray[np.float32]:
        """Return the weights at epoch 0, float32 ``[M, parameters]``."""
        return np.stack([initial_weights(self.schema, m.hyperparameters, m.seed) for m in self.models])

    def is_kernel(self) -> npt.NDArray[np.bool_]:
        """Return for each parameter whether it belongs to a kernel (and not to a bias), bool ``[parameters]``."""
        return np.concatenate([np.full(p.size, p.name.endswith(".weight")) for p in self.schema.parameters])

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return which image each model sees when, int32 ``[steps * batch_size, M]``; 0 beyond a model's count."""
        order = np.zeros((int(self.steps.max()) * self.batch_size, len(self.models)), np.int32)
        drawn: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        for column, (model, count) in enumerate(zip(self.models, self.train_counts.tolist(), strict=True)):
            key = (model.seed, count)
            if key not in drawn:
                drawn[key] = data_order(model.seed, epoch, count)
            order[:count, column] = drawn[key]
        return order

    def step_sizes(self, epoch: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the step sizes, and what Adam's root of the second moment is multiplied with, ``[steps, M]`` each.

        For Adam the step size holds the correction of the first moment; the others have their learning rate and 1.
        """
        steps = int(self.steps.max())
        if self.optimizer != "adam":
            rates = np.tile(self.lr.astype(np.float32), (steps, 1))
            return rates, np.ones_like(rates)
        time = (epoch - 1) * self.steps + np.arange(1, steps + 1)[:, None]
        rates = self.lr / (1 - BETA1**time)
        return rates.astype(np.float32), (1 / np.sqrt(1 - BETA2**time)).astype(np.float32)

    def dropout_keys(self, epoch: int) -> dict[str, npt.NDArray[np.uint32]]:
        """Return the keys of `streams.dropout_bits` by layer, uint32 ``[M]``; nothing where no model drops units."""
        if not self.dropout.any():
            return {}
        return {
            layer.name: np.array([dropout_key(m.seed, epoch, layer.name) for m in self.models], np.uint32)
            for layer in self.schema.layers
            if layer.dropout
        }

    def dropout_thresholds(self) -> npt.NDArray[np.uint32]:
        """Return below which bits a unit is dropped, uint32 ``[M]``."""
        return np.array([int(rate * 2**32) for rate in self.dropout], np.uint32)
