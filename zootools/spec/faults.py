"""The errors of pydantic in the words of a YAML document: key, value found, values allowed, the form to write."""

import math
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from zootools.errors import did_you_mean
from zootools.spec.yaml_reader import Key


def describe(model: type[BaseModel], detail: ErrorDetails, key: Key, place: str) -> str:
    """Return one line for one error: place, key, the value found, the values allowed."""
    name = ".".join(map(str, key))
    prefix = f"{place}: {name}: " if name else f"{place}: "
    found = _shorten(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{prefix}unknown key{did_you_mean(str(key[-1]), _keys_at(model, detail['loc']))}"
        case "model_type" | "dict_type" | "tuple_type" | "list_type" | "missing" | "too_long" if (
            misshapen := _misshapen(model, detail)
        ):
            return f"{prefix}{misshapen}"
        case "missing":
            return f"{prefix}is missing"
        case "literal_error" | "union_tag_invalid":
            choices = choices_of(detail)
            wrong = detail["input"] if isinstance(detail["input"], str) else ""
            if detail["type"] == "union_tag_invalid":
                tag = detail["ctx"]["discriminator"].strip("'")
                wrong, prefix = str(detail["ctx"]["tag"]), f"{prefix.removesuffix(': ')}.{tag}: "
                found = repr(wrong)
            hint = getattr(model, "hints", {}).get(name, "")
            return f"{prefix}found {found}{did_you_mean(wrong, choices)}{hint and f'; {hint}'}"
        case "union_tag_not_found":
            tag = detail["ctx"]["discriminator"].strip("'")
            return f"{prefix}{tag} is missing"
        case "value_error":
            return f"{prefix}{detail['ctx']['error']}"
        case "string_pattern_mismatch":
            return f"{prefix}found {found}, which does not match {detail['ctx']['pattern']}"
        case _:
            return f"{prefix}found {found}; {lower_first(detail['msg'])}"


def _misshapen(model: type[BaseModel], detail: ErrorDetails) -> str:
    """Return what is wrong where a section, list or pair is expected, and the form to write; empty for other errors."""
    location, kind, value = detail["loc"], detail["type"], detail["input"]
    if kind == "missing":
        if not isinstance(location[-1], int):
            return ""
        location = location[:-1]  # a pair with one item; the input is that of the pair
    sections = _sections_at(model, location[:-1])
    fields = [section.model_fields[str(location[-1])] for section in sections if location[-1] in section.model_fields]
    examples = [example for field in fields for example in field.examples or ()]
    forms = [
        yaml.safe_dump({location[-1]: example}, default_flow_style=True, sort_keys=False, width=math.inf).strip()[1:-1]
        for example in examples
    ]
    if forms:
        expected = f"write {' or '.join(part for part in (', '.join(forms[:-1]), forms[-1]) if part)}"
    else:
        expected = "expected a section of keys" if kind in ("model_type", "dict_type") else "expected a list"
    return f"found {_kind(value)}; {expected}"


def _kind(value: Any) -> str:
    """Return a value of YAML with the name of its kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {_shorten(value)}"
        case list():
            return f"the list {_shorten(value)}"
        case dict():
            return f"the section {_shorten(value)}"
        case _:
            return f"the number {value}"


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


def document_key(location: tuple[str | int, ...], values: Any) -> Key:
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


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> Iterable[str]:
    """Return the allowed keys at the place of an unknown one."""
    return [name for section in _sections_at(model, location[:-1]) for name in section.model_fields]


def _sections_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Return the sections that can be at a place, found by walking the fields."""
    sections: list[type[BaseModel]] = [model]
    for part in location:
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
    return sections


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
