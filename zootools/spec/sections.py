"""YAML files as frozen objects: zoo specifications and the recipes of representation learning.

`load_section` reads a file, applies ``--set`` overrides and validates it. Every error names file, line and key, the
value found, and the allowed values.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from zootools.errors import SpecError, did_you_mean
from zootools.spec.yaml_reader import Key, check_text, parse_scalar, parse_yaml, read_yaml


class Section(BaseModel):
    """A frozen part of a document, without unknown keys, silent conversions or NaN.

    docs/generate.py writes the docstrings of the fields into the documentation.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def dump(self) -> dict[str, Any]:
        """Return the section as plain values, without fields that have their default."""
        return self.model_dump(mode="json", exclude_defaults=True)


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
    for override in overrides:
        if isinstance(override, str):
            override = Override(override, f"--set {override}")
        _apply_override(values, override, places)
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
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = {}
        for detail in error.errors():
            # After an invalid item pydantic also reports that the list is too short; the first error is enough.
            if not (detail["type"] == "too_short" and detail["input"]):
                key = _document_key(detail["loc"], values)
                place = _place(key, places or {}, source)
                lines[_describe(model, detail, key, place)] = place
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


def _describe(model: type[Section], detail: ErrorDetails, key: Key, place: str) -> str:
    """Return one line for one error: place, key, the value found, the values allowed."""
    name = ".".join(map(str, key))
    prefix = f"{place}: {name}: " if name else f"{place}: "
    found = _shorten(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{prefix}unknown key{did_you_mean(str(key[-1]), _keys_at(model, detail['loc']))}"
        case "missing":
            return f"{prefix}is missing"
        case "literal_error" | "union_tag_invalid":
            choices = choices_of(detail)
            wrong = detail["input"] if isinstance(detail["input"], str) else ""
            if detail["type"] == "union_tag_invalid":
                tag = detail["ctx"]["discriminator"].strip("'")
                wrong, prefix = str(detail["ctx"]["tag"]), f"{prefix.removesuffix(': ')}.{tag}: "
                found = repr(wrong)
            return f"{prefix}found {found}{did_you_mean(wrong, choices)}"
        case "union_tag_not_found":
            tag = detail["ctx"]["discriminator"].strip("'")
            return f"{prefix}{tag} is missing"
        case "value_error":
            return f"{prefix}{detail['ctx']['error']}"
        case "string_pattern_mismatch":
            return f"{prefix}found {found}, which does not match {detail['ctx']['pattern']}"
        case _:
            return f"{prefix}found {found}; {lower_first(detail['msg'])}"


def lower_first(message: str) -> str:
    """Return a message with a lower-case first letter, for use after a semicolon."""
    return message[0].lower() + message[1:]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choices_of(detail: ErrorDetails) -> list[str]:
    """Return the values that pydantic allows."""
    key = "expected_tags" if detail["type"] == "union_tag_invalid" else "expected"
    text = detail["ctx"][key].replace(" or ", ", ")
    return [word.strip("' ") for word in text.split(",")]


def _document_key(location: tuple[str | int, ...], values: Any) -> Key:
    """Return a pydantic location without parts that are not keys of the document: the tag of a union, a type's name."""
    key: list[str | int] = []
    for index, part in enumerate(location):
        is_key = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if is_key:
            key.append(part)
            values = values[part]
        elif index == len(location) - 1 and isinstance(values, dict) and part not in values.values():
            key.append(part)  # a missing key, not the tag of a union
    return tuple(key)


def _keys_at(model: type[Section], location: tuple[str | int, ...]) -> Iterable[str]:
    """Return the allowed keys at the place of an unknown one, found by walking the fields of the sections."""
    sections: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [inner for field in fields for inner in _sections_in(field.annotation)]
        else:  # the tag of a union, such as "tetris", or a key of a mapping, which may be any word
            tagged = [
                section
                for section in sections
                if any(part in get_args(field.annotation) for field in section.model_fields.values())
            ]
            sections = tagged or sections
    return [name for section in sections for name in section.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
