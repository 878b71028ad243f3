"""Reading a zoo from the Hub: one pinned commit, metadata first, every byte held against the manifest.

Files go to huggingface-hub's own cache. Only files that the manifest names are fetched, and only if the listing
of the commit gives the size (and, where the Hub knows it, the sha256) that the manifest promises. What arrives is
hashed, and then linked into a folder of plain files beside the cache's snapshots (which consist of symbolic links,
that no zoo may have): what lies there has been verified.
"""

import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from tqdm import tqdm

from zootools import __version__
from zootools.errors import DamagedZooError, HubError, ZooNotFoundError
from zootools.files import link_or_copy, sha256_file, write_durably
from zootools.hub.calls import TIMEOUT, offline, retried
from zootools.hub.locate import LOG, Place
from zootools.hub.names import check_file_names, check_sizes, is_hidden
from zootools.inside import is_file_inside, open_inside, remove_inside
from zootools.manifest import read_manifest
from zootools.sealed import MAX_BYTES
from zootools.zoo_name import ZooName

THREADS = 8
EXTRAS = ("README.md", "build.json")
"""Files of a zoo that its manifest does not hash; fetched only when a whole copy is wanted."""
MAX_EXTRA = 16 << 20
SLACK = 1 << 20
"""Bytes beyond its size after which a download is stopped."""
TAG = "zootools"
"""The tag by which zoos are found."""
MOST = 1000
"""Zoos that a listing shows at most."""


@dataclass(frozen=True)
class Listed:
    """What the Hub says of a file: its size, and its sha256 if it is stored as a large file."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class RemotePlace(Place):
    """A zoo on the Hub; `folder` holds what has been fetched of it."""

    repo_id: str = ""
    endpoint: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    listing: dict[str, Listed] = field(default_factory=dict)
    fetches: ClassVar[bool] = True

    @property
    def listed(self) -> Collection[str]:
        """The names of all files in the commit."""
        return self.listing

    def fetch(self, files: Iterable[str]) -> None:
        """Download and verify what is not there yet. Raises DamagedZooError, HubError, StorageError."""
        missing = [file for file in dict.fromkeys(files) if not is_file_inside(self.folder, file)]
        if missing:
            size = sum(self.listing[file].size for file in missing if file in self.listing)
            LOG.info("%s: fetching %d files, %.1f MB", self.name, len(missing), size / 1e6)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._fetch_one, missing))

    def fetch_all(self) -> None:
        """Download and hash every file of the manifest, and the card."""
        self.fetch([*self.manifest["files"], *EXTRAS])

    def _fetch_one(self, file: str) -> None:
        listed, promised = self.listing.get(file), self.manifest["files"].get(file)
        if promised is None and file not in EXTRAS:
            raise DamagedZooError(f"{self.name}: {file} is not in the manifest")
        if promised is None:
            if listed is None:
                return
            if listed.size > MAX_EXTRA:
                raise DamagedZooError(f"{self.name}: {file} has {listed.size} bytes, more than {MAX_EXTRA}")
        path = self.download(file, promised["size"] if promised else listed.size if listed else None)
        if promised and (path.stat().st_size != promised["size"] or sha256_file(path) != promised["sha256"]):
            _forget(path)
            raise DamagedZooError(
                f"{self.name}: {file} is not what the manifest promises (sha256); it has been taken out of the cache"
            )
        _keep(path, self.folder, file)

    def download(self, file: str, size: int | None) -> Path:
        """Return the path of a file in the cache, downloaded if need be; stops at the first byte beyond ``size``."""
        path = retried(
            lambda: hf_hub_download(
                self.repo_id,
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


def find(name: ZooName, endpoint: str | None = None) -> RemotePlace:
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
    place = RemotePlace(Path(), str(name), commit, name.repo_id, endpoint, {}, listing)
    path = place.download("zoo.json", listing["zoo.json"].size if listing else None)
    folder = path.parents[2] / "zootools" / commit
    _keep(path, folder, "zoo.json")
    try:
        manifest = read_manifest(folder)
        check_listing(str(name), manifest["files"], listing)
    except DamagedZooError:
        _forget(path)
        remove_inside(folder, "zoo.json")
        raise
    place = replace(place, folder=folder, manifest=manifest)
    place.fetch(file for file in manifest["files"] if file == "spec.yaml" or file.startswith("metadata/"))
    if not offline():
        _remember_commit(place, name.revision or constants.DEFAULT_REVISION)
    return place


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


def find_parquet(name: ZooName, endpoint: str | None = None) -> tuple[Place, dict[str, Path]]:
    """Return the Parquet files of a data set that is no zoo, at one pinned commit, by their names.

    There is no manifest to hold them against; what the Hub says of their size and sha256 must be true.
    """
    if offline():
        raise HubError(f"{name}: HF_HUB_OFFLINE is set; unset it, or give a folder with the Parquet files")
    commit, listing = _list(name, endpoint)
    wanted = {file: listed for file, listed in listing.items() if file.endswith(".parquet") and not is_hidden(file)}
    check_file_names(str(name), wanted)
    check_sizes(str(name), {file: listed.size for file, listed in wanted.items()})
    place = RemotePlace(Path(), str(name), commit, name.repo_id, endpoint)

    def fetch(file: str) -> Path:
        path = place.download(file, wanted[file].size)
        if wanted[file].sha256 not in (None, sha256_file(path)):
            _forget(path)
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


def check_listing(name: str, files: dict[str, Any], listing: dict[str, Listed]) -> None:
    """Hold the listing of a commit against the manifest before anything is downloaded."""
    for file, promised in files.items():
        listed = listing.get(file)
        if not listing or listed == Listed(promised["size"], promised["sha256"]):
            continue
        if listed is None:
            raise DamagedZooError(f"{name}: {file} is in the manifest, but is missing there")
        if listed.size != promised["size"] or listed.sha256 is not None:
            raise DamagedZooError(f"{name}: {file} there is not the one in the manifest ({listed.size} bytes)")


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


def _keep(path: Path, folder: Path, name: str) -> None:
    """Let a file of huggingface-hub's cache, in which it is a link to a blob, appear in a folder of plain files."""
    blob = path.resolve()
    with open_inside(blob.parent, blob.name) as file:
        link_or_copy(file, folder, name)


def _forget(path: Path) -> None:
    """Take a file out of huggingface-hub's cache, so that it is fetched anew."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _cached_commit(name: ZooName) -> str:
    """Return the commit that a name stood for when it was last fetched."""
    revision = name.revision or constants.DEFAULT_REVISION
    path = try_to_load_from_cache(name.repo_id, "zoo.json", repo_type="dataset", revision=revision)
    if not isinstance(path, str):
        raise HubError(f"{name}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
    return Path(path).parent.name


def _remember_commit(place: RemotePlace, revision: str) -> None:
    """Note what a branch or tag stands for, as huggingface-hub does, for `_cached_commit`."""
    if revision != place.commit:
        write_durably(place.folder.parents[1] / "refs" / revision, str(place.commit).encode())
