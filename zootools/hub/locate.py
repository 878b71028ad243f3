"""Where a zoo is: an existing path, else the hub folder, else the Hub; or an object store, by its URL."""

import logging
import os
from pathlib import Path

from zootools.errors import HubError, SpecError, StorageError, ZooNotFoundError, nearest_path
from zootools.filesystem.files import exists
from zootools.hub import folder as hub_folder
from zootools.hub.names import hub_setting
from zootools.object_store.reader import object_store_place
from zootools.object_store.urls import folder_of
from zootools.storage.file_rules import ENDINGS
from zootools.storage.place import Place
from zootools.zoo_name import ZooName, parse_name

LOG = logging.getLogger(__name__)

FILE_ENDINGS = (*ENDINGS, ".yml", ".zip", ".gz", ".tar", ".csv", ".txt", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".h5")
"""What a name of a zoo on a hub could end in, but is a file's name."""


def locate(zoo: str | Path, revision: str | None = None, hub: str | Path | None = None) -> Place:
    """Find a zoo by path or name, with its manifest, specification and metadata at hand.

    Args:
        zoo: a folder, or ``org/name`` or ``org/name@revision``, or the URL of an object store.
        revision: the branch, tag or commit of a name.
        hub: a folder or URL to look in and nowhere else; without it, first in the folder $ZOOTOOLS_HUB, then on
            the Hub. An existing path always comes first, and what reads like a path is not looked for on the Hub.

    Says in the log which it was. Raises ZooNotFoundError when there is no such zoo, SpecError for what is neither
    path nor name, DamagedZooError for a zoo that is not what its manifest says.
    """
    folder = folder_of(zoo)
    if folder is None:
        if revision is not None:
            raise SpecError(f"{zoo}: is a URL; only names have revisions")
        return object_store_place(str(zoo))
    if exists(folder):
        if revision is not None:
            raise SpecError(f"{zoo}: is a path; only names have revisions")
        if not folder.is_dir():
            what = "a file" if folder.is_file() else "neither a folder nor a file"
            raise ZooNotFoundError(f"{zoo}: is {what}; expected a folder (a Parquet file can be read with --schema)")
        return Place(folder, str(zoo))
    return locate_name(require_meant(zoo, folder, revision, hub), hub)


def locate_name(name: ZooName, hub: str | Path | None = None) -> Place:
    """Find a zoo by its name, in a hub folder or on the Hub; see `locate`."""
    setting = hub_setting(hub)
    if isinstance(setting, Path):
        if hub is not None:
            hub_folder.require(setting)
        found = hub_folder.find_version(setting, name)
        if found is not None:
            LOG.info("%s: from the hub folder %s", name, setting)
            return Place(found, str(name), hub_folder.commit_of(found), name.repo_id)
        if hub is not None:
            raise ZooNotFoundError(f"{setting}: this hub folder has no {name.repo_id}")
    from zootools.hub import remote

    try:
        place = remote.hub_place(name, setting if isinstance(setting, str) else None)
    except (ZooNotFoundError, HubError, StorageError) as error:
        raise type(error)(f"{error} (there is no folder of this name either)") from error
    LOG.info("%s: from the Hub, commit %s", name, place.commit)
    return place


def require_meant(zoo: str | Path, path: Path, revision: str | None, hub: str | Path | None) -> ZooName:
    """Return the name on a hub that is meant where nothing is at the path.

    Raises ZooNotFoundError for what reads like a path, SpecError for the revision of what cannot be a name.
    """
    name, setting = parse_name(str(zoo), revision), hub_setting(None)
    if name is None and revision is not None:
        raise SpecError(f"{zoo}: is no ORG/NAME; only names have revisions")
    if name is None:
        raise missing(zoo, path)
    known = hub is not None or (isinstance(setting, Path) and hub_folder.find_version(setting, name) is not None)
    if name.revision is None and not known and reads_like_a_path(path):
        raise missing(zoo, path)
    return name


def files_meant(source: str | Path, revision: str | None, hub: str | Path | None) -> str | Path:
    """Return the existing path, or else the name on a hub, that is meant with files which are not a zoo of zootools.

    Raises what `locate` raises for anything else, and SpecError for the URL of an object store.
    """
    path = folder_of(source)
    if path is None:
        raise SpecError(f"{source}: Parquet files of others are read from a folder or from the Hub; copy them first")
    if exists(path):
        return path
    require_meant(source, path, revision, hub)
    return source


def reads_like_a_path(path: Path) -> bool:
    """Whether ``ORG/NAME`` is rather a mistyped path: a file's name, or something below a name that is here."""
    return path.suffix.lower() in FILE_ENDINGS or os.path.lexists(path.parts[0])


def missing(zoo: str | Path, path: Path) -> ZooNotFoundError:
    """Return the refusal of a path where nothing is, with the nearest name that is there."""
    name = parse_name(str(zoo))
    hint = f" (of a zoo on the Hub with this name give the revision too: {name.repo_id}@main)" if name else ""
    return ZooNotFoundError(f"{zoo}: there is no such folder{nearest_path(path)}{hint}")
