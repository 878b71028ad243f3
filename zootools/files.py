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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Self

from zootools.errors import BusyError, StorageError

TEMPORARY = ".tmp-"


@contextmanager
def durable_file(path: Path, root: Path | None = None, fence: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Yield a new file; when the block ends well it is synced and becomes ``path``. The mode follows the umask.

    Args:
        path: what the file will be called.
        root: links are refused below this folder; by default the folder of ``path``, which may itself be one.
        fence: called just before the file becomes visible, and raises if the right to write is lost.

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


def open_inside(root: Path, name: str) -> BufferedReader:
    """Open ``root/name`` for reading; a link at any step below ``root`` is an OSError, and so is no plain file."""
    *parts, last = name.split("/")
    folder = _open_folder(root, parts)
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(last, flags, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no plain file", name)
    return open(descriptor, "rb")  # noqa: PTH123


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
    """Return the bytes of a JSON file that people may read: what ``json.dumps`` makes with an indent of 1, sooner.

    Keys must be strings.
    """
    return f"{_pretty(value, 0)}\n".encode()


def _pretty(value: Any, depth: int) -> str:
    if not value or not isinstance(value, dict | list | tuple):
        return _encoder(0).encode(value)
    line = f"\n{' ' * (depth + 1)}"
    inner = value.values() if isinstance(value, dict) else value
    if _is_plain(inner):
        # With an indent json.dumps is written in Python; a container of plain values needs none of its own.
        text = _encoder(depth + 1).encode(value)
        return f"{text[0]}{line}{text[1:-1]}{line[:-1]}{text[-1]}"
    if isinstance(value, dict):
        if all(item and type(item) is dict and _is_plain(item.values()) for item in inner):
            return _pretty_table(value, depth)
        items = [f"{_encoder(0).encode(key)}: {_pretty(item, depth + 1)}" for key, item in sorted(value.items())]
        return f"{{{line}{f',{line}'.join(items)}{line[:-1]}}}"
    return f"[{line}{f',{line}'.join([_pretty(item, depth + 1) for item in value])}{line[:-1]}]"


def _is_plain(values: Iterable[Any]) -> bool:
    return not any(isinstance(value, dict | list | tuple) for value in values)


def _pretty_table(value: dict[str, dict[str, Any]], depth: int) -> str:
    """`_pretty` of objects of plain values by name, such as the files of a manifest.

    No string has a newline in its JSON, so with newlines in its separators the structure of the text can be told.
    """
    outer, inner = f"\n{' ' * (depth + 1)}", f"\n{' ' * (depth + 2)}"
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",\n", ":\n"))
    text = text[1:-2].replace("},\n", "\0").replace(":\n{", "\1").replace(",\n", f",{inner}").replace(":\n", ": ")
    text = text.replace("\0", f"{outer}}},{outer}").replace("\1", f": {{{inner}")
    return f"{{{outer}{text}{outer}}}{outer[:-1]}}}"


@lru_cache
def _encoder(depth: int) -> json.JSONEncoder:
    """Return the encoder of containers of plain values, whose entries are indented by ``depth`` spaces."""
    return json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(f",\n{' ' * depth}", ": "))


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
                os.close(_open_folder(self.path.parent, (), create=True))
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
    except FileNotFoundError:
        return False


@contextmanager
def _replacing(path: Path, root: Path, fence: Callable[[], None] | None) -> Iterator[tuple[int, str]]:
    """Yield folder (a descriptor) and name of an empty temporary file, which then takes the place of ``path``."""
    folder, name, made = -1, f".{path.name}{TEMPORARY}{secrets.token_hex(4)}", False
    try:
        folder = _open_folder(root, path.parent.relative_to(root).parts, create=True)
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


def _open_folder(root: Path, parts: Sequence[str], create: bool = False) -> int:
    """Return a descriptor of a folder below ``root``, reached without following a link; made if told so."""
    if create and not root.is_dir():
        # Each new folder's name is synced too: a file must not outlive the folder it is in.
        os.close(_open_folder(root.parent, (root.name,), create=True))
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = _open_or_make(folder, part, create)
        finally:
            os.close(folder)
        folder = inner
    return folder


def _open_or_make(folder: int, name: str, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    os.fsync(folder)
    return os.open(name, flags, dir_fd=folder)
