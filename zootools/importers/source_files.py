"""The files of a population: their sizes and sha256, as the record of an import has them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zootools.errors import DamagedZooError
from zootools.filesystem.files import open_regular
from zootools.hashing import sha256_of
from zootools.storage.imported import MAX_LISTED, SourceFiles
from zootools.storage.verified_files import FileInfo, unreadable

MAX_NAME = 1000
"""Characters of a file's name in the record."""


def source_files(files: Sequence[Path], root: Path, tick: Callable[[int], None] = lambda count: None) -> SourceFiles:
    """Hash the files of a population in threads; ``tick`` is called with the bytes of each.

    A file is named by its path below ``root``, or by its name alone if it is elsewhere. Raises DamagedZooError for a
    file that cannot be read.
    """

    def info(path: Path) -> FileInfo:
        try:
            with open_regular(path) as file:
                found = FileInfo(os.fstat(file.fileno()).st_size, sha256_of(file))
        except OSError as error:
            raise DamagedZooError(unreadable(error), path=path) from error
        tick(found.size)
        return found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        infos = dict(zip(files, pool.map(info, files), strict=True))
    named = {_name(path, root): found for path, found in infos.items()}
    named = dict(sorted(named.items()))
    digest = hashlib.sha256()
    for name, found in named.items():
        digest.update(f"{found.sha256} {found.size} {name}\n".encode())
    return SourceFiles(
        count=len(named),
        size=sum(found.size for found in named.values()),
        sha256=digest.hexdigest(),
        files=named if len(named) <= MAX_LISTED else {},
    )


def _name(path: Path, root: Path) -> str:
    """Return the name of a file in the record; characters that are not UTF-8 are replaced."""
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return (inside if inside != "." else path.name).encode(errors="replace").decode()[-MAX_NAME:]
