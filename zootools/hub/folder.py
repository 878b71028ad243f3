"""A hub in a plain folder: without account and network, with the same names and checks as on the Hub.

``DIR/org/name`` is the newest version of a zoo (`datasets.load_dataset` reads it), ``DIR/org/name@tag`` the version of
a tag or branch. Both are symbolic links into ``DIR/.versions/org/name/<commit>``, where published versions stay for
ever: a link is replaced atomically, and a process that reads a version keeps it.
"""

import hashlib
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError, did_you_mean, nearest_path
from zootools.filesystem.files import exists, storage_error
from zootools.filesystem.inside import (
    NotPlainError,
    entries_inside,
    is_file_inside,
    link_inside,
    make_folder_inside,
    point_inside,
    remove_tree_inside,
    rename_inside,
    stat_inside,
)
from zootools.hashing import canonical_json
from zootools.storage.file_rules import VERSIONS
from zootools.zoo_name import ZooName, parse_name

STAGING = ".staging-"
MANIFEST = "zoo.json"
ABANDONED = 24 * 3600
"""Seconds after which the staging folder of a publisher that was killed is removed."""


def find_version(hub: Path, name: ZooName) -> Path | None:
    """Return the folder of a version of a zoo, None where the hub does not have the zoo.

    Raises ZooNotFoundError where it has the zoo but not the revision, DamagedZooError for a link to anything but a
    version of this zoo.
    """
    main = _followed(hub, name, f"{name.org}/{name.name}")
    if main is None or name.revision in (None, "main"):
        return main
    assert name.revision is not None
    for candidate in (str(name), f"{VERSIONS}/{name.repo_id}/{name.revision}"):
        found = _followed(hub, name, candidate) if "/" not in name.revision else None
        if found is not None:
            return found
    raise ZooNotFoundError(f"{hub}: {name.repo_id} has no revision {name.revision!r}" + _known(hub, name))


def _followed(hub: Path, name: ZooName, shown: str) -> Path | None:
    """Return the folder of a name in the hub, or the version that it links to; None where there is neither."""
    try:
        state = stat_inside(hub, shown)
        if stat.S_ISLNK(state.st_mode):
            commit = version_of(hub, name, shown)
            if commit is None:
                raise DamagedZooError(
                    f"{hub / shown}: is a link that `zootools publish` did not make, and is not followed; expected one "
                    f"to {VERSIONS}/{name.repo_id}, or a folder"
                )
            shown = f"{VERSIONS}/{name.repo_id}/{commit}"
            state = stat_inside(hub, shown)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotPlainError as error:
        raise DamagedZooError(f"{hub / shown}: {error.what}") from error
    return hub / shown if stat.S_ISDIR(state.st_mode) else None


def version_of(hub: Path, name: ZooName, link: str) -> str | None:
    """Return the commit of the version that a link in the hub leads to, None for a link to anything else."""
    target = PurePosixPath(link_inside(hub, link))
    expected = PurePosixPath("..", VERSIONS, name.repo_id)
    return target.name if target.parent == expected and target.name != ".." else None


def has_version(hub: Path, name: ZooName, commit: str) -> bool:
    """Whether a hub has a version of a zoo."""
    with suppress(FileNotFoundError, NotADirectoryError, NotPlainError):
        return stat.S_ISDIR(stat_inside(hub, f"{VERSIONS}/{name.repo_id}/{commit}").st_mode)
    return False


def require(hub: Path) -> None:
    """Raise ZooNotFoundError where there is no hub folder, SpecError where it is a file."""
    if not exists(hub):
        raise ZooNotFoundError(
            f"{hub}: there is no such folder for the hub (--hub or $ZOOTOOLS_HUB){nearest_path(hub)}"
        )
    if not hub.is_dir():
        raise SpecError(f"{hub}: is a file; expected a hub folder (--hub or $ZOOTOOLS_HUB)")


def commit_of(folder: Path) -> str | None:
    """Return the commit of a version's folder, None for a folder that `add_version` did not make."""
    return folder.name if any(above.name == VERSIONS for above in folder.parents[2:3]) else None


def names(hub: Path) -> Iterator[ZooName]:
    """Yield the zoos of a hub, in alphabetical order."""
    for org in _entries(hub, ""):
        for entry in _entries(hub, org):
            name = parse_name(f"{org}/{entry}")
            if name is not None and name.revision is None:
                with suppress(DamagedZooError):
                    folder = find_version(hub, name)
                    if folder is not None and is_file_inside(folder, MANIFEST):
                        yield name


def date_of(hub: Path, name: ZooName) -> str | None:
    """Return the day on which the newest version of a zoo was published, in UTC, such as ``2026-11-26``."""
    with suppress(OSError):
        return datetime.fromtimestamp(stat_inside(hub, name.repo_id).st_mtime, UTC).date().isoformat()
    return None


def tags(hub: Path, name: ZooName) -> dict[str, str]:
    """Return the commits of the tags and branches of a zoo."""
    found = {}
    for entry in _entries(hub, name.org):
        shown, _, tag = entry.partition("@")
        if shown == name.name and tag:
            with suppress(DamagedZooError):
                folder = _followed(hub, name, f"{name.org}/{entry}")
                if folder is not None:
                    found[tag] = folder.name
    return found


def _entries(hub: Path, folder: str) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError, NotPlainError):
        return entries_inside(hub, folder)
    return []


def commit_id(manifest_sha256: str, card_sha256: str) -> str:
    """Return the name of a version: 40 hexadecimal digits that depend on its content alone."""
    return hashlib.sha256(canonical_json([manifest_sha256, card_sha256]).encode()).hexdigest()[:40]


def check_target(hub: Path, name: ZooName, tag: str | None, commit: str) -> None:
    """Raise, before anything is copied, SpecError or DamagedZooError where `add_version` would fail."""
    if hub.exists() and not hub.is_dir():
        raise SpecError(f"{hub}: is a file; expected a folder for the hub")
    for revision in (name.revision, tag):
        if revision is not None and "/" in revision:
            raise SpecError(f"revision: {revision!r} has a slash, which a hub folder cannot store")
    try:
        folder = stat.S_ISDIR(stat_inside(hub, name.repo_id).st_mode)
    except FileNotFoundError:
        folder = False
    except NotPlainError as error:
        raise DamagedZooError(f"{hub / name.repo_id}: {error.what}") from error
    if folder:
        raise SpecError(f"{hub / name.repo_id}: was not made by zootools publish; move it away first")
    stands_for = tags(hub, name).get(tag) if tag else None
    if stands_for not in (None, commit):
        raise SpecError(f"{hub}: the tag {tag} of {name.repo_id} is already that of another version; a tag never moves")


def add_version(hub: Path, name: ZooName, tag: str | None, commit: str, staged: str) -> None:
    """Rename a staged folder (`staging_folder`) to the version ``commit`` of a zoo, and link name and tag to it.

    Raises StorageError.
    """
    version = f"{VERSIONS}/{name.repo_id}/{commit}"
    try:
        try:
            rename_inside(hub, staged, version)
        except OSError:
            if not has_version(hub, name, commit):  # else another publisher has added the same bytes
                raise
        main = name.repo_id if name.revision in (None, "main") else str(name)
        for link in (main, f"{name.repo_id}@{tag}") if tag is not None else (main,):
            point_inside(hub, link, f"../{version}")
    except OSError as error:
        raise storage_error(hub / version, error) from error


@contextmanager
def staging_folder(hub: Path, name: ZooName) -> Iterator[str]:
    """A context that yields the name, inside the hub, of an empty folder to collect a version in.

    It is removed afterwards, unless `add_version` has renamed it. Raises StorageError.
    """
    versions = f"{VERSIONS}/{name.repo_id}"
    staged = f"{versions}/{STAGING}{secrets.token_hex(8)}"
    try:
        make_folder_inside(hub, staged)
        for entry in entries_inside(hub, versions):  # of publishers that were killed
            left = f"{versions}/{entry}"
            if entry.startswith(STAGING) and time.time() - stat_inside(hub, left).st_mtime > ABANDONED:
                remove_tree_inside(hub, left)
    except OSError as error:
        raise storage_error(hub / versions, error) from error
    try:
        yield staged
    finally:
        with suppress(OSError):
            remove_tree_inside(hub, staged)


def _known(hub: Path, name: ZooName) -> str:
    known = tags(hub, name)
    assert name.revision is not None
    return did_you_mean(name.revision, known) if known else "; it has no tags"
