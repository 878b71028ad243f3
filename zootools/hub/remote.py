"""Reading zoos from the Hub at one pinned commit.

Files are downloaded to huggingface-hub's cache. Its snapshots consist of symbolic links, which a zoo must not have, so
a file that has been verified (see `zootools.storage.place`) is hard-linked into a folder of plain files beside them.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.hf_api import ExpandDatasetProperty_T
from tqdm import tqdm

from zootools import __version__
from zootools.errors import DamagedZooError, HubError, ZooNotFoundError
from zootools.filesystem.files import write_durably
from zootools.filesystem.inside import remove_inside
from zootools.hashing import sha256_file
from zootools.hub.calls import offline, retried
from zootools.hub.entry import Entry, models_in
from zootools.hub.repository import hub_api, read_content
from zootools.storage.file_rules import check_file_names, check_sizes, is_hidden
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import read_manifest
from zootools.storage.place import THREADS, FetchedPlace, Listed, Place, check_listing, keep
from zootools.zoo_name import ZooName

SLACK = 1 << 20
"""Bytes by which a download may exceed the size of its file before it is stopped."""
TAG = "zootools"
"""The tag on the Hub by which zoos are found."""
LISTED: tuple[ExpandDatasetProperty_T, ...] = ("description", "lastModified", "mainSize", "sha")
"""The properties of a data set that a listing asks for."""
MAX_LISTED = 1000
"""Zoos in a listing, at most."""


@dataclass(frozen=True, kw_only=True)
class HubPlace(FetchedPlace):
    """A zoo on the Hub, at one commit."""

    repository: str
    endpoint: str | None = None
    """The URL of the Hub; None for the one that huggingface-hub is set to."""

    def download(self, file: str, size: int | None) -> Path:
        """Return the path of a file in the cache, which is downloaded first if necessary; see `SLACK`."""
        path = retried(
            lambda: hf_hub_download(
                self.repository,
                file,
                repo_type="dataset",
                revision=self.commit,
                endpoint=self.endpoint,
                library_name="zootools",
                library_version=__version__,
                tqdm_class=_counter(self.name, file, size) if size is not None else None,
            ),
            f"{self.name}: {file}",
        )
        return Path(str(path))

    def forget(self, path: Path) -> None:
        """Remove a file from huggingface-hub's cache, in which it is a link to a blob."""
        if path.is_symlink():
            path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def hub_place(name: ZooName, endpoint: str | None = None) -> HubPlace:
    """Return the place of a zoo on the Hub, whose manifest, specification and metadata have been fetched.

    Raises ZooNotFoundError where there is no such zoo, DamagedZooError for a file that is not what the manifest
    promises, HubError where the Hub refuses, StorageError where it cannot be reached.
    """
    listing: dict[str, Listed] = {}
    if offline():
        commit = _cached_commit(name)
    else:
        commit, listing = _list(name, endpoint)
        if "zoo.json" not in listing:
            raise ZooNotFoundError(
                f"{name}: the Hub has a data set of this name, but it is not a zoo (it has no zoo.json); a weights "
                "column can be read with a layer schema (--schema FILE)"
            )
        if listing["zoo.json"].size > MAX_BYTES:
            raise DamagedZooError(f"{name}: zoo.json has {listing['zoo.json'].size} bytes, more than {MAX_BYTES}")
    place = _place(name, commit, endpoint, listing)
    path = place.download("zoo.json", listing["zoo.json"].size if listing else None)
    folder = path.parents[2] / "zootools" / commit
    keep(path, folder, "zoo.json")
    try:
        manifest = read_manifest(folder)
        check_listing(str(name), manifest.files, listing)
    except DamagedZooError:
        place.forget(path)
        remove_inside(folder, "zoo.json")
        raise
    place = replace(place, folder=folder, manifest=manifest)
    place.fetch(file for file in manifest.files if file == "spec.yaml" or file.startswith("metadata/"))
    if not offline():
        _remember_commit(place, name.revision or constants.DEFAULT_REVISION)
    return place


def _place(name: ZooName, commit: str, endpoint: str | None, listing: dict[str, Listed]) -> HubPlace:
    """Return a place from which files can be downloaded before its manifest and its folder are known."""
    return HubPlace(Path(), str(name), commit, repository=name.repo_id, listing=listing, endpoint=endpoint)


def _list(name: ZooName, endpoint: str | None) -> tuple[str, dict[str, Listed]]:
    """Return the commit of a name, and all its files."""
    content = read_content(hub_api(endpoint), name, name.revision, first=True)
    if not constants.REGEX_COMMIT_OID.fullmatch(content.commit):
        raise DamagedZooError(f"{name}: the Hub names {content.commit!r} as its commit")
    return content.commit, {file: Listed(info.size, info.sha256) for file, info in content.files.items()}


def parquet_place(name: ZooName, endpoint: str | None = None) -> tuple[Place, dict[str, Path]]:
    """Return the place of a data set that is not a zoo, and its downloaded Parquet files by name, at one commit.

    Without a manifest they are only compared with the sizes and sha256 that the Hub lists. Raises what `hub_place`
    raises.
    """
    if offline():
        raise HubError(f"{name}: HF_HUB_OFFLINE is set; unset it, or give a folder with the Parquet files")
    commit, listing = _list(name, endpoint)
    wanted = {file: listed for file, listed in listing.items() if file.endswith(".parquet") and not is_hidden(file)}
    check_file_names(str(name), wanted)
    check_sizes(str(name), {file: listed.size for file, listed in wanted.items()})
    place = _place(name, commit, endpoint, listing)

    def fetch(file: str) -> Path:
        path = place.download(file, wanted[file].size)
        if wanted[file].sha256 not in (None, sha256_file(path)):
            place.forget(path)
            raise DamagedZooError(f"{name}: {file} is not what the Hub promises (sha256)")
        return path

    with ThreadPoolExecutor(THREADS) as pool:
        files = dict(zip(wanted, pool.map(fetch, wanted), strict=True))
    return place, files


def zoos(word: str, endpoint: str | None) -> Iterator[Entry]:
    """Yield the zoos on the Hub (found by `TAG`) whose text has ``word`` in it; one request for up to 100 zoos."""
    found = retried(
        lambda: list(
            hub_api(endpoint).list_datasets(filter=TAG, search=word or None, limit=MAX_LISTED, expand=list(LISTED))
        ),
        "the Hub",
        first=True,
    )
    for info in found:
        # `mainSize` is a property that releases of huggingface-hub before 2.4 keep, but do not know.
        size = getattr(info, "main_size", None) or getattr(info, "mainSize", None)
        description = " ".join((info.description or "").split())
        yield Entry(
            info.id,
            description,
            info.sha or "",
            models_in(description),
            size if isinstance(size, int) else None,
            info.last_modified.date().isoformat() if info.last_modified else None,
        )


def tags(name: ZooName, endpoint: str | None) -> dict[str, str]:
    """Return the commits of the tags of a zoo on the Hub."""
    refs = retried(lambda: hub_api(endpoint).list_repo_refs(name.repo_id, repo_type="dataset"), str(name))
    return {ref.name: ref.target_commit for ref in refs.tags}


def _counter(name: str, file: str, size: int) -> type[tqdm]:
    """Return a class of progress bars that show nothing, and stop a download that exceeds its size."""
    received, lock = 0, threading.Lock()

    class Counter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal received
            with lock:
                received += int(n or 0)
            if received > size + SLACK:
                raise DamagedZooError(f"{name}: {file} has more than the {size} bytes that it should have")
            return super().update(n)

    return Counter


def _cached_commit(name: ZooName) -> str:
    """Return the commit of a name when it was last fetched."""
    revision = name.revision or constants.DEFAULT_REVISION
    path = try_to_load_from_cache(name.repo_id, "zoo.json", repo_type="dataset", revision=revision)
    if not isinstance(path, str):
        raise HubError(f"{name}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
    return Path(path).parent.name


def _remember_commit(place: HubPlace, revision: str) -> None:
    """Write down the commit of a branch or tag, as huggingface-hub does, for `_cached_commit`."""
    if revision != place.commit:
        write_durably(place.folder.parents[1] / "refs" / revision, str(place.commit).encode())
