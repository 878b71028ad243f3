"""Comparison of a manifest with the specification of its zoo, and with the files that a zoo consists of."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError
from zootools.images.shapes import image_shape
from zootools.spec import Cnn, DatasetImages, FolderImages, Mlp, TetrisImages, ZooSpec, parse_stored_spec
from zootools.spec.yaml_reader import MAX_BYTES as MAX_SPEC_BYTES
from zootools.spec.yaml_reader import parse_yaml
from zootools.storage.manifest import Manifest
from zootools.storage.shards import shard_name
from zootools.storage.tables import split_files
from zootools.storage.verified_files import VerifiedFiles

_PICTURES_AND_TEXT = re.compile(r".*\.(md|svg|png|html)")
"""What a manifest may name beside specification, shards and tables."""


def stored_spec(folder: Path, manifest: Manifest) -> ZooSpec:
    """Return the specification of a finished zoo. Raises DamagedZooError when it is not the one that was stored."""
    path, files = folder / "spec.yaml", VerifiedFiles(folder, manifest.files)
    try:
        values, places = parse_yaml(files.read("spec.yaml", MAX_SPEC_BYTES).decode(), str(path))
        if not isinstance(values, dict):
            raise SpecError(f"{path}: expected a mapping of keys")
        return parse_stored_spec(values, str(path), places)
    except (SpecError, UnicodeDecodeError) as error:
        raise DamagedZooError(f"is not a specification of a zoo ({error})", path=path) from error


def checkpoint_keys(manifest: Manifest, spec: ZooSpec, source: Path) -> dict[str, Any]:
    """Return which checkpoint lies where, as the manifest and the specification decide it. Raises DamagedZooError.

    The columns ``model_id`` (list), ``epoch``, ``stack``, ``row`` (int64 ``[checkpoints]``), ordered by stack,
    epoch and row: every kept epoch of every model up to the one at which it stopped, or which its stack has reached.
    """
    counts, epochs = manifest.counts, spec.training.epochs
    unfinished = {number: stack for number, stack in enumerate(manifest.stacks) if stack.is_open(epochs)}
    models = sum(len(stack.models) - len(stack.stopped) for stack in unfinished.values())
    if models != counts.failed + counts.missing:
        field = f"stacks.{min(unfinished)}.epoch" if unfinished else "counts.missing"
        raise DamagedZooError(f"{field}: {models} models are not trained to the end, counts say otherwise", path=source)
    ids, parts = list[str](), [np.empty((3, 0), np.int64)]
    kept = spec.training.kept_epochs
    for number, stack in enumerate(manifest.stacks):
        stops = {model: stop.epoch for model, stop in stack.stopped.items()}
        for epoch in kept:
            alive = [model for model in stack.models if stops.get(model, epoch + 1) > epoch]
            if not alive or epoch > stack.epoch:
                break
            ids += alive
            rows = np.arange(len(alive), dtype=np.int64)
            parts.append(np.stack([np.full_like(rows, epoch), np.full_like(rows, number), rows]))
            if len(ids) > counts.checkpoints:
                raise DamagedZooError("counts.checkpoints: its stacks have more than these", path=source)
    if len(ids) < counts.checkpoints:
        raise DamagedZooError(f"counts.checkpoints: its stacks have {len(ids)}", path=source)
    return {"model_id": ids, **dict(zip(("epoch", "stack", "row"), np.concatenate(parts, axis=1), strict=True))}


def check_against_spec(manifest: Manifest, spec: ZooSpec, source: Path) -> dict[str, Any]:
    """Compare a manifest with its specification, and return `checkpoint_keys`. Raises DamagedZooError.

    The files that it names must be the specification, exactly the shards in which its checkpoints lie, exactly the
    tables of so many checkpoints, and nothing else but pictures and text.
    """
    if manifest.name != spec.name:
        raise DamagedZooError(f"name: found {manifest.name!r}, spec.yaml says {spec.name!r}", path=source)
    if fault := schema_fault(manifest.layer_schema, spec):
        raise DamagedZooError(f"schema: {fault}", path=source)
    for number, stack in enumerate(manifest.stacks):
        if stack.epoch > spec.training.epochs or (stack.all_stopped and stack.epoch != stack.last_stop):
            raise DamagedZooError(
                f"stacks.{number}.epoch: found {stack.epoch}, "
                f"expected {stack.last_stop if stack.all_stopped else f'at most {spec.training.epochs}'}",
                path=source,
            )
    keys = checkpoint_keys(manifest, spec, source)
    named = {name for name in manifest.files if name.startswith("checkpoints/")}
    if difference := sorted(shard_rows(keys).keys() ^ named):
        verb = "is not a shard of these models" if difference[0] in named else "is missing"
        raise DamagedZooError(f"files: {difference[0]} {verb} ({len(difference)} such names)", path=source)
    return keys


def check_tables(manifest: Manifest, source: Path) -> None:
    """Raise DamagedZooError for the first of `table_set_faults`."""
    for name, fault in table_set_faults(manifest):
        raise DamagedZooError(f"files: {name} {fault}", path=source)


def table_set_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the tables that a manifest should name and does not, and all that it names beside what a zoo consists of.

    The number of checkpoints in each split decides which tables there are.
    """
    named = {name for name in manifest.files if name != "spec.yaml" and not name.startswith("checkpoints/")}
    for split, count in manifest.splits.by_name().items():
        for name in split_files(manifest.layer_schema, split, count):
            if name not in named:
                yield name, f"is missing: the split {split} has {count} checkpoints"
            named.discard(name)
    for name in sorted(named):
        if name.startswith(("data/", "metadata/")) or not _PICTURES_AND_TEXT.fullmatch(name):
            yield name, "is not a file of a zoo with so many checkpoints in each split"


def schema_fault(schema: Schema, spec: ZooSpec) -> str | None:
    """Return in words why a layer schema is not that of a specification's models, or None.

    How many classes a folder of pictures has is known where it lies only. Of images and architectures that only another
    version knows the schema itself is all that is known.
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


def shard_rows(keys: dict[str, Any]) -> dict[str, int]:
    """Return the shards in which checkpoints lie (`checkpoint_keys`), and how many each has."""
    # Rows are ordered by stack and epoch: a shard begins wherever one of them changes.
    first = np.diff(keys["stack"], prepend=-1) | np.diff(keys["epoch"], prepend=-1)
    starts = np.flatnonzero(first)
    names = map(shard_name, keys["stack"][starts].tolist(), keys["epoch"][starts].tolist())
    return dict(zip(names, np.diff(starts, append=len(keys["stack"])).tolist(), strict=True))
