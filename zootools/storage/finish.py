"""Finishing a zoo: derive its tables and its card from what was trained, and write zoo.json last."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import yaml

from zootools.errors import SpecError
from zootools.filesystem.lock import FolderLock
from zootools.spec import ZooSpec
from zootools.storage.audit import AUDIT
from zootools.storage.build_state import FORMAT, MANIFEST, PLAN, ZooFolder, epoch_of
from zootools.storage.card import render_card
from zootools.storage.file_rules import VERSIONS
from zootools.storage.manifest import (
    PAGE,
    TABLE,
    Counts,
    Manifest,
    NumberedResumption,
    Splits,
    Stack,
    count_outcomes,
    read_manifest,
)
from zootools.storage.manifest_checks import stored_origin
from zootools.storage.part import require_whole
from zootools.storage.records import Fingerprint, Plan, StackRecord
from zootools.storage.shards import read_info, stack_of
from zootools.storage.table_writer import write_parquet
from zootools.storage.tables import SPLITS, accuracy_summary, imported_table, metadata_table
from zootools.storage.verified_files import FileInfo, VerifiedFiles


def finish_zoo(zoo: ZooFolder, plan: Plan, records: Sequence[StackRecord] | None = None) -> Manifest:
    """Derive tables and card of a zoo, write zoo.json last, and return its content.

    Args:
        zoo: the folder, which has all shards that the records name.
        plan: the plan of the zoo.
        records: the records of its stacks, by default those in the folder. If a stack is not done, the zoo is partial.
    """
    if records is None:
        records = [record or StackRecord(fingerprint={}) for record in zoo.read_records(plan)]
    stopped = {model: stop for record in records for model, stop in record.stopped.items()}
    # A generator, because the scores as Python objects take many times the memory of the table.
    shards = zoo.read_shards(plan, records)
    table = metadata_table(plan.spec, plan.models(), shards, stopped, plan.images.class_names)
    files = {name: info for record in records for name, info in record.shards.items()}
    old = [name for folder in ("data", "metadata") for name in zoo.names(folder) if TABLE.fullmatch(name)]
    zoo.fence()
    # The old tables of a zoo that has grown are replaced from here on, so its old manifest is removed first.
    zoo.remove(MANIFEST)
    for name in [*old, PAGE]:  # the page shows the zoo as it was
        zoo.remove(name)
    tables = write_parquet(zoo, VerifiedFiles(zoo.path, files), plan.schema, table)
    files |= {"spec.yaml": zoo.write("spec.yaml", spec_yaml(plan.spec)), **tables}
    manifest = _manifest(plan, records, table, files)
    zoo.write("README.md", render_card(manifest, plan.spec).encode())
    zoo.write("zoo.json", manifest.to_bytes())
    return manifest


def _manifest(plan: Plan, records: Sequence[StackRecord], table: pa.Table, files: dict[str, FileInfo]) -> Manifest:
    """Return the manifest of a zoo, given the metadata of its checkpoints and its files."""
    fingerprints = _Numbered()
    stacks = [
        Stack(
            models=ids,
            epoch=record.epoch,
            stopped=record.stopped,
            fingerprint=fingerprints.number(record.fingerprint),
            resumed=[NumberedResumption(r.epoch, fingerprints.number(r.fingerprint)) for r in record.resumed],
        )
        for ids, record in zip(plan.stacks, records, strict=True)
    ]
    splits = Counter(table["split"].to_pylist())
    return Manifest(
        format=FORMAT,
        name=plan.spec.name,
        schema=plan.schema,
        classes=plan.schema.classes,
        images_sha256=plan.images_sha256,
        images=plan.images,
        counts=Counts(checkpoints=table.num_rows, **count_outcomes(plan, records).model_dump()),
        splits=Splits(**{split: splits[split] for split in SPLITS}),
        test_accuracy=accuracy_summary(table),
        fingerprints=fingerprints.values,
        stacks=stacks,
        files=files,
    ).with_hash()


def derive_again(zoo: ZooFolder) -> None:
    """Write the tables and the card of an imported zoo from its shards, and zoo.json last.

    Raises DamagedZooError for a damaged shard.
    """
    manifest = read_manifest(zoo.path)
    assert manifest.imported is not None, "a zoo that was built is finished by a build"
    imported, stopped = manifest.imported, manifest.stopped
    shards = {name: info for name, info in manifest.files.items() if name.startswith("checkpoints/")}
    files = VerifiedFiles(zoo.path, shards)
    files.check(shards)
    ordered = sorted(shards, key=lambda name: (stack_of(name), epoch_of(name)))
    table = imported_table(
        imported, ((stack_of(name), read_info(zoo.path, name, imported)) for name in ordered), stopped
    )
    kept = {name: info for name, info in manifest.files.items() if not TABLE.fullmatch(name)}
    kept = {name: info for name, info in kept.items() if name in shards or zoo.has(name)}
    kept |= write_parquet(zoo, files, manifest.layer_schema, table)
    if imported.audit is not None:
        kept[AUDIT] = zoo.write(AUDIT, imported.audit.to_bytes())
    manifest = manifest.model_copy(update={"files": kept}).with_hash()
    zoo.write("README.md", render_card(manifest, imported).encode())
    zoo.write("zoo.json", manifest.to_bytes())
    zoo.remove_work()


def add_page(folder: Path, page: bytes) -> None:
    """Add an interactive page to a finished zoo, or replace the one that it has.

    The card then links the page, and the manifest contains its hash. The page is written before the manifest; if the
    process is killed between the two, `verify` reports it, and the same call completes it. Raises ZooNotFoundError if
    there is no finished zoo, SpecError for a version in a hub folder, which never changes, BusyError while a builder is
    at work.
    """
    read_manifest(folder)
    require_whole(folder, "given a page")
    if VERSIONS in folder.resolve().parts:
        raise SpecError(f"{folder}: is a published version, which never changes; add the page before publishing")
    with FolderLock(ZooFolder(folder).lock) as lock:
        zoo = ZooFolder(folder, lock.descriptor)
        if zoo.has(PLAN):
            raise SpecError(f"{folder}: is not finished; finish it with zootools build")
        manifest = read_manifest(folder)
        origin = stored_origin(folder, manifest)
        manifest = manifest.model_copy(update={"files": {**manifest.files, PAGE: zoo.write(PAGE, page)}}).with_hash()
        zoo.write("README.md", render_card(manifest, origin).encode())
        zoo.write("zoo.json", manifest.to_bytes())
        zoo.remove_work()


class _Numbered:
    """The distinct fingerprints of a zoo, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.values: list[Fingerprint] = []

    def number(self, fingerprint: Fingerprint) -> int:
        if fingerprint not in self.values:
            self.values.append(fingerprint)
        return self.values.index(fingerprint)


def spec_yaml(spec: ZooSpec) -> bytes:
    """Return a specification as the YAML text that a zoo stores."""
    return yaml.safe_dump(spec.dump(), sort_keys=False, allow_unicode=True, width=100).encode()
