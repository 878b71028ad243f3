"""Copying a published zoo, or a part of it, into a folder."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import durable_file, write_durably
from zootools.filesystem.inside import is_snapshot, names_inside, open_inside, remove_inside
from zootools.hub.locate import locate, locate_name
from zootools.hub.names import require_name
from zootools.object_store.urls import is_url
from zootools.percent import PercentProgress
from zootools.storage.build_state import MANIFEST
from zootools.storage.file_rules import is_hidden
from zootools.storage.manifest import UNHASHED, Manifest, read_manifest
from zootools.storage.manifest_checks import stored_origin
from zootools.storage.part import PART, Part, Selection, read_part, require_whole
from zootools.storage.place import Place
from zootools.storage.unhashed import read_unhashed
from zootools.storage.verified_files import FileInfo, file_fault, unreadable
from zootools.verify import card_fault
from zootools.zoo import open_folder, part_files

LOG = logging.getLogger(__name__)


def pull(
    name: str,
    folder: Path,
    *,
    revision: str | None = None,
    hub: str | Path | None = None,
    only: Selection | None = None,
    quiet: bool = True,
) -> Place:
    """Copy a published zoo, by its name or URL, into a folder; the same call again copies only missing files.

    Args:
        name: ``org/name``, or the URL of an object store.
        folder: the folder, which may hold an interrupted copy of the same zoo.
        revision: the branch, tag or commit of a name.
        hub: a folder or URL to look in and nowhere else.
        only: copy these checkpoints only, with the metadata of all: the folder is then a part (`zootools.storage.part`)
            and `zootools.open_zoo` reads the chosen checkpoints. A later call without it completes the zoo.
        quiet: print no progress to stderr.

    The manifest is copied last, so an interrupted copy is not a zoo. Raises SpecError when the folder holds something
    else or nothing is chosen, ZooNotFoundError when there is no such zoo, and DamagedZooError: before anything is
    copied, for metadata that `open_folder` refuses or the card of another zoo; later, for a file that is not what the
    manifest promises. The weights in shards and tables are not compared with each other; `zootools verify` does that.
    """
    only = only or Selection()
    wanted = None if is_url(name) else require_name(name, revision)
    place = locate(name, revision, hub) if wanted is None or Path(name).exists() else locate_name(wanted, hub)
    require_whole(place.folder, "copied")
    manifest = read_manifest(place.folder)
    _check_target(folder, manifest, only)
    zoo = open_folder(place.folder)  # refuses metadata that is not that of the manifest
    chosen = zoo.select(only)
    if not len(chosen):
        raise SpecError(f"{name}: no checkpoint is chosen by {only}; there are {len(zoo):,} in all")
    place.fetch(["README.md"])
    if fault := card_fault(place.folder, manifest, stored_origin(place.folder, manifest), place.repository):
        raise DamagedZooError(f"{place.folder}: README.md: {fault}")
    files = dict(manifest.files)
    if not only.is_everything:
        files = {file: files[file] for file in part_files(chosen, manifest, only)}
        LOG.info("%s: %s of %s checkpoints are chosen", name, f"{len(chosen):,}", f"{len(zoo):,}")
    _copy_missing(place, folder, {f: i for f, i in files.items() if file_fault(folder, f, i) is not None}, quiet)
    if not only.is_everything:
        write_durably(folder / PART, _part(place, manifest, only).to_bytes(), folder)
    for file in ("build.json", "README.md", MANIFEST):
        data = read_unhashed(place.folder, file)
        if data is None and file != "build.json":
            raise DamagedZooError(f"{place.folder / file}: is missing")
        if data is not None:
            write_durably(folder / file, data, folder)
    if only.is_everything:
        remove_inside(folder, PART)
    return place


def _check_target(folder: Path, manifest: Manifest, only: Selection) -> None:
    """Raise SpecError for a folder that holds anything but (some of) the files of the same zoo, or another part."""
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder}: is a file; expected a folder")
    if is_snapshot(folder):
        raise SpecError(f"{folder}: is a snapshot in the Hub's cache, which never changes; choose another folder")
    # A link where the zoo has a file is replaced; nothing is written through it.
    present = names_inside(folder) if folder.is_dir() else []
    strangers = {file for file in present if not is_hidden(file)} - {*manifest.files, *UNHASHED, PART}
    if strangers or (MANIFEST in present and read_manifest(folder).sha256 != manifest.sha256):
        raise SpecError(f"{folder}: holds something else; choose another folder")
    part = read_part(folder) if PART in present else None
    if part is not None and not only.is_everything and (part.selection, part.manifest) != (only, manifest.sha256):
        raise SpecError(
            f"{folder}: holds another part ({part.selection}); choose another folder, or pull the whole zoo into it"
        )
    if MANIFEST in present and part is None and not only.is_everything:
        raise SpecError(f"{folder}: holds the whole zoo already; choose another folder for a part of it")


def _part(place: Place, manifest: Manifest, only: Selection) -> Part:
    return Part(
        zoo=place.repository or place.name,
        commit=place.commit,
        manifest=manifest.sha256,
        where=only.where,
        epochs=list(only.epochs or ()),
        weights=only.weights,
    )


def _copy_missing(place: Place, folder: Path, missing: dict[str, FileInfo], quiet: bool) -> None:
    """Fetch files to a place, and copy them to a folder; progress counts both as one half."""
    place.fetch(["build.json"])
    total = (1 + place.fetches) * sum(info.size for info in missing.values())
    with PercentProgress(total, "pulling", quiet) as progress:
        place.fetch(missing, progress.tick)
        for file, info in missing.items():
            _copy(place.folder, folder, file, info, progress.tick)


def _copy(source: Path, target: Path, file: str, info: FileInfo, tick: Callable[[int], None]) -> None:
    """Copy one file, which appears under its name after the bytes that were read have been compared with its sha256."""
    digest = hashlib.sha256()
    try:
        opened = open_inside(source, file)
    except OSError as error:
        raise DamagedZooError(f"{source / file}: {unreadable(error)}") from error
    with opened, durable_file(target / file, target) as copy:
        while block := opened.read(1 << 20):
            digest.update(block)
            copy.write(block)
            tick(len(block))
        if digest.hexdigest() != info.sha256:
            raise DamagedZooError(f"{source / file}: its bytes have changed (sha256)")
