"""Repair of a damaged zoo: what is damaged is removed, so that the next build makes it again."""

import stat
from contextlib import suppress
from pathlib import Path

from zootools.errors import DamagedZooError, ZooNotFoundError
from zootools.filesystem.inside import NotPlainError, stat_inside
from zootools.filesystem.lock import FolderLock
from zootools.storage.build_state import IMAGES, MANIFEST, PLAN, ZooFolder
from zootools.storage.finish import derive_again
from zootools.storage.manifest import read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.storage.part import require_whole
from zootools.storage.reopening import reopen
from zootools.storage.shards import shard_name
from zootools.verify.fault import UNLISTED, Fault
from zootools.verify.zoo import faults


def repair(folder: Path) -> list[Fault]:
    """Remove the files that `faults` reports, and nothing else; return the faults. The next build makes the same bytes.

    The stack of a damaged shard is trained again from its beginning; a damaged table or card is derived again. If the
    manifest or the plan itself is damaged, nothing says what the other files must be: the next build makes all of them
    anew, over the old ones. Files that are not part of the zoo are kept.

    Raises BusyError while a builder is at work, ZooNotFoundError if the folder holds no zoo, DamagedZooError for a
    folder in the place of a file.
    """
    zoo = ZooFolder(folder)
    if not zoo.has(PLAN) and not zoo.has(MANIFEST):
        raise ZooNotFoundError(f"{folder}: holds no zoo")
    require_whole(folder, "repaired")
    with FolderLock(zoo.lock) as lock:
        zoo = ZooFolder(folder, lock.descriptor)
        found = list(faults(folder))
        damaged = {fault.name for fault in found if fault.what != UNLISTED}
        in_the_way = [name for name in sorted(damaged) if _is_folder(folder, name)]
        if in_the_way:
            if not zoo.has(PLAN):
                zoo.remove_work()
            raise DamagedZooError(
                "is a folder, expected a file; move it away, then repair again", path=folder / in_the_way[0]
            )
        if zoo.has(PLAN):
            _repair_unfinished(zoo, damaged)
        elif damaged:
            _repair_finished(zoo, damaged)
        else:
            zoo.remove_work()
    return found


def _repair_finished(zoo: ZooFolder, damaged: set[str]) -> None:
    """Leave a folder that a build completes: with a plan, or (without a specification to make one of) a manifest.

    The tables and the card of an imported zoo are derived again at once. Raises DamagedZooError if its shards are
    damaged, which no build can make again; then nothing is removed.
    """
    if "zoo.json" not in damaged and read_manifest(zoo.path).imported is not None:
        if lost := sorted(name for name in damaged if name.startswith("checkpoints/")):
            raise DamagedZooError(
                "is damaged, and no build can make a zoo again that was imported; import it into another folder",
                path=zoo.path / lost[0],
            )
        for name in damaged:
            _remove(zoo, name)
        derive_again(zoo)
        return
    if "zoo.json" in damaged:
        zoo.remove(MANIFEST)
        return
    for name in damaged:
        _remove(zoo, name)
    if "spec.yaml" in damaged:
        _remove(zoo, "README.md")  # it could not be compared with the specification
    else:
        manifest = read_manifest(zoo.path)
        zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
        zoo.remove(MANIFEST)


def _repair_unfinished(zoo: ZooFolder, damaged: set[str]) -> None:
    if "build.json" in damaged:
        _remove(zoo, "build.json")
    if PLAN in damaged:
        for entry in zoo.entries(".work"):
            if entry.startswith("stack-"):
                zoo.remove(f".work/{entry}")
        zoo.remove(PLAN)
        return
    for name in damaged:
        if name.startswith("checkpoints/"):
            _remove(zoo, name)
    zoo.remove(IMAGES)  # every build writes it anew
    plan = zoo.read_plan()
    for stack in range(len(plan.stacks) if plan else 0):
        name = zoo.record_name(stack)
        try:
            record = zoo.read_record(stack)
        except DamagedZooError:
            _remove(zoo, name)
            continue
        if plan is not None and record is not None and damaged & {name, *record.shards}:
            kept = {shard_name(stack, epoch) for epoch in plan.spec.training.kept_epochs} - damaged
            record.shards = {shard: info for shard, info in record.shards.items() if shard in kept}
            zoo.restart_stack(stack, record)


def _remove(zoo: ZooFolder, name: str) -> None:
    """Remove a file of a zoo, or the link, pipe or the like that replaces it or one of its folders."""
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
    """Whether there is a folder in the place of a file; its contents must not be removed."""
    with suppress(FileNotFoundError, NotPlainError):
        return stat.S_ISDIR(stat_inside(folder, name).st_mode)
    return False
