"""Names of zoos (``org/name@revision``), and which files a zoo from somebody else may bring."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from zootools.errors import DamagedZooError, SpecError
from zootools.files import home_expanded
from zootools.objects import folder_of
from zootools.zoo_name import ZooName, parse_name

ENVIRONMENT = "ZOOTOOLS_HUB"

ENDINGS = (".json", ".yaml", ".parquet", ".safetensors", ".md", ".svg", ".png", ".html")
"""All that a zoo consists of. Pictures and pages are hashed, and never opened by zootools."""

MAX_FILE = 5 << 30
MAX_ZOO = 200 << 30
MAX_FILES = 10_000
MAX_FILES_PER_FOLDER = 1_000

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def require_name(text: str, revision: str | None = None) -> ZooName:
    """Like `parse_name`, with a SpecError for what is not a name, and for the address of a data set on the Hub."""
    name = parse_name(text, revision)
    if name is None:
        folder_of(text)
        raise SpecError(f"{text!r} is no name of a zoo on a hub; expected ORG/NAME, such as my-group/tetris_seed")
    return name


def is_hidden(name: str) -> bool:
    """Whether a file, by its name below a folder, is hidden as for `datasets`: ``.x``, or in ``.x/`` or ``__x/``."""
    *folders, last = name.split("/")
    return last.startswith(".") or any(part.startswith((".", "__")) for part in folders)


def hub_setting(hub: str | Path | None) -> str | Path | None:
    """Return the hub that is meant: a URL, a folder, or None for the Hub.

    That is ``hub`` if given, else $ZOOTOOLS_HUB. A hub folder need not exist yet.
    """
    value = str(hub) if hub is not None else os.environ.get(ENVIRONMENT, "")
    if not value and hub is None:
        return None
    if not value.strip():
        raise SpecError(f"found an empty name ({value!r}) for the hub; expected a folder or a URL")
    if match := re.fullmatch(r"https?://(.*)", value):
        if not re.fullmatch(r"[\w.-]+(:[0-9]+)?(/.*)?|\[[0-9a-fA-F:]+\](:[0-9]+)?(/.*)?", match[1], re.ASCII):
            raise SpecError(f"{value}: expected a URL such as https://HOST, for the hub")
        return value.rstrip("/")
    if "://" in value:
        raise SpecError(f"{value}: expected a folder, or a URL that begins with https://, for the hub")
    return home_expanded(value).absolute()


def check_file_names(where: str, names: Iterable[str]) -> None:
    """Refuse names of files that could reach out of a zoo, hide in it, or be something to run.

    Raises DamagedZooError that names the first offender.
    """
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
            raise DamagedZooError(f"{where}: the file name {name!r} is not allowed in a zoo")
        if PurePosixPath(name).suffix not in ENDINGS:
            raise DamagedZooError(
                f"{where}: {name!r} is no kind of file that a zoo consists of; allowed: {', '.join(ENDINGS)}"
            )
        for end in range(1, len(parts) + 1):  # its folders, too
            path = "/".join(parts[:end])
            if (other := seen.setdefault(path.lower(), path)) != path:
                raise DamagedZooError(f"{where}: {path!r} and {other!r} are one file on some systems")


def check_sizes(where: str, sizes: dict[str, int]) -> None:
    """Refuse a zoo that is too large to be one. Raises DamagedZooError."""
    for name, size in sizes.items():
        if size > MAX_FILE:
            raise DamagedZooError(f"{where}: {name} has {size} bytes, more than the {MAX_FILE} that a file may have")
    if sum(sizes.values()) > MAX_ZOO:
        raise DamagedZooError(f"{where}: {sum(sizes.values())} bytes, more than the {MAX_ZOO} that a zoo may have")
