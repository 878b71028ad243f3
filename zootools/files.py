"""Durable files: the one way in which zootools writes anything that must survive.

A file appears under its name only when it is whole and on the disk: bytes go to a temporary file in the
same folder, are synced, renamed, and the folder is synced. A writer that dies leaves the old file, and
perhaps a temporary one, which the next builder sweeps away.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from zootools.errors import BusyError, StorageError

TEMPORARY = ".tmp-"


@contextmanager
def durable_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; when the block ends well it becomes ``path``.

    Raises StorageError, with nothing left behind and ``path`` as it was, when the disk refuses.
    """
    temporary = path.parent / f".{path.name}{TEMPORARY}{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file, atomically and durably; the mode follows the umask."""
    with durable_path(path) as temporary:
        temporary.write_bytes(data)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say what the disk refused, and what helps."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space and run the same command again" if full else "nothing written before is lost"
    return StorageError(f"{path}: cannot be written ({error.strerror or error}); {hint}")


def sweep_temporaries(folder: Path) -> None:
    """Remove what dead writers left below a folder; only its builder, who holds the lock, may call this."""
    for path in folder.rglob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pretty_json(value: Any) -> bytes:
    """Return the bytes of a JSON file that people may read."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class FolderLock:
    """The right to write into one folder: ``flock`` on a file, released by the system if its holder dies.

    Workers are given a duplicate of the descriptor, so the lock is free only when the last of them is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def __enter__(self) -> Self:
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise storage_error(self.path, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 1000).decode(errors="replace").strip()
                os.close(descriptor)
                raise BusyError(
                    f"{self.path.parent.parent}: another process is at work there ({holder or 'just starting'}); "
                    "wait for it, or stop it"
                ) from None
            # The previous holder may have finished, and removed the file, between our open and our lock.
            if self.path.exists() and os.fstat(descriptor).st_ino == self.path.stat().st_ino:
                break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self.descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
