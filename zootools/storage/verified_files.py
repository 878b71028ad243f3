"""Files that are compared with their sha256 before anything is read from them.

None of the formats in a zoo notices a flipped bit by itself, so this is where damage is found: by `open_zoo`
in what it reads, by `verify` in everything.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import NotPlainError, open_inside
from zootools.hashing import sha256_of

_POINTER = b"version https://git-lfs"
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The size in bytes and the sha256 of a file, as a manifest or a record has them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=0, strict=True)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return what a manifest says of a file with these bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as zoo.json holds them."""
        return {"size": self.size, "sha256": self.sha256}


class VerifiedFiles:
    """The files that a manifest (or the records of a build) names, and no others.

    Each is hashed when it is first opened, and again only when its size, time or inode has changed.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileInfo], verify: bool = True) -> None:
        self.folder, self.files, self.verify = folder, files, verify
        self._rows: Mapping[str, int] = {}
        self._intact: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def check(self, names: Iterable[str]) -> None:
        """Hash, in threads, those of some files that have not been hashed yet.

        Raises DamagedZooError for the first that is not what it should be.
        """
        names = [name for name in names if name not in self._intact]
        for name in names:
            self._info(name)
        if not self.verify or not names:
            return
        with ThreadPoolExecutor(min(_THREADS, max(1, len(names)))) as pool:
            for name, fault in zip(names, pool.map(self.fault, names), strict=True):
                if fault:
                    raise self._error(name, fault)

    def fault(self, name: str, known: tuple[int, ...] | None = None) -> str | None:
        """Hash a file, and return in words what is wrong with it, or None.

        It is not hashed again while its `identity` is the one with which it was found intact, here or (``known``)
        by somebody else.
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
        """From now on refuse shards that do not hold as many models as ``rows`` says."""
        self._rows = rows

    def expected_rows(self, name: str) -> int | None:
        """Return how many models a shard must hold; None if that is not known."""
        return self._rows.get(name)

    def identity(self, name: str) -> tuple[int, ...] | None:
        """Return the `identity` with which a file was found intact; None where it has not been."""
        return self._intact.get(name)

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading; it is hashed first unless it was before, and is still the same.

        Raises DamagedZooError when it is not what it should be.
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

    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of one file, checked; one that is larger than ``limit`` is not even opened."""
        info = self._info(name)
        if info.size > limit:
            raise self._error(name, f"has {info.size} bytes, more than the {limit} that it can need")
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
            raise DamagedZooError(f"{self.folder}: {name} is asked for, but is not in the manifest")
        return self.files[name]

    def _error(self, name: str, fault: str) -> DamagedZooError:
        return DamagedZooError(f"{fault}; `zootools verify` names all that is wrong", path=self.folder / name)


def file_fault(folder: Path, name: str, info: FileInfo) -> str | None:
    """Return what is wrong with a file, in words, or None; every byte is read."""
    try:
        with open_inside(folder, name) as file:
            return content_fault(file, info)
    except OSError as error:
        return unreadable(error)


def file_info(folder: Path, name: str) -> FileInfo:
    """Return what a manifest says of a file that has just been written."""
    with open_inside(folder, name) as file:
        return FileInfo(os.fstat(file.fileno()).st_size, sha256_of(file))


def content_fault(file: BufferedReader, info: FileInfo) -> str | None:
    """Return what is wrong with an open file, in words, or None; every byte is read."""
    size = os.fstat(file.fileno()).st_size
    if size != info.size:
        if size < 1024 and file.read(len(_POINTER)) == _POINTER:
            return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
        return f"has {size} bytes, expected {info.size}"
    if sha256_of(file) != info.sha256:
        return "its bytes have changed (sha256)"
    return None


def identity(file: BufferedReader) -> tuple[int, ...]:
    """Return what tells an unchanged file from a changed one without reading it: inode, size, time of change."""
    state = os.fstat(file.fileno())
    return (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def unreadable(error: OSError) -> str:
    """Say why a file could not be opened."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, NotPlainError):
        return error.what
    return f"cannot be read ({error.strerror})"
