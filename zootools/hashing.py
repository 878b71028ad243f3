"""The JSON texts that zootools writes, and sha256 digests of files."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
