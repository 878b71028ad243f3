"""Behavioural reconstruction: what a reconstructed network computes on images, beside what its weights are.

Networks that are close in weights can differ in what they compute (Meynent et al., "Structure is not enough", 2025).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from representation.derived import known_images
from representation.errors import PlacedError
from zootools.architectures import Schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.images.datasets import load_images
from zootools.images.shapes import has_images
from zootools.paths import data_folder
from zootools.zoo import Zoo

KEPT = 2_000
"""The first training images of a zoo, from which the images of a step are drawn."""
IMAGES, NETWORKS = 32, 64
"""Images of a step, and networks of a step whose logits are compared: the first views of a batch, which is shuffled."""
SMALLEST = 1e-12
"""Smallest variance of logits that is divided by."""


@dataclass(frozen=True)
class Behaviour:
    """The images on which networks and their reconstructions are compared."""

    images: Tensor
    """float32 ``[n, channels, height, width]``."""
    activation: str
    """That of all networks."""

    @classmethod
    def of(cls, zoo: Zoo) -> "Behaviour":
        """Load the images of a zoo, from `zootools.paths.data_folder`.

        Raises SpecError if they are not known or not there, and for networks of several activations.
        """
        images, need = known_images(zoo), "loss.behaviour compares networks on the images of their zoo"
        if images is None or "activation" not in zoo.metadata.column_names:
            raise PlacedError(zoo.folder, f"{need}; its images or activations are not known")
        activations = sorted(set(zoo.metadata["activation"].to_pylist()))
        if len(activations) != 1:
            raise PlacedError(zoo.folder, f"{need}, and expects one activation; found {', '.join(activations)}")
        if not has_images(images):
            raise PlacedError(zoo.folder, f"{need}; the files of {images.name} are not in {data_folder()}")
        return cls(load_images(images).train.images[:KEPT].clone(), activations[0])

    def to(self, device: torch.device) -> "Behaviour":
        """Return the same with images on a device."""
        return Behaviour(self.images.to(device), self.activation)

    def loss(self, schema: Schema, outputs: Tensor, networks: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared difference of logits, divided by the variance of those of the networks: a scalar.

        Args:
            schema: the layers.
            outputs: reconstructions ``[n, N]`` of ``networks``.
            networks: flat weights ``[n, N]``.
            generator: draws the images.
        """
        rows = torch.randint(len(self.images), (IMAGES,), generator=generator, device=self.images.device)
        images = self.images[rows]
        found, wanted = (
            stacked_forward(schema, parameter_views(schema, part[:NETWORKS].float()), images, self.activation)
            for part in (outputs, networks)
        )
        return (found - wanted).square().mean() / wanted.var(correction=0).clamp_min(SMALLEST)
