"""Comparing a whole zoo with what was written: `faults` finds what is wrong, `repair` drops it.

A verification reads every byte, and makes again everything that follows from something else: what somebody has changed
together with its hashes differs from what it is derived from. One that is interrupted does not hash again what it has
hashed: which files were found intact is noted in the user's cache, never in the zoo, until the verification is done.
"""

import hashlib
import json
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError, StorageError, ZooNotFoundError
from zootools.filesystem.files import FolderLock, write_durably
from zootools.filesystem.inside import (
    NotPlainError,
    names_inside,
    read_inside,
    stat_inside,
)
from zootools.paths import cache_folder
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, count_models, expand
from zootools.storage.build_state import IMAGES, MANIFEST, PLAN, ZooFolder
from zootools.storage.card import card_repositories, render_card
from zootools.storage.manifest import (
    UNHASHED,
    Manifest,
    check_against_spec,
    read_manifest,
    reopen,
    schema_fault,
    shard_rows,
    stored_spec,
    table_set_faults,
)
from zootools.storage.place import Place
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import check_shard, shard_name, stack_of
from zootools.storage.tables import (
    accuracy_summary,
    check_scores,
    data_fault,
    is_accuracy_summary,
    metadata_name,
    metadata_schema,
    metadata_table,
    read_metadata,
    rows_per_group,
    same_values,
    split_files,
)
from zootools.storage.unhashed import LIMITS, read_unhashed
from zootools.storage.verified_files import FileInfo, VerifiedFiles, unreadable

UNLISTED = "is not in the manifest"

NOTE_EVERY = 30
"""Seconds of work that a killed verification may lose."""
REMEMBERED = 24 * 3600
"""Seconds after which an interrupted verification starts anew."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a zoo: the file's name inside the folder, and what is wrong with it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


K = TypeVar("K")
V = TypeVar("V")


def faults(
    folder: Path, tick: Callable[[int], None] = lambda count: None, repository: str | None = None
) -> Iterator[Fault]:
    """Yield everything that is wrong with a zoo folder, finished or not.

    Every file is compared with its sha256, and everything that follows from something else is made again and compared:
    counts, names and layers from the specification, metadata from the shards, the tables that `datasets.load_dataset`
    reads from both, the card from all of them. So hashes that somebody has computed anew hide nothing.
    Hidden files and folders at the top (``.git``, ``.cache``, ...) are not looked at, as readers do not look at them.

    Args:
        folder: the zoo's folder.
        tick: told the bytes of every file that has been read.
        repository: the name (``org/name``) under which the zoo was published, if it is known: the card must give it.

    Raises ZooNotFoundError where there is no zoo.
    """
    zoo = ZooFolder(folder)
    if zoo.has(PLAN):
        yield from _unfinished_faults(zoo, tick)
    else:
        yield from _finished_faults(folder, tick, repository)


def place_faults(place: Place, tick: Callable[[int], None] = lambda count: None) -> Iterator[Fault]:
    """Yield everything that is wrong with a zoo wherever it is; of one that is published, all files are fetched first.

    Beside `faults`, that its card names another repository, and files that lie there without being part of the zoo.
    """
    place.fetch_all()
    yield from faults(place.folder, tick, place.repository)
    if place.listed:
        known = {*read_manifest(place.folder).files, *UNHASHED}
        yield from (Fault(name, UNLISTED) for name in sorted(place.listed) if name not in known and is_looked_at(name))


def is_looked_at(name: str) -> bool:
    """Whether a file in a zoo's folder that its manifest does not name matters to a reader.

    Hidden ones at the top do not, except the one in which `datasets` looks for what the card says, and believes it.
    """
    return not name.startswith(".") or name.lower() == ".huggingface.yaml"


def card_repository(folder: Path) -> str | None:
    """Return the repository that the card of an intact zoo names; None before the zoo is published."""
    try:
        return next(iter(card_repositories(read_inside(folder, "README.md", LIMITS["README.md"]))), None)
    except OSError:
        return None


# --- a finished zoo ------------------------------------------------------------------------------------


def _finished_faults(folder: Path, tick: Callable[[int], None], repository: str | None) -> Iterator[Fault]:
    try:
        manifest = read_manifest(folder)
    except DamagedZooError as error:
        yield Fault("zoo.json", _without(folder, "zoo.json", error))
        return
    files, damaged = VerifiedFiles(folder, manifest.files), set[str]()
    notes = _Notes(folder)
    for fault in file_faults(files, tick, notes):
        damaged.add(fault.name)
        yield fault
    if "spec.yaml" not in damaged:
        yield from _content_faults(files, manifest, damaged, repository)
    yield from _log_faults(folder)
    known = {*manifest.files, *UNHASHED}
    try:
        strangers = [name for name in names_inside(folder) if name not in known and is_looked_at(name)]
    except OSError as error:
        strangers = []
        yield Fault(str(error.filename), unreadable(error))
    yield from (Fault(name, UNLISTED) for name in strangers)
    notes.forget()


def _log_faults(folder: Path) -> Iterator[Fault]:
    try:
        read_unhashed(folder, "build.json")
    except DamagedZooError as error:
        yield Fault("build.json", _without(folder, "build.json", error))


def _content_faults(
    files: VerifiedFiles, manifest: Manifest, damaged: set[str], repository: str | None
) -> Iterator[Fault]:
    """Intact files can still contradict each other; those that are ``damaged`` are not compared."""
    folder = files.folder
    try:
        spec = stored_spec(folder, manifest)
    except DamagedZooError as error:  # its bytes are those that the manifest names, so the manifest is at fault
        yield Fault("zoo.json", f"files.spec.yaml: {_without(folder, 'spec.yaml', error)}")
        return
    if fault := card_fault(folder, manifest, spec, repository):
        yield Fault("README.md", fault)
    odd = list(table_set_faults(manifest))
    yield from (Fault(name, what) for name, what in odd)
    try:
        keys = check_against_spec(manifest, spec, str(folder / "zoo.json"))
    except DamagedZooError as error:
        yield Fault("zoo.json", _without(folder, "zoo.json", error))
        return
    try:
        if (count := count_models(spec)) != (found := manifest.counts.expected):
            yield Fault("zoo.json", f"counts.expected: found {found}, but spec.yaml makes {count} models")
            return
        models = {model.model_id: model for model in expand(spec)}
    except SpecError as error:
        yield Fault("zoo.json", f"files.spec.yaml: {error}")
        return
    listed = {model for stack in manifest.stacks for model in stack.models}
    if listed != set(models):
        only = min(listed ^ set(models))
        yield Fault("zoo.json", f"stacks: the models are not those that spec.yaml makes ({only} is in one only)")
        return
    shards = shard_rows(keys)
    if not damaged & shards.keys():
        missing = damaged | {name for name, _ in odd}
        yield from _derived_faults(files, manifest, _Expected(spec, models, shards), missing)


@dataclass(frozen=True)
class _Expected:
    """What the tables of a finished zoo are derived from: specification, models by id, and rows of each shard."""

    spec: ZooSpec
    models: dict[str, ModelConfig]
    shards: dict[str, int]


def _derived_faults(
    files: VerifiedFiles, manifest: Manifest, expected: _Expected, without: set[str]
) -> Iterator[Fault]:
    """Compare shards with the manifest, then every table that is not in ``without`` with what the shards make of it."""
    schema, spec, stopped = manifest.layer_schema, expected.spec, manifest.stopped
    files.expect_rows(expected.shards)

    def read(name: str) -> pa.Table | str:
        return _shard_table(files, schema, spec, expected.models, stopped, name)

    parts, found = [metadata_schema(spec).empty_table()], False
    for name, part in _in_threads(read, sorted(expected.shards)):
        if isinstance(part, str):
            found = True
            yield Fault(name, part)
        else:
            parts.append(part)
    if found:
        return
    table = pa.concat_tables(parts)
    if not is_accuracy_summary(manifest.test_accuracy, table):
        yield Fault("zoo.json", f"test_accuracy: the shards make {accuracy_summary(table)}")
    for split, count in manifest.splits.by_name().items():
        rows = table.filter(pc.equal(table["split"], split))
        if rows.num_rows != count:
            yield Fault("zoo.json", f"splits.{split}: found {count}, the models make {rows.num_rows}")
            continue
        yield from _table_faults(files, schema, spec, split, rows, without)


def _shard_table(
    files: VerifiedFiles,
    schema: Schema,
    spec: ZooSpec,
    models: Mapping[str, ModelConfig],
    stopped: Collection[str],
    name: str,
) -> pa.Table | str:
    """Return the metadata of a shard's rows, or in words what is wrong with it."""
    try:
        table = metadata_table(spec, models, [(stack_of(name), check_shard(files, schema, name))], stopped)
        check_scores(table, schema.classes)
    except (DamagedZooError, ValueError) as error:
        return _without(files.folder, name, error)
    return table


def _table_faults(
    files: VerifiedFiles, schema: Schema, spec: ZooSpec, split: str, rows: pa.Table, without: set[str]
) -> Iterator[Fault]:
    """Compare all tables of a split with its rows, which are those that the shards make."""
    tables = {name: part for name, part in split_files(schema, split, rows.num_rows).items() if name not in without}
    metadata = metadata_name(split)
    if tables.pop(metadata, None):
        try:
            stored = read_metadata(files, spec, {split: rows.num_rows}, schema.classes)
            odd = [column for column in rows.column_names if not same_values(rows[column], stored[column])]
            if odd:
                more = f" (and {len(odd) - 1} others)" if len(odd) > 1 else ""
                yield Fault(metadata, f"the column {odd[0]} is not what the shards and spec.yaml say{more}")
        except DamagedZooError as error:
            yield Fault(metadata, _without(files.folder, metadata, error))
    step = rows_per_group(schema)
    jobs = [(name, group) for name, part in tables.items() for group in range(-(-len(part) // step))]

    def compare(job: tuple[str, int]) -> str | None:
        name, group = job
        try:
            return data_fault(files, schema, name, rows.slice(tables[name].start, len(tables[name])), group)
        except DamagedZooError as error:
            return str(error)

    told = set[str]()
    for (name, _), fault in _in_threads(compare, jobs):
        if fault is not None and name not in told:
            told.add(name)
            yield Fault(name, fault)


def card_fault(folder: Path, manifest: Manifest, spec: ZooSpec, repository: str | None) -> str | None:
    """Return in words why README.md is not the card of a zoo, or None.

    A published card names its repository. Where that is not known, it is the one that the card itself names.
    """
    try:
        card = read_inside(folder, "README.md", LIMITS["README.md"])
    except OSError as error:
        return unreadable(error)
    named = [None, *card_repositories(card)] if repository is None else [repository]
    if any(card == render_card(manifest, spec, name).encode() for name in named):
        return None
    return f"is not the card{f' of {repository}' if repository else ''} that zoo.json and spec.yaml make"


# --- an unfinished zoo ---------------------------------------------------------------------------------


def _unfinished_faults(zoo: ZooFolder, tick: Callable[[int], None]) -> Iterator[Fault]:
    try:
        plan = zoo.read_plan()
        if plan is None:
            raise ZooNotFoundError(f"{zoo.path}: holds no zoo")
    except DamagedZooError as error:
        yield Fault(".work/plan.json", _without(zoo.path, ".work/plan.json", error))
        return
    yield from _log_faults(zoo.path)
    try:
        plan.models()
    except DamagedZooError as error:
        yield Fault(PLAN, _without(zoo.path, PLAN, error))
        return
    if contradiction := schema_fault(plan.schema, plan.spec):
        yield Fault(PLAN, f"schema: {contradiction}")
        return
    shards: dict[str, FileInfo] = {}
    records: list[StackRecord | None] = []
    for stack in range(len(plan.stacks)):
        name, record = zoo.record_name(stack), None
        try:
            record = zoo.check_record(plan, stack, zoo.read_record(stack))
            if record is not None:
                shards |= record.shards
                zoo.state_bytes(stack)
        except DamagedZooError as error:
            yield Fault(name, _without(zoo.path, name, error))
        records.append(record)
    files, damaged, notes = VerifiedFiles(zoo.path, shards), set[str](), _Notes(zoo.path)
    for fault in file_faults(files, tick, notes):
        damaged.add(fault.name)
        yield fault
    for name, what in _in_threads(
        lambda name: _planned(files, zoo, plan, records, name), sorted(shards.keys() - damaged)
    ):
        if what is not None:
            yield Fault(name, what)
    if zoo.has(IMAGES) and not _images_intact(zoo, plan):
        yield Fault(IMAGES, "does not hold the images of this zoo")
    notes.forget()


def _planned(
    files: VerifiedFiles, zoo: ZooFolder, plan: Plan, records: Sequence[StackRecord | None], name: str
) -> str | None:
    """Return in words why a shard does not hold models of its stack, in their order, with their scores; or None."""
    stack = stack_of(name)
    record = records[stack]
    assert record is not None  # it is what names the shard
    try:
        zoo.read_shard(plan, stack, record, name)
    except DamagedZooError as error:
        return _without(zoo.path, name, error)
    table = _shard_table(files, plan.schema, plan.spec, plan.models(), (), name)
    return table if isinstance(table, str) else None


def _images_intact(zoo: ZooFolder, plan: Plan) -> bool:
    from zootools.storage.image_tensors import map_images

    try:
        return map_images(zoo, plan.schema.classes, "cpu").digest == plan.images_sha256
    except DamagedZooError:
        return False


def _without(folder: Path, name: str, error: Exception) -> str:
    """Return what an error says, without the path that a fault names already."""
    text = str(error)
    for prefix in (f"{folder / name}: ", f"{folder}: {name}: ", f"{name}: "):
        text = text.removeprefix(prefix)
    return text


# --- files, in threads, and again from where we were ---------------------------------------------------


def file_faults(
    files: VerifiedFiles,
    tick: Callable[[int], None] = lambda count: None,
    notes: "_Notes | None" = None,
    threads: int | None = None,
) -> Iterator[Fault]:
    """Yield the faults of files in the order of their names; ``threads`` hash at once, by default one per core.

    What ``notes`` know to be intact is not read again. They are written down where this is interrupted.
    """
    notes = notes or _Notes(files.folder)

    def examine(name: str) -> str | None:
        fault = files.fault(name, notes.known(name, files.files[name]))
        if fault is None:
            notes.add(name, files)
        return fault

    try:
        for name, fault in _in_threads(examine, sorted(files.files), threads):
            tick(files.files[name].size)
            if fault is not None:
                yield Fault(name, fault)
    except KeyboardInterrupt:
        notes.write()
        raise


def _in_threads(function: Callable[[K], V], items: Sequence[K], threads: int | None = None) -> Iterator[tuple[K, V]]:
    """Yield items in their order and what a function makes of each, in ``threads`` threads, by default one per core."""
    count = threads or os.cpu_count() or 1
    pool, begun = ThreadPoolExecutor(count), deque[tuple[K, Future[V]]]()
    try:
        for item in items:
            begun.append((item, pool.submit(function, item)))
            if len(begun) > 4 * count:  # results that nobody has taken yet need memory
                item, future = begun.popleft()
                yield item, future.result()
        while begun:
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Notes:
    """Which files of a folder an interrupted verification has found intact."""

    def __init__(self, folder: Path) -> None:
        key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self.path = cache_folder() / "verified" / f"{key}.json"
        self.intact: dict[str, list[Any]] = {}
        self._began, self._written, self._lock = time.time(), time.monotonic(), threading.Lock()
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            value = json.loads(self.path.read_bytes())
            if 0 <= self._began - value["began"] < REMEMBERED:
                self._began, self.intact = value["began"], dict(value["intact"])

    def known(self, name: str, info: FileInfo) -> tuple[int, ...] | None:
        """Return the `verified_files.identity` with which a file of this sha256 was last found intact, if it was."""
        *state, sha256 = self.intact.get(name) or [None]
        return tuple(state) if sha256 == info.sha256 else None

    def add(self, name: str, files: VerifiedFiles) -> None:
        """Note an intact file, and now and then write the notes down."""
        with self._lock:
            self.intact[name] = [*(files.identity(name) or ()), files.files[name].sha256]
            if time.monotonic() - self._written < NOTE_EVERY:
                return
        self.write()

    def write(self) -> None:
        """Write the notes down; a verification that has no place for them does without."""
        with self._lock, suppress(StorageError):
            self._written = time.monotonic()
            write_durably(self.path, json.dumps({"began": self._began, "intact": self.intact}).encode())

    def forget(self) -> None:
        """The verification is through: the next one reads everything again."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


# --- repair --------------------------------------------------------------------------------------------


def repair(folder: Path) -> list[Fault]:
    """Drop what `faults` finds, and nothing else; return it. The next build makes the same bytes again.

    A damaged shard is removed, and its stack will be trained again from the beginning; a damaged table or card is
    removed, and will be derived again. Where the manifest or the plan itself is damaged, nothing vouches for the
    files any more: the next build makes all of them anew, over the old ones. Files that are no part of the zoo are
    left where they are. Raises BusyError while a builder is at work, ZooNotFoundError where there is no zoo.
    """
    zoo = ZooFolder(folder)
    if not zoo.has(PLAN) and not zoo.has(MANIFEST):
        raise ZooNotFoundError(f"{folder}: holds no zoo")
    with FolderLock(zoo.lock) as lock:
        zoo = ZooFolder(folder, lock.descriptor)
        found = list(faults(folder))
        damaged = {fault.name for fault in found if fault.what != UNLISTED}
        in_the_way = [name for name in sorted(damaged) if _is_folder(folder, name)]
        if in_the_way:
            if not zoo.has(PLAN):
                zoo.remove_work()
            raise DamagedZooError(
                f"{folder}: {in_the_way[0]}: is a folder, expected a file; move it away, then repair again"
            )
        if zoo.has(PLAN):
            _repair_unfinished(zoo, damaged)
        elif damaged:
            _repair_finished(zoo, damaged)
        else:
            zoo.remove_work()
    return found


def _repair_finished(zoo: ZooFolder, damaged: set[str]) -> None:
    """Leave a folder that a build completes: with a plan, or (without a specification to make one of) a manifest."""
    if "zoo.json" in damaged:
        zoo.remove(MANIFEST)
        return
    for name in damaged:
        _drop(zoo, name)
    if "spec.yaml" in damaged:
        _drop(zoo, "README.md")  # which could not be compared with it
    else:
        manifest = read_manifest(zoo.path)
        zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
        zoo.remove(MANIFEST)


def _repair_unfinished(zoo: ZooFolder, damaged: set[str]) -> None:
    if "build.json" in damaged:
        _drop(zoo, "build.json")
    if ".work/plan.json" in damaged:
        for entry in zoo.entries(".work"):
            if entry.startswith("stack-"):
                zoo.remove(f".work/{entry}")
        zoo.remove(PLAN)
        return
    for name in damaged:
        if name.startswith("checkpoints/"):
            _drop(zoo, name)
    zoo.remove(IMAGES)  # every build writes it anew
    plan = zoo.read_plan()
    for stack in range(len(plan.stacks) if plan else 0):
        name = zoo.record_name(stack)
        try:
            record = zoo.read_record(stack)
        except DamagedZooError:
            _drop(zoo, name)
            continue
        if plan is not None and record is not None and damaged & {name, *record.shards}:
            kept = {shard_name(stack, epoch) for epoch in plan.spec.training.kept_epochs} - damaged
            record.shards = {shard: info for shard, info in record.shards.items() if shard in kept}
            zoo.restart_stack(stack, record)


def _drop(zoo: ZooFolder, name: str) -> None:
    """Remove a file of a zoo, or a link, a pipe or the like in its place or in that of one of its folders."""
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end])
        try:
            is_folder = stat.S_ISDIR(stat_inside(zoo.path, part).st_mode)
        except FileNotFoundError:
            return
        if not is_folder:
            zoo.remove(part)
            return


def _is_folder(folder: Path, name: str) -> bool:
    """Whether there is a folder in the place of a file: what is in it is not ours to remove."""
    with suppress(FileNotFoundError, NotPlainError):
        return stat.S_ISDIR(stat_inside(folder, name).st_mode)
    return False
