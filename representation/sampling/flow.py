"""Flow matching over rows: a small network learns the velocity that carries Gaussian noise to the training rows.

The paths are straight lines from noise to a row (Lipman et al., 2023), and samples follow the learned velocity by the
classical Runge-Kutta method of fourth order. n rows span at most n - 1 directions, so the flow lives in the principal
components of the rows; nothing is lost, and networks of any size take a small velocity network.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zootools.rng import stream
from zootools.training.repeatable import make_products_repeatable

make_products_repeatable()

WIDTH, HIDDEN = 512, 3
"""Width and number of the hidden layers of the velocity."""
TIMES = 6
"""Features of the time, from 0 to 1: sines and cosines of few frequencies, since many make it noise."""
STEPS, BATCH, RATE = 1500, 128, 3e-3
"""Steps of Adam, rows of a step, and highest learning rate, which falls to 0 as a cosine."""
INTEGRATION = 40
"""Steps of Runge-Kutta."""
KEPT = 1e-6
"""Smallest standard deviation of a principal component, relative to the largest."""


class Velocity(nn.Module):
    """The velocity ``[n, d]`` at points ``[n, d]`` and times ``[n]``."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        sizes = [size + TIMES, *[width] * HIDDEN]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, size))

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return the velocities; the times are given as sines and cosines."""
        angles = times[:, None] * math.pi / 2 * 2.0 ** torch.arange(TIMES // 2)
        velocity: Tensor = self.layers(torch.cat([points, angles.sin(), angles.cos()], dim=1))
        return velocity


def flow_samples(rows: Tensor, count: int, seed: int, *, width: int = WIDTH, steps: int = STEPS) -> Tensor:
    """Train a flow on rows, float32 ``[n, d]``, and return samples of it, float32 ``[count, d]``.

    Args:
        rows: the rows.
        count: number of samples.
        seed: of the initial velocity, the noise and the batches.
        width: of the hidden layers.
        steps: of the training.
    """
    mean = rows.double().mean(dim=0)
    _, values, directions = torch.linalg.svd(rows.double() - mean, full_matrices=False)
    directions = directions[values > KEPT * values[0]].float()
    data = (rows - mean.float()) @ directions.T
    scale = data.std()
    data = data / scale
    spread = data.std(dim=0)  # the noise has the standard deviations of the rows, so paths are short
    draws = stream(seed, "sample", "flow")
    with torch.random.fork_rng([]):
        torch.manual_seed(int(draws.integers(2**63)))
        velocity = Velocity(data.shape[1], width)
        _train(velocity, data, spread, steps)
        points = torch.randn(count, data.shape[1]) * spread
    return mean.float() + (_integrate(velocity, points) * scale) @ directions


def _train(velocity: Velocity, data: Tensor, spread: Tensor, steps: int) -> None:
    """Fit the velocity; random numbers come from torch's global generator."""
    optimizer = torch.optim.Adam(velocity.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        ends = data[torch.randint(len(data), (BATCH,))]
        starts, times = torch.randn_like(ends) * spread, torch.rand(BATCH)
        points = starts + times[:, None] * (ends - starts)
        loss = F.mse_loss(velocity(points, times), ends - starts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _integrate(velocity: Velocity, points: Tensor) -> Tensor:
    """Follow the velocity from time 0 to 1."""
    length = 1 / INTEGRATION

    def at(points: Tensor, time: float) -> Tensor:
        return velocity(points, torch.full((len(points),), time))

    for number in range(INTEGRATION):
        time = number * length
        first = at(points, time)
        second = at(points + length / 2 * first, time + length / 2)
        third = at(points + length / 2 * second, time + length / 2)
        fourth = at(points + length * third, time + length)
        points = points + length / 6 * (first + 2 * second + 2 * third + fourth)
    return points
