"""The architectures that a specification can name, each as a layer schema."""

import math

from zootools.architectures.schema import Layer, Schema
from zootools.spec import Architecture, Mlp


def build_schema(architecture: Architecture, input_shape: tuple[int, int, int], classes: int) -> Schema:
    """Return the layer schema of an architecture for images of one shape.

    Raises SpecError when the images are too small for it, or a layer cannot be.
    """
    channels, height, width = input_shape
    if isinstance(architecture, Mlp):
        sizes = [channels * height * width, *architecture.hidden, classes]
        layers = [
            Layer(f"fc{i}", "linear", sizes[i - 1], sizes[i], bias=architecture.bias, dropout=True)
            for i in range(1, len(sizes) - 1)
        ]
        layers.append(
            Layer(f"fc{len(layers) + 1}", "linear", sizes[-2], classes, bias=architecture.bias, activation=False)
        )
    else:
        layers = _CNNS[architecture.name](channels)
        features = math.prod(Schema(architecture.name, input_shape, tuple(layers)).output_shapes[-1])
        layers += _head(architecture.name, features, classes)
    return Schema(architecture.name, input_shape, tuple(layers))


def _cnn_small(channels: int) -> list[Layer]:
    """2464 parameters on 1 x 28 x 28: the paper's CNN as its code has it (Table 11 lists one pooling too many)."""
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
    """10,853 parameters on 3 x 32 x 32; where its dropout sits is not published: after every hidden activation."""
    return [
        Layer("conv1", "conv", channels, 16, kernel=3, max_pool=2, dropout=True),
        Layer("conv2", "conv", 16, 32, kernel=3, max_pool=2, dropout=True),
        Layer("conv3", "conv", 32, 15, kernel=3, max_pool=2, dropout=True),
    ]


_CNNS = {"cnn_small": _cnn_small, "cnn_unterthiner": _cnn_unterthiner, "cnn_large": _cnn_large}


def _head(name: str, features: int, classes: int) -> list[Layer]:
    if name == "cnn_unterthiner":
        return [Layer("fc1", "linear", features, classes, activation=False)]
    return [
        Layer("fc1", "linear", features, 20, dropout=True),
        Layer("fc2", "linear", 20, classes, activation=False),
    ]
