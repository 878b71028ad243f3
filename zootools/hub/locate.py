"""Where a zoo is: an existing path, else the hub folder, else the Hub; or an object store, by its URL."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from zootools.errors import HubError, SpecError, ZooNotFoundError
from zootools.hub import folder as hub_folder
from zootools.hub.names import hub_setting, parse_name
from zootools.objects import folder_of

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where the files of a zoo lie, and how they get there."""

    folder: Path
    name: str
    """The path or name that was asked for."""
    commit: str | None = None
    """The version of a zoo that came from a hub."""
    fetches: ClassVar[bool] = False
    """Whether files get to `folder` only when they are fetched."""

    @property
    def repository(self) -> str | None:
        """``org/name`` of a zoo that was found by its name."""
        name = None if Path(self.name) == self.folder else parse_name(self.name)
        return name.repo_id if name is not None else None

    @property
    def listed(self) -> Collection[str]:
        """The names of all files that lie there, where that is known without looking into `folder`."""
        return ()

    def fetch(self, files: Iterable[str]) -> None:
        """Make sure that some files, by their names in the manifest, lie in `folder`."""

    def fetch_all(self) -> None:
        """Make sure that all files of the zoo lie in `folder`."""


def locate(zoo: str | Path, revision: str | None = None, hub: str | Path | None = None) -> Place:
    """Find a zoo by path or name, with its manifest, specification and metadata at hand.

    Args:
        zoo: a folder, or ``org/name`` or ``org/name@revision``, or the URL of an object store.
        revision: the branch, tag or commit of a name.
        hub: a folder or URL to look in and nowhere else; without it, first in the folder $ZOOTOOLS_HUB, then on
            the Hub. An existing path always comes first.

    Says in the log which it was. Raises ZooNotFoundError when there is no such zoo, SpecError for what is neither
    path nor name, DamagedZooError for a zoo that is not what its manifest says.
    """
    folder = folder_of(zoo)
    if folder is None:
        from zootools.hub import stored

        if revision is not None:
            raise SpecError(f"{zoo}: is a URL; only names have revisions")
        return stored.find(str(zoo))
    path, name = folder, parse_name(str(zoo), revision)
    if path.exists() or name is None:
        if revision is not None:
            raise SpecError(f"{zoo}: is {'a path' if path.exists() else 'no ORG/NAME'}; only names have revisions")
        if path.is_file():
            raise ZooNotFoundError(f"{zoo}: is a file; expected a folder (a Parquet file can be read with --schema)")
        return Place(path, str(zoo))
    setting = hub_setting(hub)
    if isinstance(setting, Path):
        found = hub_folder.find(setting, name)
        if found is not None:
            LOG.info("%s: from the hub folder %s", name, setting)
            return Place(found, str(name), hub_folder.commit_of(found))
        if hub is not None:
            raise ZooNotFoundError(f"{setting}: this hub folder has no {name.repo_id}")
    from zootools.hub import remote

    try:
        place = remote.find(name, setting if isinstance(setting, str) else None)
    except (ZooNotFoundError, HubError) as error:
        raise type(error)(f"{error} (there is no folder of this name either)") from error
    LOG.info("%s: from the Hub, commit %s", name, place.commit)
    return place
