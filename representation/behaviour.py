"""The networks of a zoo on the images that they were trained on: logits, losses and accuracies of flat weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representation.derived import known_images
from zootools.architectures import Schema
from zootools.architectures.networks import ACTIVATIONS, Watch, parameter_views, stacked_forward
from zootools.errors import SpecError, did_you_mean
from zootools.images.datasets import ImageData, Subset, load_images
from zootools.training.evaluation import Scores, evaluate
from zootools.zoo import Zoo

SIDE_BY_SIDE = 16
"""Networks that are computed at a time, so that their activations stay in the cache of a processor."""
VALUES = 1 << 21
"""Activations of the first layer of these networks in one batch."""


def load_zoo_images(zoo: Zoo, data: str | Path | None = None) -> ImageData:
    """Return the images that a zoo's models were trained on; missing files are downloaded.

    Raises SpecError if the zoo does not say which, or its networks cannot be run on them; StorageError for files that
    are neither in the folder ``data`` nor can be downloaded.
    """
    images = known_images(zoo)
    if images is None:
        raise SpecError(f"{zoo.name}: does not say which images its networks were trained on, so none can be run")
    loaded = load_images(images, Path(data) if data is not None else None)
    schema = zoo.schema
    if loaded.input_shape != schema.input_shape or loaded.classes != schema.classes:
        raise SpecError(
            f"{zoo.name}: {images.name} has images {loaded.input_shape} of {loaded.classes} classes, but its networks "
            f"take {schema.input_shape} and return {schema.classes}"
        )
    return loaded


def activations_of(zoo: Zoo) -> list[str]:
    """Return the activation of every checkpoint. Raises SpecError if one is not known, so that it cannot be run."""
    if not zoo.runs or "activation" not in zoo.metadata.column_names:
        raise SpecError(f"{zoo.name}: its networks cannot be run without a layer schema and a column named activation")
    found = zoo.metadata["activation"].to_pylist()
    for name in set(found):
        if name not in ACTIVATIONS:
            raise SpecError(f"{zoo.name}: activation: found {name!r:.80}{did_you_mean(str(name), ACTIVATIONS)}")
    return found


def by_activation(activations: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield every activation and the rows that have it, int64 ``[rows]``."""
    for name in dict.fromkeys(activations):
        yield name, torch.tensor([row for row, other in enumerate(activations) if other == name])


def images_at_once(schema: Schema, networks: int) -> int:
    """Return the number of images of a batch."""
    channels, height, width = schema.input_shape
    first = schema.layers[0]
    units = height * width * (first.outputs if first.kind == "conv" else channels)
    return max(16, min(1024, VALUES // (networks * units)))


def logits(
    schema: Schema, weights: Tensor, images: Tensor, activation: str, watch: Watch | None = None
) -> Iterator[Tensor]:
    """Yield the logits of networks ``[n, N]`` on batches of images in order, ``[n, B, classes]``; no gradients.

    All networks are computed side by side; ``watch`` is that of `zootools.architectures.networks.stacked_forward`.
    """
    views = parameter_views(schema, weights)
    for batch in images.split(images_at_once(schema, len(weights))):
        with torch.no_grad():
            yield stacked_forward(schema, views, batch, activation, watch=watch)


def predictions(schema: Schema, weights: Tensor, images: Tensor, activation: str) -> Tensor:
    """Return the most likely classes of images by networks ``[n, N]``: int64 ``[n, images]``."""
    parts = [
        torch.cat([batch.argmax(dim=2) for batch in logits(schema, part, images, activation)], dim=1)
        for part in weights.split(SIDE_BY_SIDE)
    ]
    return torch.cat(parts)


def scored(schema: Schema, weights: Tensor, subset: Subset, activation: str, watch: Watch | None = None) -> Scores:
    """Return loss, accuracy and F scores of networks ``[n, N]`` on some images.

    With a ``watch``, all of them are computed side by side (`zootools.architectures.networks.stacked_forward`).
    """
    found = []
    for part in weights.split(SIDE_BY_SIDE if watch is None else len(weights)):
        views = parameter_views(schema, part)

        def logits_of(images: Tensor, views: dict[str, Tensor] = views) -> Tensor:
            return stacked_forward(schema, views, images, activation, watch=watch)

        limits = np.full(len(part), len(subset))
        found.append(evaluate(logits_of, subset, schema.classes, images_at_once(schema, len(part)), limits))
    return Scores(*(np.concatenate([getattr(scores, name) for scores in found]) for name in ("loss", "accuracy", "f1")))
