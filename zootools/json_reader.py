"""Reading untrusted JSON, with bounded memory.

Python's own reader accepts duplicate keys, NaN, 1e400, and halves of surrogate pairs, which can be neither printed nor
hashed. All of these are refused here, and so is text that is nested too deeply.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from zootools.errors import DamagedZooError

MAX_DEPTH = 40
SPARSE = 12
"""Minimal number of bytes per value in a text of many values. A value takes up to a hundred bytes of memory, so this
bounds the memory of a parsed text. The files that zootools writes have more than 16 bytes per value."""
FEW_VALUES = 500_000
"""Number of values up to which `SPARSE` does not apply."""
MAX_KEYS = 250_000
"""Maximal number of keys of one object. The largest object that zootools writes contains the files of a manifest."""


def parse_json(data: bytes, source: Path | str, exact: bool = False) -> Any:
    """Return the value of a JSON text in UTF-8 that was read from ``source``. Raises DamagedZooError.

    With ``exact``, duplicate keys are not looked for, because the caller compares the text with that of the value.
    """
    separators = data.count(b",") + data.count(b"[") + data.count(b"{")
    if separators > FEW_VALUES + len(data) // SPARSE:
        raise DamagedZooError(
            f"about {separators:,} values in {len(data):,} bytes are more than it can have", path=source
        )
    try:
        hook = None if exact else _object
        value = json.loads(data.decode(), object_pairs_hook=hook, parse_constant=_refuse_constant)
        _check_values(value)
    except (ValueError, RecursionError) as error:
        raise DamagedZooError(f"is not valid JSON ({error})", path=source) from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!a:.80}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _check_values(value: Any) -> None:
    """Refuse deep nesting and invalid values. This is not recursive, because a deep recursion can end the process."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if len(item) > MAX_KEYS:
                    raise ValueError(f"an object of {len(item):,} keys, more than {MAX_KEYS:,}")
                _check_plain(item)
                values: Any = item.values()
            else:
                values = item if isinstance(item, list) else (item,)
            inner += [entry for entry in values if isinstance(entry, dict | list)]
            _check_plain(values)
        if not inner:
            return
        level = inner
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _check_plain(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, str):
            if not value.isascii():
                _check_string(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is too large")


def _check_string(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half of a surrogate pair in {value!a:.80}") from None
