"""Copying a published zoo into a folder."""

import hashlib
from pathlib import Path

from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.files import durable_file, write_durably
from zootools.filesystem.inside import is_snapshot, names_inside, open_inside
from zootools.hub.locate import locate, locate_name
from zootools.hub.names import require_name
from zootools.object_store.urls import is_url
from zootools.storage.build_state import MANIFEST
from zootools.storage.file_rules import is_hidden
from zootools.storage.manifest import UNHASHED, read_manifest
from zootools.storage.manifest_checks import stored_origin
from zootools.storage.place import Place
from zootools.storage.unhashed import read_unhashed
from zootools.storage.verified_files import FileInfo, file_fault, unreadable
from zootools.verify import card_fault
from zootools.zoo import open_folder


def pull(name: str, folder: Path, *, revision: str | None = None, hub: str | Path | None = None) -> Place:
    """Copy a published zoo, by its name or URL, into a folder; the same call again copies only missing files.

    The manifest is copied last, so an interrupted copy is not a zoo. Raises SpecError when the folder holds something
    else, ZooNotFoundError when there is no such zoo, and DamagedZooError: before anything is copied, for metadata that
    `open_folder` refuses or the card of another zoo; later, for a file that is not what the manifest promises.
    The weights in shards and tables are not compared with each other; `zootools verify` does that.
    """
    wanted = None if is_url(name) else require_name(name, revision)
    place = locate(name, revision, hub) if wanted is None or Path(name).exists() else locate_name(wanted, hub)
    manifest = read_manifest(place.folder)
    files = manifest.files
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder}: is a file; expected a folder")
    if is_snapshot(folder):
        raise SpecError(f"{folder}: is a snapshot in the Hub's cache, which never changes; choose another folder")
    # A link where the zoo has a file is replaced; nothing is written through it.
    present = names_inside(folder) if folder.is_dir() else []
    strangers = {file for file in present if not is_hidden(file)} - {*files, *UNHASHED}
    if strangers or (MANIFEST in present and read_manifest(folder).sha256 != manifest.sha256):
        raise SpecError(f"{folder}: holds something else; choose another folder")
    open_folder(place.folder)  # refuses metadata that is not that of the manifest
    place.fetch(["README.md"])
    if fault := card_fault(place.folder, manifest, stored_origin(place.folder, manifest), place.repository):
        raise DamagedZooError(f"{place.folder}: README.md: {fault}")
    missing = [file for file, info in files.items() if file_fault(folder, file, info) is not None]
    place.fetch([*missing, "build.json"])
    for file in missing:
        _copy(place.folder, folder, file, files[file])
    for file in ("build.json", "README.md", MANIFEST):
        data = read_unhashed(place.folder, file)
        if data is None and file != "build.json":
            raise DamagedZooError(f"{place.folder / file}: is missing")
        if data is not None:
            write_durably(folder / file, data, folder)
    return place


def _copy(source: Path, target: Path, file: str, info: FileInfo) -> None:
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
        if digest.hexdigest() != info.sha256:
            raise DamagedZooError(f"{source / file}: its bytes have changed (sha256)")
