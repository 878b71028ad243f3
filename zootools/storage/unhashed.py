"""The three files of a zoo that its manifest does not hash, and the checks of their content.

zoo.json contains its own sha256. README.md, the card, is rendered again and compared. build.json differs between equal
zoos, so only its schema can be checked.
"""

from pathlib import Path
from typing import Annotated

from pydantic import FailFast, Field, ValidationError

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import read_inside
from zootools.json_reader import parse_json
from zootools.spec.sections import Section
from zootools.storage.card import card_location
from zootools.storage.hashed_json import MAX_BYTES, parse_hashed
from zootools.storage.verified_files import unreadable

LIMITS = {"README.md": 1 << 20, "build.json": 16 << 20, "zoo.json": MAX_BYTES}
"""Maximal size of each file, in bytes."""

_Key = Annotated[str, Field(max_length=40)]
_Text = Annotated[str, Field(max_length=200)]


Session = dict[_Key, _Text | float | int | None]
"""Time, machine and duration of one session of a build. Other versions may have other keys."""


class _BuildLog(Section):
    """The content of build.json."""

    sessions: Annotated[list[Annotated[Session, Field(max_length=40)]], FailFast(), Field(max_length=100_000)]


MAX_SESSIONS = 10_000
"""Maximal number of sessions in build.json; older ones are dropped."""


def read_build_log(folder: Path) -> list[Session]:
    """Return the sessions of a zoo's builds from build.json; none if there is no such file.

    Only reports use them. Raises DamagedZooError for a file that no build writes.
    """
    data = read_unhashed(folder, "build.json")
    return [] if data is None else _BuildLog.model_validate(parse_json(data, folder / "build.json")).sessions


def read_unhashed(folder: Path, name: str) -> bytes | None:
    """Return the bytes of one of the three files, or None if it is missing.

    Raises DamagedZooError if it is not a regular file, exceeds its limit, or has other content.
    """
    try:
        data = read_inside(folder, name, LIMITS[name])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=folder / name) from error
    if name == "zoo.json":
        parse_hashed(data, folder / name)
    elif fault := build_log_fault(data) if name == "build.json" else _card_fault(data):
        raise DamagedZooError(fault, path=folder / name)
    return data


def build_log_fault(data: bytes) -> str | None:
    """Return the reason why bytes are not a valid build.json, without quoting them, or None."""
    try:
        _BuildLog.model_validate(parse_json(data, "build.json"))
    except (DamagedZooError, ValidationError):
        return "is not a log of builds (a JSON object with the key 'sessions', as zootools writes it)"
    return None


def _card_fault(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError:
        return "is not text (UTF-8)"
    if not data.startswith(b"---\n") or card_location(data) is None:
        return "is not the card of a zoo"
    return None
