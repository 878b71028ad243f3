"""Holding a whole zoo folder against what was written: `verify` finds what is wrong, `repair` drops it.

A verification reads every byte. One that is interrupted goes on where it was: which files were found intact
is noted in the user's cache, never in the zoo, and forgotten when the verification is through.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zootools.checked import FileInfo, content_fault, identity, unreadable
from zootools.errors import DamagedZooError, SpecError, StorageError, ZooNotFoundError
from zootools.files import FolderLock, open_inside, remove_durably, write_durably
from zootools.image_files import cache_folder
from zootools.manifest import UNHASHED, read_manifest, reopen, stored_spec
from zootools.shards import read_info, shard_name
from zootools.store import Plan, StackRecord, ZooFolder, read_build_log

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


def faults(folder: Path, tick: Callable[[int], None] = lambda count: None) -> Iterator[Fault]:
    """Yield everything that is wrong with a zoo folder, finished or not.

    ``tick`` is told the bytes of every file that has been read. Raises ZooNotFoundError where there is no zoo.
    """
    zoo = ZooFolder(folder)
    if zoo.plan.exists():
        yield from _unfinished_faults(zoo, tick)
    else:
        yield from _finished_faults(folder, tick)


def _finished_faults(folder: Path, tick: Callable[[int], None]) -> Iterator[Fault]:
    try:
        manifest = read_manifest(folder)
    except DamagedZooError as error:
        yield Fault("zoo.json", _without(folder / "zoo.json", error))
        return
    found = list(file_faults(folder, manifest["files"], tick))
    yield from found
    yield from _log_faults(folder)
    damaged = {fault.name for fault in found}
    if "spec.yaml" not in damaged:
        try:
            stored_spec(folder, manifest)
        except DamagedZooError as error:  # its bytes are those that the manifest names, so the manifest is at fault
            yield Fault("zoo.json", f"files.spec.yaml: {_without(folder / 'spec.yaml', error)}")
            return
        yield from _card_faults(folder, manifest)
        if not any(name.startswith(("checkpoints/", "metadata/")) for name in damaged):
            yield from _content_faults(folder, manifest)
    known = {*manifest["files"], *UNHASHED}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(".") and name not in known and (path.is_symlink() or not path.is_dir()):
            yield Fault(name, UNLISTED)


def _log_faults(folder: Path) -> Iterator[Fault]:
    try:
        read_build_log(folder)
    except DamagedZooError as error:
        yield Fault("build.json", _without(folder / "build.json", error))


def _card_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    from zootools.card import card_location, render_card

    try:
        with open_inside(folder, "README.md") as file:
            card = file.read(1 << 20)
    except OSError as error:
        yield Fault("README.md", unreadable(error))
        return
    if card != render_card(manifest, stored_spec(folder, manifest), card_location(card)).encode():
        yield Fault("README.md", "is not the card that zoo.json and spec.yaml make")


def _content_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    """Intact files can still say what is not so: compare models, shards and tables with each other."""
    from zootools.population import count_models, expand
    from zootools.tables import metadata_name, metadata_table
    from zootools.zoo import open_zoo

    spec = stored_spec(folder, manifest)
    try:
        if (count := count_models(spec)) != manifest["counts"]["expected"]:
            found = manifest["counts"]["expected"]
            yield Fault("zoo.json", f"counts.expected: found {found}, but spec.yaml makes {count} models")
            return
        models = {model.model_id: model for model in expand(spec)}
    except SpecError as error:
        yield Fault("zoo.json", f"files.spec.yaml: {error}")
        return
    listed = {model for stack in manifest["stacks"] for model in stack["models"]}
    if listed != set(models):
        odd = min(listed ^ set(models))
        yield Fault("zoo.json", f"stacks: the models are not those that spec.yaml makes ({odd} is in one only)")
        return
    try:
        zoo = open_zoo(folder, include_diverged=True, verify=False)
        stopped = zoo.stopped
        shards = sorted(name for name in manifest["files"] if name.startswith("checkpoints/"))
        infos = ((int(name[len("checkpoints/stack-") :].partition("/")[0]), read_info(folder, name)) for name in shards)
        table = metadata_table(spec, models, infos, stopped)
    except DamagedZooError as error:
        yield Fault("zoo.json", _without(folder / "zoo.json", error))
        return
    table = table.sort_by([("stack", "ascending"), ("epoch", "ascending"), ("row", "ascending")])
    for column in table.column_names:
        if not table[column].combine_chunks().equals(zoo.metadata[column].combine_chunks()):
            yield Fault(metadata_name("*"), f"the column {column} is not what the shards and spec.yaml say")


def _unfinished_faults(zoo: ZooFolder, tick: Callable[[int], None]) -> Iterator[Fault]:
    try:
        plan = zoo.read_plan()
        if plan is None:
            raise ZooNotFoundError(f"{zoo.path}: holds no zoo")
    except DamagedZooError as error:
        yield Fault(".work/plan.json", _without(zoo.plan, error))
        return
    yield from _log_faults(zoo.path)
    try:
        plan.models()
    except DamagedZooError as error:
        yield Fault(".work/plan.json", _without(zoo.plan, error))
        return
    files: dict[str, FileInfo] = {}
    records: list[StackRecord | None] = []
    for stack in range(len(plan.stacks)):
        name, record = zoo.record_name(stack), None
        try:
            record = zoo.check_record(plan, stack, zoo.read_record(stack))
            if record is not None:
                files |= record.shards
                zoo.state_bytes(stack)
        except DamagedZooError as error:
            yield Fault(name, _without(zoo.path / name, error))
        records.append(record)
    found = list(file_faults(zoo.path, files, tick))
    yield from found
    yield from _shard_faults(zoo, plan, records, {fault.name for fault in found})
    if zoo.images.exists() and not _images_intact(zoo, plan):
        yield Fault(zoo.images.relative_to(zoo.path).as_posix(), "does not hold the images of this zoo")


def _shard_faults(
    zoo: ZooFolder, plan: Plan, records: Sequence[StackRecord | None], damaged: set[str]
) -> Iterator[Fault]:
    """Yield the shards whose bytes are as they were noted, but say what no table can be made of."""
    from zootools.tables import metadata_table

    for stack, record in enumerate(records):
        for name in sorted(record.shards.keys() - damaged) if record else ():
            assert record is not None
            try:
                info = zoo.read_shard(plan, stack, record, name)
                metadata_table(plan.spec, plan.models(), [(stack, info)], record.stopped)
            except DamagedZooError as error:
                yield Fault(name, _without(zoo.path / name, error))


def _images_intact(zoo: ZooFolder, plan: Plan) -> bool:
    from safetensors import SafetensorError

    from zootools.engines.worker import map_images

    try:
        return map_images(zoo.images, plan.schema.classes, "cpu").digest == plan.images_sha256
    except (SafetensorError, OSError, RuntimeError, KeyError):
        return False


def _without(path: Path, error: DamagedZooError) -> str:
    """Return what an error says, without the path that a fault names already."""
    text = str(error)
    relative = f".work/{path.name}: "
    for prefix in (f"{path}: ", f"{path.parent}: {path.name}: ", f"{path.parents[1]}: {relative}", relative):
        text = text.removeprefix(prefix)
    return text


# --- files, in threads, and again from where we were ---------------------------------------------------


def file_faults(
    folder: Path,
    files: Mapping[str, FileInfo],
    tick: Callable[[int], None] = lambda count: None,
    threads: int | None = None,
) -> Iterator[Fault]:
    """Yield the faults of some files in the order of their names; ``threads`` hash at once, by default one per core."""
    notes = _Notes(folder)

    def examine(name: str) -> str | None:
        try:
            with open_inside(folder, name) as file:
                state = [*identity(file), files[name]["sha256"]]
                if notes.intact.get(name) == state:
                    return None
                fault = content_fault(file, files[name])
        except OSError as error:
            return unreadable(error)
        if fault is None:
            notes.add(name, state)
        return fault

    names = sorted(files)
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        for name, fault in zip(names, pool.map(examine, names), strict=True):
            tick(files[name]["size"])
            if fault is not None:
                yield Fault(name, fault)
        notes.forget()
    except KeyboardInterrupt:
        notes.write()
        raise
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

    def add(self, name: str, state: list[Any]) -> None:
        """Note an intact file, and now and then write the notes down."""
        with self._lock:
            self.intact[name] = state
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
    if not zoo.plan.exists() and not zoo.manifest.exists():
        raise ZooNotFoundError(f"{folder}: holds no zoo")
    with FolderLock(zoo.lock) as lock:
        zoo = ZooFolder(folder, lock.descriptor)
        found = list(faults(folder))
        damaged = {fault.name for fault in found if fault.what != UNLISTED}
        if zoo.plan.exists():
            _repair_unfinished(zoo, damaged)
        elif damaged:
            _repair_finished(zoo, damaged)
        else:
            zoo.remove_work()
    return found


def _repair_finished(zoo: ZooFolder, damaged: set[str]) -> None:
    """Leave a folder that a build completes: with a plan, or (without a specification to make one of) a manifest."""
    if "zoo.json" in damaged:
        remove_durably(zoo.manifest)
        return
    for name in damaged:
        _drop(zoo.path, name)
    if "spec.yaml" in damaged:
        _drop(zoo.path, "README.md")  # which could not be held against it
    else:
        manifest = read_manifest(zoo.path)
        zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
        remove_durably(zoo.manifest)


def _repair_unfinished(zoo: ZooFolder, damaged: set[str]) -> None:
    if "build.json" in damaged:
        _drop(zoo.path, "build.json")
    if ".work/plan.json" in damaged:
        for path in zoo.work.glob("stack-*"):
            path.unlink()
        remove_durably(zoo.plan)
        return
    for name in damaged:
        if name.startswith("checkpoints/"):
            _drop(zoo.path, name)
    zoo.images.unlink(missing_ok=True)  # every build writes it anew
    plan = zoo.read_plan()
    for stack in range(len(plan.stacks) if plan else 0):
        name = zoo.record_name(stack)
        try:
            record = zoo.read_record(stack)
        except DamagedZooError:
            _drop(zoo.path, name)
            continue
        if plan is not None and record is not None and damaged & {name, *record.shards}:
            kept = {shard_name(stack, epoch) for epoch in plan.spec.training.kept_epochs} - damaged
            record.shards = {shard: info for shard, info in record.shards.items() if shard in kept}
            zoo.restart_stack(stack, record)


def _drop(folder: Path, name: str) -> None:
    """Remove a file of a zoo, or the link that stands for it or for one of its folders."""
    path = folder
    for part in Path(name).parts:
        path /= part
        if path.is_symlink() or path.is_file():
            remove_durably(path)
            return
