"""Training many models of one structure at once in PyTorch.

All models of a `StackedTrainer` share layers, activation and optimizer; learning rate, decay, dropout rate, share of
the data and seed are tensors with one value per model. Weights and optimizer state are ``[M, parameters]`` matrices
with one row per model, and no operation mixes rows.

A model's bits must not depend on its neighbours. Libraries choose their blocking by shape, so every trainer of an
architecture has the same number of rows (`stack_width`; copies fill the missing ones), every step has the same batch
size (missing samples have weight zero), and per-model numbers are always tensors, also if all models have the same.
With one thread this gives equal bits on the CPU; on CUDA it is not guaranteed. On CUDA the steps are replayed as graphs
(`zootools.training.steps`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.images.datasets import ImageData
from zootools.rng import dropout_bits
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.adam import ADAM_EPS, WIDE, RowAdam
from zootools.training.backend import library_versions
from zootools.training.evaluation import Scores, evaluate
from zootools.training.group import BETA1, BETA2, OPTIMIZER_STATE, Group, OrdersAhead, Tick, groups_of
from zootools.training.linear import LinearGradient
from zootools.training.steps import CountedSteps, Steps, exact_arithmetic

RMSPROP_ALPHA, RMSPROP_EPS = 0.99, 1e-8  # torch.optim.RMSprop
ARITHMETIC = 3
"""A number that zoos record. It is raised when a step rounds differently, so that no zoo has models of both."""


def stack_width(schema: Schema, device: str) -> int:
    """Return the number of models that are trained side by side.

    Small matrix products are dominated by overhead, so they need many rows; the activations of convolutions must stay
    in the cache, except on a GPU.
    """
    tiny = schema.size <= 2_000 and all(layer.kind == "linear" for layer in schema.layers)
    return 256 if tiny or device == "cuda" else 16


@dataclass(frozen=True)
class TorchBackend:
    """Stacked PyTorch on a CPU or on CUDA."""

    device: str
    reason: str

    name = "torch"

    def fingerprint(self) -> dict[str, object]:
        """Return device, processor, and the versions of torch and the other libraries."""
        cuda = self.device == "cuda"
        return {
            "backend": self.name,
            "device": self.device,
            "processor": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "mkl": os.environ.get("MKL_CBWR", ""),
            "arithmetic": ARITHMETIC,
            **library_versions(),
        }

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> "list[StackedTrainer]":
        """Return trainers for all the models, in their order, each with up to `stack_width` models."""
        rest = (images, training.batch_size, training.train_metrics_images)
        return [StackedTrainer(schema, group, *rest) for group in groups_of(models, self.width(schema))]

    def width(self, schema: Schema) -> int:
        """Return how many models one trainer trains side by side."""
        return stack_width(schema, self.device)


class StackedTrainer:
    """Trains up to `stack_width` models of one structure together.

    Args:
        schema: the layers that all models share.
        models: the models, with one activation and one optimizer.
        images: the data, on the device that computes.
        batch_size: samples of one step.
        train_metrics_images: number of images, from the first of each model's share, on which train scores are
            measured; all by default.
        width: number of models that are computed side by side; `stack_width` by default, on which the bits depend.
        counted: draw the order of the next epoch while this one is computed, and take the steps by a counter on the
            device, on CUDA as graphs; by default on CUDA only. The bits are the same.
    """

    def __init__(
        self,
        schema: Schema,
        models: Sequence[ModelConfig],
        images: ImageData,
        batch_size: int,
        train_metrics_images: int | None = None,
        *,
        width: int | None = None,
        counted: bool | None = None,
    ) -> None:
        self.schema, self.images = schema, images
        self.device = images.train.images.device
        if self.device.type == "cuda":
            # PyTorch warns if a product is the first thing that its thread of gradients computes on a device.
            torch.zeros(1, device=self.device, requires_grad=True).exp().backward()
        width = width or stack_width(schema, self.device.type)
        self.group = Group(schema, models, images, batch_size, width, train_metrics_images)
        self.count = self.group.count
        self.momentum = self._tensor(self.group.momentum)[:, None]
        self.decay = self._decay() if self.group.decay.any() else None
        self.thresholds = self._tensor(self.group.dropout_thresholds().astype(np.int64))[:, None]
        self.keep = self._tensor((1 - self.group.dropout).astype(np.float32))
        self.state = {"weights": self._tensor(self.group.initial_weights())}
        for name in OPTIMIZER_STATE[self.group.optimizer]:
            self.state[name] = torch.zeros_like(self.state["weights"])
        self.room = torch.empty_like(self.state["weights"])
        """Memory for temporary values: new memory at every step would take as long as what is computed."""
        self.linear: LinearGradient | None = None
        if self.device.type == "cpu" and all(layer.kind == "linear" for layer in schema.layers):
            self.linear = LinearGradient(schema, self.state["weights"], self.group.activation, batch_size)
        self.adam: RowAdam | None = None
        if self.device.type == "cpu" and self.group.optimizer == "adam" and schema.size >= WIDE:
            self.adam = RowAdam(self.state, self.group.lr)
        self.keys = {
            name: self._tensor(key.astype(np.int64))[:, None] for name, key in self.group.dropout_keys(1).items()
        }
        counted = self.device.type == "cuda" if counted is None else counted
        self.counted = CountedSteps(self._empty_steps()) if counted else None
        self._order = OrdersAhead(self.group).of if counted else self.group.order_by_model

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _decay(self) -> Tensor:
        """Return the factor of the decay of each weight, ``[M, parameters]``."""
        bias, kernel = self._tensor(self.group.decay)[:, :, None]
        return torch.where(self._tensor(self.group.is_kernel()), kernel, bias)

    @property
    def weights(self) -> Tensor:
        """The flat weights of the models, float32 ``[count, parameters]``."""
        return self.state["weights"][: self.count]

    def save(self) -> dict[str, Tensor]:
        """Return the state that `restore` needs: weights and optimizer state, ``[count, parameters]``."""
        return {name: tensor[: self.count].cpu() for name, tensor in self.state.items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from the state that `save` returned; the rest of the width becomes copies of the last model."""
        for name, tensor in self.state.items():
            tensor[: self.count] = saved[name]
            tensor[self.count :] = saved[name][-1]

    # --- one epoch ---------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int, tick: Tick = lambda share: None) -> None:
        """Train every model over its share of the images once; epochs count from 1."""
        steps = self.counted.steps if self.counted else self._empty_steps()
        self._plan_epoch(epoch, steps)
        finished = self.group.steps.min()  # models with less data finish the epoch early and must not change then
        count = len(steps.order)
        with exact_arithmetic(self.device):
            if self.counted:
                self.counted.begin()
            for step in range(count):
                if self.counted:
                    self.counted.next(self._take, step >= finished)
                else:
                    self._take(steps.row(step), step >= finished)
                if step % 64 == 63:
                    tick((step + 1) / count)

    def _empty_steps(self) -> Steps:
        """Return the steps of an epoch without what differs between epochs, which `_plan_epoch` adds."""
        group, batch, models = self.group, self.group.batch_size, len(self.group.models)
        count = int(group.steps.max())
        weights = np.zeros((models, count * batch), np.float32)
        for row, samples in enumerate(group.train_counts.tolist()):
            full = samples // batch * batch
            weights[row, :full] = 1 / batch
            weights[row, full:samples] = 1 / max(samples - full, 1)
        number = np.arange(count)
        return Steps(
            order=torch.empty(count, batch, models, dtype=torch.int32, device=self.device),
            sample_weights=self._tensor(weights).view(models, -1, batch).transpose(0, 1).contiguous(),
            rate=torch.empty(count, models, 1, device=self.device),
            correction=torch.empty(count, models, 1, device=self.device),
            moving=self._tensor(np.less(number[:, None], group.steps))[..., None],
            first=self._tensor(number * batch),
        )

    def _plan_epoch(self, epoch: int, steps: Steps) -> None:
        """Write what the steps of an epoch read to ``steps`` and `keys`."""
        order = self._tensor(self._order(epoch)).view(len(self.group.models), -1, self.group.batch_size)
        steps.order.copy_(order.permute(1, 2, 0))
        for tensor, values in zip((steps.rate, steps.correction), self.group.step_sizes(epoch), strict=True):
            tensor.copy_(self._tensor(values)[..., None])
        if self.adam is not None:
            self.adam.begin((epoch - 1) * self.group.steps)
        for name, key in self.group.dropout_keys(epoch).items():
            self.keys[name].copy_(self._tensor(key.astype(np.int64))[:, None])

    def _take(self, row: Steps, some_finished: bool) -> None:
        """Take one step of all models but those that have finished the epoch."""
        gradient = self._gradient(row)
        before = {name: tensor.clone() for name, tensor in self.state.items()} if some_finished else {}
        self._update(gradient, row.rate, row.correction)
        for name, tensor in before.items():
            self.state[name].copy_(torch.where(row.moving, self.state[name], tensor))

    def _gradient(self, row: Steps) -> Tensor:
        """Return the gradient of each model's batch loss, ``[M, parameters]``."""
        batch, models = row.order.shape
        rows = row.order.view(-1)
        labels = self.images.train.labels.index_select(0, rows).view(batch, models).t()

        def drop(layer: str, x: Tensor) -> Tensor:
            return self._drop(x, self.keys[layer], row.first)

        def delta_of(logits: Tensor) -> Tensor:
            """Return softmax minus one-hot, weighted; four times as fast as the gradient of autograd."""
            exponentials = (logits - logits.amax(dim=2, keepdim=True)).exp_()
            delta = exponentials / exponentials.sum(dim=2, keepdim=True)
            delta.scatter_add_(2, labels.unsqueeze(2), torch.full_like(delta[..., :1], -1))
            return delta.mul_(row.sample_weights.unsqueeze(2))

        dropout = drop if self.keys else None
        if self.linear is not None:
            return self.linear.compute(self.images.train.images, row.order.t(), delta_of, dropout)
        images = self.images.train.images.index_select(0, rows).view(batch, models, *self.schema.input_shape)
        parameters = self._views(self.state["weights"])
        for view in parameters.values():
            view.requires_grad_()
        logits = stacked_forward(self.schema, parameters, images, self.group.activation, dropout)
        gradients = torch.autograd.grad(logits, list(parameters.values()), delta_of(logits.detach()))
        return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)

    def _drop(self, x: Tensor, key: Tensor, first_sample: Tensor) -> Tensor:
        """Inverted dropout of ``[M, B, ...]`` activations, drawn by position in the epoch."""
        batch, units = x.shape[1], x[0, 0].numel()
        counters = torch.arange(batch * units, device=self.device) + first_sample * units
        keep = (dropout_bits(key, counters) >= self.thresholds).view(x.shape)
        return x * keep / self.keep.view(-1, *[1] * (x.dim() - 1))

    def _update(self, gradient: Tensor, rate: Tensor, correction: Tensor) -> None:
        """Take one optimizer step as torch.optim does, with one learning rate per row."""
        weights = self.state["weights"]
        if self.decay is not None:
            gradient.addcmul_(self.decay, weights)
        if self.adam is not None:
            self.adam.step(gradient)
        elif self.group.optimizer == "adam":
            first, second = self.state["first_moment"], self.state["second_moment"]
            first.lerp_(gradient, 1 - BETA1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            roots = torch.sqrt(second, out=self.room).mul_(correction).add_(ADAM_EPS)
            weights.addcmul_(torch.div(first, roots, out=roots), rate, value=-1)
        elif self.group.optimizer == "sgd":
            momentum = self.state["momentum"]
            momentum.mul_(self.momentum).add_(gradient)
            weights.addcmul_(momentum, rate, value=-1)
        else:
            second = self.state["second_moment"]
            second.mul_(RMSPROP_ALPHA).addcmul_(gradient, gradient, value=1 - RMSPROP_ALPHA)
            roots = torch.sqrt(second, out=self.room).add_(RMSPROP_EPS)
            weights.addcmul_(torch.div(gradient, roots, out=roots), rate, value=-1)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parameters of all models by name, ``[M, *shape]``, as views of the flat matrix."""
        return parameter_views(self.schema, flat)

    # --- scores ------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Scores]:
        """Score the current models on the ``train``, ``validation`` (if any) and ``test`` images."""
        views = self._views(self.state["weights"])
        # A batch size for which the first layer's activations of all models fit into the cache of a processor, or fill
        # a GPU: at most about 8 MB, or 1 GB.
        channels, height, width = self.schema.input_shape
        first = self.schema.layers[0]
        units = height * width * (first.outputs if first.kind == "conv" else channels)
        memory = 2**28 if self.device.type == "cuda" else 2**21
        batch = max(16, min(1024, memory // (len(self.group.models) * units)))

        def logits_of(images: Tensor) -> Tensor:
            return stacked_forward(self.schema, views, images, self.group.activation)

        subsets = {"train": self.images.train, "validation": self.images.validation, "test": self.images.test}
        scores = {}
        for name, subset in subsets.items():
            if len(subset):
                limits = self.group.metrics_counts if name == "train" else np.full(len(self.group.models), len(subset))
                with exact_arithmetic(self.device):
                    scores[name] = evaluate(logits_of, subset, self.schema.classes, batch, limits)
        return {
            name: Scores(score.loss[: self.count], score.accuracy[: self.count], score.f1[: self.count])
            for name, score in scores.items()
        }
