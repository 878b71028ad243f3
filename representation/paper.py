"""The paper's published figures, from paper.yaml beside this module, by the names that zootools uses."""

from functools import cache
from pathlib import Path
from typing import Any

from zootools.yaml_reader import read_yaml


def published(zoo: str, evaluated_on: str, method: str, target: str, metric: str) -> float | None:
    """Return what the paper reports, R2 and accuracy as fractions; None where it reports nothing.

    ``zoo`` is what encoder and probes were fitted on; the zoos of the paper are known by their specification's name.
    """
    section = _figures()["transfer" if evaluated_on != zoo else "zoos"].get(zoo, {})
    if evaluated_on != zoo:
        section = section.get(evaluated_on, {}).get(metric, {})
    elif metric == "kendall_tau":
        return None
    values = section.get(target)
    methods = section.get("methods", [])
    if not values or method not in methods:
        return None
    value = values[methods.index(method)]
    return None if value is None else value / (1 if metric == "kendall_tau" else 100)


@cache
def _figures() -> Any:
    return read_yaml(Path(__file__).with_name("paper.yaml"))[0]
