"""Data for probes: the weights and properties of a zoo by split, and which properties can be predicted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from representation.errors import PlacedError
from representation.networks import SHARE, Networks, in_memory, in_parts, read_networks, select
from representation.recipes import Recipe
from representation.targets import Target, inexact, read_targets
from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.hashing import canonical_json
from zootools.spec.sections import Section
from zootools.storage.tables import SPLITS
from zootools.zoo import Zoo

WILD = 100
"""Larger weights are rare in networks that learn; much of the field's code leaves such networks out."""


class Note(Section):
    """A remark for readers on how a zoo was read."""

    zoo: str
    text: str
    kind: Literal["left_out", "not_scored", "remark"] = "remark"
    """``left_out``: models or checkpoints; ``not_scored``: a property, on a zoo that is transferred to."""
    target: str = ""
    """The property of a note of the kind ``not_scored``."""

    def __str__(self) -> str:
        return f"{self.zoo}: {self.text}"


@dataclass(frozen=True)
class ZooSplit:
    """One split of a zoo: finite weights, float32 ``[rows, parameters]``, and the properties of the same rows."""

    networks: Networks
    """The weights, which stay in the zoo's files if the zoo is large (`read_networks`)."""
    targets: dict[str, Target]
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """The rows in the metadata of the zoo that was read, int64 ``[rows]``; empty if they are not known."""

    def __len__(self) -> int:
        return len(self.networks)

    @property
    def weights(self) -> Tensor:
        """The weights in memory."""
        return in_memory(self.networks)

    def sample(self, most: int | None) -> "ZooSplit":
        """Return at most ``most`` rows, always the same ones, in their order; all rows for None."""
        if most is None or most >= len(self):
            return self
        rows = sample_rows(len(self), most)
        kept = {name: replace(target, values=target.values[rows]) for name, target in self.targets.items()}
        return ZooSplit(self.networks[rows], kept)


def sample_rows(count: int, most: int, seed: int = 0) -> Tensor:
    """Draw the indices of at most ``most`` of ``count`` rows, int64, in ascending order."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(count)[:most]))


@dataclass
class ZooDataset:
    """The checkpoints of a zoo that are evaluated: of the recipe's epochs, with weights that the recipe accepts."""

    name: str
    schema: Schema
    splits: dict[str, ZooSplit]
    """One for every name of a split; a split without models has no rows."""
    counts: dict[str, int]
    """Models and checkpoints in each split."""
    notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, zoo: Zoo, recipe: Recipe) -> "ZooDataset":
        """Read a zoo. Raises SpecError when there is nothing in it to evaluate."""
        name, diverged = zoo.name, zoo.counts.diverged
        if not len(zoo):
            reason = f"has no checkpoints; {diverged} of {zoo.counts.expected} models diverged"
            raise PlacedError(zoo.folder, reason)
        chosen = recipe.epochs.select(zoo)
        kept_epochs = pc.is_in(zoo.metadata["epoch"], pc.unique(chosen.metadata["epoch"]))
        places = torch.from_numpy(kept_epochs.to_numpy()).nonzero()
        found = cls(name, zoo.schema, {}, {})
        if diverged:
            found._note(f"{diverged} models that diverged are left out", "left_out")
        targets = read_targets(chosen.metadata)
        for key in chosen.metadata.column_names:
            if key in targets and inexact(chosen.metadata[key]):
                found._note(f"{key}: whole numbers beyond 2^53 are rounded to the nearest float64")
        for split in SPLITS:
            # The order of a split is that of its rows in the whole.
            rows = torch.tensor(pc.equal(chosen.metadata["split"], split).to_pylist())
            part = chosen.split(split)
            networks = read_networks(part, SHARE * len(part) / len(chosen)) if len(part) else part.weights()
            taken, reason = takes(recipe, networks)
            if not taken.all():
                bad = int((~taken).sum())
                found._note(f"{bad} {split} checkpoints are left out: {reason}", "left_out")
                networks = select(networks, taken)
            models = part.metadata["model_id"].filter(pa.array(taken.numpy())).unique()
            found.counts |= {f"{split}_models": len(models), f"{split}_checkpoints": len(networks)}
            kept = {key: replace(target, values=target.values[rows][taken]) for key, target in targets.items()}
            found.splits[split] = ZooSplit(networks, kept, places[rows, 0][taken])
        if recipe.largest_weight is None:
            found._note_wild_weights()
        return found

    @cached_property
    def digest(self) -> str:
        """Hash of the layers, and of the weights of every split."""
        digest = hashlib.sha256(canonical_json(self.schema.to_json()).encode())
        for split, part in self.splits.items():
            digest.update(canonical_json([split, list(part.networks.shape)]).encode())
            for rows in in_parts(part.networks):
                digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()

    def _note(self, text: str, kind: Literal["left_out", "not_scored", "remark"] = "remark", target: str = "") -> None:
        self.notes.append(Note(zoo=self.name, text=text, kind=kind, target=target))

    def _note_wild_weights(self) -> None:
        """Add a note when few checkpoints with large weights dominate everything linear in the weights."""
        size = torch.cat([_largest(rows) for part in self.splits.values() for rows in in_parts(part.networks)])
        if count := int((size > WILD).sum()):
            self._note(
                f"{count} checkpoints have weights beyond {WILD} (up to {float(size.max()):.2g}), which dominate the "
                f"linear probes; --set largest_weight={WILD} leaves them out"
            )

    def choose(self) -> tuple[list[str], dict[str, str]]:
        """Return the names of the properties that can be probed, and the reason for each that cannot.

        Raises SpecError when the zoo cannot be probed at all.
        """
        if not len(self.splits["train"]) or not len(self.splits["test"]):
            models = ", ".join(f"{split} {self.counts[f'{split}_models']}" for split in SPLITS)
            raise SpecError(f"{self.name}: probes need models in the splits train and test; models found: {models}")
        networks = self.splits["train"].networks
        first = networks[torch.tensor([0])]
        if all(bool((rows == first).all()) for rows in in_parts(networks)):
            raise SpecError(
                f"{self.name}: all {len(networks)} checkpoints of the train split have the same weights, "
                "which predict no property"
            )
        if not len(self.splits["validation"]):
            self._note("no validation split; penalties are chosen on the training split")
        excluded = {}
        for split in ("test", "train"):
            for name, target in self.splits[split].targets.items():
                if reason := target.unfit():
                    excluded[name] = f"{reason} in the {split} split"
        names = [name for name in self.splits["train"].targets if name not in excluded]
        if not names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded.items())
            raise SpecError(f"{self.name}: no property can be predicted ({reasons})")
        for name in names:
            missing = sum(int((~part.targets[name].known).sum()) for part in self.splits.values())
            if missing:
                self._note(f"{name}: {missing} checkpoints are left out: not a finite number", "left_out")
        return names, excluded

    def as_transfer(self, home: "ZooDataset", targets: Sequence[str]) -> "ZooDataset":
        """Return the test split with the targets that vary in it; class labels are numbered as in ``home``.

        Raises SpecError when the test split has no models.
        """
        if not len(self.splits["test"]):
            raise SpecError(f"{self.name}: cannot transfer from {home.name}: it has no models in the test split")
        part, kept = self.splits["test"], {}
        for name in targets:
            target = part.targets.get(name)
            if target is None or target.unfit():
                reason = target.unfit() if target else "not recorded"
                self._note(f"{name} is not scored: {reason} there", "not_scored", name)
            else:
                kept[name] = target.numbered_as(home.splits["train"].targets[name].classes)
        return replace(self, splits={"test": ZooSplit(part.networks, kept)})


def takes(recipe: Recipe, weights: Networks) -> tuple[Tensor, str]:
    """Return a mask, bool ``[rows]``, of the weights ``[rows, parameters]`` that the recipe accepts, and its limit.

    The second value is the reason why the others are rejected.
    """
    limit, reason = recipe.largest_weight, "their weights are not finite"
    if limit is None:
        limit = torch.finfo(torch.float32).max
    else:
        reason = f"a weight is not finite, or beyond {limit:g}"
    return torch.cat([_largest(rows) for rows in in_parts(weights)]) <= limit, reason


def _largest(weights: Tensor) -> Tensor:
    """Return the largest absolute weight of each network, ``[rows]``; NaN if one is NaN. Copies no weights."""
    return torch.maximum(weights.amax(dim=1), -weights.amin(dim=1))


def check_same_layers(home: Schema, home_name: str, other: Schema, other_name: str) -> None:
    """Raise SpecError, with the first difference, unless two schemas have the same parameters, by name and shape."""
    here, there = ([(p.name, p.shape) for p in schema.parameters] for schema in (home, other))
    if here != there:
        mine, theirs = next((a, b) for a, b in zip([*here, None], [*there, None], strict=False) if a != b)
        raise SpecError(
            f"{other_name}: does not fit {home_name}: representation and probes need the same layers, "
            f"but where {home_name} has {_parameter(mine)}, {other_name} has {_parameter(theirs)}"
        )


def _parameter(parameter: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{parameter[0]} of shape {list(parameter[1])}" if parameter else "nothing more"
