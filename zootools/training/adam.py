"""Adam by PyTorch's fused kernel, one pass over the weights: of an encoder, or of stacked models of many weights.

Written as single operations of PyTorch, a step of Adam reads and writes weights, gradient and moments ten times, which
for a wide layer takes longer than its products.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.adam import adam

from zootools.training.group import BETA1, BETA2, OPTIMIZER_STATE

ADAM_EPS = 1e-8  # torch.optim.Adam
WIDE = 10_000
"""Fewest weights of a model that is updated by a call of its own; below, calls take longer than they save."""


def fused_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: tuple[Sequence[Tensor], Sequence[Tensor]],
    taken: Sequence[Tensor],
    lr: float,
    weight_decay: float = 0.0,
) -> None:
    """Take one step of ``torch.optim.Adam``, whose class imports torch's compiler at its first step; this does not.

    Args:
        weights: float32 tensors, changed in place.
        gradients: as many tensors of the same shapes.
        moments: the first and the second moments, changed in place.
        taken: the number of steps that each tensor has taken, float32 scalars, changed in place.
        lr: the learning rate.
        weight_decay: factor of an L2 penalty.
    """
    first, second = map(list, moments)
    adam(
        list(weights),
        list(gradients),
        first,
        second,
        [],
        list(taken),
        fused=True,
        amsgrad=False,
        beta1=BETA1,
        beta2=BETA2,
        lr=lr,
        weight_decay=weight_decay,
        eps=ADAM_EPS,
        maximize=False,
    )


class RowAdam:
    """Updates a matrix of weights, a row per model, by PyTorch's fused kernel: a row's bits depend on no other row.

    Args:
        state: ``weights``, ``first_moment`` and ``second_moment``, float32 ``[M, parameters]`` on the CPU, which are
            changed in place.
        lr: learning rate of each row, ``[M]``.
    """

    def __init__(self, state: dict[str, Tensor], lr: npt.NDArray[np.float64]) -> None:
        self._taken = [torch.zeros(()) for _ in lr]
        columns = [*(state[name].unbind() for name in ("weights", *OPTIMIZER_STATE["adam"])), self._taken]
        self._groups: list[tuple[float, list[int], list[list[Tensor]]]] = []
        """Learning rate, numbers of the rows, and their weights, moments and counted steps."""
        for rate in np.unique(lr):
            rows = np.flatnonzero(lr == rate).tolist()
            self._groups.append((float(rate), rows, [[column[row] for row in rows] for column in columns]))

    def begin(self, taken: npt.NDArray[np.int64]) -> None:
        """Begin an epoch, before which each row has taken ``taken`` steps, ``[M]``."""
        for counter, steps in zip(self._taken, taken.tolist(), strict=True):
            counter.fill_(steps)

    def step(self, gradient: Tensor) -> None:
        """Take one step of all rows; ``gradient`` is ``[M, parameters]``."""
        gradients = gradient.unbind()
        for rate, rows, (weights, first, second, taken) in self._groups:
            fused_step(weights, [gradients[row] for row in rows], (first, second), taken, rate)
