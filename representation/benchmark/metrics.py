"""The metrics of tasks: truth and predictions of one population to one number, NaN where it is not defined."""

from collections.abc import Callable

from torch import Tensor

from representation.evaluation.probes import accuracy, kendall_tau, r2

METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"kendall_tau": kendall_tau, "r2": r2, "accuracy": accuracy}
"""Functions of truth ``[rows]`` and predictions ``[rows]``; the larger, the better."""
OF_NUMBERS, OF_CLASSES = ("kendall_tau", "r2"), ("accuracy",)
"""The metrics of each kind of target; the first is the default of a task."""
