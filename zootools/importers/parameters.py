"""State dicts as flat weights: which tensor of a file is which parameter of a layer schema."""

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from zootools.architectures import Parameter, Schema

Array = npt.NDArray[Any]

_NUMBER = re.compile(r"\d+")
_BUFFERS = ("num_batches_tracked", "running_mean", "running_var")
"""Last parts of the names of tensors that are no parameters."""
_WEIGHTS = ("weight", "kernel", "w")
_BIASES = ("bias", "b")


class UnfitStateError(Exception):
    """The tensors of a file are not the parameters of the schema; the message is the reason."""


def flatten(state: Mapping[str, Array], schema: Schema) -> npt.NDArray[np.float32]:
    """Return the parameters of a state dict as one flat vector, float32 ``[parameters]``.

    The names may be those of the schema (``conv1.weight``). Any others are taken layer by layer in the order of the
    numbers in them, or else of the file: whether dropout shifts the numbers of the modules, as in
    ``module_list.3.weight`` and ``module_list.4.weight``, does not matter, only the order and the shapes do.

    Raises UnfitStateError with the first difference.
    """
    floats = {name: values for name, values in state.items() if not name.endswith(_BUFFERS)}
    for name, values in floats.items():
        if not np.issubdtype(values.dtype, np.floating):
            raise UnfitStateError(f"has the tensor {name} of {values.dtype}, which are no weights")
    names = matched(floats, schema)
    flat = np.empty(schema.size, np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and its row one that diverged
        for parameter in schema.parameters:
            flat[parameter.offset : parameter.end] = floats[names[parameter.name]].reshape(-1)
    return flat


def matched(state: Mapping[str, Array], schema: Schema) -> dict[str, str]:
    """Return the name in a state dict of each parameter of a schema. Raises UnfitStateError."""
    named = {parameter.name: parameter for parameter in schema.parameters}
    if named.keys() <= state.keys():
        extra = sorted(state.keys() - named)
        if extra:
            raise UnfitStateError(f"has the tensor {extra[0]}, which is no parameter of the schema")
        names = {name: name for name in named}
    else:
        names = _in_order(state, schema)
    for parameter in schema.parameters:
        shape = tuple(state[names[parameter.name]].shape)
        if shape != parameter.shape:
            raise UnfitStateError(_misfit(names[parameter.name], shape, parameter))
    return names


def _misfit(name: str, shape: tuple[int, ...], parameter: Parameter) -> str:
    turned = shape != parameter.shape and sorted(shape) == sorted(parameter.shape)
    hint = "; the axes are in another order (a transposed kernel?)" if turned else ""
    return f"has {name} with the shape {list(shape)}, expected {list(parameter.shape)} of {parameter.name}{hint}"


def _in_order(state: Mapping[str, Array], schema: Schema) -> dict[str, str]:
    """Match tensors and parameters by their order: layer by layer, the weights of a layer before its biases."""
    groups: dict[str, dict[str, str]] = {}
    for name in state:
        prefix, _, last = name.rpartition(".")
        kind = "weight" if last in _WEIGHTS else "bias" if last in _BIASES else last
        if kind in groups.setdefault(prefix, {}):
            raise UnfitStateError(f"has two tensors {kind} in {prefix!r}")
        groups[prefix][kind] = name
    found = [groups[prefix] for prefix in sorted(groups, key=_natural)]
    if [len(group) for group in found] != [1 + layer.bias for layer in schema.layers]:
        found = list(groups.values())  # names whose numbers say nothing
    names = {}
    for layer, group in zip_longest(schema.layers, found):
        if layer is None or group is None:
            raise UnfitStateError(
                f"has {len(found)} layers with parameters ({', '.join(sorted(groups, key=_natural)[:8])}), "
                f"expected {len(schema.layers)}"
            )
        wanted = {"weight", "bias"} if layer.bias else {"weight"}
        if group.keys() != wanted:
            raise UnfitStateError(
                f"has {sorted(group.values())} in the place of {layer.name}, which has {sorted(wanted)}"
            )
        names.update({f"{layer.name}.{kind}": name for kind, name in group.items()})
    return names


def _natural(prefix: str) -> tuple[Any, ...]:
    """Return a key that orders names by the numbers in them: ``module_list.10`` after ``module_list.9``."""
    words = _NUMBER.split(prefix)
    numbers = [int(number[:18]) for number in _NUMBER.findall(prefix)]
    return (*(part for pair in zip_longest(words, numbers, fillvalue=-1) for part in pair),)
