"""A hub in a plain folder: no account, no network, the same names and the same checks.

``DIR/org/name`` is what the last publication left (`datasets.load_dataset` reads it), ``DIR/org/name@tag`` what
a tag or branch stands for. Both are links into ``DIR/.versions/org/name/<commit>``, where every version that was
ever published stays: a link is replaced in one step, and who has a version open keeps it.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zootools.errors import SpecError, ZooNotFoundError, did_you_mean, nearest_path
from zootools.files import exists, storage_error
from zootools.hub.names import ZooName, parse_name
from zootools.population import canonical_json

VERSIONS = ".versions"
ABANDONED = 24 * 3600
"""Seconds after which the half-made version of a publisher is taken for abandoned."""


def find(hub: Path, name: ZooName) -> Path | None:
    """Return the folder of a version of a zoo, or None when the hub does not know the zoo.

    Raises ZooNotFoundError when it knows the zoo but not the revision.
    """
    link = hub / name.org / name.name
    if not link.is_dir():
        return None
    if name.revision in (None, "main"):
        return link.resolve()
    assert name.revision is not None
    for candidate in (_tag(hub, name, name.revision), hub / VERSIONS / name.repo_id / name.revision):
        if candidate.is_dir():
            return candidate.resolve()
    raise ZooNotFoundError(f"{hub}: {name.repo_id} has no revision {name.revision!r}" + _known(hub, name))


def require(hub: Path) -> None:
    """Raise ZooNotFoundError where there is no hub folder, SpecError where it is a file."""
    if not exists(hub):
        raise ZooNotFoundError(
            f"{hub}: there is no such folder for the hub (--hub or $ZOOTOOLS_HUB){nearest_path(hub)}"
        )
    if not hub.is_dir():
        raise SpecError(f"{hub}: is a file; expected a hub folder (--hub or $ZOOTOOLS_HUB)")


def commit_of(folder: Path) -> str | None:
    """Return the commit of a version's folder, None for a folder that somebody put there by hand."""
    return folder.name if folder.parents[2].name == VERSIONS else None


def names(hub: Path) -> Iterator[ZooName]:
    """Yield the zoos of a hub, in alphabetical order."""
    for path in sorted(hub.glob("*/*/zoo.json")):
        name = parse_name(f"{path.parts[-3]}/{path.parts[-2]}")
        if name is not None and name.revision is None:
            yield name


def tags(hub: Path, name: ZooName) -> dict[str, str]:
    """Return the named revisions of a zoo and the commit that each stands for."""
    links = sorted((hub / name.org).glob(f"{name.name}@*"))
    return {link.name.partition("@")[2]: link.resolve().name for link in links if link.is_dir()}


def commit_id(manifest_sha256: str, card_sha256: str) -> str:
    """Return what names a version: 40 digits that depend on its content alone."""
    return hashlib.sha256(canonical_json([manifest_sha256, card_sha256]).encode()).hexdigest()[:40]


def check_target(hub: Path, name: ZooName, tag: str | None, commit: str) -> None:
    """Refuse, before anything is copied, what `publish` could not do."""
    if hub.exists() and not hub.is_dir():
        raise SpecError(f"{hub}: is a file; expected a folder for the hub")
    for revision in (name.revision, tag):
        if revision is not None and "/" in revision:
            raise SpecError(f"revision: {revision!r} has a slash, which a hub folder cannot store")
    target = hub / name.org / name.name
    if target.exists() and not target.is_symlink():
        raise SpecError(f"{target}: was not put there by zootools publish; move it away first")
    stands_for = tags(hub, name).get(tag) if tag else None
    if stands_for not in (None, commit):
        raise SpecError(f"{hub}: the tag {tag} of {name.repo_id} stands for another version; tags do not move")


def publish(hub: Path, name: ZooName, tag: str | None, commit: str, staged: Path) -> None:
    """Make a staged folder the version ``commit`` of a zoo, and let name and tag point to it.

    ``staged`` is moved; it must lie on the hub's file system (`staging_folder`). Raises StorageError.
    """
    version = hub / VERSIONS / name.repo_id / commit
    try:
        version.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(version)
        except OSError:
            if not version.is_dir():  # else somebody has published the same bytes meanwhile
                raise
        shown = hub / name.org
        shown.mkdir(parents=True, exist_ok=True)
        main = _tag(hub, name, name.revision) if name.revision not in (None, "main") else shown / name.name
        _point(main, version)
        if tag is not None:
            _point(_tag(hub, name, tag), version)
    except OSError as error:
        raise storage_error(version, error) from error


@contextmanager
def staging_folder(hub: Path, name: ZooName) -> Iterator[Path]:
    """Yield an empty folder to collect a version in; it is gone afterwards, unless `publish` has moved it."""
    versions = hub / VERSIONS / name.repo_id
    try:
        versions.mkdir(parents=True, exist_ok=True)
        for left in versions.glob(".staging-*"):  # by publishers that were killed
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        staged = Path(tempfile.mkdtemp(prefix=".staging-", dir=versions))
        # mkdtemp makes what its owner alone may read; a hub is for others too.
        umask = os.umask(0)
        os.umask(umask)
        staged.chmod(0o777 & ~umask)
    except OSError as error:
        raise storage_error(versions, error) from error
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _tag(hub: Path, name: ZooName, tag: str) -> Path:
    return hub / name.org / f"{name.name}@{tag}"


def _point(link: Path, version: Path) -> None:
    """Let a link point to a version; who follows it meanwhile sees the old version or the new one."""
    temporary = link.parent / f".{link.name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(version, link.parent))
    temporary.replace(link)


def _known(hub: Path, name: ZooName) -> str:
    known = tags(hub, name)
    assert name.revision is not None
    return did_you_mean(name.revision, known) if known else "; it has no tags"
