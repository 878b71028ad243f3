"""The JSON schema of specification files, for editors: made from the pydantic models, with the short forms."""

from typing import Any, get_args

from zootools.spec.images import TRAINING_IMAGES
from zootools.spec.population import Hyperparameters
from zootools.spec.sections import field_docstrings
from zootools.spec.zoo_spec import CnnName, ZooSpec


def specification_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a specification, as an editor checks and completes it.

    It accepts the short forms of `zootools.spec.short_forms`. Rules between keys, such as the sum of the shares of a
    split, are checked by `zootools.spec.load_spec` only.
    """
    schema = ZooSpec.model_json_schema()
    keys, axes = schema["properties"], schema["$defs"]["Grid"]["properties"]
    short: dict[str, list[dict[str, Any]]] = {
        "images": [{"enum": list(TRAINING_IMAGES)}],
        "architecture": [{"enum": list(get_args(CnnName))}],
        "seeds": [{"type": "integer", "minimum": 1}, schema["$defs"]["Seeds"]["properties"]["fixed"]["anyOf"][0]],
    }
    for key, forms in short.items():
        keys[key] = _with_forms(keys[key], forms)
    meanings = field_docstrings(Hyperparameters)
    for axis, field in axes.items():
        axes[axis] = _with_forms({**field, "description": meanings[axis]}, [field["anyOf"][0]["items"]])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_forms(field: dict[str, Any], forms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a field that accepts other forms too; its title, description and examples stay."""
    notes = {key: value for key, value in field.items() if key in ("title", "description", "examples", "default")}
    long = {key: value for key, value in field.items() if key not in notes}
    return {**notes, "anyOf": [*(long.pop("anyOf", None) or [long]), *forms]}
