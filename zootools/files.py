"""Durable files: the one way in which zootools writes anything that must survive.

A file appears under its name only when it is whole and on the disk: bytes go to a temporary file in the
same folder, are synced, renamed, and the folder is synced. A writer that dies leaves the old file, and
perhaps a temporary one, which the next builder sweeps away. Inside a zoo no link is followed, neither in
writing nor in reading, so nothing outside of its folder is ever touched.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Self

from zootools.errors import BusyError, StorageError
from zootools.inside import open_folder
from zootools.inside import open_inside as open_inside  # for those who look for it here

TEMPORARY = ".tmp-"


@contextmanager
def durable_file(path: Path, root: Path | None = None, fence: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Yield a new file; when the block ends well it is synced and becomes ``path``. The mode follows the umask.

    Args:
        path: what the file will be called.
        root: links are refused below this folder; by default the folder of ``path``, which may itself be one.
        fence: called first, and just before the file becomes visible; it raises if the right to write is lost.

    Raises StorageError, with nothing left behind and ``path`` as it was, when the disk refuses.
    """
    with _replacing(path, root or path.parent, fence) as (folder, name):
        descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor, not a path)
            yield file


@contextmanager
def durable_path(path: Path) -> Iterator[Path]:
    """Like `durable_file`, for writers that take a path only: yield the path of the temporary file."""
    with _replacing(path, path.parent, None) as (_, name):
        yield path.parent / name


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file, atomically and durably (see `durable_file`)."""
    with durable_file(path) as file:
        file.write(data)


def link_or_copy(source: Path, target: Path) -> None:
    """Let a file appear under a second name, which takes no further space where that can be; an old one stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links, or another one
        with durable_path(target) as temporary:
            shutil.copyfile(source, temporary)


def remove_durably(path: Path) -> None:
    """Remove a file or link, if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        return sha256_of(file)


def sha256_of(file: BufferedReader) -> str:
    """Return the sha256 of an open file as hexadecimal digits."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def pretty_json(value: Any) -> bytes:
    """Return the bytes of a JSON file that people may read."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class FolderLock:
    """The right to write into one folder: ``flock`` on a file, released by the system if its holder dies.

    Workers are given a duplicate of the descriptor, so the lock is free only when the last of them is gone.
    Somebody who removes the lock file takes the zoo away from its holder: before anything becomes visible,
    `fence` compares the file that is there with the one that was locked. The folder must lie on a file
    system on which flock works between all machines that build in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def __enter__(self) -> Self:
        while True:
            try:
                os.close(open_folder(self.path.parent, (), create=True))
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # a builder that has just finished removed the folder in between
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
            except OSError as error:
                os.close(descriptor)
                raise StorageError(
                    f"{self.path}: this file system has no locks (flock: {error.strerror}), without which two builders "
                    "could work on one zoo; build on a local disk, or mount this one with locks (Lustre: -o flock)"
                ) from error
            # The previous holder may have finished, and removed the file, between our open and our lock.
            if is_held(self.path, descriptor):
                break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self.descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def is_held(path: Path, descriptor: int) -> bool:
    """Whether the lock file at ``path`` is still the one that ``descriptor`` has locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False


def check_held(path: Path, descriptor: int) -> None:
    """Raise unless the lock file ``<folder>/.work/lock`` is still the one that ``descriptor`` has locked.

    Raises StorageError when it is no longer there, because the folder was moved or removed, its disk is not mounted
    any more, or somebody removed the file alone; BusyError when another builder has made a new one.
    """
    if is_held(path, descriptor):
        return
    folder = path.parent.parent
    moved = _present_path(descriptor)
    if moved is not None and moved.parts[-2:] == path.parts[-2:]:
        now = moved.parent.parent
        raise StorageError(
            f"{folder}: was moved to {now} during the build, which stops; nothing written is lost, "
            f"and --out {now} resumes it there"
        )
    try:
        path.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be read any more ({error.strerror or error}); the build stops, nothing written is lost"
        ) from error
    else:
        raise BusyError(f"{folder}: another builder has taken over this zoo; this one stops")
    if not folder.is_dir():
        raise StorageError(
            f"{folder}: is no longer there: it was moved or removed during the build, or its disk was unmounted. The "
            "build stops; where the folder still exists, the same command with its path after --out resumes it"
        )
    name = path.relative_to(folder)
    if not path.with_name("plan.json").exists():
        raise StorageError(
            f"{folder}: {name.parent} was removed during the build, which stops: without the records in it the build "
            "cannot be resumed. The checkpoints that were written are still there; build again in another folder"
        )
    raise StorageError(
        f"{folder}: {name} was removed during the build, which stops because another one could now begin there; "
        "nothing written is lost, and the same command resumes it"
    )


def _present_path(descriptor: int) -> Path | None:
    """Return where an open file lies now; None where it has been removed, or the system does not tell."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return path if is_held(path, descriptor) else None
    except OSError:
        return None


@contextmanager
def _replacing(path: Path, root: Path, fence: Callable[[], None] | None) -> Iterator[tuple[int, str]]:
    """Yield folder (a descriptor) and name of an empty temporary file, which then takes the place of ``path``."""
    folder, name, made = -1, f".{path.name}{TEMPORARY}{secrets.token_hex(4)}", False
    if fence is not None:
        fence()  # else a folder that has been moved away would be made anew
    try:
        folder = open_folder(root, path.parent.relative_to(root).parts, create=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor, made = os.open(name, flags, 0o666, dir_fd=folder), True
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        yield folder, name
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fchmod(descriptor, mode)  # a library may have put a file of its own there, readable by us alone
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fence is not None:
            fence()
        os.rename(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        made = False
        os.fsync(folder)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if made:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
        if folder >= 0:
            os.close(folder)
