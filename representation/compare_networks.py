"""The geometry of two networks of a zoo, or of many pairs: what ``zootools compare`` says."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from representation.behaviour import activations_of, load_zoo_images
from representation.geometry import Merged, Pair, merges, pair
from zootools.errors import SpecError
from zootools.images.datasets import ImageData, Subset
from zootools.rng import stream
from zootools.zoo import Zoo

MAX_PAIRS = 10_000
PAIR_IMAGES = 2000
"""Test images of the lines of many pairs."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class NetworkComparison:
    """Two checkpoints, their geometry, and what is merged from them."""

    zoo: str
    first: str
    """``MODEL@EPOCH``"""
    second: str
    images: str
    """The images that were evaluated: ``10,000 test images of mnist``."""
    pair: Pair
    merged: list[Merged]

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as ``zootools compare --json`` prints them."""
        found = asdict(self.pair) | {"lines": [line.to_json() for line in self.pair.lines]}
        names = {"zoo": self.zoo, "first": self.first, "second": self.second, "images": self.images}
        return {**names, **found, "merged": [asdict(row) for row in self.merged]}


@dataclass(frozen=True)
class PairsComparison:
    """The distribution of the geometry over pairs of a zoo's models, and what is merged from all their networks."""

    zoo: str
    pairs: int
    images: str
    quantiles: dict[str, list[float]]
    """Minimum, quartiles and maximum over the pairs, of each quantity."""
    merged: list[Merged]
    """Of all networks that are in a pair."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as ``zootools compare --pairs N --json`` prints them."""
        return asdict(self)


def compare_two(zoo: Zoo, first: str, second: str, data: str | Path | None = None) -> NetworkComparison:
    """Compare two checkpoints, each ``MODEL`` (its last checkpoint) or ``MODEL@EPOCH``, on the test images of a zoo.

    Raises ZooNotFoundError for models or epochs that the zoo does not have, SpecError if the networks have different
    activations, cannot be run, or are not finite, StorageError if the images are not at hand.
    """
    rows = [_checkpoint(zoo, text) for text in (first, second)]
    activations = [activations_of(row)[0] for row in rows]
    if activations[0] != activations[1]:
        raise SpecError(
            f"{zoo.name}: {first} has the activation {activations[0]}, and {second} {activations[1]}; there is no "
            "line between them"
        )
    images = load_zoo_images(zoo, data)
    networks = [row.weights()[0] for row in rows]
    one, two = (f"{row.models[0]}@{row.metadata['epoch'][0]}" for row in rows)
    found = pair(zoo.schema, networks[0], networks[1], images, activations[0])
    merged = merges(zoo.schema, torch.stack(networks), images, activations[0])
    return NetworkComparison(zoo.name, one, two, _images(zoo, images), found, merged)


def compare_pairs(zoo: Zoo, count: int, data: str | Path | None = None, seed: int = 0) -> PairsComparison:
    """Compare pairs of last checkpoints of different models, drawn at random.

    The pairs are of one activation: that of most models. Lines are evaluated on the first `PAIR_IMAGES` test images.

    Raises SpecError for a number that is not positive, or fewer than two models; and what `compare_two` raises.
    """
    if not 1 <= count <= MAX_PAIRS:
        raise SpecError(f"pairs: found {count!r}; expected 1 to {MAX_PAIRS:,}")
    last = zoo.where("status == 'ok'").last()
    activations = activations_of(last)
    activation = max(dict.fromkeys(activations), key=activations.count) if activations else ""
    last = last.where(f"activation == '{activation}'") if activation else last
    if len(last) < 2:
        raise SpecError(f"{zoo.name}: has {len(last)} models that can be compared; a pair needs two")
    images = load_zoo_images(zoo, data)
    images = replace(images, test=Subset(images.test.images[:PAIR_IMAGES], images.test.labels[:PAIR_IMAGES]))
    weights, chosen = last.weights(), _pairs(len(last), count, seed)
    found = [pair(zoo.schema, weights[a], weights[b], images, activation) for a, b in chosen]
    members = sorted({row for both in chosen for row in both})
    values = _quantities(found)
    return PairsComparison(
        zoo=zoo.name,
        pairs=len(found),
        images=_images(zoo, images),
        quantiles={name: np.quantile(numbers, QUANTILES).tolist() for name, numbers in values.items()},
        merged=merges(zoo.schema, weights[members], images, activation),
    )


def _checkpoint(zoo: Zoo, text: str) -> Zoo:
    """Return the checkpoint that a text names: ``MODEL`` or ``MODEL@EPOCH``."""
    model, separator, epoch = text.partition("@")
    if separator and epoch not in ("last", "best") and not (epoch.isascii() and epoch.isdigit() and len(epoch) < 10):
        raise SpecError(f"{text}: found the epoch {epoch!r:.40}; expected MODEL or MODEL@EPOCH, a number, last or best")
    if epoch in ("", "last"):
        return zoo.checkpoint(model, "last")
    return zoo.checkpoint(model, "best" if epoch == "best" else int(epoch))


def _images(zoo: Zoo, images: ImageData) -> str:
    origin = zoo.stored_spec or zoo.imported
    return f"{len(images.test):,} test images of {origin.images.name if origin and origin.images else zoo.name}"


def _pairs(models: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return different pairs of rows, at most as many as there are."""
    total = models * (models - 1) // 2
    rows, others = np.triu_indices(models, 1)
    chosen = stream(seed, "pairs").choice(total, size=min(count, total), replace=False)
    return list(zip(rows[chosen].tolist(), others[chosen].tolist(), strict=True))


def _quantities(pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """Return what is measured of every pair, by name."""
    values = {name: [getattr(found, name) for found in pairs] for name in ("distance", "distance_aligned", "agreement")}
    for number, line in enumerate(pairs[0].lines):
        values[f"barrier_{line.name}"] = [found.lines[number].barrier for found in pairs]
    for number, line in enumerate(pairs[0].lines):
        values[f"loss_barrier_{line.name}"] = [found.lines[number].loss_barrier for found in pairs]
    return values
