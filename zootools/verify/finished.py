"""Verification of a finished zoo: its manifest, specification, shards, tables and card are compared with each other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from zootools.errors import DamagedZooError, SpecError, ZooError
from zootools.filesystem.inside import is_file_inside, names_inside, read_inside
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, count_models, expand
from zootools.storage.card import FORMS, card_repositories, render_card
from zootools.storage.imported import Imported, Origin
from zootools.storage.manifest import PAGE, UNHASHED, Manifest, read_manifest
from zootools.storage.manifest_checks import CheckpointKeys, check_against_origin, stored_origin, table_set_faults
from zootools.storage.part import PART, read_part
from zootools.storage.table_reader import data_fault, read_metadata, same_values
from zootools.storage.tables import (
    accuracy_summary,
    is_accuracy_summary,
    metadata_name,
    metadata_schema,
    rows_per_group,
    split_files,
)
from zootools.storage.unhashed import LIMITS, read_unhashed
from zootools.storage.verified_files import VerifiedFiles, unreadable
from zootools.verify.fault import UNLISTED, Fault, is_ignored
from zootools.verify.files import IntactFiles, file_faults, in_threads
from zootools.verify.shards import Shards
from zootools.zoo import open_folder, part_files


def finished_faults(folder: Path, tick: Callable[[int], None], repository: str | None) -> Iterator[Fault]:
    """Yield everything that is wrong with a finished zoo (see `zootools.verify.faults`)."""
    try:
        manifest = read_manifest(folder)
    except DamagedZooError as error:
        yield Fault("zoo.json", error.reason)
        return
    try:
        left_out = _left_out(folder, manifest)
    except DamagedZooError as error:
        yield Fault(PART, error.reason)
        return
    there = {name: info for name, info in manifest.files.items() if name not in left_out}
    files, damaged = VerifiedFiles(folder, there), set(left_out)
    intact = IntactFiles(folder)
    for fault in file_faults(files, tick, intact):
        damaged.add(fault.name)
        yield fault
    if "spec.yaml" not in damaged:
        yield from _content_faults(files, manifest, damaged, repository)
    yield from build_log_faults(folder)
    known = {*manifest.files, *UNHASHED, PART}
    try:
        unlisted = [name for name in names_inside(folder) if not (name in known or is_ignored(name))]
    except OSError as error:
        unlisted = []
        yield Fault(str(error.filename), unreadable(error))
    yield from (Fault(name, UNLISTED) for name in unlisted)
    intact.forget()


def _left_out(folder: Path, manifest: Manifest) -> set[str]:
    """Return the files that a part of a zoo need not have, and does not have; none for a whole zoo.

    What it needs follows from part.json and the metadata. If the metadata is damaged, that is found in any case, and
    nothing else is missed. Raises DamagedZooError.
    """
    part = read_part(folder)
    if part is None:
        return set()
    if part.manifest != manifest.sha256:
        raise DamagedZooError("is of another zoo than zoo.json")
    try:
        needed = part_files(open_folder(folder), manifest, part.selection)
    except ZooError:
        needed = [name for name in manifest.files if not name.startswith(("checkpoints/", "data/", PAGE))]
    return {name for name in {*manifest.files} - {*needed} if not is_file_inside(folder, name)}


def build_log_faults(folder: Path) -> Iterator[Fault]:
    """Yield what is wrong with build.json, which no other file depends on."""
    try:
        read_unhashed(folder, "build.json")
    except DamagedZooError as error:
        yield Fault("build.json", error.reason)


def _content_faults(
    files: VerifiedFiles, manifest: Manifest, damaged: set[str], repository: str | None
) -> Iterator[Fault]:
    """Yield the contradictions between intact files; those that are ``damaged`` are not compared."""
    folder = files.folder
    try:
        origin = stored_origin(folder, manifest)
    except DamagedZooError as error:  # its bytes are those that the manifest names, so the manifest is at fault
        yield Fault("zoo.json", f"files.spec.yaml: {error.reason}")
        return
    if fault := card_fault(folder, manifest, origin, repository):
        yield Fault("README.md", fault)
    odd = list(table_set_faults(manifest))
    yield from (Fault(name, what) for name, what in odd)
    try:
        keys = check_against_origin(manifest, origin, folder / "zoo.json")
        models = {} if isinstance(origin, Imported) else _models(manifest, origin)
    except DamagedZooError as error:
        yield Fault("zoo.json", error.reason)
        return
    rows = keys.shard_rows()
    if not damaged & rows.keys():
        files.expect_rows(rows)
        names = manifest.images.class_names
        shards = Shards(files, manifest.layer_schema, origin, models, manifest.stopped, names)
        yield from _derived_faults(shards, keys, manifest, without=damaged | {name for name, _ in odd})


def _models(manifest: Manifest, spec: ZooSpec) -> dict[str, ModelConfig]:
    """Return the models of a specification by id. Raises DamagedZooError if they are not those of the manifest."""
    try:
        if (count := count_models(spec)) != (found := manifest.counts.expected):
            raise DamagedZooError(f"counts.expected: found {found}, but spec.yaml makes {count} models")
        models = {model.model_id: model for model in expand(spec)}
    except SpecError as error:
        raise DamagedZooError(f"files.spec.yaml: {error}") from error
    if odd := models.keys() ^ {model for stack in manifest.stacks for model in stack.models}:
        raise DamagedZooError(f"stacks: the models are not those that spec.yaml makes ({min(odd)} is in one only)")
    return models


def _derived_faults(shards: Shards, keys: CheckpointKeys, manifest: Manifest, without: set[str]) -> Iterator[Fault]:
    """Derive the metadata from the shards; compare it with the manifest and all tables that are not in ``without``."""

    def read(name: str) -> pa.Table | DamagedZooError:
        try:
            return shards.metadata(name)
        except DamagedZooError as error:
            return error

    parts, found = [metadata_schema(shards.origin, shards.class_names).empty_table()], False
    for name, part in in_threads(read, list(keys.shard_rows())):
        if isinstance(part, DamagedZooError):
            found = True
            yield Fault(name, part.reason)
        else:
            parts.append(part)
    if found:
        return
    table = pa.concat_tables(parts)
    if table["model_id"].to_pylist() != keys.model_id:
        yield Fault("zoo.json", "stacks: the models are not those of the shards")
        return
    if not is_accuracy_summary(manifest.test_accuracy, table):
        yield Fault("zoo.json", f"test_accuracy: the shards make {accuracy_summary(table)}")
    for split, count in manifest.splits.by_name().items():
        rows = table.filter(pc.equal(table["split"], split))
        if rows.num_rows != count:
            yield Fault("zoo.json", f"splits.{split}: found {count}, the models make {rows.num_rows}")
            continue
        yield from _table_faults(shards, split, rows, without)


def _table_faults(shards: Shards, split: str, rows: pa.Table, without: set[str]) -> Iterator[Fault]:
    """Compare all tables of a split with ``rows``, the metadata that the shards make."""
    files, schema = shards.files, shards.schema
    tables = {name: part for name, part in split_files(schema, split, rows.num_rows).items() if name not in without}
    metadata = metadata_name(split)
    if tables.pop(metadata, None):
        try:
            stored = read_metadata(files, shards.origin, {split: rows.num_rows}, schema.classes, shards.class_names)
            odd = [column for column in rows.column_names if not same_values(rows[column], stored[column])]
            if odd:
                more = f" (and {len(odd) - 1} others)" if len(odd) > 1 else ""
                yield Fault(metadata, f"the column {odd[0]} is not what the shards and spec.yaml say{more}")
        except DamagedZooError as error:
            yield Fault(metadata, error.reason)
    step = rows_per_group(schema)
    jobs = [(name, group) for name, part in tables.items() for group in range(-(-len(part) // step))]

    def compare(job: tuple[str, int]) -> str | None:
        name, group = job
        try:
            return data_fault(files, schema, name, rows.slice(tables[name].start, len(tables[name])), group)
        except DamagedZooError as error:
            return str(error)

    told = set[str]()
    for (name, _), fault in in_threads(compare, jobs):
        if fault is not None and name not in told:
            told.add(name)
            yield Fault(name, fault)


def card_fault(folder: Path, manifest: Manifest, origin: Origin, repository: str | None) -> str | None:
    """Return why README.md is not the card of a zoo, or None.

    A published card contains the name of its repository. If that is not known, the name in the card itself is used.
    """
    try:
        card = read_inside(folder, "README.md", LIMITS["README.md"])
    except OSError as error:
        return unreadable(error)
    named = [None, *card_repositories(card)] if repository is None else [repository]
    if any(card == render_card(manifest, origin, name, form=form).encode() for name in named for form in FORMS):
        return None
    return f"is not the card{f' of {repository}' if repository else ''} that zoo.json and spec.yaml make"


def card_repository(folder: Path) -> str | None:
    """Return the repository that the card of an intact zoo names; None before the zoo is published."""
    try:
        return next(iter(card_repositories(read_inside(folder, "README.md", LIMITS["README.md"]))), None)
    except OSError:
        return None
