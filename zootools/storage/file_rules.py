"""Rules for the files of a zoo: names, kinds and sizes."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from zootools.errors import DamagedZooError

ENDINGS = (".json", ".yaml", ".parquet", ".safetensors", ".md", ".svg", ".png", ".html")
"""Kinds of files in a zoo. Pictures and pages are hashed, and never opened by zootools."""

MAX_FILE = 5 << 30
MAX_ZOO = 200 << 30

VERSIONS = ".versions"
"""The subfolder of a hub folder with the published versions, which never change."""

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def is_hidden(name: str) -> bool:
    """Whether `datasets` ignores a file, by its name below a folder: ``.x``, or anything in ``.x/`` or ``__x/``."""
    *folders, last = name.split("/")
    return last.startswith(".") or any(part.startswith((".", "__")) for part in folders)


def check_file_names(where: str, names: Iterable[str]) -> None:
    """Raise DamagedZooError for the first name that could lead out of a zoo, be hidden, or belong to a program."""
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        stems = (part.partition(".")[0].lower() for part in parts)
        if (
            len(name) > 200
            or len(parts) > 8
            or not all(_SEGMENT.fullmatch(part) for part in parts)
            or any(part.endswith(".") for part in parts)
            or any(stem in _DEVICES for stem in stems)
        ):
            raise DamagedZooError(f"the file name {name!r} is not allowed in a zoo", path=where)
        if PurePosixPath(name).suffix not in ENDINGS:
            raise DamagedZooError(
                f"{name!r} is not a kind of file that a zoo may have; allowed: {', '.join(ENDINGS)}", path=where
            )
        for end in range(1, len(parts) + 1):  # its folders, too
            path = "/".join(parts[:end])
            if (other := seen.setdefault(path.lower(), path)) != path:
                raise DamagedZooError(f"{path!r} and {other!r} are one file on some systems", path=where)


def check_sizes(where: str, sizes: dict[str, int]) -> None:
    """Raise DamagedZooError for a file or a zoo beyond the limits; sizes are in bytes."""
    for name, size in sizes.items():
        if size > MAX_FILE:
            raise DamagedZooError(f"{name} has {size} bytes, more than the {MAX_FILE} that a file may have", path=where)
    if sum(sizes.values()) > MAX_ZOO:
        raise DamagedZooError(f"{sum(sizes.values())} bytes, more than the {MAX_ZOO} that a zoo may have", path=where)
