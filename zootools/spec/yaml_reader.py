"""Strict YAML for specifications, with the line of every key.

PyYAML by itself reads ``1e-3`` as a string and ``no`` as False, silently takes the last of two equal keys, and expands
aliases without limit. This reader follows the YAML 1.2 core schema for scalars, and refuses duplicate keys, aliases,
tags, and files that are too large or too deep; its errors have the line.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from zootools.errors import SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 100_000

Key = tuple[str | int, ...]
"""The path of a value inside a document, such as ``("grid", "lr", 0)``."""

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_yaml(path: Path) -> tuple[Any, dict[Key, str]]:
    """Read one YAML file into plain Python values.

    Returns the values, and the ``"file:line"`` of each value by its path.
    Raises SpecError for a file that is not a plain, finite, alias-free YAML document.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path}: larger than {MAX_BYTES} bytes, the limit of a specification")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> tuple[Any, dict[Key, str]]:
    """Like `read_yaml`, for text that was read from ``source``."""
    try:
        _check_size(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise SpecError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    places: dict[Key, str] = {}
    return (None if node is None else _value(node, source, (), places)), places


def parse_scalar(text: str) -> bool | int | float | str | None:
    """Read a plain scalar by the YAML 1.2 core schema (``1e-3`` is a float, ``no`` a string)."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text):
        # int() raises ValueError for very long numbers; no valid value has more than 30 digits.
        return int(text) if len(text) <= 30 else float(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def check_text(text: str, place: str) -> None:
    """Raise SpecError for an unpaired surrogate, which UTF-8 cannot store: ``"\\ud800"``, or bytes of a command."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{place}: {text!a:.80} is not valid text: it contains an unpaired surrogate") from None


def _check_size(text: str, source: str) -> None:
    """Refuse aliases, tags, depth and size on the event stream, before the document is composed recursively."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = f"{source}:{event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.AliasEvent):
            raise SpecError(f"{place}: aliases (*{event.anchor}) are not allowed in a specification")
        if tag := getattr(event, "tag", None):
            raise SpecError(f"{place}: tags ({tag}) are not allowed in a specification")
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise SpecError(f"{place}: nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise SpecError(f"{place}: more than {MAX_NODES} values")


def _value(node: yaml.Node, source: str, key: Key, places: dict[Key, str]) -> Any:
    place = f"{source}:{node.start_mark.line + 1}"
    places[key] = place
    if isinstance(node, yaml.ScalarNode):
        value = node.value if node.style else parse_scalar(node.value)
        check_text(node.value, f"{place}: {'.'.join(map(str, key))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SpecError(f"{place}: {'.'.join(map(str, key))}: {node.value} is too large for a number")
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, source, (*key, index), places) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"{place}: not a scalar, list or mapping")
    mapping: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = f"{source}:{name_node.start_mark.line + 1}"
        name = name_node.value
        if not isinstance(name, str):
            raise SpecError(f"{line}: a key must be a word, not a list or mapping")
        check_text(name, line)
        if name in mapping:
            raise SpecError(f"{line}: duplicate key {name!r}")
        mapping[name] = _value(value_node, source, (*key, name), places)
        places[*key, name] = line
    return mapping
