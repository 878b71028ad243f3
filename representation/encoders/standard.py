"""Standardisation by constants of the training networks, and linear maps beside an encoder and its decoder."""

import numpy as np
import torch
from torch import Tensor, nn

from representation.networks import Networks, in_parts
from zootools.architectures import Schema

CODE_DEVIATION = 0.1
"""Largest standard deviation of the numbers of a code at the start: so small that tanh hardly changes them."""
NORMAL_QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution, in deviations."""
SMALLEST = 1e-7
"""Smallest deviation that is not rounding, as a share of the mean."""


class Standardiser(nn.Module):
    """``(x - mean) / scale``, with a constant for each number; 0 and 1 until `fit`. Part of the state of an encoder."""

    mean: Tensor
    scale: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("scale", torch.ones(length))

    def fit(self, values: Tensor) -> None:
        """Set the constants from rows ``[n, length]``, each number by itself."""
        values = values.double()
        self._set(slice(None), values.mean(dim=0), values.var(dim=0, correction=0))

    def fit_quartiles(self, values: Tensor) -> None:
        """Set the constants from rows ``[n, length]``: the median, and the deviation of a normal distribution with the
        same quartiles."""
        quartiles = np.quantile(values.double().cpu().numpy(), (0.25, 0.5, 0.75), axis=0)
        lower, median, upper = torch.from_numpy(quartiles).to(values.device)
        self._set(slice(None), median, ((upper - lower) / NORMAL_QUARTILES).square())

    def fit_layers(self, weights: Networks, schema: Schema) -> None:
        """Set the constants from networks ``[n, N]``: one pair for all weights of a layer, and one for its biases.

        So the standardised network of a permuted one is the permuted standardised network.
        """
        places = [slice(parameter.offset, parameter.end) for parameter in schema.parameters]
        counts = torch.tensor([len(weights) * parameter.size for parameter in schema.parameters]).to(weights.device)
        means = torch.zeros(len(places), dtype=torch.float64, device=weights.device)
        for rows in in_parts(weights):
            means += torch.stack([rows[:, place].double().sum() for place in places]) / counts
        variances = torch.zeros_like(means)
        for rows in in_parts(weights):
            centred = zip(places, means, strict=True)
            sums = [(rows[:, place].double() - mean).square().sum() for place, mean in centred]
            variances += torch.stack(sums) / counts
        for place, mean, variance in zip(places, means, variances, strict=True):
            self._set(place, mean, variance)

    def _set(self, place: slice, mean: Tensor, variance: Tensor) -> None:
        deviation = variance.sqrt()
        self.mean[place] = mean.to(self.mean)
        self.scale[place] = torch.where(deviation > SMALLEST * mean.abs(), deviation, 1.0).to(self.scale)

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.scale

    def undo(self, values: Tensor) -> Tensor:
        """Return the numbers of which ``values`` are the standardised ones."""
        return torch.addcmul(self.mean, values, self.scale)


class LinearPaths(nn.Module):
    """A linear map from weights ``[n, N]`` to the last numbers of z, and one from z ``[n, L]`` to weights."""

    gain: Tensor

    def __init__(self, size: int, latent: int, coded: int) -> None:
        """Args: ``coded`` is how many numbers of z the first map reaches; at least 1."""
        super().__init__()
        self.to_z = nn.Linear(size, coded)
        self.to_weights = nn.Linear(latent, size)
        self.register_buffer("gain", torch.ones(()))
        """Deviation of z per deviation of the weights: both matrices keep the scale of orthonormal components."""

    def encode(self, z: Tensor, weights: Tensor) -> Tensor:
        """Return z ``[n, L]`` before its tanh: the map of the weights ``[n, N]`` is added to its last numbers.

        These numbers are in the unit of the weights until they are scaled.
        """
        others, codes = self._parts(z)
        return torch.cat([others, (codes + self.to_z(weights)) * self.gain], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return weights ``[n, N]`` to add to those of the decoder."""
        others, codes = self._parts(z)
        return self.to_weights(torch.cat([others, codes / self.gain], dim=1))

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        others, codes = z.tensor_split([z.shape[1] - self.to_z.out_features], dim=1)
        return others, codes

    @torch.no_grad()
    def start(self, mean: Tensor, components: Tensor, weights: Networks, standardiser: Standardiser | None) -> None:
        """Begin as a linear code: ``mean`` ``[N]`` and ``components`` ``[N, codes]`` of weights as they are.

        The codes are scaled for tanh by their deviation over ``weights`` ``[n, N]``. Numbers of z beyond the codes
        begin at 0. The maps see standardised weights if there is a ``standardiser``.
        """
        count = components.shape[1]
        sums = torch.zeros(count, dtype=torch.float64, device=weights.device)
        for rows in in_parts(weights):
            sums += ((rows.double() - mean) @ components).square().sum(dim=0)
        deviation = (sums / len(weights)).max().sqrt()
        offset, scale = torch.zeros_like(mean), torch.ones_like(mean)
        if standardiser is not None:
            offset, scale = standardiser.mean.to(mean), standardiser.scale.to(mean)
        size = scale.square().mean().sqrt()  # of the weights, so that the matrices are of size 1
        if deviation > SMALLEST * mean.abs().max():
            self.gain.copy_(CODE_DEVIATION * size / deviation)
        begin_at_zero(self.to_z, self.to_weights)
        self.to_z.weight[:count] = (components * scale[:, None] / size).T.to(self.to_z.weight)
        self.to_z.bias[:count] = ((offset - mean) @ components / size).to(self.to_z.bias)
        first = self.to_weights.in_features - self.to_z.out_features
        matrix = components * size / scale[:, None]
        self.to_weights.weight[:, first : first + count] = matrix.to(self.to_weights.weight)
        self.to_weights.bias.copy_((mean - offset) / scale)


def standardised(network: nn.Module, schema: Schema, weights: Networks) -> nn.Sequential:
    """Return a network of weights ``[B, N]`` after a `Standardiser` of layers, fitted to training ``weights``."""
    standardiser = Standardiser(schema.size)
    standardiser.fit_layers(weights, schema)
    return nn.Sequential(standardiser, network)


def begin_at_zero(*layers: nn.Module) -> None:
    """Set linear layers to zero, so that at the start the linear map beside them computes everything."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
