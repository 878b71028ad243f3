"""Publishing a zoo: to a hub folder, or to the Hub."""

import shutil
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from zootools.errors import DamagedZooError, StorageError
from zootools.filesystem.files import durable_file
from zootools.filesystem.inside import open_inside
from zootools.hub import folder as hub_folder
from zootools.hub.names import hub_setting, require_name
from zootools.hub.release import Published, Release, prepare
from zootools.percent import PercentProgress
from zootools.storage.verified_files import file_fault, unreadable
from zootools.zoo_name import ZooName


def publish(
    zoo: str | Path,
    name: str,
    *,
    hub: str | Path | None = None,
    public: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    allow_partial: bool = False,
    quiet: bool = True,
) -> Published:
    """Publish a zoo as ``name`` (``org/name``); the same call again resumes an interrupted publication.

    Args:
        zoo: a folder, or the name of a published zoo, to copy it from one hub to another.
        name: ``org/name``.
        hub: a hub folder, or the URL of another Hub; by default $ZOOTOOLS_HUB, else the Hub.
        public: whether everybody may read it; None changes nothing, and makes a new repository private.
        revision: the branch to publish to; ``main`` by default.
        tag: a name for this version, which never moves to another one.
        allow_partial: publish a zoo that is not finished; its card says so.
        quiet: print no progress to stderr.

    Readers see the old version until the new one is complete. Raises SpecError for arguments that do not fit,
    DamagedZooError for a damaged zoo (nothing is published then), HubError where the Hub refuses, StorageError where
    disk or network fail (the same call can be repeated).
    """
    target, setting = require_name(name, revision), hub_setting(hub)
    if tag is not None:
        require_name(target.repo_id, tag)
    if isinstance(setting, Path):
        with prepare(zoo, target, allow_partial, quiet) as release:
            return _publish_to_folder(release, setting, tag, quiet)
    from zootools.hub import upload

    upload.check_access(target, setting)
    with prepare(zoo, target, allow_partial, quiet) as release:
        return upload.upload(release, setting, public=public, tag=tag, quiet=quiet)


def _publish_to_folder(release: Release, hub: Path, tag: str | None, quiet: bool) -> Published:
    name, commit = release.name, hub_folder.commit_id(release.manifest.sha256, release.files["README.md"].sha256)
    hub_folder.check_target(hub, name, tag, commit)
    new, before = not hub_folder.has_version(hub, name, commit), _links(hub, name)
    with hub_folder.staging_folder(hub, name) as staged:
        if new:
            _copy(release, hub, staged, quiet)
        hub_folder.add_version(hub, name, tag, commit, staged)
    changes = ["1 commit"] if new else []
    changes += [f"{link} names this version" for link, there in _links(hub, name).items() if there != before.get(link)]
    return Published(commit, str(hub), len(release.files), release.size, int(new), name, tag, tuple(changes))


def _links(hub: Path, name: ZooName) -> dict[str, str]:
    """Return the commits of main, branches and tags of a zoo in a hub folder."""
    with suppress(DamagedZooError):
        main = hub_folder.find_version(hub, ZooName(name.org, name.name))
        return {**({"main": main.name} if main else {}), **hub_folder.tags(hub, name)}
    return {}


def _copy(release: Release, hub: Path, staged: str, quiet: bool) -> None:
    """Copy the files of a release to the folder ``staged`` of a hub, and compare the copies with their sha256."""
    with PercentProgress(release.size, "copying", quiet) as progress:
        for file, info in release.files.items():
            with durable_file(hub / staged / file, hub) as copy, _open(release, file) as source:
                shutil.copyfileobj(source, copy)
            if fault := file_fault(hub, f"{staged}/{file}", info):
                raise StorageError(f"{hub}: {file}: the copy {fault}; run the same command again")
            progress.tick(info.size)


def _open(release: Release, file: str) -> BinaryIO:
    if file in release.texts:
        return BytesIO(release.texts[file])
    try:
        return open_inside(release.folder, file)
    except OSError as error:
        raise DamagedZooError(f"{release.folder / file}: {unreadable(error)}") from error
