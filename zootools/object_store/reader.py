"""Reading a finished zoo from an object store.

Fetched files are in a folder of the user's cache for one URL and one manifest, so they are never mixed with those of
a zoo that is later built under the same URL.
"""

import hashlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zootools.errors import DamagedZooError, ZooNotFoundError
from zootools.filesystem.files import write_durably
from zootools.filesystem.inside import remove_inside
from zootools.object_store.client import ObjectStore
from zootools.object_store.lease import lease_state
from zootools.object_store.sync import RECORD, THREADS, read_record_line
from zootools.paths import cache_folder
from zootools.storage.build_state import PLAN
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import read_manifest
from zootools.storage.place import EXTRAS, FetchedPlace, Listed, check_listing
from zootools.storage.status import Activity, BuildStatus
from zootools.storage.status import status as build_status


@dataclass(frozen=True, kw_only=True)
class ObjectStorePlace(FetchedPlace):
    """A finished zoo in an object store."""

    store: ObjectStore

    def fetch_all(self) -> None:
        """Fetch and hash every file of the manifest, and the card, again: the store is verified, not the cache."""
        for file in (*self.promised, *EXTRAS):
            remove_inside(self.folder, file)
        super().fetch_all()

    def download(self, file: str, size: int | None) -> Path:
        """Download a file into `folder`, and return its path."""
        self.store.download(file, self.folder)
        return self.folder / file

    def forget(self, path: Path) -> None:
        """Remove a fetched file."""
        path.unlink(missing_ok=True)


def object_store_place(url: str) -> ObjectStorePlace:
    """Return the place of the finished zoo at a URL, whose manifest, specification and metadata have been fetched.

    Raises ZooNotFoundError where there is none, or it is still being built; DamagedZooError for a file that is not what
    the manifest promises; SpecError where the store refuses, StorageError where it cannot be reached.
    """
    store = ObjectStore(url)
    listing = {name: Listed(found.size) for name, found in store.list().items()}
    if "zoo.json" not in listing:
        if PLAN in listing:
            raise ZooNotFoundError(
                f"{store.url}: this zoo is still being built; `zootools status {store.url}` says how far it is"
            )
        raise ZooNotFoundError(f"{store.url}: holds no zoo (there is no zoo.json)")
    if listing["zoo.json"].size > MAX_BYTES:
        raise DamagedZooError(f"{store.url}/zoo.json: has {listing['zoo.json'].size} bytes, more than {MAX_BYTES}")
    data = store.read("zoo.json") or b""
    url_key, key = (hashlib.sha256(value).hexdigest()[:16] for value in (store.url.encode(), data))
    folder = cache_folder() / "stored" / url_key / key
    write_durably(folder / "zoo.json", data, folder)
    manifest = read_manifest(folder)
    check_listing(store.url, manifest.files, listing)
    place = ObjectStorePlace(folder, store.url, manifest=manifest, listing=listing, store=store)
    place.fetch(file for file in manifest.files if file == "spec.yaml" or file.startswith("metadata/"))
    return place


def build_status_of(url: str) -> BuildStatus:
    """Return the progress of a build in an object store (`zootools.storage.status.status`); nothing is cached."""
    store = ObjectStore(url)
    listing = store.list()
    if PLAN not in listing:
        return build_status(object_store_place(url).folder)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(THREADS) as pool:
        store.download(PLAN, Path(scratch))
        names = [name for name in listing if RECORD.fullmatch(name)]
        for name, line in zip(names, pool.map(lambda name: read_record_line(store, name), names), strict=True):
            write_durably(Path(scratch) / name, line, Path(scratch))
        running, holder = lease_state(store)
        return build_status(
            Path(scratch), Activity(running, holder, time.time(), heard_of=holder.renewed if holder else None), url
        )
