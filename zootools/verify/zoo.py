"""Verification of any zoo: finished or not, in a folder or published."""

from collections.abc import Callable, Iterator
from pathlib import Path

from zootools.storage.build_state import PLAN, ZooFolder
from zootools.storage.manifest import UNHASHED, read_manifest
from zootools.storage.place import Place
from zootools.verify.fault import UNLISTED, Fault, is_ignored
from zootools.verify.finished import finished_faults
from zootools.verify.unfinished import unfinished_faults


def faults(
    folder: Path, tick: Callable[[int], None] = lambda count: None, repository: str | None = None
) -> Iterator[Fault]:
    """Yield everything that is wrong with a zoo folder, finished or not.

    Every file is compared with its sha256. Everything that can be derived from other data is derived again and
    compared: counts, names and layers from the specification, metadata from the shards, the tables that
    `datasets.load_dataset` reads from both, the card from all of them. So faults are found even if all hashes were
    computed anew. Hidden files and folders at the top (``.git``, ``.cache``, ...) are ignored, as readers ignore them.

    Args:
        folder: the zoo's folder.
        tick: called with the size of every file that has been read, in bytes.
        repository: the name (``org/name``) under which the zoo was published, if it is known: the card must contain it.

    Raises ZooNotFoundError if the folder holds no zoo.
    """
    zoo = ZooFolder(folder)
    if zoo.has(PLAN):
        yield from unfinished_faults(zoo, tick)
    else:
        yield from finished_faults(folder, tick, repository)


def place_faults(place: Place, tick: Callable[[int], None] = lambda count: None) -> Iterator[Fault]:
    """Yield everything that is wrong with a zoo at any place; all files of a published zoo are fetched first.

    In addition to `faults`: a card that names another repository, and files there that are not part of the zoo.
    """
    place.fetch_all()
    yield from faults(place.folder, tick, place.repository)
    if place.listed:
        known = {*read_manifest(place.folder).files, *UNHASHED}
        yield from (Fault(name, UNLISTED) for name in sorted(place.listed) if not (name in known or is_ignored(name)))
