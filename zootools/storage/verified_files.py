"""Files that are compared with their sha256 before anything is read from them.

No format in a zoo detects a flipped bit by itself, so damage is detected here: `open_zoo` compares the files that it
reads, `verify` all files.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import NotPlainError, open_inside
from zootools.hashing import sha256_of

_POINTER = b"version https://git-lfs"
CHANGED = "its bytes have changed (sha256)"
THREADS = min(8, os.cpu_count() or 1)
"""Files that are hashed at the same time; hashing and copying do not hold Python's lock."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The size in bytes and the sha256 of a file, as a manifest or a record has them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=0, strict=True)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the size and sha256 of these bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as zoo.json holds them."""
        return {"size": self.size, "sha256": self.sha256}


class HashedReader:
    """Reads an open file once, from its beginning, and hashes the bytes that it returns."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Return the next bytes; fewer at the end of the file."""
        data = self._file.read(count)
        self._digest.update(data)
        return data

    def fill(self, values: npt.NDArray[np.float32]) -> bool:
        """Read the next bytes into a contiguous array; return False if the file ends before."""
        count = self._file.readinto(values.data)
        self._digest.update(values.data)
        return count == values.nbytes

    def hexdigest(self) -> str:
        """Read the rest of the file; return the sha256 of all of it as hexadecimal digits."""
        while self.read(1 << 16):
            pass
        return self._digest.hexdigest()


class VerifiedFiles:
    """The files that a manifest, or the records of a build, name.

    Each is hashed when it is first opened, and again only when its size, time or inode has changed.

    Args:
        folder: the zoo's folder.
        files: the files by name.
        verify: whether to hash them.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileInfo], verify: bool = True) -> None:
        self.folder, self.files, self.verify = folder, files, verify
        self._rows: Mapping[str, int] = {}
        self._intact: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the lock, for a process that reads the same files; it does not hash them again."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def check(self, names: Iterable[str]) -> None:
        """Hash those of some files that have not been hashed yet, in threads.

        Raises DamagedZooError for the first damaged file.
        """
        names = [name for name in names if name not in self._intact]
        for name in names:
            self._info(name)
        if not self.verify or not names:
            return
        with ThreadPoolExecutor(min(THREADS, max(1, len(names)))) as pool:
            for name, fault in zip(names, pool.map(self.fault, names), strict=True):
                if fault:
                    raise self._error(name, fault)

    def fault(self, name: str, known: tuple[int, ...] | None = None) -> str | None:
        """Hash a file; return what is wrong with it, or None.

        It is not hashed again while its `identity` is that with which it was found intact, here or, as ``known``, by
        another process.
        """
        try:
            with open_inside(self.folder, name) as file:
                state = identity(file)
                intact = state in (self._intact.get(name), known)
                fault = None if intact else content_fault(file, self._info(name))
        except OSError as error:
            return unreadable(error)
        if fault is None:
            with self._lock:
                self._intact[name] = state
        return fault

    def expect_rows(self, rows: Mapping[str, int]) -> None:
        """Set the expected number of models of shards, by name; readers refuse a shard with another number."""
        self._rows = rows

    def expected_rows(self, name: str) -> int | None:
        """Return the number of models that a shard must have, or None."""
        return self._rows.get(name)

    def identity(self, name: str) -> tuple[int, ...] | None:
        """Return the `identity` with which a file was found intact, or None."""
        return self._intact.get(name)

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading; it is hashed first, unless it was hashed before and is unchanged.

        Raises DamagedZooError for a file that is missing or damaged.
        """
        self._info(name)
        try:
            file = open_inside(self.folder, name)
            state = identity(file)
            fault = None
            if self.verify and self._intact.get(name) != state:
                fault = content_fault(file, self._info(name))
                file.seek(0)
        except OSError as error:
            raise self._error(name, unreadable(error)) from error
        if fault is not None:
            file.close()
            raise self._error(name, fault)
        self._intact[name] = state
        return file

    @contextmanager
    def reading(self, name: str) -> Iterator[HashedReader]:
        """A context to read a file once. What was read is the verified content only after it was left without an error.

        Raises DamagedZooError at the beginning for a file that is missing or of another size, at the end for one of
        other bytes than the manifest says. An OSError in the context is raised as DamagedZooError as well.
        """
        info = self._info(name)
        try:
            with open_inside(self.folder, name) as file:
                state = identity(file)
                if state[1] != info.size:
                    raise self._error(name, content_fault(file, info) or "has changed while it was read")
                reader = HashedReader(file)
                yield reader
                if reader.hexdigest() != info.sha256:
                    raise self._error(name, CHANGED)
        except OSError as error:
            raise self._error(name, unreadable(error)) from error
        with self._lock:
            self._intact[name] = state

    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of a file. Raises DamagedZooError if it is damaged, or larger than ``limit`` bytes."""
        info = self._info(name)
        if info.size > limit:
            raise self._error(name, f"has {info.size} bytes, expected at most {limit}")
        try:
            with open_inside(self.folder, name) as file:
                fault = content_fault(file, info) if self.verify else None
                if fault is None:
                    file.seek(0)
                    return file.read(info.size)
        except OSError as error:
            fault = unreadable(error)
        raise self._error(name, fault)

    def _info(self, name: str) -> FileInfo:
        if name not in self.files:
            raise DamagedZooError("is not in the manifest", path=self.folder / name)
        return self.files[name]

    def _error(self, name: str, fault: str) -> DamagedZooError:
        return DamagedZooError(f"{fault}; `zootools verify` lists all damaged files", path=self.folder / name)


def file_fault(folder: Path, name: str, info: FileInfo) -> str | None:
    """Return what is wrong with a file, or None; every byte is read."""
    try:
        with open_inside(folder, name) as file:
            return content_fault(file, info)
    except OSError as error:
        return unreadable(error)


def file_info(folder: Path, name: str) -> FileInfo:
    """Return the size and sha256 of a file."""
    with open_inside(folder, name) as file:
        return FileInfo(os.fstat(file.fileno()).st_size, sha256_of(file))


def content_fault(file: BufferedReader, info: FileInfo) -> str | None:
    """Return what is wrong with an open file, or None; every byte is read."""
    size = os.fstat(file.fileno()).st_size
    if size != info.size:
        if size < 1024 and file.read(len(_POINTER)) == _POINTER:
            return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
        return f"has {size} bytes, expected {info.size}"
    if sha256_of(file) != info.sha256:
        return CHANGED
    return None


def identity(file: BufferedReader) -> tuple[int, ...]:
    """Return the inode, size and times of a file, by which a change is detected without reading it."""
    state = os.fstat(file.fileno())
    return (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def unreadable(error: OSError) -> str:
    """Return in words why a file could not be opened."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, NotPlainError):
        return error.what
    return f"cannot be read ({error.strerror})"
