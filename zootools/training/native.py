"""Training many models of one structure by the compiled kernel, one SIMD lane per model (`zootools.native`)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.native.compiler import compile_kernel, describe_compiler
from zootools.native.kernel import ACTIVATIONS, OPTIMIZERS, Kernel, lane_array
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import library_versions
from zootools.training.evaluation import Scores, scores_from_counts
from zootools.training.group import OPTIMIZER_STATE, SLOTS, Group, Tick, groups_of


@dataclass(frozen=True)
class NativeBackend:
    """The compiled kernel of one schema, less than a megabyte. Workers get its bytes, not a file."""

    kernel: bytes = field(repr=False)
    reason: str
    compiler: Mapping[str, str]
    """The compiler, its flags and target (`describe_compiler`), on the machine that compiled the kernel."""

    name = "native"
    device = "cpu"

    @classmethod
    def compiled(cls, schema: Schema) -> "NativeBackend":
        """Compile the kernel of a schema, or take it from the cache. Raises what `compile_kernel` raises."""
        kernel = compile_kernel(schema)
        width = Kernel(kernel, schema).width
        return cls(kernel, f"{width} models side by side, one per SIMD lane", describe_compiler())

    def fingerprint(self) -> dict[str, object]:
        """Return compiler, flags, target, C++ sources and library versions."""
        return {"backend": self.name, "device": self.device, **self.compiler, **library_versions()}

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> "list[NativeTrainer]":
        """Return trainers for all the models, in their order, each with as many as the kernel has lanes."""
        kernel = Kernel(self.kernel, schema)
        rest = (images, training.batch_size, training.train_metrics_images)
        return [NativeTrainer(kernel, group, *rest) for group in groups_of(models, kernel.width)]

    def width(self, schema: Schema) -> int:
        """Return the number of lanes."""
        return Kernel(self.kernel, schema).width


_TICKS = 32
"""Number of calls of the kernel per epoch; progress is reported after each."""


class NativeTrainer:
    """Trains up to ``kernel.width`` models of one structure together.

    Weights and optimizer state are ``[parameters, models]`` arrays: a model is a column, and a lane.
    """

    def __init__(
        self,
        kernel: Kernel,
        models: Sequence[ModelConfig],
        images: ImageData,
        batch_size: int,
        train_metrics_images: int | None = None,
    ) -> None:
        self.kernel, self.schema = kernel, kernel.schema
        self.group = Group(kernel.schema, models, images, batch_size, kernel.width, train_metrics_images)
        self.count = self.group.count
        shape = (self.schema.size, kernel.width)
        self._arrays = {name: lane_array(shape) for name in ("weights", "first", "second", "gradients")}
        self._arrays["weights"][:] = self.group.initial_weights().T
        self._is_kernel = self.group.is_kernel()
        self._numbers = {
            "activation": ACTIVATIONS.index(self.group.activation),
            "optimizer": OPTIMIZERS.index(self.group.optimizer),
        }

    @property
    def weights(self) -> Tensor:
        """The flat weights of the models, float32 ``[count, parameters]``."""
        return self._column("weights")

    def _column(self, slot: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._arrays[slot][:, : self.count].T))

    def _state(self) -> dict[str, str]:
        """Return the names of the saved tensors, and the array of the kernel that holds each."""
        return {"weights": "weights"} | {name: SLOTS[name] for name in OPTIMIZER_STATE[self.group.optimizer]}

    def save(self) -> dict[str, Tensor]:
        """Return the state that `restore` needs: weights and optimizer state, ``[count, parameters]``."""
        return {name: self._column(slot) for name, slot in self._state().items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from the state that `save` returned; the rest of the width becomes copies of the last model."""
        for name, slot in self._state().items():
            values = saved[name].numpy().T
            self._arrays[slot][:, : self.count] = values
            self._arrays[slot][:, self.count :] = values[:, -1:]

    def train_epoch(self, epoch: int, tick: Tick = lambda share: None) -> None:
        """Train every model over its share of the images once; epochs count from 1."""
        arguments = self.arguments(epoch)
        train_steps, steps = self.kernel.train(arguments), len(arguments["rates"])
        stops = np.unique(np.linspace(0, steps, _TICKS + 1).round().astype(int)).tolist()
        for first, last in itertools.pairwise(stops):
            train_steps(first, last)
            tick(last / steps)

    def arguments(self, epoch: int) -> dict[str, Any]:
        """Return the arguments of the kernel for an epoch, by the names of ``Training`` in network.h."""
        group, subset = self.group, self.group.images.train
        rates, corrections = group.step_sizes(epoch)
        keys = group.dropout_keys(epoch)
        decay = group.decay if group.decay.any() else (None, None)
        no_key = np.zeros(self.kernel.width, np.uint32)
        return {
            **self._arrays,
            **self._numbers,
            "images": subset.images.numpy(),
            "labels": subset.labels.numpy(),
            "order": group.order(epoch),
            "counts": group.train_counts,
            "batch": group.batch_size,
            "rates": rates,
            "corrections": corrections,
            "bias_decay": decay[0],
            "kernel_decay": decay[1],
            "is_kernel": self._is_kernel,
            "momentum": group.momentum,
            "keys": np.stack([keys.get(layer.name, no_key) for layer in self.schema.layers]) if keys else None,
            "thresholds": group.dropout_thresholds(),
            "scale": (1 / (1 - group.dropout)).astype(np.float32),
        }

    def evaluate(self) -> dict[str, Scores]:
        """Score the current models on the ``train``, ``validation`` (if any) and ``test`` images."""
        images, width, classes = self.group.images, self.kernel.width, self.schema.classes
        subsets = {"train": images.train, "validation": images.validation, "test": images.test}
        scores = {}
        for name, subset in subsets.items():
            if not len(subset):
                continue
            limits: npt.NDArray[np.int64] = np.full(width, len(subset))
            if name == "train":
                limits = self.group.metrics_counts
            loss, confusion = np.zeros(width), np.zeros((width, classes, classes), np.int64)
            arguments = {
                "images": subset.images.numpy(),
                "labels": subset.labels.numpy(),
                "limits": limits,
                "weights": self._arrays["weights"],
                "loss": loss,
                "confusion": confusion,
                "activation": self._numbers["activation"],
            }
            self.kernel.evaluate(arguments, 0, int(limits.max()))
            scores[name] = scores_from_counts(loss[: self.count], confusion[: self.count], limits[: self.count])
        return scores
