"""Flat rows in the order of TensorFlow: ``layout.csv`` of the Small CNN Zoo, and the way to the order of zootools.

TensorFlow has kernels as (height, width, inputs, outputs) or (inputs, outputs), and the inputs of a dense layer behind
a convolution as (height, width, channels). zootools has (outputs, inputs, height, width), (outputs, inputs), and
(channels, height, width); only there is a row of a kernel a neuron, and a permutation of neurons a symmetry.
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError
from zootools.filesystem.inside import read_inside
from zootools.storage.verified_files import unreadable

LAYOUT = "layout.csv"
MAX_BYTES = 1 << 20
COLUMNS = ("varname", "start_idx", "end_idx", "size", "shape")


@dataclass(frozen=True)
class Variable:
    """A row of layout.csv: a variable of TensorFlow, and where its values are in a row of weights."""

    name: str
    """Such as ``sequential/conv2d/kernel:0``."""
    start: int
    end: int
    shape: tuple[int, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel; otherwise it is a bias."""
        return self.name.removesuffix(":0").endswith("/kernel")

    @property
    def layer(self) -> str:
        """The name of its layer: ``sequential/conv2d``."""
        return self.name.removesuffix(":0").rpartition("/")[0]


def read_layout(root: Path) -> list[Variable]:
    """Return the variables of a row, in its order. Raises DamagedZooError unless they follow one after the other."""
    path = root / LAYOUT
    try:
        text = read_inside(root, LAYOUT, MAX_BYTES).decode()
        rows = list(csv.DictReader(text.splitlines()))
        variables = [
            Variable(
                row["varname"],
                int(row["start_idx"]),
                int(row["end_idx"]),
                tuple(int(side) for side in re.findall(r"\d{1,9}", row["shape"])),
            )
            for row in rows
        ]
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=path) from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        expected = ", ".join(COLUMNS)
        raise DamagedZooError(f"cannot be read ({error!r:.100}); expected the columns {expected}", path=path) from error
    variables.sort(key=lambda variable: variable.start)
    end = 0
    for variable in variables:
        if variable.start != end or variable.end - end != math.prod(variable.shape) or not variable.shape:
            found = f"{variable.name}: {variable.shape} at {variable.start} to {variable.end}"
            raise DamagedZooError(f"{found}; expected {math.prod(variable.shape)} values from {end}", path=path)
        if not variable.is_kernel and not variable.name.removesuffix(":0").endswith("/bias"):
            raise DamagedZooError(f"{variable.name}: is neither a kernel nor a bias", path=path)
        end = variable.end
    if not variables:
        raise DamagedZooError("has no rows", path=path)
    return variables


def column_order(root: Path, variables: Sequence[Variable], schema: Schema) -> npt.NDArray[np.int64]:
    """Return the index ``i``, int64 ``[parameters]``, for which ``row[i]`` is a row in the order of a schema.

    The layers of the layout are those of the schema in their order, whatever their names are. Raises SpecError for a
    layer whose shapes differ, and if one of them has more layers.
    """
    layers = dict.fromkeys(variable.layer for variable in variables)
    if len(layers) != len(schema.layers):
        raise SpecError(f"{root / LAYOUT}: has {len(layers)} layers; {schema.name} has {len(schema.layers)}")
    parts, shape = list[npt.NDArray[np.int64]](), schema.input_shape
    for name, layer, output in zip(layers, schema.layers, schema.output_shapes, strict=True):
        of_layer = {variable.is_kernel: variable for variable in variables if variable.layer == name}
        expected = {True: tensorflow_shape(layer.weight_shape)} | ({False: (layer.outputs,)} if layer.bias else {})
        found = {is_kernel: variable.shape for is_kernel, variable in of_layer.items()}
        if found != expected:
            raise SpecError(
                f"{root / LAYOUT}: {name}: found {_shapes(found)}; {layer.name} of {schema.name} has "
                f"{_shapes(expected)} in the order of TensorFlow"
            )
        kernel = of_layer[True]
        index = np.arange(kernel.start, kernel.end)
        parts.append(from_tensorflow(index, layer.weight_shape, shape).reshape(-1))
        if layer.bias:
            parts.append(np.arange(of_layer[False].start, of_layer[False].end))
        shape = output
    return np.concatenate(parts)


def _shapes(shapes: dict[bool, tuple[int, ...]]) -> str:
    return ", ".join(f"{'kernel' if kind else 'bias'} {shapes[kind]}" for kind in sorted(shapes, reverse=True))


def layout_of(schema: Schema) -> list[Variable]:
    """Return the variables of a network of a schema, biases first as in the Small CNN Zoo."""
    variables, start, counts = list[Variable](), 0, {"conv2d": 0, "dense": 0}
    for layer in schema.layers:
        kind = "conv2d" if layer.kind == "conv" else "dense"
        name = f"sequential/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
        counts[kind] += 1
        shapes = {"bias": (layer.outputs,)} if layer.bias else {}
        for ending, shape in {**shapes, "kernel": tensorflow_shape(layer.weight_shape)}.items():
            variables.append(Variable(f"{name}/{ending}:0", start, start + math.prod(shape), shape))
            start += math.prod(shape)
    return variables


def write_layout(variables: Sequence[Variable]) -> bytes:
    """Return the bytes of layout.csv."""
    rows = [
        [variable.name, variable.start, variable.end, variable.end - variable.start, f'"{variable.shape}"']
        for variable in variables
    ]
    return "".join(f"{','.join(map(str, row))}\n" for row in [COLUMNS, *rows]).encode()


def tensorflow_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in TensorFlow of weights of a shape in zootools."""
    return (*shape[2:], shape[1], shape[0])


def from_tensorflow(
    values: npt.NDArray[np.int64], shape: tuple[int, ...], features: tuple[int, int, int]
) -> npt.NDArray[np.int64]:
    """Return the values of a kernel of TensorFlow in the order of zootools.

    Args:
        values: the values in the order of TensorFlow.
        shape: the shape of the weights in zootools.
        features: (channels, height, width) of the input of the layer.
    """
    if len(shape) == 4:
        return values.reshape(tensorflow_shape(shape)).transpose(3, 2, 0, 1)
    channels, height, width = features
    return values.reshape(height, width, channels, shape[0]).transpose(3, 2, 0, 1).reshape(shape)
