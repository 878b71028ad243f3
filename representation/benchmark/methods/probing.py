"""Probing (Kahana et al. 2024, ProbeGen): a small network reads the logits of networks on learned images."""

import math

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples, Population
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import perceptron
from representation.encoders.standard import SMALLEST
from zootools.architectures import Schema

IMAGES = 32
"""Learned images."""
CODE = 32
"""Numbers from which an image is generated, by two linear maps."""
HIDDEN = 256
"""Units of the hidden layer that reads the logits."""
FITTED = 1024
"""Training networks whose logits on the first images give the constants that all later ones are scaled by."""
QUARTILES = 1.349
"""Standard deviations between the quartiles of a normal distribution."""


class Probes(nn.Module):
    """Images from learned codes by a deep linear generator, and a network that reads the logits on all of them.

    Logits of networks of different hyper-parameters differ by orders of magnitude, so that a few would decide mean and
    deviation of all. They are scaled by median and quartiles instead, and what is far from these by asinh.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, schema: Schema, outputs: int) -> None:
        super().__init__()
        self.schema = schema
        pixels = math.prod(schema.input_shape)
        self.codes = nn.Parameter(torch.randn(IMAGES, CODE))
        self.generator = nn.Sequential(nn.Linear(CODE, CODE, bias=False), nn.Linear(CODE, pixels))
        self.register_buffer("centre", torch.zeros(IMAGES * schema.classes))
        self.register_buffer("scale", torch.ones(IMAGES * schema.classes))
        self.head = perceptron(IMAGES * schema.classes, HIDDEN, outputs)
        for layer in self.generator:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=CODE**-0.5)  # pixels of variance 1, as normalised images have

    def logits(self, population: Population) -> Tensor:
        """Return the logits ``[n, images * classes]`` of networks on the images."""
        images = self.generator(self.codes).unflatten(1, self.schema.input_shape)
        return population.run(self.schema, images).flatten(1)

    @torch.no_grad()
    def fit_scale(self, logits: Tensor) -> None:
        """Set the constants that scale logits, from those of some networks ``[n, images * classes]``."""
        low, self.centre, high = logits.sort(dim=0).values[torch.tensor([1, 2, 3]) * (len(logits) - 1) // 4]
        spread = (high - low) / QUARTILES
        self.scale = torch.where(spread > SMALLEST * self.centre.abs(), spread, 1.0)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for logits ``[n, images * classes]``."""
        return self.head(((logits - self.centre) / self.scale).asinh())


class Probing(TrainedMethod):
    """ProbeGen (Kahana et al. 2024): the logits of the networks on 32 learned images, read by a small network."""

    name, invariant, runs = "probing", True, True
    lr = 3e-3
    module: Probes

    def network(self, train: Examples) -> nn.Module:
        probes = Probes(self.problem.schema, self.problem.outputs)
        with torch.no_grad():
            probes.fit_scale(probes.logits(train.rows(torch.arange(len(train))[:FITTED])))
        return probes

    def outputs(self, batch: Population) -> Tensor:
        return self.module(self.module.logits(batch))
