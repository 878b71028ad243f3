"""Where a zoo is: in an object store, by its URL; in a folder, by its path; or on a hub, by its name."""

import difflib
import logging
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from zootools.errors import HubError, SpecError, StorageError, ZooNotFoundError, nearest_path
from zootools.filesystem.files import exists
from zootools.hub import folder as hub_folder
from zootools.hub.names import hub_setting
from zootools.object_store.reader import object_store_place
from zootools.object_store.urls import folder_of
from zootools.source import Request
from zootools.storage.file_rules import ENDINGS
from zootools.storage.place import Place
from zootools.zoo import Zoo, open_folder
from zootools.zoo_name import ZooName, parse_name

LOG = logging.getLogger(__name__)

FILE_ENDINGS = (*ENDINGS, ".yml", ".zip", ".gz", ".tar", ".csv", ".txt", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".h5")
"""Endings of file names: ORG/NAME with one of them is taken for a path."""


class ZooSource(ABC):
    """A `zootools.source.Source` of zoos in the format of zootools."""

    @abstractmethod
    def accepts(self, request: Request) -> bool:
        """See `zootools.source.Source`."""

    @abstractmethod
    def find(self, request: Request) -> Place:
        """Return the place of a zoo, whose manifest, specification and metadata are in its folder."""

    def open(self, request: Request) -> Zoo:
        """See `zootools.source.Source`."""
        place = self.find(request)
        return replace(open_folder(place.folder, request.verify), place=place)


class ObjectStoreSource(ZooSource):
    """Finished zoos in object stores, by their URLs."""

    def accepts(self, request: Request) -> bool:
        """Whether the path is the URL of an object store."""
        return folder_of(request.path) is None

    def find(self, request: Request) -> Place:
        """Return the place of the zoo at a URL; see `object_store_place`."""
        if request.revision is not None:
            raise SpecError(f"{request.path}: is a URL; only names have revisions")
        return object_store_place(str(request.path))


class FolderSource(ZooSource):
    """Zoos in folders, finished or still being built, by their paths."""

    def accepts(self, request: Request) -> bool:
        """Whether there is anything at the path."""
        folder = folder_of(request.path)
        return folder is not None and exists(folder)

    def find(self, request: Request) -> Place:
        """Return a folder as a place. Raises SpecError for a revision, ZooNotFoundError for a file."""
        folder = folder_of(request.path)
        assert folder is not None, "`accepts` has said so"
        if request.revision is not None:
            raise SpecError(f"{request.path}: is a path; only names have revisions")
        if not folder.is_dir():
            kind = "a file" if folder.is_file() else "neither a folder nor a file"
            raise ZooNotFoundError(
                f"{request.path}: is {kind}; expected a folder (a Parquet file can be read with --schema)"
            )
        return Place(folder, str(request.path))


class HubSource(ZooSource):
    """Published zoos in a hub folder or on the Hub, by their names."""

    def accepts(self, request: Request) -> bool:
        """True: what is neither a URL nor an existing path must be a name."""
        return True

    def find(self, request: Request) -> Place:
        """Return the place of a published zoo; see `locate_name` and `name_of`."""
        return locate_name(name_of(request), request.hub)


ZOO_SOURCES: tuple[ZooSource, ...] = (ObjectStoreSource(), FolderSource(), HubSource())
"""Where zoos in the format of zootools are looked for; the first source that accepts a request finds the zoo."""


def locate(zoo: str | Path, revision: str | None = None, hub: str | Path | None = None) -> Place:
    """Find a zoo by URL, path or name, and fetch its manifest, specification and metadata.

    Args:
        zoo: a folder, or ``org/name`` or ``org/name@revision``, or the URL of an object store.
        revision: the branch, tag or commit of a name.
        hub: a folder or URL to look in and nowhere else; without it, first in the folder $ZOOTOOLS_HUB, then on
            the Hub. An existing path always comes first, and what looks like a path is not searched for on the Hub.

    Where a name was found is written to the log. Raises ZooNotFoundError when there is no such zoo, SpecError for what
    is neither path nor name, DamagedZooError for a zoo that is not what its manifest says.
    """
    request = Request(zoo, revision, hub)
    return next(source for source in ZOO_SOURCES if source.accepts(request)).find(request)


def locate_name(name: ZooName, hub: str | Path | None = None) -> Place:
    """Find a zoo by its name, in a hub folder or on the Hub; see `locate`."""
    if (place := in_hub_folder(name, hub)) is not None:
        return place
    from zootools.hub import remote

    try:
        place = remote.hub_place(name, hub_url(hub))
    except (ZooNotFoundError, HubError, StorageError) as error:
        raise type(error)(f"{error} (there is no folder of this name either)") from error
    LOG.info("%s: from the Hub, commit %s", name, place.commit)
    return place


def in_hub_folder(name: ZooName, hub: str | Path | None) -> Place | None:
    """Return the version of a data set that a hub folder has; None where it must be looked for on the Hub.

    Raises ZooNotFoundError where ``hub`` is a folder that does not have it.
    """
    setting = hub_setting(hub)
    if not isinstance(setting, Path):
        return None
    if hub is not None:
        hub_folder.require(setting)
    found = hub_folder.find_version(setting, name)
    if found is not None:
        LOG.info("%s: from the hub folder %s", name, setting)
        return Place(found, str(name), hub_folder.commit_of(found), name.repo_id)
    if hub is not None:
        raise ZooNotFoundError(f"{setting}: this hub folder has no {name.repo_id}")
    return None


def hub_url(hub: str | Path | None) -> str | None:
    """Return the URL of another Hub that is to be used; None for the one that huggingface-hub is set to."""
    setting = hub_setting(hub)
    return setting if isinstance(setting, str) else None


def name_of(request: Request) -> ZooName:
    """Return the name of a published data set that is asked for, where nothing is at its path.

    Raises ZooNotFoundError for what looks like a path, SpecError for the revision of what cannot be a name.
    """
    path, setting = Path(request.path), hub_setting(None)
    name = parse_name(str(request.path), request.revision)
    if name is None and request.revision is not None:
        raise SpecError(f"{request.path}: is not ORG/NAME; only names have revisions")
    if name is None:
        raise _no_such_folder(request.path)
    in_folder = isinstance(setting, Path) and hub_folder.find_version(setting, name) is not None
    by_name = name.revision is not None or request.hub is not None or in_folder
    if not by_name and (looks_like_a_path(path) or neighbour(path) is not None):
        raise _no_such_folder(request.path)
    return name


def looks_like_a_path(path: Path) -> bool:
    """Whether ``ORG/NAME`` is probably a mistyped path: it has the ending of a file, or ORG exists here."""
    return path.suffix.lower() in FILE_ENDINGS or os.path.lexists(path.parts[0])


def neighbour(path: Path) -> Path | None:
    """Return the path most similar to ``ORG/NAME`` or ``NAME`` of which both parts may be mistyped, None without one.

    For ``zoo/tetris_sed`` that is ``zoos/tetris_seed``, and for ``tetris_sed`` too: zoos are built in ``zoos``.
    """
    if len(path.parts) == 1:
        folders, word = ["zoos"], path.parts[0]
    else:
        folders, word = difflib.get_close_matches(path.parts[0], _entries(Path()), n=3, cutoff=0.7), path.parts[1]
    for folder in folders:
        if near := difflib.get_close_matches(word, _entries(Path(folder)), n=1, cutoff=0.8):
            return Path(folder, near[0])
    return None


def _entries(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(entry.name for entry in islice(folder.iterdir(), 10_000))
    return []


def _no_such_folder(path: str | Path) -> ZooNotFoundError:
    """Return the error for a path where nothing is, with the nearest name that is there."""
    folder = folder_of(path)
    assert folder is not None, "a URL is not looked for as a path"
    name = parse_name(str(path))
    hint = f" (of a zoo on the Hub with this name give the revision too: {name.repo_id}@main)" if name else ""
    near = neighbour(folder) if len(folder.parts) in (1, 2) and not folder.is_absolute() else None
    meant = f"; did you mean {str(near)!r}?" if near is not None else nearest_path(folder)
    return ZooNotFoundError(f"{path}: there is no such folder{meant}{hint}")
