"""Listing the zoos of a hub, and describing one of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zootools.errors import DamagedZooError
from zootools.hub import folder as hub_folder
from zootools.hub.entry import Entry
from zootools.hub.locate import locate, locate_name
from zootools.hub.names import hub_setting, require_name
from zootools.storage.manifest import Counts, read_manifest
from zootools.storage.manifest_checks import stored_origin


@dataclass(frozen=True)
class ZooDescription:
    """A published zoo, as its manifest and its hub describe it."""

    name: str
    commit: str | None
    tags: dict[str, str]
    """The commit of each tag."""
    description: str
    files: int
    """The number of files that the manifest lists."""
    bytes: int
    """The size of these files."""
    counts: Counts
    parameters: int
    """The number of weights of each model."""

    def to_json(self) -> dict[str, Any]:
        """Return all values by name, as ``zootools hub info --json`` prints them."""
        values = {name: value for name, value in vars(self).items() if name not in ("counts", "parameters")}
        return {**values, **self.counts.model_dump(), "parameters": self.parameters}


def zoos(word: str = "", hub: str | Path | None = None) -> list[Entry]:
    """Return the zoos of a hub (see `hub_setting`) with ``word`` in their name or description.

    No weights are downloaded. A hub folder is read for manifests; the Hub gets one request for all zoos, so the number
    of models is what the beginning of each card says.
    """
    setting = hub_setting(hub)
    if isinstance(setting, Path):
        hub_folder.require(setting)
        return [e for e in _in_folder(setting) if word.lower() in f"{e.name} {e.description}".lower()]
    from zootools.hub import remote

    return list(remote.zoos(word, setting))


def _in_folder(hub: Path) -> Iterator[Entry]:
    for name in hub_folder.names(hub):
        folder = hub_folder.find_version(hub, name)
        assert folder is not None
        commit, date = hub_folder.commit_of(folder) or "", hub_folder.date_of(hub, name)
        try:
            manifest = read_manifest(folder)
            description = stored_origin(folder, manifest).description
        except DamagedZooError as error:
            yield Entry(name.repo_id, f"damaged: {error}", commit, date=date)
        else:
            size = sum(info.size for info in manifest.files.values())
            yield Entry(name.repo_id, description, commit, manifest.counts.expected, size, date)


def describe(name: str, *, revision: str | None = None, hub: str | Path | None = None) -> ZooDescription:
    """Return commit, tags, description, size and counts of a zoo on a hub, without fetching weights."""
    wanted = require_name(name, revision)
    place = locate(Path(name), revision, hub) if Path(name).exists() else locate_name(wanted, hub)
    manifest = read_manifest(place.folder)
    setting = hub_setting(hub)
    if isinstance(setting, Path) and setting in place.folder.parents:
        tags = hub_folder.tags(setting, wanted)
    else:
        from zootools.hub import remote

        tags = remote.tags(wanted, setting if isinstance(setting, str) else None)
    return ZooDescription(
        name=wanted.repo_id,
        commit=place.commit,
        tags=tags,
        description=stored_origin(place.folder, manifest).description,
        files=len(manifest.files),
        bytes=sum(info.size for info in manifest.files.values()),
        counts=manifest.counts,
        parameters=manifest.layer_schema.size,
    )
