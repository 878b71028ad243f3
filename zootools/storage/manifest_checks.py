"""Comparison of a manifest with the specification of its zoo, and with the files that a zoo consists of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError
from zootools.images.shapes import image_shape
from zootools.spec import Cnn, DatasetImages, FolderImages, Mlp, TetrisImages, ZooSpec, parse_stored_spec
from zootools.spec.yaml_reader import MAX_BYTES as MAX_SPEC_BYTES
from zootools.spec.yaml_reader import parse_yaml
from zootools.storage.audit import AUDIT
from zootools.storage.imported import Imported, Origin
from zootools.storage.manifest import Manifest, Stack
from zootools.storage.shards import shard_name
from zootools.storage.tables import split_files
from zootools.storage.verified_files import VerifiedFiles

_PICTURES_AND_TEXT = re.compile(r".*\.(md|svg|png|html)")
"""Files that a manifest may name in addition to specification, shards and tables."""


def stored_origin(folder: Path, manifest: Manifest) -> Origin:
    """Return the specification of a finished zoo, or the record of its import. Raises what `stored_spec` raises."""
    return stored_spec(folder, manifest) if manifest.imported is None else manifest.imported


def stored_spec(folder: Path, manifest: Manifest) -> ZooSpec:
    """Return the specification of a finished zoo that zootools built.

    Raises DamagedZooError if spec.yaml is damaged or invalid, SpecError for an imported zoo.
    """
    if manifest.imported is not None:
        raise SpecError(f"{folder}: was imported ({manifest.imported.kind}), and has no specification")
    path, files = folder / "spec.yaml", VerifiedFiles(folder, manifest.files)
    try:
        values, places = parse_yaml(files.read("spec.yaml", MAX_SPEC_BYTES).decode(), str(path))
        if not isinstance(values, dict):
            raise SpecError(f"{path}: expected a mapping of keys")
        return parse_stored_spec(values, str(path), places)
    except (SpecError, UnicodeDecodeError) as error:
        raise DamagedZooError(f"is not a specification of a zoo ({error})", path=path) from error


@dataclass(frozen=True)
class CheckpointKeys:
    """The model and place of every checkpoint, ordered by stack, epoch and row."""

    model_id: list[str]
    epoch: npt.NDArray[np.int64]
    """``[checkpoints]``"""
    stack: npt.NDArray[np.int64]
    """``[checkpoints]``"""
    row: npt.NDArray[np.int64]
    """``[checkpoints]``: the row in the shard of the stack and epoch."""

    def shard_rows(self) -> dict[str, int]:
        """Return the number of rows of every shard, by name."""
        # Rows are ordered by stack and epoch: a shard begins wherever one of them changes.
        starts = np.flatnonzero(np.diff(self.stack, prepend=-1) | np.diff(self.epoch, prepend=-1))
        names = map(shard_name, self.stack[starts].tolist(), self.epoch[starts].tolist())
        return dict(zip(names, np.diff(starts, append=len(self.stack)).tolist(), strict=True))


def checkpoint_keys(manifest: Manifest, spec: ZooSpec, source: Path) -> CheckpointKeys:
    """Return the checkpoints that a zoo must have, by its manifest and specification.

    These are the kept epochs of every model, up to the epoch at which it stopped, or which its stack has reached.
    Raises DamagedZooError, with the path ``source``, if the counts of the manifest contradict them.
    """
    counts, epochs = manifest.counts, spec.training.epochs
    unfinished = {number: stack for number, stack in enumerate(manifest.stacks) if stack.is_open(epochs)}
    models = sum(len(stack.models) - len(stack.stopped) for stack in unfinished.values())
    if models != (counted := counts.failed + counts.missing):
        field = f"stacks.{min(unfinished)}.epoch" if unfinished else "counts.missing"
        raise DamagedZooError(
            f"{field}: {models} models are not trained to the end, but {counted} are counted",
            path=source,
        )
    ids, parts = list[str](), [np.empty((3, 0), np.int64)]
    kept, stored = spec.training.kept_epochs, counts.checkpoints
    for number, stack in enumerate(manifest.stacks):
        stops = {model: stop.epoch for model, stop in stack.stopped.items()}
        for epoch in kept:
            alive = [model for model in stack.models if stops.get(model, epoch + 1) > epoch]
            if not alive or epoch > stack.epoch:
                break
            ids += alive
            rows = np.arange(len(alive), dtype=np.int64)
            parts.append(np.stack([np.full_like(rows, epoch), np.full_like(rows, number), rows]))
            if len(ids) > stored:
                raise DamagedZooError(f"counts.checkpoints: found {stored}, the stacks have more", path=source)
    if len(ids) < stored:
        raise DamagedZooError(f"counts.checkpoints: found {stored}, the stacks have {len(ids)}", path=source)
    return CheckpointKeys(ids, *np.concatenate(parts, axis=1))


def check_against_origin(manifest: Manifest, origin: Origin, source: Path) -> CheckpointKeys:
    """Compare a manifest with its specification or the record of its import, and return its checkpoints.

    The shards that it names must be exactly those of its checkpoints; `check_tables` compares the other files.
    Raises DamagedZooError, with the path ``source``.
    """
    if manifest.name != origin.name:
        raise DamagedZooError(f"name: found {manifest.name!r}, expected {origin.name!r}", path=source)
    if isinstance(origin, Imported):
        keys = imported_keys(manifest, origin, source)
        if manifest.images.dump():
            raise DamagedZooError("images: an imported zoo has none of these facts", path=source)
    else:
        keys = _keys_of_spec(manifest, origin, source)
    named = {name for name in manifest.files if name.startswith("checkpoints/")}
    if difference := sorted(keys.shard_rows().keys() ^ named):
        verb = "is not a shard of these models" if difference[0] in named else "is missing"
        raise DamagedZooError(f"files: {difference[0]} {verb} ({len(difference)} differences)", path=source)
    return keys


def imported_keys(manifest: Manifest, imported: Imported, source: Path) -> CheckpointKeys:
    """Return the checkpoints that an imported zoo must have: those of the histories of its models.

    Raises DamagedZooError, with the path ``source``, if other fields of the manifest contradict them.
    """
    ids, parts = list[str](), [np.empty((3, 0), np.int64)]
    lengths = [len(history) for history in imported.histories]
    if {index for stack in manifest.stacks for index in _histories(stack)} != set(range(len(lengths))):
        raise DamagedZooError("imported.histories: a list of epochs is that of no model", path=source)
    count = sum(lengths[index] for stack in manifest.stacks for index in _histories(stack))
    if count != manifest.counts.checkpoints:
        raise DamagedZooError(
            f"counts.checkpoints: found {manifest.counts.checkpoints}, the models have {count}", path=source
        )
    for number, stack in enumerate(manifest.stacks):
        histories = zip(stack.models, _histories(stack), strict=True)
        epochs = {model: frozenset(imported.histories[index]) for model, index in histories}
        for model, stop in stack.stopped.items():
            last = max(epochs[model], default=-1)
            if stop.epoch <= last:
                raise DamagedZooError(
                    f"stacks.{number}.stopped.{model}: found epoch {stop.epoch}, but a checkpoint of epoch {last}",
                    path=source,
                )
        reached = max([*(epoch for known in epochs.values() for epoch in known), stack.last_stop], default=-1)
        if stack.epoch != reached:
            raise DamagedZooError(f"stacks.{number}.epoch: found {stack.epoch}, expected {reached}", path=source)
        for epoch in sorted(set().union(*epochs.values())):
            there = [model for model, known in epochs.items() if epoch in known]
            ids += there
            rows = np.arange(len(there), dtype=np.int64)
            parts.append(np.stack([np.full_like(rows, epoch), np.full_like(rows, number), rows]))
    return CheckpointKeys(ids, *np.concatenate(parts, axis=1))


def _histories(stack: Stack) -> list[int]:
    return stack.histories or [0] * len(stack.models)


def _keys_of_spec(manifest: Manifest, spec: ZooSpec, source: Path) -> CheckpointKeys:
    if fault := schema_fault(manifest.layer_schema, spec):
        raise DamagedZooError(f"schema: {fault}", path=source)
    if fault := _image_fault(manifest, spec):
        raise DamagedZooError(f"images.{fault}", path=source)
    for number, stack in enumerate(manifest.stacks):
        if stack.epoch > spec.training.epochs or (stack.all_stopped and stack.epoch != stack.last_stop):
            raise DamagedZooError(
                f"stacks.{number}.epoch: found {stack.epoch}, "
                f"expected {stack.last_stop if stack.all_stopped else f'at most {spec.training.epochs}'}",
                path=source,
            )
    return checkpoint_keys(manifest, spec, source)


def _image_fault(manifest: Manifest, spec: ZooSpec) -> str:
    """Return why the facts about the images cannot be those of a specification, or an empty string.

    A zoo of version 0.1.0 has no names of classes. Images that this version does not know are not compared.
    """
    facts, images = manifest.images, spec.images
    if not isinstance(images, TetrisImages | DatasetImages | FolderImages):
        return ""
    if (names := len(facts.class_names)) not in {0, manifest.classes if isinstance(images, FolderImages) else 0}:
        return f"class_names: found {names} names of {manifest.classes} classes of {images.name}"
    computed = isinstance(images, DatasetImages | FolderImages) and images.normalise is not None
    channels = manifest.layer_schema.input_shape[0] if computed else 0
    for key, values in (("mean", facts.mean), ("std", facts.std)):
        if len(values) != channels:
            return f"{key}: found {len(values)} numbers, expected {channels}"
    return ""


def check_tables(manifest: Manifest, source: Path) -> None:
    """Raise DamagedZooError, with the path ``source``, for the first of `table_set_faults`."""
    for name, fault in table_set_faults(manifest):
        raise DamagedZooError(f"files: {name} {fault}", path=source)


def table_set_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the name of every table that is missing in a manifest, and of every file that no zoo has, with the fault.

    The tables that a zoo must have follow from the number of checkpoints in each split.
    """
    named = {name for name in manifest.files if name != "spec.yaml" and not name.startswith("checkpoints/")}
    for split, count in manifest.splits.by_name().items():
        for name in split_files(manifest.layer_schema, split, count):
            if name not in named:
                yield name, f"is missing: the split {split} has {count} checkpoints"
            named.discard(name)
    if manifest.imported is not None and manifest.imported.audit is not None:
        if AUDIT not in named:
            yield AUDIT, "is missing: the networks were sampled"
        named.discard(AUDIT)
    for name in sorted(named):
        if name.startswith(("data/", "metadata/")) or not _PICTURES_AND_TEXT.fullmatch(name):
            yield name, "is not a file of a zoo with these numbers of checkpoints in the splits"


def schema_fault(schema: Schema, spec: ZooSpec) -> str | None:
    """Return the first difference between a layer schema and that of a specification's models, or None.

    The number of classes of a folder of pictures is not compared, because the folder may be elsewhere. Images and
    architectures that this version does not know are not compared.
    """
    images, shape, classes = spec.images, schema.input_shape, schema.classes
    try:
        if isinstance(images, TetrisImages | DatasetImages):
            shape, classes = image_shape(images)
        elif isinstance(images, FolderImages):
            shape = (1 if images.greyscale else 3, images.size or shape[1], images.size or shape[2])
        if not isinstance(spec.architecture, Mlp | Cnn):
            return None
        expected = build_schema(spec.architecture, shape, classes)
    except SpecError as error:
        return str(error)
    if schema == expected:
        return None
    pairs = zip(schema.layers, expected.layers, strict=False)
    first = next((f"layer {a.name}: found {a}, expected {b}" for a, b in pairs if a != b), None)
    return first or f"found {schema!s:.400}, expected {expected!s:.400}"
