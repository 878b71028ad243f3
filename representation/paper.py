"""The values that the paper reports, from paper.yaml beside this module, by the names that zootools uses."""

from functools import cache
from pathlib import Path
from typing import Any

from zootools.spec.yaml_reader import read_yaml


def published(
    zoo: str, evaluated_on: str, method: str, target: str, metric: str, figure: str | None = None
) -> float | None:
    """Return the value that the paper reports, R2 and accuracy as fractions; None if it reports none.

    ``zoo`` is the zoo that encoder and probes were fitted on, by the name of its specification. With ``figure``
    (``figure13``), a value that is printed there takes precedence over the one in a table.
    """
    kind = "zoos" if evaluated_on == zoo and metric != "kendall_tau" else "transfer"
    places = [_inside("figures", figure, zoo, evaluated_on, metric)] if figure else []
    places.append(_inside("zoos", zoo) if kind == "zoos" else _inside("transfer", zoo, evaluated_on, metric))
    for place in places:
        value = _value(place, "methods", method, target)
        if value is not None:
            return value / (1 if metric == "kendall_tau" else 100)
    return None


def published_ablation(kind: str, method: str, target: str) -> float | None:
    """Return the paper's value for a variation of TETRIS-SEED's encoder, as a fraction (Tables 2, 3 and 12).

    ``kind`` is ``architecture``, ``augmentation`` (then ``target`` is the loss), ``compression_3``, or
    ``compression_5``.
    """
    value = _value(_inside("ablations", kind), "methods", method, target)
    return None if value is None else value / 100


def published_factor(zoo: str, name: str) -> float | None:
    """Return an entry of the top of Table 4: ``variance``, ``variance_within``, or ``reconstruction_train``."""
    value = _value(_inside("factors"), "zoos", zoo, name)
    return value / 100 if value is not None and name == "reconstruction_train" else value


def published_accuracies(zoo: str) -> tuple[float, float] | None:
    """Return the lowest and the highest test accuracy that the paper reports of a zoo, as fractions."""
    ends = _inside("accuracies").get(zoo)
    return None if ends is None else (ends[0] / 100, ends[1] / 100)


def printed(section: str) -> Any:
    """Return a table of words: ``zoos_as_described``, ``settings`` or ``layers`` (Tables 8 to 11)."""
    return _figures()[section]


def _inside(*keys: str | None) -> Any:
    found = _figures()
    for key in keys:
        found = found.get(key, {})
    return found


def _value(place: Any, names: str, name: str, row: str) -> float | None:
    """Return the value of a row in the column ``name``; ``place[names]`` lists the columns."""
    columns = place.get(names, [])
    return place[row][columns.index(name)] if name in columns and row in place else None


@cache
def _figures() -> Any:
    return read_yaml(Path(__file__).with_name("paper.yaml"))[0]
