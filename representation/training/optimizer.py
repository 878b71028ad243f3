"""Adam and the schedules of its learning rate, without the modules of `torch.optim` that import torch's compiler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from zootools.training.adam import fused_step

WARM_UP = 0.05
"""Share of the steps of ``one_cycle`` in which the learning rate rises."""
LOWERED, PATIENCE, LEAST = 0.3, 10, 1e-4
"""``plateau``: the factor of the learning rate, after more epochs than this without a loss lower by this share."""


class Adam:
    """Adam with an L2 penalty, by torch's fused kernel: the bits of ``torch.optim.Adam(fused=True)``.

    The first step of that class imports torch's compiler, three seconds of a processor that a training does not need.
    """

    def __init__(self, modules: Sequence[nn.Module], lr: float, weight_decay: float, widest: int | None) -> None:
        """Collect the parameters of some modules in groups of equal learning rate.

        Adam moves each weight of a layer by about the learning rate, so the outputs move by that times the number of
        inputs. Linear layers with more inputs than ``widest`` (if any) have a rate that is lower in proportion.
        """
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for layer in (layer for module in modules for layer in module.modules()):
            factor = 1.0
            if widest is not None and isinstance(layer, nn.Linear):
                factor = min(1.0, widest / layer.in_features)
            groups.setdefault(factor, []).extend(layer.parameters(recurse=False))
        kept = [(factor, parameters) for factor, parameters in groups.items() if parameters]
        self.groups = [parameters for _, parameters in kept]
        self.highest = tuple(factor * lr for factor, _ in kept)
        """Learning rate of each group when the training begins, or of ``one_cycle`` the highest."""
        self.rates = self.highest
        """Learning rate of each group at the next step."""
        self.weight_decay = weight_decay
        self._moments: dict[nn.Parameter, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameters in self.groups:
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter that has a gradient."""
        for parameters, rate in zip(self.groups, self.rates, strict=True):
            pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
            if not pairs:
                continue
            moments = [self._moments_of(parameter) for parameter, _ in pairs]
            steps, means, squares = zip(*moments, strict=True)
            weights, gradients = zip(*pairs, strict=True)
            fused_step(weights, gradients, (means, squares), steps, rate, self.weight_decay)

    def save(self) -> dict[str, Tensor]:
        """Return the moments of the parameters that had gradients; names begin with the number of the parameter."""
        found: dict[str, Tensor] = {}
        for number, parameter in enumerate(self._parameters()):
            if parameter in self._moments:
                names = (f"{number}.step", f"{number}.exp_avg", f"{number}.exp_avg_sq")
                found.update(zip(names, self._moments[parameter], strict=True))
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the moments to those that `save` returned. Raises KeyError if one of them is missing."""
        self._moments = {}
        numbers = {int(name.partition(".")[0]) for name in tensors}
        for number, parameter in enumerate(self._parameters()):
            if number in numbers:
                moments = [
                    tensors[f"{number}.{name}"].to(parameter.device) for name in ("step", "exp_avg", "exp_avg_sq")
                ]
                self._moments[parameter] = (moments[0].clone(), moments[1].clone(), moments[2].clone())

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameters in self.groups for parameter in parameters]

    def _moments_of(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor, Tensor]:
        if parameter not in self._moments:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            self._moments[parameter] = (step, torch.zeros_like(parameter), torch.zeros_like(parameter))
        return self._moments[parameter]


@dataclass
class Plateau:
    """Watches the training loss of the epochs, and says when the learning rate is to be lowered."""

    best: float = math.inf
    num_bad_epochs: int = 0
    """Epochs since the last lower loss or the last lower learning rate."""

    @classmethod
    def of(cls, state: dict[str, JsonValue]) -> "Plateau":
        """Return what `state` returned; other entries are ignored."""
        numbers = {name: value for name, value in state.items() if isinstance(value, int | float)}
        return cls(numbers.get("best", math.inf), int(numbers.get("num_bad_epochs", 0)))

    def state(self) -> dict[str, JsonValue]:
        """Return the fields as JSON, which has no infinite numbers."""
        found: dict[str, JsonValue] = {"num_bad_epochs": self.num_bad_epochs}
        return found | ({"best": self.best} if math.isfinite(self.best) else {})

    def is_reached(self, loss: float) -> bool:
        """Return whether the learning rate is to be lowered after an epoch with this loss."""
        if loss < self.best * (1 - LEAST):
            self.best, self.num_bad_epochs = loss, 0
        else:
            self.num_bad_epochs += 1
        if self.num_bad_epochs <= PATIENCE:
            return False
        self.num_bad_epochs = 0
        return True


def one_cycle(progress: float) -> float:
    """Return the factor of the learning rate at ``progress`` from 0 to 1: linear up, then half a cosine down."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))
