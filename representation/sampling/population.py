"""Samples, while they are trained, as a population that is written as a zoo."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from representation.derived import derived_facts
from representation.sampling.audit import Audited
from representation.sampling.networks import Checkpoints, Trainer, Weights
from representation.sampling.report import verdict
from representation.sampling.source import Source
from zootools.importers.importer import Block, Facts
from zootools.rng import stream

TOGETHER = 32
"""Samples of a block: they are trained side by side, with all their epochs in memory."""


OF_AN_INITIALISATION = {"init", "init_std", "bias_init"}
"""Hyper-parameters that samples do not have."""


def named(seed: int, kind: str, count: int, what: str = "") -> tuple[list[str], list[int]]:
    """Return ids and seeds for networks of one kind; ``what`` tells those of two zoos apart."""
    names = [hashlib.sha256(f"{what}/{seed}/{kind}/{number}".encode()).hexdigest()[:16] for number in range(count)]
    return names, stream(seed, "sample", "seeds", kind).integers(1, 2**31, size=count).tolist()


@dataclass(frozen=True)
class Samples:
    """The samples as a `zootools.importers.importer.Population`."""

    source: Source
    weights: Weights
    """As they were drawn, float32 ``[n, parameters]``."""
    audited: Audited
    trainer: Trainer
    seed: int
    settings: Mapping[str, str]
    notes: Sequence[str]

    @cached_property
    def facts(self) -> Facts:
        """See `zootools.importers.importer.Population`."""
        zoo, epochs = self.source.zoo, self.trainer.epochs
        later = f"; epochs 1 to {epochs} are their training as that of {zoo.name}" if epochs else ""
        about = (
            f"{len(self.weights):,} networks that were SAMPLED, not trained from an initialisation: epoch 0 has them "
            f"as they were drawn (method {self.settings['method']}) from a density over {self.settings['fitted_to']} "
            f"of {zoo.name}{later}. Audit: {verdict(self.audited.audit)}."
        )
        count = len(self.weights) * (epochs + 1)
        return derived_facts(zoo, f"{zoo.name}_{self.settings['method']}", about, count, self.notes)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Train the samples, and yield their checkpoints; see `zootools.importers.importer.Population`."""
        what = f"{self.source.zoo.name}/{sorted(self.settings.items())}"
        names, seeds = named(self.seed, "samples", len(self.weights), what)
        for first in range(start * TOGETHER, len(self.weights), TOGETHER):
            part = slice(first, first + TOGETHER)
            groups = self.trainer.train(self.weights[part], names[part], seeds[part])
            checkpoints = [checkpoint for group in groups for checkpoint in group]
            tables = [self._table(checkpoint, names, seeds) for checkpoint in checkpoints]
            rows = [_weights(checkpoint, self.weights.shape[1]) for checkpoint in checkpoints]
            yield Block(np.concatenate(rows), pa.concat_tables(tables, promote_options="permissive"))

    def _table(self, checkpoint: Checkpoints, names: Sequence[str], seeds: Sequence[int]) -> pa.Table:
        """Return the properties of the networks of a checkpoint, and of those that diverged then."""
        lost = _lost(checkpoint)
        ids = [*checkpoint.info.model_ids, *lost]
        places = [names.index(name) for name in ids]
        found, near = self.audited, self.audited.nearest
        chosen = self.source.chosen.metadata.take(pa.array(near.place[places]))
        trained_by = self.trainer.hyperparameters.model_dump(exclude_defaults=True, exclude=OF_AN_INITIALISATION)
        columns: dict[str, Any] = {
            "model": ids,
            "epoch": [checkpoint.info.epoch] * len(ids),
            "seed": [seeds[place] for place in places],
            **{name: [value] * len(ids) for name, value in trained_by.items()},
            "nearest_model": chosen["model_id"].to_pylist(),
            "nearest_epoch": chosen["epoch"].cast(pa.int64()).to_pylist(),
            "nearest_distance": near.distance[places],
            "nearest_overlap": found.overlap[places],
            "highest_overlap": found.highest_overlap[places],
        }
        scores = {name: [*values, *[None] * len(lost)] for name, values in checkpoint.info.properties.items()}
        return pa.table({**columns, **scores})


def _lost(checkpoint: Checkpoints) -> list[str]:
    """Return the networks that diverged at the epoch of a checkpoint."""
    return [name for name, stop in checkpoint.stopped.items() if stop.epoch == checkpoint.info.epoch]


def _weights(checkpoint: Checkpoints, size: int) -> Weights:
    """Return the weights of a checkpoint; those that diverged then are NaN, by which the writer knows them."""
    lost = np.full((len(_lost(checkpoint)), size), np.nan, np.float32)
    return np.concatenate([checkpoint.weights.reshape(-1, size), lost])
