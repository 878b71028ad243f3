"""Files in the folder of compiled kernels in the user's cache, each followed by its sha256.

Only what this user or root has stored is read, and only if it is whole.
"""

import hashlib
import os
import stat
from pathlib import Path

from zootools.errors import StorageError
from zootools.filesystem.files import write_durably

_SEAL = hashlib.sha256().digest_size
_LARGEST = 1 << 28
"""Maximum of bytes of a file that can be a kernel."""


def read_sealed(path: Path) -> bytes | None:
    """Return what `write_sealed` wrote; None if the file is missing, damaged, renamed, a link or another user's.

    Links are not followed, and a pipe or device is not waited for. Raises StorageError if the folder belongs to another
    user.
    """
    if path.parent.exists():
        _keep_others_out(path.parent)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0) or found.st_size > _LARGEST:
            return None
        data = file.read()
    content, seal = data[:-_SEAL], data[-_SEAL:]
    return content if seal == _seal(path, content) else None


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file with its sha256, and create its folder.

    Raises StorageError or OSError if it cannot be written, or if the folder belongs to another user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _keep_others_out(path.parent)
    write_durably(path, content + _seal(path, content))


def _seal(path: Path, content: bytes) -> bytes:
    """Return the sha256 of name and content; loaders of libraries ignore it at the end of a kernel."""
    return hashlib.sha256(path.stem.encode() + content).digest()


def _keep_others_out(folder: Path) -> None:
    """Remove write permission for others from the folder of the cache, whose files are executed.

    Raises StorageError if the owner is neither this user nor root.
    """
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise StorageError(f"{folder} belongs to the user with number {found.st_uid}, whose programs are not executed")
    if found.st_mode & 0o022 and found.st_uid == os.geteuid():
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
