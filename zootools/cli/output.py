"""The style of what commands print for people: aligned lines and tables, units, no syntax of Python.

Values have the keys of ``--json``; the value of a key that ends in ``bytes`` or ``seconds`` is a size or a time.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from zootools.progress import duration
from zootools.text import printable, say

NAMES = frozenset({"process", "seed", "epoch", "stack", "row", "year"})
"""Numbers that name something, and are therefore shown without separators of thousands."""
UNITS = ("kB", "MB", "GB", "TB")
LONGEST_CELL = 60
"""Maximal number of characters of a cell of a table, except in its last column."""


def in_words(value: object, key: str = "") -> str:
    """Return a value as people write it.

    Booleans become yes and no, None becomes none; lists and mappings become their items, separated by commas; whole
    numbers get separators of thousands; other numbers are rounded to six digits.

    Args:
        value: anything that JSON can represent.
        key: the name of the value, which tells its unit: see the first lines of this module.
    """
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() | float() if key.rpartition("_")[2] == "bytes":
            return size(value)
        case int() | float() if key.rpartition("_")[2] == "seconds":
            return duration(value)
        case int():
            return str(value) if key in NAMES else f"{value:,}"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{name} {in_words(item, str(name))}" for name, item in value.items()) or "none"
        case list() | tuple() | set() | frozenset():
            return ", ".join(in_words(item, key) for item in value) or "none"
    return str(value)


def size(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit: ``512 bytes``, ``4.10 kB``, ``1.23 GB``."""
    if abs(count) < 1000:
        return f"{count:.0f} byte" + "s" * (abs(count) != 1)
    power = 1
    # 999.5 and more would be shown with four digits.
    while power < len(UNITS) and abs(count) / 1000**power >= 999.5:
        power += 1
    count /= 1000**power
    digits = 2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0
    return f"{count:,.{digits}f} {UNITS[power - 1]}"


def show_pairs(values: Mapping[str, object], indent: int = 0) -> None:
    """Print one line for each key, with the values aligned. A mapping inside is printed below its key.

    Args:
        values: values by key; ``test_accuracy`` is printed as ``test accuracy``.
        indent: number of spaces before each line.
    """
    labels = {key: printable(_label(key)) for key in values}
    column = max((width(label) for key, label in labels.items() if not _nested(values[key])), default=0)
    for key, value in values.items():
        if _nested(value):
            say(f"{' ' * indent}{labels[key]}")
            show_pairs(value, indent + 2)  # type: ignore[arg-type]  # `_nested` returned True
        else:
            say(f"{' ' * indent}{_left(labels[key], column)}  {in_words(value, key)}".rstrip())


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], indent: int = 0) -> None:
    """Print a table with a heading: numbers to the right, text to the left; nothing for a table without rows.

    Args:
        columns: the names of the columns, printed as they are, because users write them in options.
        rows: a value for each column.
        indent: number of spaces before each line.
    """
    table = [list(row) for row in rows]
    if not table:
        return
    lines = [[printable(name) for name in columns], *([] for _ in table)]
    right = []
    for index, name in enumerate(columns):
        values = [row[index] for row in table]
        right.append(all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values))
        limit = None if index == len(columns) - 1 else LONGEST_CELL
        for line, cell in zip(lines[1:], _cells(values, name), strict=True):
            line.append(printable(cell, limit))
    widths = [max(width(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = [_right(cell, w) if r else _left(cell, w) for cell, w, r in zip(line, widths, right, strict=True)]
        say(f"{' ' * indent}{'  '.join(padded)}".rstrip(), limit=None)


def width(text: str) -> int:
    """Return the number of columns of a terminal that printable text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)


def _cells(values: Sequence[object], name: str) -> list[str]:
    """Return the values of a column as text; decimals have four digits, and the same number of them if that fits."""
    plain = name.rpartition("_")[2] not in ("bytes", "seconds")
    texts = {value: f"{value:.4g}" for value in values if isinstance(value, float) and plain}
    if all(1e-3 <= abs(value) < 1e5 for value in texts if value):  # False for nan and infinity
        digits = max((len(text.partition(".")[2]) for text in texts.values()), default=0)
        texts = {value: f"{value:.{min(digits, 4)}f}" for value in texts}
    return [
        "" if value is None else texts[value] if isinstance(value, float) and plain else in_words(value, name)
        for value in values
    ]


def _label(key: str) -> str:
    """Return a key as words, without the unit that its value is shown with."""
    words = key.replace("_", " ")
    for unit in (" bytes", " seconds"):
        words = words.removesuffix(unit)
    return {"bytes": "size", "seconds": "time"}.get(words, words)


def _nested(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _left(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def _right(text: str, columns: int) -> str:
    return " " * (columns - width(text)) + text
