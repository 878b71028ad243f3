"""The checkpoints of a task: read from its zoos, searched for leaks, and compared with the pinned hash."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from representation.benchmark.methods.method import NAMES, Examples
from representation.benchmark.tasks import PinnedZoo, Task
from representation.dataset import WILD, check_same_layers
from representation.networks import in_parts, read_networks, select
from representation.recipes import Epochs
from representation.targets import Target, read_targets
from zootools.architectures import Schema
from zootools.errors import SpecError, did_you_mean
from zootools.hashing import canonical_json
from zootools.storage.imported import SOURCE_MODEL
from zootools.storage.tables import SPLITS
from zootools.zoo import Zoo

LARGEST = float(WILD)
"""Checkpoints with a larger weight are left out: networks that explode and stay finite decide everything linear."""
ROW_DIGEST = 16
"""Bytes of the hash of a network's weights."""


@dataclass(frozen=True)
class Split:
    """The checkpoints of one split."""

    examples: Examples
    models: tuple[str, ...]
    """The id of the model of each checkpoint."""
    sources: tuple[str, ...]
    """What the tool that made the models called them; empty where zootools did."""
    groups: tuple[str, ...]
    """Configuration and epoch of each checkpoint; empty where configurations are not recorded."""
    weights: tuple[bytes, ...]
    """A hash of each network's weights."""

    def __len__(self) -> int:
        return len(self.models)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a zoo that a task is about."""

    zoo: str
    schema: Schema
    classes: tuple[str, ...]
    """The labels of a categorical target; empty for a number."""
    splits: Mapping[str, Split]
    left_out: int
    """Checkpoints without a finite label, or with a weight beyond `LARGEST` or not finite."""

    @classmethod
    def of(cls, zoo: Zoo, target: str, epochs: Epochs, where: str | None) -> "Checkpoints":
        """Read the checkpoints of a zoo. Raises SpecError for an unknown target, and where none is left."""
        if not len(zoo):
            raise SpecError(f"{zoo.name}: has no checkpoints")
        chosen = epochs.select(zoo if where is None else zoo.where(where))
        targets = read_targets(chosen.metadata)
        if target not in targets:
            raise SpecError(f"{zoo.name}: target: found {target!r:.120}{did_you_mean(target, targets)}")
        splits, left_out = {}, 0
        for name in SPLITS:
            rows = torch.tensor(pc.equal(chosen.metadata["split"], name).to_pylist())
            splits[name] = _split(chosen.split(name), replace(targets[target], values=targets[target].values[rows]))
            left_out += int(rows.sum()) - len(splits[name])
        return cls(zoo.name, chosen.schema, targets[target].classes, splits, left_out)

    def sha256(self, splits: tuple[str, ...] = SPLITS) -> str:
        """Return the hash of layers, and of ids, epochs, labels and weights of some splits."""
        digest = hashlib.sha256(canonical_json([self.schema.to_json(), list(self.classes)]).encode())
        for name in splits:
            part = self.splits[name]
            digest.update(canonical_json([name, list(part.models), list(part.groups)]).encode())
            digest.update(part.examples.labels.numpy().tobytes() + part.examples.activations.numpy().tobytes())
            digest.update(b"".join(part.weights))
        return digest.hexdigest()


def _split(zoo: Zoo, target: Target) -> Split:
    """Read a split, without checkpoints whose label is not known, or with a weight beyond `LARGEST`."""
    networks = read_networks(zoo)
    taken, hashes = target.known.clone(), list[bytes]()
    for rows in in_parts(networks):
        taken[len(hashes) : len(hashes) + len(rows)] &= rows.abs().amax(dim=1) <= LARGEST  # False for NaN
        values = np.ascontiguousarray(rows.numpy())
        hashes += [hashlib.blake2b(row, digest_size=ROW_DIGEST).digest() for row in values]
    labels = target.values[taken].long() if target.classes else target.values[taken]
    table = zoo.metadata.filter(pa.array(taken.numpy()))
    models, sources, configurations, epochs, activations = (
        table[name].to_pylist() if name in table.column_names else []
        for name in ("model_id", SOURCE_MODEL, "configuration_id", "epoch", "activation")
    )
    numbers = [NAMES.index(name) if name in NAMES else -1 for name in activations or [None] * len(table)]
    return Split(
        Examples(
            networks if taken.all() else select(networks, taken), torch.tensor(numbers, dtype=torch.int64), labels
        ),
        tuple(map(str, models)),
        tuple(map(str, sources)),
        tuple(f"{configuration}/{epoch}" for configuration, epoch in zip(configurations, epochs, strict=False)),
        tuple(value for value, kept in zip(hashes, taken.tolist(), strict=True) if kept),
    )


@dataclass(frozen=True)
class TaskData:
    """What a task gives to a method, and what scores it."""

    task: Task
    schema: Schema
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    test_models: tuple[str, ...]
    """The id of the model of each test network, for intervals."""

    @classmethod
    def of(cls, task: Task, zoos: Mapping[str, Zoo]) -> "TaskData":
        """Read the zoos of a task, given by `PinnedZoo.name`.

        Raises SpecError for another population than the pinned one, and for one that cannot be scored (`check`).
        """
        home = Checkpoints.of(zoos[task.zoo.name], task.target, task.epochs, task.where)
        away = None
        if task.scored_on is not None:
            away = Checkpoints.of(zoos[task.scored_on.name], task.target, task.epochs, task.where)
        test = check(home, away, task.target)
        _check_pinned(task, task.zoo, home.sha256(), zoos)
        if task.scored_on is not None and away is not None:
            _check_pinned(task, task.scored_on, away.sha256(("test",)), zoos)
        parts = home.splits
        return cls(
            task,
            home.schema,
            home.classes,
            parts["train"].examples,
            parts["validation"].examples,
            test.examples,
            test.models,
        )


def check(home: Checkpoints, away: Checkpoints | None, target: str) -> Split:
    """Return the test split that is scored: of ``away``, or of ``home`` if that is None; labels are those of ``home``.

    Raises SpecError for zoos of different layers, for a model or the same weights in two splits, and for a target that
    cannot be learned or scored.
    """
    test, where = home.splits["test"], home.zoo
    if away is not None:
        check_same_layers(home.schema, home.zoo, away.schema, away.zoo)
        if bool(home.classes) != bool(away.classes):
            raise SpecError(f"{away.zoo}: {target} is a number in one of {home.zoo} and {away.zoo}, words in the other")
        test, where = _renumbered(away.splits["test"], home.classes, away.classes), away.zoo
        for split in ("train", "validation"):
            check_leak(home.splits[split], split, test, f"test split of {where}", home.zoo)
    else:
        check_leak(home.splits["train"], "train", home.splits["validation"], "validation split", where)
        for split in ("train", "validation"):
            check_leak(home.splits[split], split, test, "test split", where)
    for name, part, zoo in (("train", home.splits["train"], home.zoo), ("test", test, where)):
        values = labels_of(part)
        if home.classes and not (values >= 0).any():
            raise SpecError(f"{zoo}: {target} cannot be scored: {home.zoo} has none of its classes")
        if reason := Target(target, values, home.classes).unfit():
            raise SpecError(f"{zoo}: {target} cannot be scored: it is {reason} in the {name} split")
    return test


def check_leak(first: Split, split: str, second: Split, other: str, zoo: str) -> None:
    """Raise SpecError for a model, or the same weights, in two splits."""
    for kind in ("models", "sources"):
        if both := sorted({*getattr(first, kind)} & {*getattr(second, kind)}):
            raise SpecError(
                f"{zoo}: leak: {len(both)} models have checkpoints in the {split} split and in the {other}, the first "
                f"is {both[0]}; all epochs of a model belong into one split"
            )
    if both_weights := {*first.weights} & {*second.weights}:
        place = next(index for index, value in enumerate(second.weights) if value in both_weights)
        raise SpecError(
            f"{zoo}: leak: {len(both_weights)} networks of the {split} split have the same weights as one of the "
            f"{other}, such as model {second.models[place]}; models of one seed are equal at epoch 0, which "
            "epochs.first=1 leaves out"
        )


def _renumbered(part: Split, home: tuple[str, ...], away: tuple[str, ...]) -> Split:
    """Return a split whose labels are indices into the classes of another zoo; -1 for a class that it lacks."""
    if not home:
        return part
    numbers = torch.tensor([home.index(name) if name in home else -1 for name in away])
    return replace(part, examples=replace(part.examples, labels=numbers[part.examples.labels]))


def _check_pinned(task: Task, pinned: PinnedZoo, found: str, zoos: Mapping[str, Zoo]) -> None:
    if found != pinned.sha256:
        folder, away = zoos[pinned.name].folder, ""
        if task.scored_on is not None:
            away = f" --scored-on {zoos[task.scored_on.name].folder}"
        raise SpecError(
            f"{task.name}: {folder}: is not the population of {pinned.name} that the task pins: found {found[:12]}, "
            f"expected {pinned.sha256[:12]} (sha256)",
            "Zoos that were built on processors of different kinds have different bytes. A task of your own one:",
            f"zootools tasks --from {zoos[task.zoo.name].folder}{away} --like {task.name} -o mine.yaml",
        )


def labels_of(split: Split) -> Tensor:
    """Return the labels of a split, float64 ``[n]``."""
    return split.examples.labels.double()
