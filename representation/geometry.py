"""Networks as points: distances, the line between two of them, and what can be merged from several.

On the line from one network to another, ``(1 - t) * first + t * second``, the barrier is the largest amount by which
the accuracy is below, or the loss above, the straight line between those of the ends (Frankle et al., 2020). It is
measured on the networks as they are, with the second one aligned to the first (`representation.alignment`), and with
the activations of the aligned line rescaled (REPAIR, Jordan et al., 2023).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from representation.alignment import aligned, check_networks
from representation.behaviour import SIDE_BY_SIDE, logits, predictions, scored
from zootools.architectures import Schema
from zootools.architectures.networks import Watch, parameter_views, stacked_forward
from zootools.images.datasets import ImageData, Subset

POINTS = 11
"""Points of a line, with its ends."""
RESCALED_ON = 500
"""Training images on which the statistics of activations are measured."""
VALIDATED = 2000
"""Images of the validation set where a zoo has none: the last ones of the training images."""


@dataclass(frozen=True)
class Line:
    """Loss and accuracy at equally spaced points of a line, from the first network to the second."""

    name: str
    """``plain``, ``aligned`` or ``rescaled`` (aligned, with rescaled activations)."""
    loss: list[float]
    accuracy: list[float]

    @property
    def barrier(self) -> float:
        """The largest amount by which the accuracy is below the straight line between the ends; 0 if it never is."""
        return _below(self.accuracy)

    @property
    def loss_barrier(self) -> float:
        """The largest amount by which the loss is above the straight line between the ends; 0 if it never is."""
        return _below([-value for value in self.loss])

    def to_json(self) -> dict[str, Any]:
        """Return the fields and barriers by name."""
        return {**asdict(self), "barrier": self.barrier, "loss_barrier": self.loss_barrier}


@dataclass(frozen=True)
class Merged:
    """Loss and accuracy on the test images of networks, or of what was merged from them."""

    name: str
    loss: float
    accuracy: float
    networks: int = 1
    """Networks that are in it; of a row of networks themselves, those whose mean the row is."""


@dataclass(frozen=True)
class Pair:
    """Two networks of one schema and activation."""

    distance: float
    """Euclidean distance of the weights as they are."""
    distance_aligned: float
    """The same after the second network was aligned to the first one."""
    agreement: float
    """Share of the test images for which both networks predict the same class."""
    lines: tuple[Line, ...]


def pair(schema: Schema, first: Tensor, second: Tensor, images: ImageData, activation: str) -> Pair:
    """Compare two networks ``[N]`` on the test images.

    Raises SpecError for weights that are not finite.
    """
    both = torch.stack([first, second])
    check_networks(schema, both, "the networks")
    copy = aligned(schema, second[None], first)[0]
    guesses = predictions(schema, both, images.test.images, activation)
    on_line = _on_line(first, copy)
    watch = rescaling(schema, on_line, images.train.images[:RESCALED_ON], activation)
    return Pair(
        distance=float((second - first).norm()),
        distance_aligned=float((copy - first).norm()),
        agreement=float((guesses[0] == guesses[1]).double().mean()),
        lines=(
            line("plain", schema, _on_line(first, second), images.test, activation),
            line("aligned", schema, on_line, images.test, activation),
            line("rescaled", schema, on_line, images.test, activation, watch),
        ),
    )


def line(
    name: str, schema: Schema, networks: Tensor, subset: Subset, activation: str, watch: Watch | None = None
) -> Line:
    """Return loss and accuracy of the networks ``[points, N]`` of a line on some images."""
    scores = scored(schema, networks, subset, activation, watch)
    return Line(name, scores.loss.tolist(), scores.accuracy.tolist())


def rescaling(schema: Schema, networks: Tensor, images: Tensor, activation: str) -> Watch:
    """Return the rescaling of activations along a line (REPAIR), for `representation.behaviour.scored`.

    For every channel of the hidden layers, mean and standard deviation of its values before the activation, over images
    and places, become the interpolation of those of the two ends. The layers are set one after the other, so that the
    statistics of each are those under the rescaling of the layers before it.

    Args:
        schema: the layers of all networks.
        networks: ``[points, N]``, equally spaced from one end to the other.
        images: those that the statistics are measured on, ``[images, channels, height, width]``.
        activation: of all networks.
    """
    hidden = {layer.name for layer in schema.layers[:-1]}
    share = torch.linspace(0, 1, len(networks))[:, None]
    scales: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(name: str, x: Tensor) -> Tensor:
        if name in hidden:
            std, mean = torch.std_mean(x, dim=(0, 3, 4) if x.dim() == 5 else 1, correction=0)  # [points, channels]
            wanted_std, wanted_mean = (values[0] + share * (values[-1] - values[0]) for values in (std, mean))
            # A channel that is constant at a point stays so: there is nothing that could be rescaled.
            factor = torch.where(std > 1e-6 * wanted_std, wanted_std / std.clamp_min(1e-30), 1)
            scales[name] = factor, wanted_mean - factor * mean
        return rescaled(name, x)

    def rescaled(name: str, x: Tensor) -> Tensor:
        if name not in scales:
            return x
        factor, shift = (values[..., None, None] if x.dim() == 5 else values[:, None] for values in scales[name])
        return x * factor + shift

    with torch.no_grad():
        stacked_forward(schema, parameter_views(schema, networks), images, activation, watch=measure)
    return rescaled


def merges(schema: Schema, networks: Tensor, images: ImageData, activation: str) -> list[Merged]:
    """Return the test scores of networks ``[n, N]``, n > 1, and of what is merged from them.

    The rows are the best of the networks on the validation images, their mean score, the average of the
    weights as they are and after all were aligned to the best, the greedy soup of both (Wortsman et al., 2022: from the
    best on, each is averaged in if the validation accuracy does not fall), and the ensemble, the mean of the
    probabilities.

    Raises SpecError for weights that are not finite.
    """
    check_networks(schema, networks, "the networks")
    held = validation_images(images)
    valid = scored(schema, networks, held, activation).accuracy
    order = np.argsort(-valid, kind="stable").tolist()
    networks = networks[order]
    copies = aligned(schema, networks, networks[0])
    soups = [greedy_soup(schema, members, held, activation) for members in (networks, copies)]
    merged = torch.stack([networks.mean(dim=0), copies.mean(dim=0), *(soup for soup, _ in soups)])
    own, found = (scored(schema, flat, images.test, activation) for flat in (networks, merged))
    count = len(networks)
    rows = [Merged("best network", float(own.loss[0]), float(own.accuracy[0]))]
    rows.append(Merged("mean of the networks", float(own.loss.mean()), float(own.accuracy.mean()), count))
    sizes = (count, count, *(size for _, size in soups))
    names = ("average", "average, aligned", "greedy soup", "greedy soup, aligned")
    rows += [
        Merged(name, float(loss), float(accuracy), size)
        for name, loss, accuracy, size in zip(names, found.loss, found.accuracy, sizes, strict=True)
    ]
    loss, accuracy = ensemble(schema, networks, images.test, activation)
    return [*rows, Merged("ensemble", loss, accuracy, count)]


def greedy_soup(schema: Schema, networks: Tensor, held: Subset, activation: str) -> tuple[Tensor, int]:
    """Return the greedy soup ``[N]`` of networks ``[n, N]``, the best first, and the number of networks in it."""
    total, size = networks[0].double(), 1
    best = float(scored(schema, networks[:1], held, activation).accuracy[0])
    for network in networks[1:]:
        tried = ((total + network) / (size + 1)).float()
        accuracy = float(scored(schema, tried[None], held, activation).accuracy[0])
        if accuracy >= best:
            total, size, best = total + network, size + 1, accuracy
    return (total / size).float(), size


def ensemble(schema: Schema, networks: Tensor, subset: Subset, activation: str) -> tuple[float, float]:
    """Return loss and accuracy of the mean of the probabilities of networks ``[n, N]``."""
    total: Tensor | float = 0.0
    for part in networks.split(SIDE_BY_SIDE):
        batches = [F.softmax(found, dim=2).sum(dim=0) for found in logits(schema, part, subset.images, activation)]
        total = total + torch.cat(batches).double()
    assert isinstance(total, Tensor)
    chosen = (total / len(networks)).gather(1, subset.labels[:, None])
    hits = (total.argmax(dim=1) == subset.labels).double().mean()
    return float(-chosen.clamp_min(1e-30).log().mean()), float(hits)


def validation_images(images: ImageData) -> Subset:
    """Return the validation images; the last `VALIDATED` training images where there are none."""
    if len(images.validation):
        return images.validation
    return Subset(images.train.images[-VALIDATED:], images.train.labels[-VALIDATED:])


def _on_line(first: Tensor, second: Tensor) -> Tensor:
    """Return the networks ``[POINTS, N]`` of a line; its ends are exact."""
    share = torch.linspace(0, 1, POINTS)[:, None]
    return (1 - share) * first + share * second


def _below(values: Sequence[float]) -> float:
    """Return the largest amount by which values are below the straight line from the first to the last."""
    ends = np.linspace(values[0], values[-1], len(values))
    return max(0.0, float((ends - np.asarray(values)).max()))
