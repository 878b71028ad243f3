"""Reading a zoo from the Hub: one pinned commit, metadata first, every byte held against the manifest.

Files go to huggingface-hub's own cache. Only files that the manifest names are fetched, and only if the listing
of the commit gives the size (and, where the Hub knows it, the sha256) that the manifest promises. What arrives is
hashed, and then linked into a folder of plain files beside the cache's snapshots (which consist of symbolic links,
that no zoo may have): what lies there has been verified.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from tqdm import tqdm

from zootools import __version__
from zootools.errors import DamagedZooError, HubError, ZooNotFoundError
from zootools.filesystem.files import write_durably
from zootools.filesystem.inside import remove_inside
from zootools.hashing import sha256_file
from zootools.hub.calls import TIMEOUT, offline, retried
from zootools.storage.file_rules import check_file_names, check_sizes, is_hidden
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import read_manifest
from zootools.storage.place import THREADS, FetchedPlace, Listed, Place, check_listing, keep
from zootools.zoo_name import ZooName

SLACK = 1 << 20
"""Bytes beyond its size after which a download is stopped."""
TAG = "zootools"
"""The tag by which zoos are found."""
MOST = 1000
"""Zoos that a listing shows at most."""


@dataclass(frozen=True, kw_only=True)
class HubPlace(FetchedPlace):
    """A zoo on the Hub, at one commit."""

    repository: str
    endpoint: str | None = None
    """The URL of the Hub; None for the one that huggingface-hub is set to."""

    def download(self, file: str, size: int | None) -> Path:
        """Return the path of a file in the cache, downloaded if need be; stops at the first byte beyond ``size``."""
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
    """Return a zoo on the Hub, with manifest, specification and metadata in the cache.

    Raises ZooNotFoundError, HubError, StorageError; DamagedZooError for what its manifest does not promise.
    """
    listing: dict[str, Listed] = {}
    if offline():
        commit = _cached_commit(name)
    else:
        commit, listing = _list(name, endpoint)
        if "zoo.json" not in listing:
            raise ZooNotFoundError(
                f"{name}: the Hub has a data set of this name, but it is no zoo (it has no zoo.json); a weights column "
                "can be read with a layer schema (--schema FILE)"
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
    """Return the place of a name whose manifest, and so its folder, is not known yet."""
    return HubPlace(Path(), str(name), commit, repository=name.repo_id, listing=listing, endpoint=endpoint)


def _list(name: ZooName, endpoint: str | None) -> tuple[str, dict[str, Listed]]:
    """Return the commit that a name stands for, and all its files."""
    info = retried(
        lambda: _api(endpoint).dataset_info(name.repo_id, revision=name.revision, files_metadata=True, timeout=TIMEOUT),
        str(name),
        first=True,
    )
    commit = str(info.sha)
    if not constants.REGEX_COMMIT_OID.fullmatch(commit):
        raise DamagedZooError(f"{name}: the Hub names {commit!r} as its commit")
    files = {
        entry.rfilename: Listed(entry.size or 0, entry.lfs.sha256 if entry.lfs else None)
        for entry in info.siblings or ()
    }
    return commit, files


def parquet_place(name: ZooName, endpoint: str | None = None) -> tuple[Place, dict[str, Path]]:
    """Return the Parquet files of a data set that is no zoo, at one pinned commit, by their names.

    There is no manifest to hold them against; what the Hub says of their size and sha256 must be true.
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


def zoos(word: str, endpoint: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield name, description and commit of the zoos on the Hub that ``word`` occurs in, found by their tag."""
    found = retried(
        lambda: list(_api(endpoint).list_datasets(filter=TAG, search=word or None, limit=MOST)), "the Hub", first=True
    )
    for info in found:
        yield info.id, " ".join((info.description or "").split()), info.sha or ""


def tags(name: ZooName, endpoint: str | None) -> dict[str, str]:
    """Return the tags of a zoo on the Hub, and the commit that each stands for."""
    refs = retried(lambda: _api(endpoint).list_repo_refs(name.repo_id, repo_type="dataset"), str(name))
    return {ref.name: ref.target_commit for ref in refs.tags}


def _api(endpoint: str | None) -> HfApi:
    return HfApi(endpoint=endpoint, library_name="zootools", library_version=__version__)


def _counter(name: str, file: str, size: int) -> type[tqdm]:
    """Return a progress bar that shows nothing and stops a download which brings more than it should."""
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
                raise DamagedZooError(f"{name}: {file} brings more than the {size} bytes it should have")
            return super().update(n)

    return Counter


def _cached_commit(name: ZooName) -> str:
    """Return the commit that a name stood for when it was last fetched."""
    revision = name.revision or constants.DEFAULT_REVISION
    path = try_to_load_from_cache(name.repo_id, "zoo.json", repo_type="dataset", revision=revision)
    if not isinstance(path, str):
        raise HubError(f"{name}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
    return Path(path).parent.name


def _remember_commit(place: HubPlace, revision: str) -> None:
    """Note what a branch or tag stands for, as huggingface-hub does, for `_cached_commit`."""
    if revision != place.commit:
        write_durably(place.folder.parents[1] / "refs" / revision, str(place.commit).encode())
