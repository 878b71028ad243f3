"""Many models of one structure, trained at once.

All models of a `StackedTrainer` share layers, activation and optimizer; everything else - learning rate,
decay, dropout rate, share of the data, seed - is a tensor with one value per model. Weights and optimizer
state are ``[M, parameters]`` matrices, one row a model, and no operation mixes rows.

A model's bits must not depend on its neighbours. Libraries choose their blocking by shape, so every trainer
of an architecture has the same number of rows (`stack_width`; missing ones are filled with copies), every
step the same batch size (missing samples weigh zero), and per-model numbers are always tensors, never a
scalar that all happen to share. With one thread this gives equal bits on the CPU; on CUDA it is not promised.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.images import ImageData
from zootools.networks import stacked_forward
from zootools.population import ModelConfig
from zootools.streams import data_order, dropout_bits, dropout_key
from zootools.training.evaluation import Scores, evaluate
from zootools.training.initialise import initial_weights
from zootools.training.reference import training_count

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam
RMSPROP_ALPHA, RMSPROP_EPS = 0.99, 1e-8  # torch.optim.RMSprop

OPTIMIZER_STATE = {
    "adam": ("first_moment", "second_moment"),
    "sgd": ("momentum",),
    "rmsprop": ("second_moment",),
}

Tick = Callable[[float], None]
"""Told now and then how much of the epoch is done, as a share between 0 and 1."""


def stack_width(schema: Schema, device: str) -> int:
    """How many models are trained side by side.

    Small matrix products are all overhead, so they want many rows; convolutions want activations that stay
    in the cache, except on a GPU.
    """
    tiny = schema.size <= 2_000 and all(layer.kind == "linear" for layer in schema.layers)
    return 256 if tiny or device == "cuda" else 16


class StackedTrainer:
    """Trains up to `stack_width` models of one structure together.

    Args:
        schema: the layers that all models share.
        models: what to train; one activation and one optimizer among them.
        images: the data, already on the device that shall compute.
        batch_size: samples of one step.
        train_metrics_images: train scores are taken on the first so many images of each model's share.
    """

    def __init__(
        self,
        schema: Schema,
        models: Sequence[ModelConfig],
        images: ImageData,
        batch_size: int,
        train_metrics_images: int | None = None,
    ) -> None:
        self.schema, self.images, self.batch_size = schema, images, batch_size
        self.count = len(models)
        self.device = images.train.images.device
        width = stack_width(schema, self.device.type)
        if not 0 < self.count <= width:
            raise ValueError(f"expected 1 to {width} models, found {self.count}")
        structures = {(m.hyperparameters.activation, m.hyperparameters.optimizer) for m in models}
        if len(structures) > 1:
            raise ValueError(f"the models of a stack share activation and optimizer, found {sorted(structures)}")
        ((self.activation, self.optimizer),) = structures
        self.models = [*models, *[models[-1]] * (width - self.count)]
        hyper = [model.hyperparameters for model in self.models]

        self.lr = np.array([h.lr for h in hyper])
        self.momentum = self._column([h.momentum for h in hyper])
        self.dropout = [h.dropout for h in hyper]
        self.train_counts = np.array([training_count(len(images.train), h) for h in hyper])
        self.steps = -(-self.train_counts // batch_size)
        limit = train_metrics_images or len(images.train)
        self.metrics_counts = np.minimum(self.train_counts, limit)
        flat = np.stack([initial_weights(schema, m.hyperparameters, m.seed) for m in self.models])
        self.decay = self._decay() if any(h.weight_decay or h.l2 for h in hyper) else None
        self.state = {"weights": torch.from_numpy(flat).to(self.device)}
        for name in OPTIMIZER_STATE[self.optimizer]:
            self.state[name] = torch.zeros_like(self.state["weights"])

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None]

    def _decay(self) -> Tensor:
        """Return what each weight adds to its gradient per unit: coupled L2 on all, ``l2`` on kernels, ``[M, N]``."""
        is_kernel = torch.zeros(self.schema.size, device=self.device)
        for parameter in self.schema.parameters:
            is_kernel[parameter.offset : parameter.end] = parameter.name.endswith(".weight")
        hyper = [model.hyperparameters for model in self.models]
        return self._column([h.weight_decay for h in hyper]) + self._column([2 * h.l2 for h in hyper]) * is_kernel

    @property
    def weights(self) -> Tensor:
        """The flat weights of the models, float32 ``[models, parameters]``, without the filling."""
        return self.state["weights"][: self.count]

    def save(self) -> dict[str, Tensor]:
        """Return all that a later `restore` needs: weights and optimizer state, ``[models, parameters]``."""
        return {name: tensor[: self.count].cpu() for name, tensor in self.state.items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` returned; the filling becomes copies of the last model again."""
        for name, tensor in self.state.items():
            tensor[: self.count] = saved[name]
            tensor[self.count :] = saved[name][-1]

    # --- one epoch ---------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int, tick: Tick = lambda share: None) -> None:
        """Train every model over its share of the images once; epochs count from 1."""
        steps = int(self.steps.max())
        order, sample_weights = self._plan_epoch(epoch)
        rates, corrections = self._step_sizes(epoch)
        active = np.less(np.arange(steps)[:, None], self.steps)  # [steps, M]
        all_active = active.all(axis=1)
        keys = self._dropout_keys(epoch)
        for step in range(steps):
            gradient = self._gradient(order[step], sample_weights[step], keys, step * self.batch_size)
            before = None
            if not all_active[step]:  # models with less data have finished this epoch: they must not move
                before = {name: tensor.clone() for name, tensor in self.state.items()}
            self._update(gradient, rates[step], corrections[step])
            if before is not None:
                moving = torch.from_numpy(active[step]).to(self.device)[:, None]
                for name, tensor in self.state.items():
                    tensor.copy_(torch.where(moving, tensor, before[name]))
            if step % 64 == 63:
                tick((step + 1) / steps)

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return for each step which images ``[steps, B, M]`` and what each weighs in the loss ``[steps, M, B]``."""
        steps, models, batch = int(self.steps.max()), len(self.models), self.batch_size
        order = np.zeros((models, steps * batch), np.int32)
        weights = np.zeros((models, steps * batch), np.float32)
        cache: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        for row, (model, count) in enumerate(zip(self.models, self.train_counts.tolist(), strict=True)):
            key = (model.seed, count)
            if key not in cache:
                cache[key] = data_order(model.seed, epoch, count)
            order[row, :count] = cache[key]
            full = count // batch * batch
            weights[row, :full] = 1 / batch
            weights[row, full:count] = 1 / max(count - full, 1)
        indices = torch.from_numpy(order).view(models, steps, batch).permute(1, 2, 0).contiguous()
        sample_weights = torch.from_numpy(weights).view(models, steps, batch).transpose(0, 1).contiguous()
        return indices.to(self.device), sample_weights.to(self.device)

    def _step_sizes(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the learning rates and, for Adam, the corrections of the second moment, ``[steps, M, 1]``."""
        steps = int(self.steps.max())
        if self.optimizer != "adam":
            rates = torch.from_numpy(np.broadcast_to(self.lr, (steps, len(self.lr))).astype(np.float32))
            return rates[..., None].to(self.device), torch.zeros(steps, device=self.device)
        time = (epoch - 1) * self.steps + np.arange(1, steps + 1)[:, None]  # [steps, M]
        rates = torch.from_numpy((self.lr / (1 - BETA1**time)).astype(np.float32))
        corrections = torch.from_numpy((1 / np.sqrt(1 - BETA2**time)).astype(np.float32))
        return rates[..., None].to(self.device), corrections[..., None].to(self.device)

    def _dropout_keys(self, epoch: int) -> dict[str, Tensor]:
        if not any(self.dropout):
            return {}
        return {
            layer.name: torch.tensor(
                [dropout_key(model.seed, epoch, layer.name) for model in self.models], device=self.device
            )[:, None]
            for layer in self.schema.layers
            if layer.dropout
        }

    def _gradient(self, order: Tensor, sample_weights: Tensor, keys: dict[str, Tensor], first: int) -> Tensor:
        """Return the gradient of each model's batch loss, ``[M, parameters]``."""
        batch, models = order.shape
        rows = order.view(-1)
        images = self.images.train.images.index_select(0, rows).view(batch, models, *self.schema.input_shape)
        labels = self.images.train.labels.index_select(0, rows).view(batch, models).t()

        def drop(layer: str, x: Tensor) -> Tensor:
            return self._drop(x, keys[layer], first)

        parameters = self._views(self.state["weights"])
        for view in parameters.values():
            view.requires_grad_()
        logits = stacked_forward(self.schema, parameters, images, self.activation, drop if keys else None)
        # The gradient of cross-entropy written out, softmax minus one-hot, is four times as fast as autograd's.
        with torch.no_grad():
            exponentials = (logits - logits.amax(dim=2, keepdim=True)).exp_()
            delta = exponentials / exponentials.sum(dim=2, keepdim=True)
            delta.scatter_add_(2, labels.unsqueeze(2), torch.full_like(delta[..., :1], -1))
            delta *= sample_weights.unsqueeze(2)
        gradients = torch.autograd.grad(logits, list(parameters.values()), delta)
        return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)

    def _drop(self, x: Tensor, key: Tensor, first_sample: int) -> Tensor:
        """Inverted dropout of ``[M, B, ...]`` activations, drawn by position in the epoch."""
        batch, units = x.shape[1], x[0, 0].numel()
        counters = torch.arange(batch * units, device=self.device) + first_sample * units
        thresholds = torch.tensor([int(rate * 2**32) for rate in self.dropout], device=self.device)[:, None]
        keep = (dropout_bits(key, counters) >= thresholds).view(x.shape)
        scale = self._column([1 - rate for rate in self.dropout])
        return x * keep / scale.view(-1, *[1] * (x.dim() - 1))

    def _update(self, gradient: Tensor, rate: Tensor, correction: Tensor) -> None:
        """One optimizer step, as torch.optim's, with one learning rate per row."""
        weights = self.state["weights"]
        if self.decay is not None:
            gradient = torch.addcmul(gradient, self.decay, weights)
        if self.optimizer == "adam":
            first, second = self.state["first_moment"], self.state["second_moment"]
            first.lerp_(gradient, 1 - BETA1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            weights.addcmul_(first / (second.sqrt() * correction).add_(ADAM_EPS), rate, value=-1)
        elif self.optimizer == "sgd":
            momentum = self.state["momentum"]
            momentum.mul_(self.momentum).add_(gradient)
            weights.addcmul_(momentum, rate, value=-1)
        else:
            second = self.state["second_moment"]
            second.mul_(RMSPROP_ALPHA).addcmul_(gradient, gradient, value=1 - RMSPROP_ALPHA)
            weights.addcmul_(gradient / second.sqrt().add_(RMSPROP_EPS), rate, value=-1)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parameters of all models by name, ``[M, *shape]``, as views of the flat matrix."""
        return {
            parameter.name: flat[:, parameter.offset : parameter.end].unflatten(1, parameter.shape)
            for parameter in self.schema.parameters
        }

    # --- scores ------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Scores]:
        """Score the models as they are on the ``train``, ``validation`` (if any) and ``test`` images."""
        views = self._views(self.state["weights"])
        # As many images at once as keep the first layer's activations of all models within about 8 MB.
        channels, height, width = self.schema.input_shape
        first = self.schema.layers[0]
        units = height * width * (first.outputs if first.kind == "conv" else channels)
        batch = max(16, min(1024, 2**21 // (len(self.models) * units)))

        def logits_of(images: Tensor) -> Tensor:
            return stacked_forward(self.schema, views, images, self.activation)

        subsets = {"train": self.images.train, "validation": self.images.validation, "test": self.images.test}
        scores = {}
        for name, subset in subsets.items():
            if len(subset):
                limits = self.metrics_counts if name == "train" else np.full(len(self.models), len(subset))
                scores[name] = evaluate(logits_of, subset, self.schema.classes, batch, limits)
        return {
            name: Scores(score.loss[: self.count], score.accuracy[: self.count], score.f1[: self.count])
            for name, score in scores.items()
        }
