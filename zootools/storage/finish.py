"""Finishing a zoo: derive its tables and its card from what was trained, and write zoo.json last."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from zootools.errors import SpecError
from zootools.filesystem.files import FolderLock
from zootools.hashing import pretty_json
from zootools.spec import (
    ZooSpec,
)
from zootools.storage.build_state import FORMAT, MANIFEST, PLAN, Plan, StackRecord, ZooFolder
from zootools.storage.card import render_card
from zootools.storage.file_rules import VERSIONS
from zootools.storage.hashed_json import seal
from zootools.storage.manifest import PAGE, TABLE, read_manifest, stored_spec
from zootools.storage.tables import SPLITS, accuracy_summary, metadata_table, write_parquet
from zootools.storage.verified_files import CheckedFiles, FileInfo


def finish_zoo(zoo: ZooFolder, plan: Plan, records: Sequence[StackRecord] | None = None) -> dict[str, Any]:
    """Derive tables and card of a zoo, and write zoo.json last.

    ``records`` say how far its stacks are, by default those of the folder; if some are not done the zoo is partial.
    """
    if records is None:
        records = [record or StackRecord({}) for record in zoo.read_records(plan)]
    stopped = {model: info for record in records for model, info in record.stopped.items()}
    models = plan.models()
    # One at a time: as Python objects they take many times the memory of the table.
    table = metadata_table(plan.spec, models, zoo.read_shards(plan, records), stopped)
    files: dict[str, FileInfo] = {name: info for record in records for name, info in record.shards.items()}
    old = [name for folder in ("data", "metadata") for name in zoo.names(folder) if TABLE.fullmatch(name)]
    zoo.fence()
    # From here on the old tables of a zoo that has grown are being replaced, so its old manifest must go.
    zoo.remove(MANIFEST)
    for name in [*old, PAGE]:  # the page shows the zoo as it was
        zoo.remove(name)
    tables = write_parquet(zoo, CheckedFiles(zoo.path, files), plan.schema, table)
    files |= {"spec.yaml": zoo.write("spec.yaml", spec_yaml(plan.spec)), **tables}
    fingerprints = _Numbered()
    stacks = [
        {
            "models": ids,
            "epoch": record.epoch,
            "stopped": record.stopped,
            "fingerprint": fingerprints.number(record.fingerprint),
            **_resumed(record, fingerprints),
        }
        for ids, record in zip(plan.stacks, records, strict=True)
    ]
    counts: Counter[str] = Counter()
    for ids, record in zip(plan.stacks, records, strict=True):
        counts["diverged"] += len(record.stopped)
        counts[record.standing] += len(ids) - len(record.stopped)
    splits = Counter(table["split"].to_pylist())
    manifest = seal(
        {
            "format": FORMAT,
            "name": plan.spec.name,
            "schema": plan.schema.to_json(),
            "classes": plan.schema.classes,
            "images_sha256": plan.images_sha256,
            "counts": {
                "expected": len(models),
                "ok": counts["ok"],
                "diverged": counts["diverged"],
                "failed": counts["failed"],
                "missing": counts["missing"],
                "checkpoints": table.num_rows,
            },
            "splits": {split: splits[split] for split in SPLITS},
            "test_accuracy": accuracy_summary(table),
            "fingerprints": fingerprints.values,
            "stacks": stacks,
            "files": files,
        }
    )
    zoo.write("README.md", render_card(manifest, plan.spec).encode())
    zoo.write("zoo.json", pretty_json(manifest))
    return manifest


def add_page(folder: Path, page: bytes) -> None:
    """Put an interactive page into a finished zoo, instead of the one that it has: its card links it, and it is hashed,
    published and pulled with the rest.

    The page comes before the manifest that names it; if this is killed in between, `verify` says so, and the same call
    again completes it. Raises ZooNotFoundError where there is no finished zoo, SpecError for a version in a hub folder,
    which never changes, BusyError while a builder is at work.
    """
    read_manifest(folder)
    if VERSIONS in folder.resolve().parts:
        raise SpecError(f"{folder}: is a published version, which never changes; add the page before publishing")
    with FolderLock(ZooFolder(folder).lock) as lock:
        zoo = ZooFolder(folder, lock.descriptor)
        if zoo.has(PLAN):
            raise SpecError(f"{folder}: is not finished; finish it with zootools build")
        manifest = read_manifest(folder)
        spec = stored_spec(folder, manifest)
        manifest = seal({**manifest, "files": {**manifest["files"], PAGE: zoo.write(PAGE, page)}})
        zoo.write("README.md", render_card(manifest, spec).encode())
        zoo.write("zoo.json", pretty_json(manifest))
        zoo.remove_work()


class _Numbered:
    """Different fingerprints, each once, in the order in which they were first met."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def number(self, fingerprint: dict[str, Any]) -> int:
        if fingerprint not in self.values:
            self.values.append(fingerprint)
        return self.values.index(fingerprint)


def _resumed(record: StackRecord, fingerprints: _Numbered) -> dict[str, Any]:
    if not record.resumed:
        return {}
    return {
        "resumed": [{"epoch": r["epoch"], "fingerprint": fingerprints.number(r["fingerprint"])} for r in record.resumed]
    }


def spec_yaml(spec: ZooSpec) -> bytes:
    """Return a specification as the YAML text that a zoo stores."""
    return yaml.safe_dump(spec.dump(), sort_keys=False, allow_unicode=True, width=100).encode()
