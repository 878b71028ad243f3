"""Training many models on a GPU by the compiled kernel, one block of threads per model (`zootools.native.cuda`)."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.native.cuda import (
    CudaKernel,
    EvaluationArguments,
    GpuKernel,
    GpuLimits,
    TrainingArguments,
    compile_for_gpu,
    describe_gpu_compiler,
    fill,
    threads_of,
)
from zootools.native.kernel import ACTIVATIONS, OPTIMIZERS
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import library_versions
from zootools.training.evaluation import Scores, scores_from_counts
from zootools.training.group import BETA1, BETA2, OPTIMIZER_STATE, SLOTS, Group, OrdersAhead, Tick

WIDTH = 2048
"""Models of a trainer at most. An H100 has room for 396 blocks of `cnn_small`; many more leave few idle at the end."""
SLOPES_NEEDED = {"gelu", "silu"}
"""The activations whose derivative does not follow from their output."""
PART_IMAGES = 1024
"""Images that a block evaluates."""
_TICKS = 16
"""Launches per epoch; progress is reported after each."""


@dataclass(frozen=True)
class GpuBackend:
    """The compiled kernel of one schema on PyTorch's current CUDA device."""

    limits: GpuLimits
    reason: str

    name = "native"
    device = "cuda"
    mixed = True

    @classmethod
    def compiled(cls, schema: Schema) -> "GpuBackend":
        """Compile the kernel that needs most memory, to find out whether it can be compiled.

        Raises what `compile_for_gpu` raises.
        """
        limits = GpuLimits.of_current_device()
        compile_for_gpu(schema, limits, slopes=True)
        return cls(limits, "a block of threads for each model")

    def fingerprint(self) -> dict[str, object]:
        """Return the GPU, compiler, flags, C++ source and library versions."""
        return {
            "backend": self.name,
            "device": self.device,
            **describe_gpu_compiler(self.limits),
            "torch": torch.__version__,
            **library_versions(),
        }

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> "list[GpuTrainer]":
        """Return trainers for all the models, in their order."""
        groups = [models[start : start + WIDTH] for start in range(0, len(models), WIDTH)]
        kernels = [_loaded(schema, self.limits, slopes_needed(group)) for group in groups]
        rest = (images, training.batch_size, training.train_metrics_images)
        return [GpuTrainer(kernel, schema, group, *rest) for kernel, group in zip(kernels, groups, strict=True)]

    def width(self, schema: Schema) -> int:
        """Return the number of models of a trainer at most, which is that of any schema."""
        del schema
        return WIDTH


@functools.lru_cache(maxsize=8)
def _loaded(schema: Schema, limits: GpuLimits, slopes: bool) -> CudaKernel:
    return CudaKernel(compile_for_gpu(schema, limits, slopes), threads_of(schema))


def slopes_needed(models: Sequence[ModelConfig]) -> bool:
    """Return whether the kernel must keep derivatives: of some activations, and of units that can be dropped."""
    hyper = [model.hyperparameters for model in models]
    return any(h.activation in SLOPES_NEEDED or h.dropout > 0 for h in hyper)


class GpuTrainer:
    """Trains many models of one schema together, of any activations and optimizers.

    Args:
        kernel: the compiled kernel of the schema.
        schema: the layers that all models share.
        models: the models. A model's bits depend on no other one.
        images: the data, on the device of the kernel.
        batch_size: samples of one step.
        train_metrics_images: number of images, from the first of each model's share, on which train scores are
            measured; all by default.
    """

    def __init__(
        self,
        kernel: GpuKernel,
        schema: Schema,
        models: Sequence[ModelConfig],
        images: ImageData,
        batch_size: int,
        train_metrics_images: int | None = None,
    ) -> None:
        self.kernel, self.schema = kernel, schema
        self.device = images.train.images.device
        self.group = Group(schema, models, images, batch_size, len(models), train_metrics_images)
        self.count = self.group.count
        self._weights = self._tensor(self.group.initial_weights())
        self._slots = {"first": torch.zeros_like(self._weights), "second": torch.zeros_like(self._weights)}
        hyper = [model.hyperparameters for model in models]
        self._optimizers = [h.optimizer for h in hyper]
        self._activations = self._tensor(np.array([ACTIVATIONS.index(h.activation) for h in hyper], np.int32))
        self._constants = self._constant_arguments()
        self._orders = OrdersAhead(self.group)

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _constant_arguments(self) -> dict[str, Tensor | None]:
        group, train = self.group, self.group.images.train
        return {
            "weights": self._weights,
            **self._slots,
            "images": train.images.contiguous(),
            "labels": train.labels.contiguous(),
            "counts": self._tensor(group.train_counts.astype(np.int32)),
            "rates": self._tensor(group.lr),
            "decay": self._tensor(group.decay) if group.decay.any() else None,
            "is_kernel": self._tensor(group.is_kernel()),
            "momentum": self._tensor(group.momentum),
            "thresholds": self._tensor(group.dropout_thresholds().view(np.int32)),
            "scale": self._tensor((1 / (1 - group.dropout)).astype(np.float32)),
            "activations": self._activations,
            "optimizers": self._tensor(np.array([OPTIMIZERS.index(name) for name in self._optimizers], np.int32)),
        }

    @property
    def weights(self) -> Tensor:
        """The flat weights of the models, float32 ``[count, parameters]``."""
        return self._weights

    def _state(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each saved name its tensor, and which models have it, bool ``[count, 1]``."""
        state = {"weights": (self._weights, torch.ones(self.count, 1, dtype=torch.bool))}
        for name in dict.fromkeys(name for optimizer in self._optimizers for name in OPTIMIZER_STATE[optimizer]):
            has = torch.tensor([name in OPTIMIZER_STATE[optimizer] for optimizer in self._optimizers])
            state[name] = (self._slots[SLOTS[name]], has[:, None])
        return state

    def save(self) -> dict[str, Tensor]:
        """Return the state that `restore` needs, ``[count, parameters]``; zero where an optimizer has no such state."""
        return {name: tensor.cpu() * has for name, (tensor, has) in self._state().items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from the state that `save` returned."""
        for name, (tensor, has) in self._state().items():
            tensor.copy_(torch.where(has, saved[name], tensor.cpu()))

    def train_epoch(self, epoch: int, tick: Tick = lambda share: None) -> None:
        """Train every model over its share of the images once; epochs count from 1."""
        group, steps = self.group, int(self.group.steps.max())
        order = self._tensor(self._orders.of(epoch))
        time = np.arange(1, epoch * steps + 1)  # of every step of Adam so far; models with less data use the first ones
        keys = group.dropout_keys(epoch)
        no_key = np.zeros(self.count, np.uint32)
        all_keys = np.stack([keys.get(layer.name, no_key) for layer in self.schema.layers]) if keys else None
        tensors = {
            **self._constants,
            "order": order,
            "first_corrections": self._tensor(1 - BETA1**time),
            "second_corrections": self._tensor((1 / np.sqrt(1 - BETA2**time)).astype(np.float32)),
            "keys": None if all_keys is None else self._tensor(all_keys.view(np.int32)),
        }
        numbers = {"places": order.shape[1], "batch": group.batch_size, "models": self.count}
        stops = np.unique(np.linspace(0, steps, _TICKS + 1).round().astype(int)).tolist()
        for first, last in itertools.pairwise(stops):
            launch = {"epochs_before": epoch - 1, "first_step": first, "last_step": last}
            self.kernel.train(fill(TrainingArguments(), tensors, **numbers, **launch))
            self.kernel.wait()
            tick(last / steps)

    def evaluate(self) -> dict[str, Scores]:
        """Score the current models on the ``train``, ``validation`` (if any) and ``test`` images."""
        images = self.group.images
        subsets = {"train": images.train, "validation": images.validation, "test": images.test}
        scores = {}
        for name, subset in subsets.items():
            if not len(subset):
                continue
            limits = np.full(self.count, len(subset)) if name != "train" else self.group.metrics_counts
            parts, classes = -(-int(limits.max()) // PART_IMAGES), self.schema.classes
            losses = torch.zeros(self.count, parts, dtype=torch.float64, device=self.device)
            confusion = torch.zeros(self.count, classes, classes, dtype=torch.int64, device=self.device)
            tensors = {
                "weights": self._weights,
                "images": subset.images.contiguous(),
                "labels": subset.labels.contiguous(),
                "limits": self._tensor(limits.astype(np.int32)),
                "activations": self._activations,
                "losses": losses,
                "confusion": confusion,
            }
            numbers = {"models": self.count, "parts": parts, "part_images": PART_IMAGES}
            self.kernel.evaluate(fill(EvaluationArguments(), tensors, **numbers))
            self.kernel.wait()
            # Added in the order of the parts, on the host.
            loss = losses.cpu().numpy().cumsum(axis=1)[:, -1]
            scores[name] = scores_from_counts(loss, confusion.cpu().numpy(), limits)
        return scores
