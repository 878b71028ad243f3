"""What the path of a file or a table says about a checkpoint: its model, epoch, split and properties."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from zootools.errors import DamagedZooError, SpecError, did_you_mean
from zootools.filesystem.files import open_regular
from zootools.storage.verified_files import unreadable

Values = dict[str, Any]

MAX_TABLE = 1 << 30
"""Bytes of a table of properties."""
PATHS = ("path", "file")
"""Names of the column with which a table is joined."""
MODELS = ("model", "model_id")
"""Names of the column with the model, in a table or as a field of a pattern."""
_TYPES: dict[str, tuple[str, type]] = {
    "": (r"[^/]+?", str),
    "str": (r"[^/]+?", str),
    "int": (r"-?[0-9]{1,18}", int),
    "float": (r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", float),
}
_FIELD = re.compile(r"\{([^{}]*)\}|(\*)")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(text: Any) -> str | None:
    """Return the split that a text names; None stays None. Raises SpecError for another one."""
    if text is None:
        return None
    if str(text).lower() not in _SPLITS:
        raise SpecError(f"split: found {text!r:.80}{did_you_mean(str(text)[:80], _SPLITS)}")
    return _SPLITS[str(text).lower()]


@dataclass(frozen=True)
class PathPattern:
    """A pattern of paths, such as ``{split}/{label:int}/run{seed:int}/epoch{epoch:int}.pt``.

    A field is ``{name}`` or ``{name:int|float|str}`` and matches within one folder or file name; ``*`` matches
    anything there. The model is the field ``model``, or else the path without the epoch.
    """

    text: str
    expression: re.Pattern[str]
    types: Mapping[str, type]

    @classmethod
    def parsed(cls, text: str) -> "PathPattern":
        """Return the pattern of a text. Raises SpecError for fields that are not valid."""
        parts, types, last = [], dict[str, type](), 0
        for match in _FIELD.finditer(text):
            parts.append(re.escape(text[last : match.start()]))
            last = match.end()
            if match[2]:
                parts.append("[^/]*?")
                continue
            name, _, kind = match[1].partition(":")
            if kind not in _TYPES:
                raise SpecError(f"--path-pattern: {{{match[1]}}}: found the type {kind!r}{did_you_mean(kind, _TYPES)}")
            if not name.isidentifier() or not name.isascii() or name in types:
                raise SpecError(f"--path-pattern: {{{match[1]}}}: expected a word that occurs once, found {name!r}")
            expression, types[name] = _TYPES[kind]
            parts.append(f"(?P<{name}>{expression})")
        parts.append(re.escape(text[last:]))
        if not types:
            raise SpecError(f"--path-pattern: {text!r} has no field such as {{epoch:int}}")
        if types.get("epoch", int) is not int:
            raise SpecError("--path-pattern: the epoch is a whole number: write {epoch:int}")
        return cls(text, re.compile("".join(parts)), types)

    def values(self, path: str) -> Values | None:
        """Return the fields of a path, with model and epoch; None where it does not match."""
        match = self.expression.fullmatch(path)
        if match is None:
            return None
        values: Values = {name: kind(match[name]) for name, kind in self.types.items()}
        if "split" in values:
            values["split"] = split_named(values["split"])
        if "model" not in values:
            start, end = match.span("epoch") if "epoch" in values else (0, 0)
            values["model"] = f"{path[:start]}*{path[end:]}" if end else path
        return {**values, "model": str(values["model"]), "epoch": values.get("epoch", 0)}


def read_table(path: Path) -> pa.Table:
    """Read a table of properties: CSV, Parquet or JSON lines, by the ending of its name.

    Raises DamagedZooError for a file that cannot be read, SpecError for another ending.
    """
    kinds = {".csv": _csv, ".parquet": pq.read_table, ".jsonl": pa.json.read_json, ".ndjson": pa.json.read_json}
    if path.suffix.lower() not in kinds:
        raise SpecError(f"--properties {path}: expected a file that ends in {', '.join(kinds)}")
    try:
        with open_regular(path) as file:
            data = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=path) from error
    if len(data) > MAX_TABLE:
        raise SpecError(f"--properties {path}: has more than {MAX_TABLE} bytes")
    try:
        return kinds[path.suffix.lower()](pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedZooError(f"cannot be read as a table ({error!s:.300})", path=path) from error


def _csv(source: pa.BufferReader) -> pa.Table:
    return pa.csv.read_csv(source, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))


@dataclass(frozen=True)
class PathTable:
    """A table with a row for each file."""

    path: Path
    rows: Mapping[str, Values]
    """The properties by the path of the file below the folder of the population."""

    @classmethod
    def read(cls, path: Path, root: Path) -> "PathTable":
        """Read a table, and its paths relative to ``root``. Raises SpecError for a path that occurs twice."""
        table = read_table(path)
        column = next((name for name in PATHS if name in table.column_names), None)
        if column is None:
            raise SpecError(
                f"--properties {path}: has no column named {' or '.join(PATHS)}; found {table.column_names!s:.300}"
            )
        rows: dict[str, Values] = {}
        for values in table.to_pylist():
            named = values.pop(column)
            if named is None:
                raise SpecError(f"--properties {path}: the column {column} has no value in a row")
            place, above = Path(str(named)), root.absolute()
            name = (place.relative_to(above) if place.is_relative_to(above) else place).as_posix()
            if name in rows:
                raise SpecError(f"--properties {path}: the file {name!r} has two rows")
            rows[name] = _with_keys(values, name, path)
        return cls(path, rows)


def _with_keys(values: Values, name: str, path: Path) -> Values:
    """Return the values of a row with the keys ``model`` and ``epoch`` where it has them, and with a known split."""
    model = next((key for key in MODELS if values.get(key) is not None), None)
    if model is not None:
        values["model"] = str(values.pop(model))
    if "epoch" in values:
        epoch = values["epoch"]
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or epoch != int(epoch):
            raise SpecError(f"--properties {path}: the file {name!r} has the epoch {epoch!r}; expected a whole number")
        values["epoch"] = int(epoch)
    if "split" in values:
        values["split"] = split_named(values["split"])
    return values
