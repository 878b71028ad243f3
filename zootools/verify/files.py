"""Hashing of many files in threads, resumable after an interruption."""

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from zootools.errors import StorageError
from zootools.filesystem.files import write_durably
from zootools.paths import cache_folder
from zootools.storage.verified_files import FileInfo, VerifiedFiles
from zootools.verify.fault import Fault

NOTE_EVERY = 30
"""Seconds of work that a killed verification may lose."""
REMEMBERED = 24 * 3600
"""Seconds after which an interrupted verification starts anew."""

K = TypeVar("K")
V = TypeVar("V")


def file_faults(
    files: VerifiedFiles,
    tick: Callable[[int], None] = lambda count: None,
    intact: "IntactFiles | None" = None,
) -> Iterator[Fault]:
    """Yield the faults of files in the order of their names.

    Args:
        files: the files.
        tick: called with the size of every file that has been read, in bytes.
        intact: the files that need not be read again; it is stored if this is interrupted.
    """
    noted = intact or IntactFiles(files.folder)

    def examine(name: str) -> str | None:
        fault = files.fault(name, noted.known(name, files.files[name]))
        if fault is None:
            noted.add(name, files)
        return fault

    try:
        for name, fault in in_threads(examine, sorted(files.files)):
            tick(files.files[name].size)
            if fault is not None:
                yield Fault(name, fault)
    except KeyboardInterrupt:
        noted.write()
        raise


def in_threads(function: Callable[[K], V], items: Sequence[K]) -> Iterator[tuple[K, V]]:
    """Yield every item with the result of a function for it, in order; as many at a time as there are cores."""
    count = os.cpu_count() or 1
    pool, begun = ThreadPoolExecutor(count), deque[tuple[K, Future[V]]]()
    try:
        for item in items:
            begun.append((item, pool.submit(function, item)))
            if len(begun) > 4 * count:  # bounds the memory that results need until they are consumed
                item, future = begun.popleft()
                yield item, future.result()
        while begun:
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class IntactFiles:
    """The files of a folder that an interrupted verification has found intact, stored in the user's cache."""

    def __init__(self, folder: Path) -> None:
        key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self.path = cache_folder() / "verified" / f"{key}.json"
        self.intact: dict[str, list[Any]] = {}
        self._began, self._written, self._lock = time.time(), time.monotonic(), threading.Lock()
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            value = json.loads(self.path.read_bytes())
            if 0 <= self._began - value["began"] < REMEMBERED:
                self._began, self.intact = value["began"], dict(value["intact"])

    def known(self, name: str, info: FileInfo) -> tuple[int, ...] | None:
        """Return the `verified_files.identity` with which a file of this sha256 was found intact, or None."""
        *state, sha256 = self.intact.get(name) or [None]
        return tuple(state) if sha256 == info.sha256 else None

    def add(self, name: str, files: VerifiedFiles) -> None:
        """Note an intact file; every `NOTE_EVERY` seconds, store the notes."""
        with self._lock:
            self.intact[name] = [*(files.identity(name) or ()), files.files[name].sha256]
            if time.monotonic() - self._written < NOTE_EVERY:
                return
        self.write()

    def write(self) -> None:
        """Store the notes; if the cache cannot be written, the verification cannot be resumed."""
        with self._lock, suppress(StorageError):
            self._written = time.monotonic()
            write_durably(self.path, json.dumps({"began": self._began, "intact": self.intact}).encode())

    def forget(self) -> None:
        """Remove the notes of a complete verification: the next one reads everything again."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
