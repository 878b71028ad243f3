"""Files below a folder, opened without following links: a zoo may come from a stranger, or be in a shared folder.

The folder itself (``root``) is named by the user and may be a link. Below it each part of a path is opened relative to
the descriptor of the part before, so a link, whenever it is planted, never leads outside. Names are relative to
``root``, with ``/`` between their parts. Only plain files are read: a pipe would block, and a device is not data.

Unless its docstring says otherwise, a function raises `NotPlainError` where a part of the path is a link or not a
folder, and FileNotFoundError where a part does not exist.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

MAX_DEPTH = 32
"""Depth to which folders are listed; a zoo has two levels."""

_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFREG: "is a file",
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
    stat.S_IFLNK: "is a link",
}


class NotPlainError(OSError):
    """A link, pipe, device or the like is where a plain file or a folder is expected.

    ``what`` says which, in words that follow the name of the file.
    """

    def __init__(self, what: str, name: str) -> None:
        super().__init__(errno.EINVAL, what, name)
        self.what = what


def open_inside(root: Path, name: str) -> BufferedReader:
    """Open a plain file for reading.

    In a snapshot of the Hub's cache (`is_snapshot`) a file may be a link to a blob of the same repository.
    """
    with _folder_of(root, name) as (folder, last):
        state = os.stat(last, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(state.st_mode) and (blob := _blob_name(root, name, os.readlink(last, dir_fd=folder))):
            descriptor = _open_blob(root, blob)
        else:
            _require_plain(state, name)  # opening a device can have side effects
            descriptor = _open_plain(last, folder)
    try:
        _require_plain(os.fstat(descriptor), name)  # it may have been replaced since
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")  # noqa: PTH123 (a descriptor, not a path)


@contextmanager
def path_inside(root: Path, name: str) -> Iterator[Path]:
    """A context that yields a path to an open plain file, for libraries that take paths only; valid in the context."""
    with open_inside(root, name) as file:
        yield Path(f"/dev/fd/{file.fileno()}")


def read_inside(root: Path, name: str, limit: int) -> bytes:
    """Return the bytes of a plain file. Raises NotPlainError for more than ``limit`` bytes, before any is read."""
    with open_inside(root, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise NotPlainError(f"has {size} bytes, more than the {limit} that it may have", name)
        return file.read(size)


def stat_inside(root: Path, name: str) -> os.stat_result:
    """Return the status of a file, folder or anything else; of a link, that of the link itself."""
    with _folder_of(root, name) as (folder, last):
        return os.stat(last, dir_fd=folder, follow_symlinks=False)


def exists_inside(root: Path, name: str) -> bool:
    """Whether there is anything of that name: a file, a folder, a pipe, a link (wherever it leads to)."""
    try:
        stat_inside(root, name)
    except FileNotFoundError:
        return False
    return True


def is_file_inside(root: Path, name: str) -> bool:
    """Whether `open_inside` would open it; False also where a part of the path is a link. Nothing is raised."""
    try:
        open_inside(root, name).close()
    except OSError:
        return False
    return True


def entries_inside(root: Path, folder: str = "") -> list[str]:
    """Return the names of the entries of a folder, sorted."""
    descriptor = open_folder(root, _parts(folder) if folder else ())
    try:
        return sorted(os.listdir(descriptor))  # noqa: PTH208 (a descriptor, not a path)
    finally:
        os.close(descriptor)


def names_inside(root: Path, folder: str = "") -> list[str]:
    """Return the names (relative to ``root``) of all files in a folder and its subfolders, sorted.

    Links, also to folders, are listed as files are, without what they lead to; so are pipes and devices, and folders
    that may not be read or are more than `MAX_DEPTH` deep.
    """
    top = _parts(folder) if folder else ()
    found, left = list[str](), [top]
    while left:
        parts = left.pop()
        try:
            descriptor = open_folder(root, parts)
        except (FileNotFoundError, PermissionError) as error:
            if parts == top:
                raise
            if isinstance(error, PermissionError):
                found.append("/".join(parts))
            continue  # else it has been removed since it was listed
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    inner = (*parts, entry.name)
                    if entry.is_dir(follow_symlinks=False) and len(inner) <= MAX_DEPTH:
                        left.append(inner)
                    else:
                        found.append("/".join(inner))
        finally:
            os.close(descriptor)
    return sorted(found)


def remove_inside(root: Path, name: str) -> None:
    """Durably remove a file, a pipe or a link (not its target), if there is one; OSError for a folder."""
    with suppress(FileNotFoundError), _folder_of(root, name) as (folder, last):
        os.unlink(last, dir_fd=folder)
        os.fsync(folder)


def remove_tree_inside(root: Path, name: str) -> None:
    """Durably remove a file, a link (not its target), or a folder with its content, if there is one."""
    with suppress(FileNotFoundError), _folder_of(root, name) as (folder, last):
        if stat.S_ISDIR(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(last, dir_fd=folder)
        else:
            os.unlink(last, dir_fd=folder)
        os.fsync(folder)


def remove_folder_inside(root: Path, name: str) -> None:
    """Remove an empty folder; OSError where it is not empty."""
    with _folder_of(root, name) as (folder, last):
        os.rmdir(last, dir_fd=folder)


def make_folder_inside(root: Path, name: str) -> None:
    """Create a folder and its parents, unless it exists."""
    os.close(open_folder(root, _parts(name), create=True))


def rename_inside(root: Path, old: str, new: str) -> None:
    """Durably rename a file or a folder; the folder of the new name is created if necessary."""
    with _folder_of(root, old) as (source, last), _folder_of(root, new, create=True) as (target, name):
        os.rename(last, name, src_dir_fd=source, dst_dir_fd=target)
        os.fsync(target)


def link_inside(root: Path, name: str) -> str:
    """Return the target of a link."""
    with _folder_of(root, name) as (folder, last):
        return os.readlink(last, dir_fd=folder)


def point_inside(root: Path, name: str, target: str) -> None:
    """Durably create a link, or replace a file or a link by it; its folder is created if necessary.

    The replacement is atomic. Raises OSError where there is a folder of this name.
    """
    with _folder_of(root, name, create=True) as (folder, last):
        temporary = f".{last}.{secrets.token_hex(4)}"
        os.symlink(target, temporary, dir_fd=folder)
        try:
            os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


def open_sole(root: Path, name: str) -> int:
    """Return a descriptor, for reading and writing, of a plain file without further hard links.

    The file is created if there is none. Raises NotPlainError for one with further hard links, because writing would
    change a file of another name.
    """
    with _folder_of(root, name, create=True) as (folder, last):
        with suppress(FileNotFoundError):
            _require_plain(os.stat(last, dir_fd=folder, follow_symlinks=False), name)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(last, flags, 0o666, dir_fd=folder)
    try:
        state = os.fstat(descriptor)
        _require_plain(state, name)
        if state.st_nlink > 1:
            raise NotPlainError(f"is a hard link: the same file has {state.st_nlink - 1} other names", name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_folder(root: Path, parts: Sequence[str], create: bool = False, create_root: bool = True) -> int:
    """Return a descriptor of a folder below ``root``.

    With ``create`` the folders are durably created first; ``root`` itself only with ``create_root``.
    """
    if create and create_root and not root.is_dir():
        # The name of each new folder is synced too: a file is durable only if its folder is.
        os.close(open_folder(root.parent, (root.name,), create=True))
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = _open_or_make(folder, part, create)
        finally:
            os.close(folder)
        folder = inner
    return folder


def is_snapshot(root: Path) -> bool:
    """Whether a folder is one that `huggingface_hub.snapshot_download` makes: links into ``blobs`` of its repository.

    It belongs to the Hub's cache: zootools reads it and never writes there.
    """
    path = Path(os.path.realpath(root))
    return path.parent.name == "snapshots" and re.fullmatch(r"datasets--.+", path.parents[1].name) is not None


# --- within ------------------------------------------------------------------------------------------------


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if {"", ".", ".."} & set(parts) or "\0" in name:
        raise NotPlainError("is not a name inside a folder", name)
    return parts


@contextmanager
def _folder_of(root: Path, name: str, create: bool = False) -> Iterator[tuple[int, str]]:
    """A context that yields a descriptor of the folder of a file, and the name of the file there."""
    *parts, last = _parts(name)
    folder = open_folder(root, parts, create)
    try:
        yield folder, last
    finally:
        os.close(folder)


def _open_plain(name: str, folder: int) -> int:
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)


def _require_plain(state: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise NotPlainError(f"{_kind(state)}, not a plain file", name)


def _kind(state: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(state.st_mode), "is not a file")


def _blob_name(root: Path, name: str, target: str) -> str | None:
    """Return the name of the blob that a link in a snapshot leads to; None for every other link."""
    if not is_snapshot(root):
        return None
    # The resolved root and the folders that have been opened contain no link, so normpath is right.
    snapshot = os.path.realpath(root)
    path = Path(os.path.normpath(Path(snapshot, name).parent / target))
    return path.name if path.parent == Path(snapshot).parents[1] / "blobs" else None


def _open_blob(root: Path, blob: str) -> int:
    folder = open_folder(Path(os.path.realpath(root)).parents[1], ("blobs",))
    try:
        return _open_plain(blob, folder)
    finally:
        os.close(folder)


def _open_or_make(folder: int, name: str, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        with suppress(FileNotFoundError):  # gone since
            kind = _kind(os.stat(name, dir_fd=folder, follow_symlinks=False))
            raise NotPlainError(f"is behind {name!r}, which {kind}, not a folder", name) from None
        raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    os.fsync(folder)
    return os.open(name, flags, dir_fd=folder)
