"""Where a zoo is built: in a folder, or in an object store by way of a working folder.

A zoo for an object store is built in a working folder in the user's cache, like any other zoo. What is committed there
is put to the store in the same order: the shards, then the record that names them; at the end the tables, the card, and
zoo.json last. So a shard in the store is valid when a record there names it with size and sha256, and zoo.json is
there only with all files that it names. A builder that resumes, on any machine, first fetches the files that the store
has and its working folder lacks.

The main process of the build puts the files; workers do not wait for it. They get their next stack from it, so the
store lacks at most the one stack that each worker trains.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

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
from zootools.storage.kept_state import FOLDER as STATE
from zootools.storage.manifest import SHARD, TABLE, UNHASHED, Manifest, read_manifest
from zootools.storage.records import StackRecord
from zootools.storage.verified_files import FileInfo, file_fault

LOG = logging.getLogger(__name__)

THREADS = 16
"""Objects that are put or fetched at the same time."""
HEAD = 1 << 16
"""Bytes that nearly always contain the first line of a record."""
RECORD = re.compile(r"\.work/stack-(\d{5,})\.record")
"""Names of records."""
KEPT = re.compile(rf"{re.escape(STATE)}/stack-\d{{5,}}\.record")
"""Names of kept records (`zootools.storage.kept_state`)."""


class Output(Protocol):
    """Where a zoo is built: the builder works in `folder`, and calls all methods but `present` in a `session`."""

    folder: Path

    def present(self) -> ZooFolder | None:
        """Return the zoo if it can be read before a session, None where only a session can read it."""

    def session(self, zoo: ZooFolder) -> AbstractContextManager[ZooFolder]:
        """Return a context with the exclusive right to build, in which `folder` has the plan or the manifest."""

    def holds(self, name: str) -> bool:
        """Whether a file of the finished zoo exists."""

    def fetch(self) -> None:
        """Fetch all files that resuming or growing the zoo needs."""

    def put_plan(self) -> None:
        """Store the plan, and the records of an earlier session, that are in `folder`."""

    def trains(self, engine: str, trained: int) -> None:
        """Describe to those who look that a training begins (`FolderLock.trains`)."""

    def put_stack(self, stack: int) -> None:
        """Store what has been committed of a stack in `folder`."""

    def finish(self, manifest: Manifest) -> None:
        """Store the finished zoo that is in `folder`."""


def open_output(out: str | Path) -> Output:
    """Return the output for a path or a ``file://`` URL (a folder), or for the URL of an object store."""
    folder = folder_of(out)
    return LocalOutput(folder) if folder is not None else ObjectStoreOutput(str(out))


class LocalOutput:
    """A folder: what is committed there is stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def present(self) -> ZooFolder:
        """Return the zoo in the folder."""
        return ZooFolder(self.folder)

    def session(self, zoo: ZooFolder) -> AbstractContextManager[ZooFolder]:
        """Return a context that does nothing: the builder has the lock of the folder."""
        return nullcontext(zoo)

    def holds(self, name: str) -> bool:
        """Whether a file of the finished zoo exists."""
        return is_file_inside(self.folder, name)

    def fetch(self) -> None:
        """Do nothing."""

    def put_plan(self) -> None:
        """Do nothing."""

    def trains(self, engine: str, trained: int) -> None:
        """Do nothing: the lock of the folder describes it."""

    def put_stack(self, stack: int) -> None:
        """Do nothing."""

    def finish(self, manifest: Manifest) -> None:
        """Do nothing."""


class ObjectStoreOutput:
    """An object store, with a working folder on this machine."""

    def __init__(self, url: str) -> None:
        self.store = ObjectStore(url)
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.store.url)[-60:].strip("-")
        key = hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
        self.folder = cache_folder() / "builds" / f"{name}-{key}"
        self._zoo = ZooFolder(self.folder)
        self._listing: dict[str, StoredObject] = {}
        self._tags: dict[str, str] = {}
        """Tags of the plan and the records in the store: these are replaced only if the tag is unchanged."""
        self._digests: dict[str, bytes] = {}
        """The sha256 of the same objects, as far as it is known."""
        self._shards: dict[str, FileInfo] = {}
        """The files in the store that a record or the manifest there names."""
        self._fetched: dict[str, FileInfo] = {}
        """The files that `fetch` must fetch."""

    def present(self) -> None:
        """Return None: the working folder may be behind the store, or hold another zoo."""

    @contextmanager
    def session(self, zoo: ZooFolder) -> Iterator[ZooFolder]:
        """A context with the lease of the store; the working folder has plan and records, or the manifest."""
        self._zoo = zoo
        with Lease(self.store) as self._lease:
            LOG.info("%s: the working folder is %s", self.store.url, self.folder)
            self._listing = self.store.list()
            if not {PLAN, "zoo.json"} & self._listing.keys() and any(
                not name.startswith(".work/") for name in self._listing
            ):
                raise SpecError(f"{self.store.url}: holds objects but not a zoo; choose another place with --out")
            self._tags = {name: stored.tag for name, stored in self._listing.items() if name.startswith(".work/")}
            if PLAN in self._listing:
                self._merge_unfinished()
            elif "zoo.json" in self._listing:
                self._take_finished()
            yield zoo
            # The zoo is finished, also in the store: remove what only resuming needs, and then the working folder.
            with ThreadPoolExecutor(THREADS) as pool:
                rest = self.store.list().keys() - {LEASE}
                list(pool.map(self.store.remove, [name for name in rest if name.startswith(".work/")]))
        remove_tree_inside(self.folder.parent, self.folder.name)

    def holds(self, name: str) -> bool:
        """Whether the store had an object of this name when the session began."""
        return name in self._listing

    # --- what the store has ------------------------------------------------------------------------------

    def _take_finished(self) -> None:
        """Bring the manifest of a finished zoo to the working folder; what else that has of a build is dropped."""
        records = [f".work/{entry}" for entry in self._zoo.entries(".work") if entry.startswith("stack-")]
        for name in (PLAN, MANIFEST, *records):
            self._zoo.remove(name)
        self.store.download(MANIFEST, self.folder)
        files = read_manifest(self.folder).files
        self._fetch({name: info for name, info in files.items() if name == "spec.yaml"})  # an imported zoo has none
        self._fetched = files
        self._shards = {name: info for name, info in files.items() if self._is_there(name, info)}

    def _merge_unfinished(self) -> None:
        """Merge plan and records of the store with those of the working folder.

        A record of the working folder that has all shards of the one in the store, and is at least as far, is kept; it
        will be put. Raises SpecError for plans of different zoos.
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
                f"{self.store.url}: the zoo in the store is not the one in the working folder {self.folder}; "
                "choose another place with --out, or remove that folder if you do not need it"
            )
        self._digests[PLAN] = hashlib.sha256(read_inside(theirs.path, PLAN, MAX_BYTES)).digest()
        stacks = [int(match[1]) for match in map(RECORD.fullmatch, self._listing) if match]
        with ThreadPoolExecutor(THREADS) as pool:
            for shards, wanted in pool.map(lambda stack: self._merge_stack(theirs, stack), stacks):
                self._shards |= shards
                self._fetched |= wanted
        remove_tree_inside(self.folder, ".work/store")

    def _merge_stack(self, theirs: ZooFolder, stack: int) -> tuple[dict[str, FileInfo], dict[str, FileInfo]]:
        """Merge the two records of a stack; return the shards in the store, and those that must be fetched."""
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
            # A builder that was killed while it fetched has left records without their shards.
            return there, {s: info for s, info in record.shards.items() if not is_file_inside(self.folder, s)}
        data = self.store.read(name) or b""
        write_durably(theirs.path / name, data, theirs.path)
        theirs.state_bytes(stack)  # raises where it is not what its sha256 says
        self._zoo.write(name, data)
        self._digests[name] = hashlib.sha256(data).digest()
        return there, dict(record.shards)

    def _is_there(self, name: str, info: FileInfo) -> bool:
        return name in self._listing and self._listing[name].size == info.size

    def fetch(self) -> None:
        """Fetch every file that records or manifest in the store name, and verify its sha256; also the kept state."""
        self._fetch(self._fetched)
        with ThreadPoolExecutor(THREADS) as pool:
            kept = filter(KEPT.fullmatch, self._listing)
            list(pool.map(lambda name: self.store.download(name, self.folder), kept))
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
        """Put the records that the working folder has, then the plan: it is never in the store without them."""
        plan = self._zoo.read_plan()
        assert plan is not None, "the builder has just stored it"
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.put_stack, range(len(plan.stacks))))
        self._replace(PLAN, read_inside(self.folder, PLAN, MAX_BYTES))

    def trains(self, engine: str, trained: int) -> None:
        """Describe the training in the lease."""
        self._lease.trains(engine, trained)

    def put_stack(self, stack: int) -> None:
        """Put the shards that the record of a stack names, then the record, in its present state."""
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
        """Put the other files of the finished zoo, zoo.json last, and remove the plan."""
        files = manifest.files
        self._lease.check()
        # From here on the tables of a zoo that has grown are replaced, so its old manifest is removed first.
        if "zoo.json" in self._listing:
            self.store.remove("zoo.json")
        states = [f"{STATE}/{entry}" for entry in self._zoo.entries(STATE)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self.store.upload(name, self.folder), states))
        old = self._listing.keys() - files.keys() - {*states}
        for kind in (KEPT, TABLE, SHARD):  # in this order, because a kept record names shards
            for name in filter(kind.fullmatch, old):
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
        """Put plan or record, if the object there is the one that this builder has read or put last."""
        digest = hashlib.sha256(data).digest()
        if self._digests.get(name) == digest:
            return
        try:
            self._tags[name] = self.store.swap(name, data, self._tags.get(name))
        except ConflictError:
            raise BusyError(f"{self.store.url}: another builder has written {name}; this one stops") from None
        self._digests[name] = digest


def read_record_line(objects: ObjectStore, name: str) -> bytes:
    """Return the first bytes of a record in a store, which contain its whole first line."""
    data = objects.read(name, HEAD) or b""
    return data if b"\n" in data else objects.read(name) or b""


def _has_all(mine: StackRecord, theirs: StackRecord) -> bool:
    """Whether a record has every shard of another one, and is at least as far."""
    same = all(mine.shards.get(name) == info for name, info in theirs.shards.items())
    return same and (mine.done, mine.epoch) >= (theirs.done, theirs.epoch)
