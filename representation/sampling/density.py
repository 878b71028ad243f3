"""Densities over the representations of networks, and draws from them.

A density is over rows: representations z, or flat weights. The kernel density of Schürholt et al. (2022) treats every
number of z on its own. Their released code, and that of SANE (2024), give ``KernelDensity.sample`` the same seed for
every number, so all numbers of a draw come from the same training network: `joint_kernels` is that density.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from representation.sampling.flow import flow_samples
from zootools.errors import SpecError
from zootools.rng import stream

PUBLISHED_BANDWIDTH = 0.002
"""Standard deviation of the kernels, in units of z, in the released code of 2022."""
BANDWIDTHS = tuple(float(value) for value in np.logspace(-4, 0, 17))
"""Candidates for the bandwidth of the highest held-out likelihood."""
MOST_HELD_OUT, AT_ONCE = 256, 32
"""Rows of each half that a bandwidth is chosen by, and numbers of z whose likelihoods are computed at a time."""
OVERSAMPLED = 10
"""Draws for each one that the methods with a selection keep."""
ROUNDS = 5
"""Densities that ``bootstrap`` and ``gaussian`` fit one after the other."""
SMALLEST_SPREAD = 1e-6
"""Standard deviation below which a number of z counts as constant."""

Score = Callable[[Tensor], Tensor]
"""The accuracies ``[n]`` of the networks of rows ``[n, d]``, on images that are not the test images."""
Draw = Callable[[Tensor, "Settings", Score], Tensor]


@dataclass(frozen=True)
class Settings:
    """What is drawn."""

    count: int
    bandwidth: float | None = PUBLISHED_BANDWIDTH
    """Standard deviation of the kernels, in units of the rows; None for that of the highest held-out likelihood."""
    seed: int = 0
    groups: tuple[int, ...] = ()
    """The number of the model of each row, so that a model is never on both sides of the held-out likelihood."""

    def draws(self, *purpose: str | int) -> np.random.Generator:
        """Return the random numbers of one purpose."""
        return stream(self.seed, "sample", *purpose)


def draw(method: str, rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Return new rows, float32 ``[settings.count, d]``.

    Args:
        method: a key of `METHODS`.
        rows: the rows of the training networks, float32 ``[n, d]``.
        settings: what to draw.
        score: measures the networks of rows, for the methods that keep the best of many draws.

    Raises SpecError if all rows are equal.
    """
    if len(rows) < 2 or float(rows.std(dim=0).max()) < SMALLEST_SPREAD:
        raise SpecError(
            f"the {len(rows):,} representations are all equal, so there is nothing to draw from; expected at least two "
            "that differ (an encoder that was not trained, or copies of one network, give equal ones)"
        )
    return METHODS[method](rows.float(), settings, score)


def chosen_bandwidth(rows: Tensor, settings: Settings) -> float:
    """Return the bandwidth: the given one, or that of `BANDWIDTHS` with the highest held-out likelihood.

    The models are divided into two halves; each half is scored under the kernels of the other one.
    """
    if settings.bandwidth is not None:
        return settings.bandwidth
    groups = np.asarray(settings.groups or range(len(rows)))
    models = settings.draws("halves").permutation(np.unique(groups))
    first = np.isin(groups, models[: len(models) // 2])
    halves = [torch.from_numpy(np.flatnonzero(part))[:MOST_HELD_OUT] for part in (first, ~first)]
    pairs = [(rows[halves[0]], rows[halves[1]]), (rows[halves[1]], rows[halves[0]])]
    likelihoods = torch.zeros(len(BANDWIDTHS), dtype=torch.float64)
    for kernels, held_out in pairs:
        for start in range(0, rows.shape[1], AT_ONCE):
            part = slice(start, start + AT_ONCE)
            squares = (held_out[:, None, part] - kernels[None, :, part]).double().square()
            for index, width in enumerate(BANDWIDTHS):
                logs = torch.logsumexp(squares * (-0.5 / width**2), dim=1) - np.log(width)
                likelihoods[index] += logs.sum()
    return BANDWIDTHS[int(likelihoods.argmax())]


def kernels(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Draw every number on its own from a Gaussian kernel density of its values, as the paper of 2022 describes."""
    return _kernels(rows, chosen_bandwidth(rows, settings), settings.count, settings.draws("kde"))


def joint_kernels(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Draw a row and add noise to it: what the released code of 2022 computes (see the module)."""
    draws, width = settings.draws("kde-joint"), chosen_bandwidth(rows, settings)
    places = torch.from_numpy(draws.integers(len(rows), size=settings.count))
    return rows[places] + width * _normal(draws, settings.count, rows.shape[1])


def subsample(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Keep the best of `OVERSAMPLED` times as many draws of `kernels` (SANE, "subsampling")."""
    many, width = settings.count * OVERSAMPLED, chosen_bandwidth(rows, settings)
    drawn = _kernels(rows, width, many, settings.draws("subsample"))
    return _best(drawn, settings.count, score)


def bootstrap(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Fit the kernel density again to the best of its own draws, `ROUNDS` times (SANE, "bootstrapping")."""
    return _rounds(rows, chosen_bandwidth(rows, settings), settings, score)


def gaussian(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Begin `bootstrap` with a Gaussian in the place of training networks (SANE_GAUSS).

    Of the training networks it knows only mean and standard deviation over all numbers of all rows.
    """
    noise = _normal(settings.draws("gaussian"), settings.count * OVERSAMPLED, rows.shape[1])
    begun = _best(rows.mean() + rows.std() * noise, settings.count, score)
    return _rounds(begun, chosen_bandwidth(rows, settings), settings, score)


def flow(rows: Tensor, settings: Settings, score: Score) -> Tensor:
    """Draw by flow matching (`representation.sampling.flow`), which knows how the numbers depend on each other."""
    return flow_samples(rows, settings.count, settings.seed)


METHODS: dict[str, Draw] = {
    "kde": kernels,
    "kde-joint": joint_kernels,
    "subsample": subsample,
    "bootstrap": bootstrap,
    "gaussian": gaussian,
    "flow": flow,
}
"""The methods by name."""
BANDWIDTH_METHODS = tuple(name for name in METHODS if name != "flow")
"""The methods with kernels."""


def _kernels(rows: Tensor, width: float, count: int, draws: np.random.Generator) -> Tensor:
    size = rows.shape[1]
    places = torch.from_numpy(draws.integers(len(rows), size=(count, size)))
    return rows.gather(0, places) + width * _normal(draws, count, size)


def _normal(draws: np.random.Generator, count: int, size: int) -> Tensor:
    return torch.from_numpy(draws.standard_normal((count, size), np.float32))


def _best(rows: Tensor, count: int, score: Score) -> Tensor:
    """Return the rows whose networks have the highest accuracy; of equal ones the first."""
    return rows[torch.argsort(score(rows), descending=True, stable=True)[:count]]


def _rounds(anchors: Tensor, width: float, settings: Settings, score: Score) -> Tensor:
    for number in range(ROUNDS):
        drawn = _kernels(anchors, width, settings.count * OVERSAMPLED, settings.draws("bootstrap", number))
        anchors = _best(drawn, settings.count, score)
    return anchors
