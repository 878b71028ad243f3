"""The layer schema: the layers of a network, as data.

A `Schema` is an ordered list of layers that carry parameters. Everything else about a network is derived from it: the
plain module and the stacked forward pass (`zootools.architectures.networks`), the order of the flat weight vector, the
permutations, and the tokens of a neuron. Every zoo stores its schema, so that reading a zoo requires no registered
architecture. This module does not import torch.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from zootools.errors import DamagedZooError, SpecError

MAX_PARAMETERS = 10_000_000
MAX_LAYERS = 1000
MAX_NAME = 100
"""Characters in the name of a network or a layer."""
_SIZES = ("inputs", "outputs", "kernel", "stride", "max_pool")


@dataclass(frozen=True)
class Layer:
    """One layer with parameters, and the operations between it and the next one.

    The order of the operations is fixed: max-pooling, activation, dropout, global average pooling.
    """

    name: str
    kind: Literal["conv", "linear"]
    inputs: int
    """Input channels of a convolution, input features of a linear layer."""
    outputs: int
    kernel: int = 1
    stride: int = 1
    bias: bool = True
    max_pool: int = 1
    """Window and stride of the max-pooling on the layer's output; 1 for none."""
    activation: bool = True
    dropout: bool = False
    """Whether a model's dropout rate applies after the activation."""
    global_average_pool: bool = False

    @property
    def fan_in(self) -> int:
        """Incoming weights of one output neuron or kernel, without its bias."""
        return self.inputs * self.kernel**2

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``(outputs, inputs)``, or ``(outputs, inputs, kernel, kernel)`` of a convolution."""
        if self.kind == "linear":
            return (self.outputs, self.inputs)
        return (self.outputs, self.inputs, self.kernel, self.kernel)


@dataclass(frozen=True)
class Parameter:
    """The place of one named tensor of a model in its flat weight vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """One past the last index in the flat vector."""
        return self.offset + self.size


class PermutedAxis(NamedTuple):
    """A tensor that neurons are in, as a matrix ``[outputs, all incoming weights of one]``; a bias has one column."""

    parameter: str
    axis: Literal[0, 1]
    """0 if each neuron is a row; 1 if each is a block of consecutive columns, all equally long."""


@dataclass(frozen=True)
class PermutationGroup:
    """Neurons that may be in any order: the network computes the same function if all its axes have the same one."""

    name: str
    """That of the layer whose outputs they are."""
    size: int
    """Number of neurons."""
    axes: tuple[PermutedAxis, ...]


@dataclass(frozen=True)
class Schema:
    """A sequential network: input shape ``(channels, height, width)`` and its layers."""

    name: str
    input_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        """Raise SpecError, with name and key, for an invalid layer, or for layers that do not fit each other."""
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise SpecError(f"{self.name}: found {len(self.layers)} layers; expected 1 to {MAX_LAYERS}")
        for key, side in zip(("channels", "height", "width"), self.input_shape, strict=True):
            _check_size(f"{self.name}: input_shape: {key}", side)
        for layer in self.layers:
            _check_layer(self.name, layer)
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise SpecError(f"{self.name}: layer names must differ, found {names[:20]}")
        _ = self.output_shapes
        if self.size > MAX_PARAMETERS:
            raise SpecError(f"{self.name}: {self.size:,} parameters; at most {MAX_PARAMETERS:,} are allowed")

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.layers[-1].outputs

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The tensors of a model in flat order: layer by layer, weights row-major, then biases."""
        result, offset = [], 0
        for layer in self.layers:
            shapes = {"weight": layer.weight_shape}
            if layer.bias:
                shapes["bias"] = (layer.outputs,)
            for name, shape in shapes.items():
                result.append(Parameter(f"{layer.name}.{name}", shape, offset))
                offset = result[-1].end
        return tuple(result)

    @property
    def size(self) -> int:
        """Number of parameters of a model: the length of its flat vector."""
        return self.parameters[-1].end

    @cached_property
    def output_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """``(channels, height, width)`` of the output of each layer, after its pooling.

        Raises SpecError if a layer does not fit the output of the layer before it.
        """
        shapes, shape, linear = [], self.input_shape, False
        for layer in self.layers:
            channels, height, width = shape
            if linear and layer.kind == "conv":
                raise SpecError(f"{self.name}: {layer.name}: a convolution cannot follow a linear layer")
            linear = layer.kind == "linear"
            if layer.kind == "linear":
                if layer.inputs != math.prod(shape):
                    raise SpecError(
                        f"{self.name}: {layer.name} takes {layer.inputs} features, "
                        f"but its input is {channels} x {height} x {width}"
                    )
                shape = (layer.outputs, 1, 1)
            else:
                if layer.inputs != channels:
                    raise SpecError(f"{self.name}: {layer.name} takes {layer.inputs} channels, not {channels}")
                sides = [
                    ((side - layer.kernel) // layer.stride + 1) // layer.max_pool if side >= layer.kernel else 0
                    for side in (height, width)
                ]
                if min(sides) < 1:
                    raise SpecError(
                        f"{self.name}: {layer.name} (kernel {layer.kernel}, stride {layer.stride}, "
                        f"pooling {layer.max_pool}) leaves nothing of an input of {height} x {width}; "
                        "use larger images (images.size)"
                    )
                shape = (layer.outputs, sides[0], sides[1])
            if layer.global_average_pool:
                shape = (shape[0], 1, 1)
            shapes.append(shape)
        return tuple(shapes)

    def block(self, index: int) -> int:
        """Return how many consecutive inputs of the next layer one output of layer ``index`` feeds.

        It is 1, except from a convolution to a linear layer: there it is height times width.
        """
        _, height, width = self.output_shapes[index]
        return height * width if self.layers[index + 1].kind == "linear" else 1

    def neuron_tokens(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return for each layer the flat indices of its neurons: int64 ``[outputs, fan_in (+ 1)]``.

        A row holds the incoming weights of one neuron (or kernel), its own bias last.
        """
        tokens, parameters = {}, {parameter.name: parameter for parameter in self.parameters}
        for layer in self.layers:
            weight = parameters[f"{layer.name}.weight"]
            rows = np.arange(weight.offset, weight.end).reshape(layer.outputs, layer.fan_in)
            if layer.bias:
                bias = parameters[f"{layer.name}.bias"]
                rows = np.concatenate([rows, np.arange(bias.offset, bias.end)[:, None]], axis=1)
            tokens[layer.name] = rows
        return tokens

    @cached_property
    def permutation_groups(self) -> tuple[PermutationGroup, ...]:
        """The groups of neurons that can be permuted, in the order of the layers: the outputs of every hidden layer."""
        groups = []
        for layer, following in itertools.pairwise(self.layers):
            axes = [PermutedAxis(f"{layer.name}.weight", 0), PermutedAxis(f"{following.name}.weight", 1)]
            if layer.bias:
                axes.insert(1, PermutedAxis(f"{layer.name}.bias", 0))
            groups.append(PermutationGroup(layer.name, layer.outputs, tuple(axes)))
        return tuple(groups)

    def permutation_index(self, permutations: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.int64]:
        """Return the index ``i``, int64 ``[parameters]``, for which ``flat[i]`` is the network with permuted neurons.

        ``permutations`` maps names of hidden layers to permutations of their outputs (paper, equation 1:
        the layer's rows and biases are permuted, and the next layer's inputs in the same way). Raises ValueError for
        the output layer, an unknown layer, or an array that is not a permutation.
        """
        index = np.arange(self.size)
        hidden = [group.name for group in self.permutation_groups]
        unknown = set(permutations) - set(hidden)
        if unknown:
            raise ValueError(f"only the hidden layers {hidden} can be permuted, not {sorted(unknown)}")
        places = {parameter.name: parameter for parameter in self.parameters}
        for group in self.permutation_groups:
            if group.name not in permutations:
                continue
            order = np.asarray(permutations[group.name])
            if sorted(order.tolist()) != list(range(group.size)):
                raise ValueError(f"{group.name}: expected a permutation of {group.size} neurons, found {order}")
            for name, axis in group.axes:
                rows = places[name].shape[0] if axis else 1
                blocks = index[places[name].offset : places[name].end].reshape(rows, group.size, -1)
                blocks[:] = blocks[:, order]
        return index

    def forward_flops(self) -> int:
        """Return the floating-point operations of one image's forward pass, multiplications plus additions."""
        total, shape = 0, self.input_shape
        for layer, output in zip(self.layers, self.output_shapes, strict=True):
            positions = 1
            if layer.kind == "conv":
                positions = math.prod((side - layer.kernel) // layer.stride + 1 for side in shape[1:])
            total += 2 * layer.outputs * layer.fan_in * positions
            shape = output
        return total

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain values, as in zoo.json."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "layers": [asdict(layer) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, value: Any) -> "Schema":
        """Return the schema of plain values. Raises DamagedZooError for values that `to_json` does not return."""
        if not isinstance(value, dict) or value.keys() != {"name", "input_shape", "layers"}:
            raise DamagedZooError("layer schema: expected an object with name, input_shape and layers")
        name, shape, layers = value["name"], value["input_shape"], value["layers"]
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise DamagedZooError(f"layer schema: name: found {name!r:.80}; expected at most {MAX_NAME} characters")
        if not isinstance(shape, list) or len(shape) != 3:
            raise DamagedZooError(f"layer schema: input_shape: found {shape!r:.80}; expected three whole numbers")
        if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
            raise DamagedZooError(f"layer schema: layers: expected a list of at most {MAX_LAYERS} layers")
        for number, entry in enumerate(layers):
            _check_entry(f"layer schema: layers.{number}", entry)
        try:
            return cls(name, (shape[0], shape[1], shape[2]), tuple(Layer(**entry) for entry in layers))
        except SpecError as error:
            raise DamagedZooError(f"layer schema: {error}") from error


_EXAMPLE = Layer("example", "linear", 1, 1)
_TYPES = {field.name: type(getattr(_EXAMPLE, field.name)) for field in fields(Layer)}


def _check_entry(place: str, entry: Any) -> None:
    """Raise DamagedZooError unless the entry has the keys and types of a layer (true is not a number)."""
    if not isinstance(entry, dict):
        raise DamagedZooError(f"{place}: found {entry!r:.80}; expected a layer")
    for key in sorted(entry.keys() ^ _TYPES.keys()):
        raise DamagedZooError(f"{place}: the key {key!r:.80} {'is missing' if key in _TYPES else 'is unknown'}")
    for key, kind in _TYPES.items():
        if type(entry[key]) is not kind:
            raise DamagedZooError(f"{place}.{key}: found {entry[key]!r:.80}; expected {kind.__name__}")


def _check_layer(network: str, layer: Layer) -> None:
    """Raise SpecError, with the layer and the key, for a layer with invalid values."""
    if not layer.name.isidentifier() or len(layer.name) > MAX_NAME:
        raise SpecError(f"{network}: layer names must be identifiers, found {layer.name!r:.120}")
    if layer.kind not in ("conv", "linear"):
        raise SpecError(f"{network}: {layer.name}: kind: found {layer.kind!r:.80}; expected conv or linear")
    for key in _SIZES:
        _check_size(f"{network}: {layer.name}: {key}", getattr(layer, key))
    if layer.kind == "linear":
        for key in ("kernel", "stride", "max_pool", "global_average_pool"):
            if getattr(layer, key) != getattr(_EXAMPLE, key):
                raise SpecError(
                    f"{network}: {layer.name}: {key}: found {getattr(layer, key)}; "
                    "a linear layer has no kernel, stride or pooling"
                )


def _check_size(place: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_PARAMETERS:
        raise SpecError(f"{place}: found {value!r:.80}; expected a whole number from 1 to {MAX_PARAMETERS:,}")
