"""Where a zoo is built: a folder, or an object store behind a local working folder.

A zoo in an object store is built in a folder of the user's cache, by the same code and as durably as any other. What
it commits there is put to the store in the same order: the shards, then the record that names them; at the end the
tables, the card, and zoo.json last. So a shard counts in the store when a record there names it with size and sha256,
and zoo.json is there only with everything that it names. Whoever goes on, on whatever machine, first fetches what
the store has and the working folder lacks.

The process that leads the build puts; workers never wait for it. They get their next stack from it, so the store is
behind by at most what is left of the one stack that each of them has in hand.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from zootools.errors import BusyError, DamagedZooError, SpecError
from zootools.filesystem.files import write_durably
from zootools.filesystem.inside import is_file_inside, read_inside, remove_tree_inside
from zootools.object_store.client import ConflictError, ObjectStore, StoredObject
from zootools.object_store.lease import NAME as LEASE
from zootools.object_store.lease import Lease
from zootools.object_store.urls import folder_of
from zootools.paths import cache_folder
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import UNHASHED, Manifest, read_manifest
from zootools.storage.records import StackRecord
from zootools.storage.verified_files import FileInfo, file_fault

LOG = logging.getLogger(__name__)

THREADS = 16
HEAD = 1 << 16
"""Bytes in which the first line of a record nearly always ends."""
RECORD = re.compile(r"\.work/stack-(\d{5,})\.record")


class Output:
    """Where a zoo is built; this one is a folder, which needs nothing beyond what the builder does."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def session(self, zoo: ZooFolder) -> Iterator[ZooFolder]:
        """Hold the right to build for as long as the block lasts; the plan or manifest that is there is at hand."""
        yield zoo

    def holds(self, name: str) -> bool:
        """Whether a file of the finished zoo is there."""
        return is_file_inside(self.folder, name)

    def fetch(self) -> None:
        """Bring everything to the working folder that building on needs."""

    def put_plan(self) -> None:
        """Take note of a plan, and of the records that are there already."""

    def put_stack(self, stack: int) -> None:
        """Take note of what has been committed of a stack."""

    def finish(self, manifest: Manifest) -> None:
        """Take note that the working folder holds a finished zoo."""


def open_output(out: str | Path) -> Output:
    """Return where to build: a folder by its path or ``file://`` URL, or an object store by any other URL."""
    folder = folder_of(out)
    return Output(folder) if folder is not None else ObjectStoreOutput(str(out))


class ObjectStoreOutput(Output):
    """An object store, and the working folder on this machine."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.store = ObjectStore(url)
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.store.url)[-60:].strip("-")
        key = hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
        super().__init__(cache_folder() / "builds" / f"{name}-{key}")
        self._zoo = ZooFolder(self.folder)
        self._listing: dict[str, StoredObject] = {}
        self._tags: dict[str, str] = {}
        """Of the objects that are replaced only if they are what they were: the plan and the records."""
        self._digests: dict[str, bytes] = {}
        """Of the same objects: the sha256 of what is there, as far as it is known."""
        self._shards: dict[str, FileInfo] = {}
        """The files that a record or the manifest in the store names, and that are there."""
        self._fetched: dict[str, FileInfo] = {}
        """The files to fetch before building on."""

    @contextmanager
    def session(self, zoo: ZooFolder) -> Iterator[ZooFolder]:
        """Hold the store's lease; bring plan and records, or the manifest, to the working folder."""
        self._zoo = zoo
        with Lease(self.store) as self._lease:
            LOG.info("%s: the working folder is %s", self.store.url, self.folder)
            self._listing = self.store.list()
            if not {PLAN, "zoo.json"} & self._listing.keys() and any(
                not name.startswith(".work/") for name in self._listing
            ):
                raise SpecError(f"{self.store.url}: holds objects but no zoo; choose another place with --out")
            self._tags = {name: stored.tag for name, stored in self._listing.items() if name.startswith(".work/")}
            if PLAN in self._listing:
                self._meet_unfinished()
            elif "zoo.json" in self._listing:
                self._meet_finished()
            yield zoo
            # The zoo is finished, here and there: what only a resume needs can go, and then the working folder.
            with ThreadPoolExecutor(THREADS) as pool:
                rest = self.store.list().keys() - {LEASE}
                list(pool.map(self.store.remove, [name for name in rest if name.startswith(".work/")]))
        remove_tree_inside(self.folder.parent, self.folder.name)

    def holds(self, name: str) -> bool:
        """Whether an object of the finished zoo is there."""
        return name in self._listing

    # --- what the store has ------------------------------------------------------------------------------

    def _meet_finished(self) -> None:
        """The store holds a finished zoo, and nothing that a working folder may still hold is worth more."""
        records = [f".work/{entry}" for entry in self._zoo.entries(".work") if entry.startswith("stack-")]
        for name in (PLAN, MANIFEST, *records):
            self._zoo.remove(name)
        self.store.download(MANIFEST, self.folder)
        files = read_manifest(self.folder).files
        self._fetch({"spec.yaml": files["spec.yaml"]})
        self._fetched = files
        self._shards = {name: info for name, info in files.items() if self._is_there(name, info)}

    def _meet_unfinished(self) -> None:
        """Bring plan and records together with those of the working folder.

        A record of the working folder stays if it has all that the store's has and is at least as far; it will be put.
        """
        theirs = ZooFolder(self._zoo.work / "store")
        remove_tree_inside(self.folder, ".work/store")
        self.store.download(PLAN, theirs.path)
        plan, mine = theirs.read_plan(), self._zoo.read_plan()
        assert plan is not None, "it has just been written"
        if mine is None or plan.stacks[: len(mine.stacks)] == mine.stacks:
            self._zoo.write(PLAN, read_inside(theirs.path, PLAN, MAX_BYTES))
        elif mine.stacks[: len(plan.stacks)] != plan.stacks:
            raise SpecError(
                f"{self.store.url}: the zoo there is another one than that in the working folder {self.folder}; "
                "choose another place with --out, or remove that folder if nothing in it is wanted"
            )
        self._digests[PLAN] = hashlib.sha256(read_inside(theirs.path, PLAN, MAX_BYTES)).digest()
        stacks = [int(match[1]) for match in map(RECORD.fullmatch, self._listing) if match]
        with ThreadPoolExecutor(THREADS) as pool:
            for shards, wanted in pool.map(lambda stack: self._meet_stack(theirs, stack), stacks):
                self._shards |= shards
                self._fetched |= wanted
        remove_tree_inside(self.folder, ".work/store")

    def _meet_stack(self, theirs: ZooFolder, stack: int) -> tuple[dict[str, FileInfo], dict[str, FileInfo]]:
        """Compare the two records of a stack; return which shards are in the store, and which have to be fetched."""
        name, mine = self._zoo.record_name(stack), self._zoo.record_bytes(stack)
        line = read_record_line(self.store, name)
        write_durably(theirs.path / name, line, theirs.path)
        record = theirs.read_record(stack)
        assert record is not None, "it has just been written"
        there = {s: info for s, info in record.shards.items() if self._is_there(s, info)}
        if mine is not None and _has_all(mine[0], record):
            line = line.partition(b"\n")[0]
            if len(mine[1]) == self._listing[name].size and mine[1].startswith(line + b"\n"):
                self._digests[name] = hashlib.sha256(mine[1]).digest()  # the line has the sha256 of the rest
            # Whoever was killed while fetching has left records without their shards.
            return there, {s: info for s, info in record.shards.items() if not is_file_inside(self.folder, s)}
        data = self.store.read(name) or b""
        write_durably(theirs.path / name, data, theirs.path)
        theirs.state_bytes(stack)  # held against its sha256
        self._zoo.write(name, data)
        self._digests[name] = hashlib.sha256(data).digest()
        return there, dict(record.shards)

    def _is_there(self, name: str, info: FileInfo) -> bool:
        return name in self._listing and self._listing[name].size == info.size

    def fetch(self) -> None:
        """Bring every file that records or manifest in the store name to the working folder, and check its sha256."""
        self._fetch(self._fetched)
        for name in UNHASHED:
            if name != "zoo.json" and name in self._listing:
                self.store.download(name, self.folder)

    def _fetch(self, files: dict[str, FileInfo]) -> None:
        def fetch(name: str) -> int:
            if file_fault(self.folder, name, files[name]) is None:
                return 0
            if name not in self._listing:
                raise DamagedZooError(f"{self.store.url}/{name}: is missing")
            self.store.download(name, self.folder)
            if file_fault(self.folder, name, files[name]) is not None:
                self._zoo.remove(name)
                raise DamagedZooError(f"{self.store.url}/{name}: its bytes have changed (sha256)")
            return 1

        with ThreadPoolExecutor(THREADS) as pool:
            count = sum(pool.map(fetch, files))
        if count > 1:
            LOG.info("%s: fetched %d files", self.store.url, count)

    # --- what it gets ------------------------------------------------------------------------------------

    def put_plan(self) -> None:
        """Put the records that the working folder has, then the plan: it never stands there without them."""
        plan = self._zoo.read_plan()
        assert plan is not None, "the builder has just stored it"
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.put_stack, range(len(plan.stacks))))
        self._replace(PLAN, read_inside(self.folder, PLAN, MAX_BYTES))

    def put_stack(self, stack: int) -> None:
        """Put the shards that the record of a stack names, then the record, whatever it has come to meanwhile."""
        found = self._zoo.record_bytes(stack)
        if found is None:
            return
        record, data = found
        name = self._zoo.record_name(stack)
        if self._digests.get(name) == hashlib.sha256(data).digest():
            return
        self._lease.check()
        self._put({shard: info for shard, info in record.shards.items() if self._shards.get(shard) != info})
        self._replace(name, data)

    def finish(self, manifest: Manifest) -> None:
        """Put what the finished zoo has beside its shards, zoo.json last, and then remove what only a resume needs."""
        files = manifest.files
        self._lease.check()
        # From here on tables of a zoo that has grown are replaced, so its old manifest must go.
        if "zoo.json" in self._listing:
            self.store.remove("zoo.json")
        for name in self._listing.keys() - files.keys():
            if name.startswith(("data/", "metadata/")) and name.endswith(".parquet"):
                self.store.remove(name)
        self._put({name: info for name, info in files.items() if self._shards.get(name) != info})
        for name in ("build.json", "README.md"):
            self.store.upload(name, self.folder)
        self._lease.check()
        self.store.upload(MANIFEST, self.folder)
        self.store.remove(PLAN)

    def _put(self, files: dict[str, FileInfo]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self.store.upload(name, self.folder), files))
        self._shards |= files

    def _replace(self, name: str, data: bytes) -> None:
        """Put plan or record, if what is there is what this builder has seen or put last."""
        digest = hashlib.sha256(data).digest()
        if self._digests.get(name) == digest:
            return
        try:
            self._tags[name] = self.store.swap(name, data, self._tags.get(name))
        except ConflictError:
            raise BusyError(f"{self.store.url}: another builder has written {name}; this one stops") from None
        self._digests[name] = digest


def read_record_line(objects: ObjectStore, name: str) -> bytes:
    """Return the first bytes of a record in a store, with its whole first line and without most of its tensors."""
    data = objects.read(name, HEAD) or b""
    return data if b"\n" in data else objects.read(name) or b""


def _has_all(mine: StackRecord, theirs: StackRecord) -> bool:
    """Whether a record has every shard that another one has, and stands at least as far."""
    same = all(mine.shards.get(name) == info for name, info in theirs.shards.items())
    return same and (mine.done, mine.epoch) >= (theirs.done, theirs.epoch)
