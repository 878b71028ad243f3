"""The architectures that a specification can name, each as a layer schema.

A new bundled network is a function that returns its convolutions, a row of `CNNS`, and its name in
`zootools.spec.CnnName`. Users add networks of their own with `zootools.architectures.own.register_architecture`.
"""

import math
from collections.abc import Sequence

from zootools.architectures.own import CnnLayers, own_layers
from zootools.architectures.schema import Layer, Schema
from zootools.spec import Architecture, CnnName, Mlp, OwnArchitecture


def build_schema(
    architecture: Architecture | OwnArchitecture, input_shape: tuple[int, int, int], classes: int
) -> Schema:
    """Return the layer schema of an architecture for images ``(channels, height, width)``.

    Raises SpecError if the images are too small for it, a layer is invalid, or nobody has registered the architecture.
    """
    if isinstance(architecture, Mlp):
        layers = _linear_layers([math.prod(input_shape), *architecture.hidden, classes], architecture.bias)
    else:
        if isinstance(architecture, OwnArchitecture):
            network = own_layers(architecture.name)
        else:
            network = CNNS[architecture.name]
        layers = network.convolutions(input_shape[0])
        features = math.prod(Schema(architecture.name, input_shape, tuple(layers)).output_shapes[-1])
        layers += _linear_layers([features, *network.hidden, classes])
    return Schema(architecture.name, input_shape, tuple(layers))


def _linear_layers(sizes: Sequence[int], bias: bool = True) -> list[Layer]:
    """Return linear layers from ``sizes[0]`` inputs to ``sizes[-1]`` logits; all but the last have dropout."""
    last = len(sizes) - 1
    return [
        Layer(f"fc{i}", "linear", sizes[i - 1], sizes[i], bias=bias, activation=i < last, dropout=i < last)
        for i in range(1, len(sizes))
    ]


def _cnn_small(channels: int) -> list[Layer]:
    """2464 parameters on 1 x 28 x 28: the paper's CNN, as in its code (Table 11 lists one pooling too many)."""
    return [
        Layer("conv1", "conv", channels, 8, kernel=5, max_pool=2, dropout=True),
        Layer("conv2", "conv", 8, 6, kernel=5, max_pool=2, dropout=True),
        Layer("conv3", "conv", 6, 4, kernel=2),
    ]


def _cnn_unterthiner(channels: int) -> list[Layer]:
    """4970 parameters on one channel: the network of Unterthiner et al. (2020)."""
    return [
        Layer("conv1", "conv", channels, 16, kernel=3, stride=2, dropout=True),
        Layer("conv2", "conv", 16, 16, kernel=3, stride=2, dropout=True),
        Layer("conv3", "conv", 16, 16, kernel=3, stride=2, dropout=True, global_average_pool=True),
    ]


def _cnn_large(channels: int) -> list[Layer]:
    """10,853 parameters on 3 x 32 x 32; its dropout, whose place is not published, is after every hidden activation."""
    return [
        Layer("conv1", "conv", channels, 16, kernel=3, max_pool=2, dropout=True),
        Layer("conv2", "conv", 16, 32, kernel=3, max_pool=2, dropout=True),
        Layer("conv3", "conv", 32, 15, kernel=3, max_pool=2, dropout=True),
    ]


CNNS: dict[CnnName, CnnLayers] = {
    "cnn_small": CnnLayers(_cnn_small),
    "cnn_unterthiner": CnnLayers(_cnn_unterthiner, hidden=()),
    "cnn_large": CnnLayers(_cnn_large),
}
"""The convolutional networks by name."""
