"""Sealed JSON: a text that carries the sha256 of its own content, in which every flipped bit is found."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import NotPlainError, read_inside
from zootools.hashing import canonical_json, pretty_json
from zootools.json_reader import parse_json

MAX_BYTES = 128 << 20
"""Of a manifest, a plan, or the first line of a record. A million models that all diverge need that."""


def own_hash(value: dict[str, Any]) -> str:
    """Return the sha256 of a value's canonical JSON, without its own key ``sha256``."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value with the key ``sha256`` over everything else in it."""
    return {**value, "sha256": own_hash(value)}


def read_sealed(folder: Path, name: str) -> dict[str, Any]:
    """Read what was written as ``pretty_json(seal(value))``.

    The size is looked at before anything is read, and the bytes must be the very ones that the value makes:
    a flipped bit can turn 1e-05 into 1E-05, which no hash of the value would see.
    Raises FileNotFoundError, or DamagedZooError.
    """
    path = folder / name
    try:
        data = read_inside(folder, name, MAX_BYTES)
    except FileNotFoundError:
        raise
    except NotPlainError as error:
        raise DamagedZooError(f"{path}: {error.what}") from error
    except OSError as error:
        raise DamagedZooError(f"{path}: cannot be read ({error.strerror})") from error
    value = open_seal(data, str(path))
    if data != pretty_json(value):
        raise DamagedZooError(f"{path}: its bytes are not those that its content makes")
    return value


def open_seal(data: bytes, source: str) -> dict[str, Any]:
    """Parse JSON that was read from ``source`` and compare it with its own sha256; the caller compares the bytes.

    Raises DamagedZooError.
    """
    value = parse_json(data, source, exact=True)
    try:
        intact = isinstance(value, dict) and value.get("sha256") == own_hash(value)
    except ValueError as error:  # a number that is not finite
        raise DamagedZooError(f"{source}: is not valid JSON ({error})") from error
    if not intact:
        raise DamagedZooError(f"{source}: its own sha256 does not match its content")
    return dict(value)


def require(model: Any, value: Any, source: str, place: str = "") -> Any:
    """Return ``value`` as a section or a type demands it (strict). Raises DamagedZooError naming the field at fault."""
    adapter: TypeAdapter[Any] = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, ([place] if place else []) + list(detail["loc"])))
        raise DamagedZooError(f"{source}: {field}: found {detail['input']!r:.80}; {detail['msg']}") from None
