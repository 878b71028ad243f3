"""YAML files as frozen objects: zoo specifications and the recipes of representation learning.

`load_section` reads a file, applies ``--set`` overrides and validates it. Every error names file, line and key, the
value found, and the allowed values.
"""

import ast
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, JsonValue, ValidationError
from pydantic_core import CoreSchema

from zootools.errors import SpecError
from zootools.spec.faults import describe, document_key
from zootools.spec.yaml_reader import Key, check_text, parse_scalar, parse_yaml, read_yaml

DEFERRED = ConfigDict(defer_build=True)
"""Of validators: those that a command does not need are not built, which takes a tenth of the time of `info`."""


class Section(BaseModel):
    """A frozen part of a document, without unknown keys, silent conversions or NaN.

    The docstrings of the fields are their descriptions in the JSON schema, and docs/generate.py copies those into the
    documentation.
    """

    # Most commands validate few of the sections; building all validators takes a third of a second.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def dump(self) -> dict[str, Any]:
        """Return the section as plain values, without fields that have their default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema with the docstrings of the fields; pydantic would read them at every import."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in field_docstrings(cls).items():
            properties[name]["description"] = text
        return schema

    hints: ClassVar[Mapping[str, str]] = {}
    """What to add to the message about an unknown word, by the key that has it."""

    @classmethod
    def variant(cls, values: dict[str, Any]) -> type[Self]:
        """Return the class that validates plain values: this one, or a subclass of it."""
        return cls

    @classmethod
    def long_form(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return plain values with the short forms of this document written out; most documents have none."""
        return values


def flat(value: JsonValue, key: str = "") -> dict[str, JsonValue]:
    """Return nested values by key with dots: ``{"a": {"b": 1}, "c": {}}`` as ``{"a.b": 1, "c": {}}``."""
    if not isinstance(value, dict) or (key and not value):
        return {key: value}
    return {k: v for name, item in value.items() for k, v in flat(item, f"{key}.{name}" if key else name).items()}


def field_docstrings(model: type[Section]) -> dict[str, str]:
    """Return the docstring below each field of a section, read from the source; fields without one are left out."""
    found = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Section):
            body = cast(ast.ClassDef, ast.parse(dedent(inspect.getsource(base))).body[0]).body
            for field, text in pairwise(body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                        found[name] = inspect.cleandoc(docstring)
    return {name: text for name, text in found.items() if name in model.model_fields}


class SectionError(SpecError):
    """A document is invalid; the message has one line per error."""

    def __init__(self, *lines: str, places: Iterable[str] = ()) -> None:
        super().__init__(*lines)
        self.places = frozenset(places)
        """The place of each error: file and line, or the override."""


@dataclass(frozen=True)
class Override:
    """A ``"key.path=value"`` that does not come from the command line."""

    text: str
    place: str
    """Where the text was read, for messages."""


Document = TypeVar("Document", bound=Section)


def load_section(model: type[Document], path: Path, overrides: Sequence[str | Override] = ()) -> Document:
    """Read a YAML file and validate it as ``model``.

    ``overrides`` are ``"key.path=value"`` strings, as given by ``--set``, or `Override`: each replaces or adds one
    value, which is validated like those of the file.

    Raises SpecError listing every error with file, line and key, the value found, and the allowed values.
    """
    values, places = read_mapping(path)
    values = model.long_form(values)  # so that an override can name a key of a section in its short form
    for override in overrides:
        if isinstance(override, str):
            override = Override(override, f"--set {override}")
        _apply_override(values, override, places)
        values = model.long_form(values)
    return parse_section(model, values, str(path), places)


def read_mapping(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """Return the keys of a YAML file as plain values, and the ``"file:line"`` of each. Raises SpecError."""
    values, places = read_yaml(path)
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values, places


def parse_section(
    model: type[Document], values: dict[str, Any], source: str, places: dict[Key, str] | None = None
) -> Document:
    """Validate plain values that were read from ``source``; ``places`` has the ``"file:line"`` of each."""
    values = model.long_form(values)
    model = model.variant(values)
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = {}
        for detail in error.errors():
            # After an invalid item pydantic also reports that the list is too short; the first error is enough.
            if not (detail["type"] == "too_short" and detail["input"]):
                key = document_key(detail["loc"], values)
                place = _place(key, places or {}, source)
                lines[describe(model, detail, key, place)] = place
        raise SectionError(*lines, places=lines.values()) from None


def _apply_override(values: dict[str, Any], override: Override, places: dict[Key, str]) -> None:
    check_text(override.text, "--set")
    key_text, separator, value_text = override.text.partition("=")
    key = tuple(key_text.split("."))
    if not separator or not all(key):
        raise SpecError(f"{override.place}: expected KEY=VALUE, such as training.epochs=5")
    target = values
    for name in key[:-1]:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise SpecError(f"{override.place}: {name} is not a section, it holds {target!r}")
    target[key[-1]] = _override_value(value_text)
    # The old values below this key are replaced, and errors in the new value are reported for the override.
    for old in [place for place in places if place[: len(key)] == key]:
        del places[old]
    places[key] = override.place


def _override_value(text: str) -> Any:
    text = text.strip()
    if text.startswith(("[", "{")):
        return parse_yaml(text, f"--set {text}")[0]
    return parse_scalar(text)


def _place(key: Key, places: dict[Key, str], source: str) -> str:
    """Return the place of a key, or of the nearest section around it that has one."""
    return next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), source)
