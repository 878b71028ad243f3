"""Adam for stacked models of many weights, by one pass over their weights.

Written as single operations of PyTorch, a step of Adam reads and writes weights, gradient and moments ten times, which
for a wide layer takes longer than its products.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.adam import adam

from zootools.training.group import BETA1, BETA2, OPTIMIZER_STATE

ADAM_EPS = 1e-8  # torch.optim.Adam
WIDE = 10_000
"""Fewest weights of a model that is updated by a call of its own; below, calls take longer than they save."""


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
            adam(
                weights,
                [gradients[row] for row in rows],
                first,
                second,
                [],
                taken,
                fused=True,
                amsgrad=False,
                beta1=BETA1,
                beta2=BETA2,
                lr=rate,
                weight_decay=0.0,
                eps=ADAM_EPS,
                maximize=False,
            )
