"""A zoo of aligned copies: the same networks, with their hidden neurons in the order nearest to one reference."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from representation.alignment import Orders, aligned, check_networks, match_weights, permuted
from representation.behaviour import activations_of, by_activation, load_zoo_images
from representation.derived import derived_facts, property_table
from representation.matching import match_activations, match_straight_through
from zootools.architectures import Schema
from zootools.choices import ALIGNMENTS, check_word
from zootools.errors import SpecError
from zootools.images.datasets import Subset
from zootools.importers.importer import Block, Facts, rows_per_block
from zootools.importers.importing import write_derived
from zootools.storage.build_state import ZooFolder
from zootools.storage.manifest import read_manifest
from zootools.zoo import Zoo

MEDOID = "medoid"
IMAGES = 1000
"""Training images that activations are compared on."""
TRAINED_ON = 5000
"""Training images of the method straight-through."""


@dataclass(frozen=True)
class Aligned:
    """What `align_zoo` has done."""

    zoo: str
    """The folder of the aligned copies."""
    parent: str
    """The name of the zoo that was aligned."""
    method: str
    reference: str
    """The id of the model that the others were aligned to."""
    models: int
    checkpoints: int
    moved: int
    """Models whose neurons are in another order now."""
    distance_before: float
    """Mean Euclidean distance of the last checkpoints of the other models from that of the reference."""
    distance_after: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as ``zootools align --json`` prints them."""
        return asdict(self)


def align_zoo(
    zoo: Zoo,
    out: str | Path,
    *,
    to: str = MEDOID,
    method: str = "weights",
    data: str | Path | None = None,
    quiet: bool = False,
) -> Aligned:
    """Write a zoo of aligned copies into the folder ``out``; resume a call that was interrupted there.

    The orders of the neurons of a model are found at its last checkpoint, and all its checkpoints get the same, so that
    its training stays one path. The copies have the ids, splits and properties of the models of ``zoo``, which the
    record of the new zoo names as its parent. Diverged models are left out.

    Args:
        zoo: the zoo to align.
        out: the folder of the copies, which is created.
        to: the id of the reference, or the beginning of it; ``medoid`` for the model that is nearest to all others
            after all were aligned to the first one.
        method: ``weights`` (`representation.alignment.match_weights`), or ``activations`` or ``straight-through``
            (`representation.matching`), which run the networks on the images of the zoo.
        data: the folder of the image files.
        quiet: show no progress.

    Raises:
        SpecError: fewer than two models, an unknown method, weights that are not finite, an unfinished zoo, or a folder
            that holds something else.
        ZooNotFoundError: no model, or several, begin with ``to``.
        DamagedZooError: a shard of ``zoo`` is missing or was changed.
        BusyError: another process is at work in ``out``.
        StorageError: disk space is short, or the disk failed; the call can be repeated.
    """
    check_word("method", method, ALIGNMENTS)
    diverged, zoo = len(zoo.stopped), zoo.where("status == 'ok'")
    if len(zoo.models) < 2:
        raise SpecError(f"{zoo.name}: has {len(zoo.models)} models that did not diverge; alignment needs two or more")
    last = zoo.last()
    weights = last.weights()
    row = medoid(zoo, weights) if to == MEDOID else last.models.index(zoo.model_id(to))
    if method == "weights":
        orders = match_weights(zoo.schema, weights, weights[row])
    else:
        orders = _by_images(last, weights, row, method, data)
    settings = {"method": method, "to": to, "reference": last.models[row]}
    notes = [f"{diverged:,} models that diverged are left out"] if diverged else []
    manifest = write_derived(
        _Copies(zoo, last.models, orders, settings, notes),
        ZooFolder(Path(out)),
        "align",
        settings,
        images_sha256=read_manifest(zoo.folder).images_sha256,
        data=Path(data) if data is not None else None,
        quiet=quiet,
    )
    moved, *distances = _effect(zoo.schema, weights, weights[row], orders)
    counts = len(last), manifest.counts.checkpoints, moved
    return Aligned(str(out), zoo.name, method, last.models[row], *counts, *distances)


def _by_images(last: Zoo, weights: Tensor, row: int, method: str, data: str | Path | None) -> list[Tensor]:
    """Return the orders of the methods that run the networks; those of each activation are matched together."""
    check_networks(last.schema, weights, last.name)
    activations, train = activations_of(last), load_zoo_images(last, data).train
    orders = [torch.empty(len(weights), group.size, dtype=torch.int64) for group in last.schema.permutation_groups]
    for activation, rows in by_activation(activations):
        networks = weights[rows]
        if method == "activations":
            shown = train.images[:IMAGES]
            found = match_activations(last.schema, networks, weights[row], shown, activation, activations[row])
        elif activation != activations[row]:
            raise SpecError(
                f"{last.name}: has the activations {activations[row]} and {activation}; straight-through needs one, "
                "because it lowers the loss of the mean of two networks"
            )
        else:
            some = Subset(train.images[:TRAINED_ON], train.labels[:TRAINED_ON])
            found = match_straight_through(last.schema, networks, weights[row], some, activation)
        for order, part in zip(orders, found, strict=True):
            order[rows] = part
    return orders


def _effect(schema: Schema, weights: Tensor, reference: Tensor, orders: Orders) -> tuple[int, float, float]:
    """Return the last three fields of `Aligned`; one of the networks ``[n, N]`` is the reference."""
    before, after = (
        float((networks - reference).norm(dim=1).sum()) / (len(weights) - 1)
        for networks in (weights, permuted(schema, orders, weights))
    )
    moved = torch.stack([(order != torch.arange(order.shape[1])).any(dim=1) for order in orders]).any(dim=0)
    return int(moved.sum()), before, after


def medoid(zoo: Zoo, weights: Tensor) -> int:
    """Return the row of the network with the smallest sum of distances from all others, ``[n, N]``.

    Distances are those after all networks were aligned to the first one, because those modulo permutation of all pairs
    take n times as long.
    """
    copies = aligned(zoo.schema, weights, weights[0]).double()
    return int(torch.cdist(copies, copies).sum(dim=1).argmin())


@dataclass(frozen=True)
class _Copies:
    """The aligned copies as a `zootools.importers.importer.Population`."""

    zoo: Zoo
    models: list[str]
    orders: Orders
    """Of the models, in the order of `models`."""
    settings: dict[str, str]
    notes: list[str]

    @cached_property
    def facts(self) -> Facts:
        """See `zootools.importers.importer.Population`."""
        about = (
            f"The networks of {self.zoo.name}, aligned: their hidden neurons are in the order that is nearest to the "
            f"network {self.settings['reference']} (zootools align, method {self.settings['method']}). They compute "
            "the same functions as before."
        )
        return derived_facts(self.zoo, f"{self.zoo.name}_aligned", about, len(self.zoo), self.notes)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield the copies in the order of the metadata; see `zootools.importers.importer.Population`."""
        size, schema = rows_per_block(self.zoo.schema), self.zoo.schema
        number = {model: place for place, model in enumerate(self.models)}
        for first in range(start * size, len(self.zoo), size):
            part = self.zoo[first : first + size]
            models = torch.tensor([number[model] for model in part.metadata["model_id"].to_pylist()])
            copies = permuted(schema, [order[models] for order in self.orders], part.weights())
            yield Block(np.ascontiguousarray(copies.numpy()), property_table(part.metadata))
