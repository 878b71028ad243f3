"""How much of the variance of networks a reconstruction explains: "Rec" in the paper's tables."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from representation.networks import in_parts


def reconstruction_r2(networks: Tensor, rebuild: Callable[[Tensor], Tensor]) -> float:
    """Return the R2 of reconstructed networks ``[n, N]`` over the whole vector; NaN if all networks are equal.

    As in the paper, the error is compared with that of the mean of each weight over these networks. Everything is
    summed in float64, because squares of large weights overflow float32.

    Args:
        networks: usually permuted at random.
        rebuild: returns the reconstructions of some of them, ``[rows, N]``.
    """
    centre = networks.mean(dim=0, dtype=torch.float64).cpu()
    error = variance = 0.0
    for rows in in_parts(networks):
        exact = rows.to("cpu", torch.float64)
        error += float((exact - rebuild(rows).to("cpu", torch.float64)).square().sum())
        variance += float((exact - centre).square().sum())
    return 1 - error / variance if variance else math.nan
