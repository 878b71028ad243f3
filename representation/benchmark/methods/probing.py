"""Probing (Kahana et al. 2024, ProbeGen): a small network reads the logits of networks on learned images."""

import math

import torch
from torch import Tensor, nn

from representation.benchmark.methods.method import Examples, Population
from representation.benchmark.methods.trained import TrainedMethod
from representation.encoders.equivariant import perceptron
from representation.encoders.standard import Standardiser
from zootools.architectures import Schema

IMAGES = 32
"""Learned images."""
CODE = 32
"""Numbers from which an image is generated, by two linear maps."""
HIDDEN = 256
"""Units of the hidden layer that reads the logits."""
FITTED = 1024
"""Training networks whose logits on the first images standardise all later ones."""


class Probes(nn.Module):
    """Images from learned codes by a deep linear generator, and a network that reads the logits on all of them."""

    def __init__(self, schema: Schema, outputs: int) -> None:
        super().__init__()
        self.schema = schema
        pixels = math.prod(schema.input_shape)
        self.codes = nn.Parameter(torch.randn(IMAGES, CODE))
        self.generator = nn.Sequential(nn.Linear(CODE, CODE, bias=False), nn.Linear(CODE, pixels))
        self.standardiser = Standardiser(IMAGES * schema.classes)
        self.head = perceptron(IMAGES * schema.classes, HIDDEN, outputs)
        for layer in self.generator:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=CODE**-0.5)  # pixels of variance 1, as normalised images have

    def logits(self, population: Population) -> Tensor:
        """Return asinh of the logits of networks on the images, ``[n, images * classes]``.

        Logits of networks of different hyper-parameters differ by orders of magnitude: a few would decide the
        constants that standardise all.
        """
        images = self.generator(self.codes).unflatten(1, self.schema.input_shape)
        return population.run(self.schema, images).flatten(1).asinh()

    def forward(self, logits: Tensor) -> Tensor:
        """Return the outputs ``[n, outputs]`` for what `logits` returns, ``[n, images * classes]``."""
        return self.head(self.standardiser(logits))


class Probing(TrainedMethod):
    """ProbeGen (Kahana et al. 2024): the logits of the networks on 32 learned images, read by a small network."""

    name, invariant, runs = "probing", True, True
    lr = 3e-3
    module: Probes

    def network(self, train: Examples) -> nn.Module:
        probes = Probes(self.problem.schema, self.problem.outputs)
        with torch.no_grad():
            probes.standardiser.fit(probes.logits(train.rows(torch.arange(len(train))[:FITTED])))
        return probes

    def outputs(self, batch: Population) -> Tensor:
        return self.module(self.module.logits(batch))
