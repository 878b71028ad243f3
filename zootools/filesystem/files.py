"""Durable files.

A file appears under its name when it is complete and on the disk: its bytes are written to a temporary file in the same
folder and synced, the file is renamed, and the folder is synced. A writer that dies leaves the old file, and perhaps a
temporary one, which the next builder removes. Inside a zoo links are neither written through nor read through, so
nothing outside of its folder is touched.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from zootools.errors import SpecError, StorageError
from zootools.filesystem.inside import (
    is_file_inside,
    names_inside,
    open_folder,
    open_inside,
    remove_inside,
)

TEMPORARY = ".tmp-"


@contextmanager
def durable_file(
    path: Path, root: Path | None = None, fence: Callable[[], None] | None = None, mode: int | None = None
) -> Iterator[BinaryIO]:
    """A context that yields a new file, which is synced and becomes ``path`` at the end, unless an exception is raised.

    Args:
        path: the path of the file.
        root: links are refused below this folder; by default the folder of ``path``, which may itself be a link.
        fence: called first, and just before the file becomes visible; it raises if the right to write is lost.
        mode: the permissions of the file; by default those that the umask leaves.

    Raises StorageError when the file cannot be written; then ``path`` is unchanged and there is no temporary file.
    """
    with _replacing(path, root or path.parent, fence, mode) as (folder, name):
        descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor, not a path)
            yield file


@contextmanager
def durable_path(path: Path, root: Path | None = None) -> Iterator[Path]:
    """Like `durable_file`, for writers that take paths only: yield the path of the temporary file.

    With ``root`` the path contains the descriptor of the open folder, and is valid in this process only.
    """
    with _replacing(path, root or path.parent, None, None) as (folder, name):
        yield (path.parent if root is None else Path(f"/dev/fd/{folder}")) / name


def write_durably(path: Path, data: bytes, root: Path | None = None) -> None:
    """Write a file atomically and durably (see `durable_file`)."""
    with durable_file(path, root) as file:
        file.write(data)


def link_or_copy(file: BufferedReader, folder: Path, name: str) -> None:
    """Hard-link an open file to ``folder/name``, or copy it where the file system cannot do that.

    An existing plain file stays. Raises StorageError, also for a link below ``folder``.
    """
    *parts, last = name.split("/")
    try:
        there = open_folder(folder, parts, create=True)
        try:
            # The file that is open, even if its name has been given to another one.
            os.link(f"/proc/self/fd/{file.fileno()}", last, dst_dir_fd=there, follow_symlinks=True)
            os.fsync(there)
        except OSError:  # it exists, or there are no hard links here, or not between these file systems
            if not is_file_inside(folder, name):
                file.seek(0)
                with durable_file(folder / name, folder) as copy:
                    shutil.copyfileobj(file, copy)
        finally:
            os.close(there)
    except OSError as error:
        raise storage_error(folder / name, error) from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file that a user has named for reading; links are followed.

    Raises NotPlainError for anything but a regular file: a pipe would wait for its writer, a device is not data.
    """
    real = Path(os.path.realpath(path))
    return open_inside(real.parent, real.name)


def check_output(path: Path, example: str) -> None:
    """Raise, before any work is done, the errors of `write_output`; ``example`` is a name for a file in a folder."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(path, error) from error
    if stat.S_ISDIR(state.st_mode):
        raise SpecError(f"{path}: is a folder; expected a file, such as {path / example}")
    if stat.S_ISBLK(state.st_mode):
        raise SpecError(f"{path}: is a disk; expected a file")
    # The superuser may write to read-only files, but rarely intends to.
    if not stat.S_IMODE(state.st_mode) & 0o222 or not os.access(path, os.W_OK):
        raise StorageError(f"{path}: is read-only; choose another file, or make it writable (chmod u+w)")


def write_output(path: Path, data: bytes, example: str) -> None:
    """Write to a path that a user has named.

    A file is replaced atomically and keeps its permissions; of a link, the file that it leads to is replaced. A device
    or a pipe is written into. Raises SpecError for a folder (``example`` is a file name to suggest), StorageError for
    a read-only file, for a pipe without a reader, and where the system cannot write.
    """
    check_output(path, example)
    try:
        state = path.stat() if path.exists() else None
        stream = _open_stream(path, state) if state is not None else None
        if stream is None:
            mode = None if state is None else stat.S_IMODE(state.st_mode)
            with durable_file(Path(os.path.realpath(path)), mode=mode) as file:
                file.write(data)
        else:
            with open(stream, "wb") as file:  # noqa: PTH123 (a descriptor, not a path)
                file.write(data)
    except OSError as error:
        raise storage_error(path, error) from error


def _open_stream(path: Path, state: os.stat_result) -> int | None:
    """Open a device, a pipe or this process's own output, which must be written into; None for a plain file."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), state):
                return os.dup(descriptor)
    if stat.S_ISREG(state.st_mode):
        return None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise StorageError(f"{path}: is a pipe without a reader; start its reader first") from error
    os.set_blocking(descriptor, True)
    return descriptor


def storage_error(path: Path, error: OSError, verb: str = "written") -> StorageError:
    """Return the error for a path that cannot be written (or read, or removed), with what helps."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space and run the same command again" if full else "nothing written before is lost"
    return StorageError(f"{path}: cannot be {verb} ({error.strerror or error}); {hint}")


def sweep_temporaries(folder: Path) -> None:
    """Remove the temporary files of dead writers below a folder; only for its builder, which holds the lock."""
    try:
        for name in names_inside(folder):
            last = name.rpartition("/")[2]
            if last.startswith(".") and TEMPORARY in last:
                remove_inside(folder, name)
    except OSError as error:
        raise storage_error(folder, error) from error


def home_expanded(text: str) -> Path:
    """Return a path with ``~`` replaced by the home folder; unchanged where the user is unknown."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def exists(path: Path) -> bool:
    """Whether there is anything at a path; False for a name that is too long for any file. Raises OSError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return False
    return True


def file_above(path: Path) -> Path | None:
    """Return the parent of a path that exists and is not a folder; None where a folder can be created."""
    there = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    return None if there.is_dir() else there


def free_space(path: Path) -> tuple[Path, int]:
    """Return the folder at or above a path that exists, and the free bytes of its disk.

    Raises StorageError if it is not a folder, or is not writable.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise StorageError(f"{there}: is not a folder; choose another one with --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{there}: not writable; choose another folder with --out")
    return there, shutil.disk_usage(there).free


@contextmanager
def _replacing(path: Path, root: Path, fence: Callable[[], None] | None, mode: int | None) -> Iterator[tuple[int, str]]:
    """A context that yields folder (a descriptor) and name of an empty temporary file, which then replaces ``path``."""
    folder, name, made = -1, f".{path.name}{TEMPORARY}{secrets.token_hex(4)}", False
    if fence is not None:
        fence()
    try:
        # With a fence the root exists, because its lock does: one that was moved or unmounted is not created again.
        folder = open_folder(root, path.parent.relative_to(root).parts, create=True, create_root=fence is None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor, made = os.open(name, flags, 0o666, dir_fd=folder), True
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) if mode is None else mode
        os.close(descriptor)
        yield folder, name
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fchmod(descriptor, mode)  # a library may have put its own file there, readable for this user only
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
