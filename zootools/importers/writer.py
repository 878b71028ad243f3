"""Writing an imported population as a zoo: its shards, tables, card and, last, its manifest."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from zootools.architectures import Schema
from zootools.importers.columns import columns_of
from zootools.importers.importer import Facts, LeftOut
from zootools.importers.layout import Layout
from zootools.importers.spool import Spool
from zootools.storage.audit import AUDIT, Audit
from zootools.storage.build_state import FORMAT, MANIFEST, ZooFolder
from zootools.storage.card import render_card
from zootools.storage.imported import (
    OWN_COLUMNS,
    SOURCE_MODEL,
    CheckReport,
    Imported,
    LeftOutCount,
    Parent,
    SourceFiles,
)
from zootools.storage.manifest import PAGE, TABLE, Counts, Manifest, Splits, Stack
from zootools.storage.shards import ShardInfo, shard_bytes, shard_name
from zootools.storage.table_writer import write_parquet
from zootools.storage.tables import SPLITS, accuracy_summary
from zootools.storage.verified_files import FileInfo, VerifiedFiles

MOST_REASONS = 200
MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Import:
    """What the manifest of an imported zoo says beside its checkpoints."""

    kind: str
    facts: Facts
    name: str
    description: str
    license: str
    source: SourceFiles
    options: Mapping[str, str]
    versions: Mapping[str, Any]
    check: CheckReport
    images_sha256: str | None
    parent: Parent | None = None
    audit: Audit | None = None


def metadata_of(layout: Layout, properties: pa.Table) -> pa.Table:
    """Return the metadata of the checkpoints of a layout, in its order; ``properties`` has a row of the population."""
    ids = [layout.ids[number] for number in layout.model.tolist()]
    names = [layout.names[number] for number in layout.model.tolist()]
    taken = properties.take(pa.array(layout.taken))
    return pa.table(
        {
            "model_id": ids,
            "epoch": pa.array(layout.epoch, pa.int32()),
            "split": pa.array(layout.splits, pa.string()),
            "status": pa.array(["diverged" if model in layout.stopped else "ok" for model in ids], pa.string()),
            SOURCE_MODEL: pa.array(names, pa.string()),
            **{name: taken[name] for name in taken.column_names},
            "stack": pa.array(layout.stack, pa.int32()),
            "row": pa.array(layout.row, pa.int32()),
        }
    )


def write_zoo(
    zoo: ZooFolder,
    spool: Spool,
    layout: Layout,
    metadata: pa.Table,
    what: Import,
    left_out: Sequence[LeftOut],
    tick: Callable[[int], None],
) -> Manifest:
    """Write the zoo of an import, and zoo.json last; return its content. The blocks are kept.

    ``metadata`` is what `metadata_of` returns.
    ``tick`` is called with the number of checkpoints whenever some have been written.
    """
    schema = what.facts.schema
    columns = columns_of(metadata.select([name for name in metadata.column_names if name not in OWN_COLUMNS]))
    imported = Imported(
        kind=what.kind,
        parent=what.parent,
        name=what.name,
        description=what.description,
        license=what.license,
        images=what.facts.images,
        runs=what.facts.runs,
        columns=columns,
        histories=layout.histories,
        source=what.source,
        options=dict(what.options),
        left_out=counted(left_out),
        notes=[note[:2000] for note in [*what.facts.notes, *spool.notes]],
        check=what.check,
        audit=what.audit,
    )
    zoo.remove(MANIFEST)
    old = [name for folder in ("data", "metadata") for name in zoo.names(folder) if TABLE.fullmatch(name)]
    for name in [*zoo.names("checkpoints"), *old, PAGE]:  # of an import that was interrupted here
        zoo.remove(name)
    files = _write_shards(zoo, spool, layout, metadata, schema, tick)
    files |= write_parquet(zoo, VerifiedFiles(zoo.path, files), schema, metadata)
    if what.audit is not None:
        files[AUDIT] = zoo.write(AUDIT, what.audit.to_bytes())
    manifest = _manifest(layout, metadata, what, imported, files)
    zoo.write("README.md", render_card(manifest, imported).encode())
    zoo.write("zoo.json", manifest.to_bytes())
    return manifest


def _write_shards(
    zoo: ZooFolder, spool: Spool, layout: Layout, metadata: pa.Table, schema: Schema, tick: Callable[[int], None]
) -> dict[str, FileInfo]:
    """Write a shard for every stack and epoch; one at a time is in memory."""
    starts = np.flatnonzero(np.diff(layout.stack, prepend=-1) | np.diff(layout.epoch, prepend=-1))
    placed = {"model_id", "epoch", "status", "stack", "row"}
    columns = [name for name in metadata.column_names if name not in placed]
    files = {}
    for start, count in zip(starts.tolist(), np.diff(starts, append=len(layout.taken)).tolist(), strict=True):
        part = metadata.slice(start, count)
        info = ShardInfo(
            int(layout.epoch[start]),
            part["model_id"].to_pylist(),
            {name: part[name].to_pylist() for name in columns},
        )
        weights = spool.gather(layout.taken[start : start + count])
        name = shard_name(int(layout.stack[start]), info.epoch)
        files[name] = zoo.write(name, shard_bytes(schema, weights, info))
        tick(count)
    return files


def _manifest(
    layout: Layout, metadata: pa.Table, what: Import, imported: Imported, files: dict[str, FileInfo]
) -> Manifest:
    reached = np.full(len(layout.ids), -1, np.int64)
    np.maximum.at(reached, layout.model, layout.epoch)
    stacks = []
    for number in range(int(layout.stack_of.max()) + 1):
        models = np.flatnonzero(layout.stack_of == number).tolist()
        ids = [layout.ids[model] for model in models]
        stopped = {model: layout.stopped[model] for model in ids if model in layout.stopped}
        histories = layout.history_of[models].tolist()
        last = max([int(reached[models].max()), *(stop.epoch for stop in stopped.values())])
        stacks.append(
            Stack(models=ids, epoch=last, stopped=stopped, fingerprint=0, histories=histories if any(histories) else [])
        )
    splits = Counter(layout.splits)
    diverged = len(layout.stopped)
    return Manifest(
        format=FORMAT,
        name=what.name,
        schema=what.facts.schema,
        classes=what.facts.schema.classes,
        images_sha256=what.images_sha256,
        counts=Counts(
            expected=len(layout.ids),
            ok=len(layout.ids) - diverged,
            diverged=diverged,
            failed=0,
            missing=0,
            checkpoints=metadata.num_rows,
        ),
        splits=Splits(**{split: splits[split] for split in SPLITS}),
        test_accuracy=accuracy_summary(metadata),
        fingerprints=[dict(what.versions)],
        stacks=stacks,
        files=files,
        imported=imported,
    ).with_hash()


def counted(left_out: Sequence[LeftOut]) -> list[LeftOutCount]:
    """Return what was left out by reason, the most frequent first, with the first examples of each."""
    by_reason: dict[str, list[str]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.why[:500], []).append(entry.what[:300])
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        LeftOutCount(why=why, count=len(found), examples=found[:MOST_EXAMPLES]) for why, found in ordered[:MOST_REASONS]
    ]
