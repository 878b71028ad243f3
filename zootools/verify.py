"""Holding a whole zoo folder against what was written: `verify` finds what is wrong, `repair` drops it.

A verification reads every byte. One that is interrupted goes on where it was: which files were found intact
is noted in the user's cache, never in the zoo, and forgotten when the verification is through.
"""

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zootools.checked import FileInfo, content_fault, identity, unreadable
from zootools.errors import DamagedZooError, StorageError, ZooNotFoundError
from zootools.files import FolderLock, write_durably
from zootools.image_files import cache_folder
from zootools.inside import (
    NotPlainError,
    names_inside,
    open_inside,
    path_inside,
    read_inside,
    stat_inside,
)
from zootools.manifest import UNHASHED, read_manifest, reopen, stored_spec
from zootools.shards import read_info
from zootools.store import IMAGES, MANIFEST, PLAN, Plan, ZooFolder
from zootools.unhashed import read_unhashed

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
    if zoo.has(PLAN):
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
    damaged = {fault.name for fault in found}
    if "spec.yaml" not in damaged:
        yield from _card_faults(folder, manifest)
        if not any(name.startswith(("checkpoints/", "metadata/")) for name in damaged):
            yield from _content_faults(folder, manifest)
    try:
        read_unhashed(folder, "build.json")
    except DamagedZooError as error:
        yield Fault("build.json", _without(folder / "build.json", error))
    known = {*manifest["files"], *UNHASHED}
    for name in names_inside(folder):
        if not name.startswith(".") and name not in known:
            yield Fault(name, UNLISTED)


def _card_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    from zootools.card import card_location, render_card

    try:
        card = read_inside(folder, "README.md", 1 << 20)
    except OSError as error:
        yield Fault("README.md", unreadable(error))
        return
    if card != render_card(manifest, stored_spec(folder, manifest), card_location(card)).encode():
        yield Fault("README.md", "is not the card that zoo.json and spec.yaml make")


def _content_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[Fault]:
    """Intact files can still say what is not so: hold models, shards and tables against each other."""
    from zootools.population import expand
    from zootools.tables import metadata_name, metadata_table
    from zootools.zoo import open_zoo

    spec = stored_spec(folder, manifest)
    models = {model.model_id: model for model in expand(spec)}
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
    files: dict[str, FileInfo] = {}
    for stack in range(len(plan.stacks)):
        name = zoo.record_name(stack)
        try:
            record = zoo.read_record(stack)
            if record is not None:
                files |= record.shards
                zoo.state_bytes(stack)
        except DamagedZooError as error:
            yield Fault(name, _without(zoo.path / name, error))
    yield from file_faults(zoo.path, files, tick)
    if zoo.has(IMAGES) and not _images_intact(zoo, plan):
        yield Fault(IMAGES, "does not hold the images of this zoo")


def _images_intact(zoo: ZooFolder, plan: Plan) -> bool:
    from safetensors import SafetensorError

    from zootools.engines.worker import map_images

    try:
        with path_inside(zoo.path, IMAGES) as path:
            return map_images(path, plan.schema.classes, "cpu").digest == plan.images_sha256
    except (SafetensorError, OSError, RuntimeError, KeyError):
        return False


def _without(path: Path, error: DamagedZooError) -> str:
    """Return what an error says, without the path that a fault names already."""
    text = str(error)
    for prefix in (f"{path}: ", f"{path.parent}: {path.name}: ", f"{path.parents[1]}: .work/{path.name}: "):
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
        with suppress(OSError, ValueError, TypeError, KeyError):
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
        _drop(zoo, "README.md")  # which could not be held against it
    else:
        manifest = read_manifest(zoo.path)
        zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
        zoo.remove(MANIFEST)


def _repair_unfinished(zoo: ZooFolder, damaged: set[str]) -> None:
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
        if record is not None and damaged & {name, *record.shards}:
            record.shards = {shard: info for shard, info in record.shards.items() if shard not in damaged}
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
