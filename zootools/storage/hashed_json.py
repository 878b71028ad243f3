"""JSON files that carry the sha256 of their own content, so that every changed bit is found."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import NotPlainError, read_inside
from zootools.hashing import canonical_json, pretty_json
from zootools.json_reader import parse_json

MAX_BYTES = 128 << 20
"""Limit of a manifest, a plan, or the first line of a record. A million models that all diverge need that."""

T = TypeVar("T")


def content_hash(value: dict[str, Any]) -> str:
    """Return the sha256 of a value's canonical JSON, without its own key ``sha256``."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def add_hash(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value with its `content_hash` under the key ``sha256``."""
    return {**value, "sha256": content_hash(value)}


def read_hashed(folder: Path, name: str) -> dict[str, Any]:
    """Read a file that was written as ``pretty_json(add_hash(value))``.

    The size is checked before anything is read, and the bytes must be exactly those that the value is written as:
    a flipped bit can turn 1e-05 into 1E-05, which no hash of the value would notice.
    Raises FileNotFoundError, or DamagedZooError.
    """
    path = folder / name
    try:
        data = read_inside(folder, name, MAX_BYTES)
    except FileNotFoundError:
        raise
    except NotPlainError as error:
        raise DamagedZooError(error.what, path=path) from error
    except OSError as error:
        raise DamagedZooError(f"cannot be read ({error.strerror})", path=path) from error
    value = parse_hashed(data, path)
    if data != pretty_json(value):
        raise DamagedZooError("was edited or is corrupt (not canonical JSON)", path=path)
    return value


def parse_hashed(data: bytes, source: Path | str) -> dict[str, Any]:
    """Parse JSON that was read from ``source``, and compare it with its own sha256; the caller compares the bytes.

    Raises DamagedZooError.
    """
    value = parse_json(data, source, exact=True)
    try:
        intact = isinstance(value, dict) and value.get("sha256") == content_hash(value)
    except ValueError as error:  # a number that is not finite
        raise DamagedZooError(f"is not valid JSON ({error})", path=source) from error
    if not intact:
        raise DamagedZooError("was edited or is corrupt (its sha256 is not that of its content)", path=source)
    return dict(value)


def validate(model: type[T] | TypeAdapter[T], value: Any, source: Path | str, place: str = "") -> T:
    """Return ``value`` as an instance of a model or a type (strict).

    Raises DamagedZooError with the field at fault, which is named below ``place`` inside ``source``.
    """
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, ([place] if place else []) + list(detail["loc"])))
        raise DamagedZooError(f"{field}: found {detail['input']!r:.80}; {detail['msg']}", path=source) from None
    except DamagedZooError as error:  # of a field with a parser of its own
        raise DamagedZooError(error.reason, path=source) from None
