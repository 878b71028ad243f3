"""The options of an import: which a kind uses, their texts in the record, and the schema that they name."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from zootools.architectures import Schema, build_schema
from zootools.architectures.registry import CNNS
from zootools.errors import SpecError, ZooNotFoundError, did_you_mean, nearest_path
from zootools.filesystem.files import exists
from zootools.hashing import canonical_json
from zootools.hub.foreign import read_schema
from zootools.images.shapes import image_shape
from zootools.importers.importer import Constant, ImportOptions
from zootools.spec import Cnn, Images
from zootools.spec.faults import lower_first
from zootools.spec.yaml_reader import parse_scalar

COMMON = frozenset({"name", "description", "license", "images", "constants"})
"""The fields of `ImportOptions` that every kind uses."""
_FLAGS = {"model_schema": "--schema", "constants": "--set"}


def flag(field: str) -> str:
    """Return the option of the command line that sets a field of `ImportOptions`."""
    return _FLAGS.get(field, f"--{field.replace('_', '-')}")


def parse_options(values: dict[str, object]) -> ImportOptions:
    """Return the options of keyword arguments. Raises SpecError naming the argument."""
    try:
        return ImportOptions.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            raise SpecError(f"{name}: unknown argument{did_you_mean(name, ImportOptions.model_fields)}") from None
        raise SpecError(f"{flag(name)}: found {detail['input']!r:.80}; {lower_first(detail['msg'])}") from None


def parse_constants(texts: Sequence[str]) -> dict[str, Constant]:
    """Return the properties of ``NAME=VALUE`` texts; numbers, true and false are what they are in YAML.

    Raises SpecError for a text without a name, a name that occurs twice, and a value of another kind.
    """
    constants: dict[str, Constant] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        parsed = parse_scalar(value)
        if not separator or not name or not isinstance(parsed, bool | int | float | str):
            raise SpecError(f"--set {text}: expected NAME=VALUE, such as activation=tanh")
        if name in constants:
            raise SpecError(f"--set {name}: is given twice")
        constants[name] = parsed
    return constants


def check_used(kind: str, options: ImportOptions, used: frozenset[str]) -> None:
    """Raise SpecError for an option that is given and that a kind does not use."""
    for name in sorted(options.model_fields_set - COMMON - used):
        allowed = ", ".join(map(flag, sorted(used | COMMON)))
        raise SpecError(f"{flag(name)}: an import of the kind {kind} does not use it; it uses {allowed}")


def described(options: ImportOptions) -> dict[str, str]:
    """Return the given options as texts; of a path only the name, so that nothing depends on where a file is."""
    texts = {}
    for name in sorted(options.model_fields_set - {"name", "description", "license"}):
        value = getattr(options, name)
        if isinstance(value, Path | Schema):
            texts[name] = value.name
        elif isinstance(value, BaseModel):
            texts[name] = canonical_json(value.model_dump(mode="json", exclude_defaults=True))
        else:
            texts[name] = canonical_json(value) if isinstance(value, dict) else str(value)
    return {name: text[:1000] for name, text in texts.items()}


def existing(path: Path) -> None:
    """Raise ZooNotFoundError, with the most similar name, unless a path exists."""
    if not exists(path):
        raise ZooNotFoundError(f"{path}: there is no such file or folder{nearest_path(path)}")


def zoo_name(text: str) -> str:
    """Return a name for a zoo that is as near as possible to a text."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip("._-")[:100] or "imported"


def chosen_schema(options: ImportOptions) -> tuple[Schema, bool]:
    """Return the layer schema that the options name, and whether it is enough to run a network.

    Raises SpecError unless there is exactly one of a schema and an architecture, and images for the latter.
    """
    if (options.model_schema is None) == (options.architecture is None):
        raise SpecError("expected one of --schema FILE (a layer schema) and --architecture NAME")
    if options.model_schema is not None:
        return read_schema(options.model_schema)
    return named_schema(options.architecture or "", options.images), True


def named_schema(name: str, images: Images | None) -> Schema:
    """Return the layer schema of a convolutional network of zootools. Raises SpecError for an unknown name."""
    known = {str(cnn): cnn for cnn in CNNS}
    if name not in known:
        raise SpecError(f"--architecture: found {name!r}{did_you_mean(name, known)}")
    if images is None:
        raise SpecError("--architecture: needs --images too, whose shape and classes decide the layers")
    shape, classes = image_shape(images)
    return build_schema(Cnn(name=known[name]), shape, classes)
