"""The computation of a layer schema: one model as a plain module, or many models at once."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zootools.architectures.schema import Schema
from zootools.errors import SpecError, did_you_mean

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return a registered activation. Raises SpecError for an unknown one, which another version may have."""
    if name not in ACTIVATIONS:
        raise SpecError(f"activation: found {name!r}{did_you_mean(name, ACTIVATIONS)}; the network cannot be run")
    return ACTIVATIONS[name]


Dropout = Callable[[str, Tensor], Tensor]
"""A function of a layer's name and its activations; drops units, and returns the activations scaled."""

Watch = Callable[[str, Tensor], Tensor]
"""A function of a layer's name and its outputs before the activation; returns what replaces them."""


class Network(nn.Module):
    """One model as an ordinary module: ``[B, channels, height, width]`` to logits ``[B, classes]``.

    The schema names its parameters (``conv1.weight``), with and without dropout.
    """

    def __init__(self, schema: Schema, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.schema = schema
        self.activation = activation_of(activation)
        self.dropout = dropout
        for layer in schema.layers:
            if hasattr(self, layer.name):
                raise SpecError(f"{schema.name}: a torch module cannot have a layer named {layer.name!r}")
            module: nn.Module
            if layer.kind == "conv":
                module = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride, bias=layer.bias)
            else:
                module = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
            self.add_module(layer.name, module)

    def forward(self, images: Tensor, drop: Dropout | None = None) -> Tensor:
        """Return the logits; ``drop`` replaces torch's own dropout, to make the draws reproducible."""
        x = images
        for layer in self.schema.layers:
            if layer.kind == "linear":
                x = x.flatten(1)
            x = self.get_submodule(layer.name)(x)
            if layer.max_pool > 1:
                x = F.max_pool2d(x, layer.max_pool)
            if layer.activation:
                x = self.activation(x)
            if layer.dropout and drop is not None:
                x = drop(layer.name, x)
            elif layer.dropout:
                x = F.dropout(x, self.dropout, self.training)
            if layer.global_average_pool:
                x = x.mean(dim=(2, 3))
        return x


def parameter_views(schema: Schema, flat: Tensor) -> dict[str, Tensor]:
    """Return the parameters of M models by name, ``[M, *shape]``, as views of their flat weights."""
    return {
        parameter.name: flat[:, parameter.offset : parameter.end].unflatten(1, parameter.shape)
        for parameter in schema.parameters
    }


def stacked_forward(
    schema: Schema,
    weights: Mapping[str, Tensor],
    images: Tensor,
    activation: str,
    drop: Dropout | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Compute M models of one schema at once.

    Args:
        schema: the layers that all models share.
        weights: for each parameter its values in all models, float32 ``[M, *shape]``.
        images: ``[B, M, channels, height, width]`` with different images for each model, or
            ``[B, channels, height, width]`` with the same images for all.
        activation: the activation that all models share.
        drop: drops units of ``[M, B, ...]`` activations; None outside training.
        watch: receives the name of each layer and its outputs before the activation, after the pooling, and returns
            what replaces them: ``[B, M, channels, height, width]`` of a convolution, ``[M, B, features]`` otherwise.

    Returns:
        Logits ``[M, B, classes]``.
    """
    models, batch = next(iter(weights.values())).shape[0], images.shape[0]
    function = activation_of(activation)
    # Before the first linear layer, activations are [B, M, channels, height, width], or [B, channels, height, width]
    # as long as all models share them, so that a grouped convolution takes all channels side by side. After it they
    # are [M, B, features], for one batched product per layer.
    x, shared, flat = images, images.dim() == 4, False
    for layer in schema.layers:
        weight, bias = weights[f"{layer.name}.weight"], weights.get(f"{layer.name}.bias")
        if layer.kind == "conv":
            kernels, biases = weight.flatten(0, 1), None if bias is None else bias.flatten()
            if not shared:
                x = F.conv2d(x.flatten(1, 2), kernels, biases, layer.stride, groups=models)
            elif x.requires_grad:
                x = _convolved_patches(x, kernels, biases, layer.stride)
            else:
                x = F.conv2d(x, kernels, biases, layer.stride)
            if layer.max_pool > 1:
                x = F.max_pool2d(x, layer.max_pool)
            x, shared = x.view(batch, models, layer.outputs, *x.shape[2:]), False
        else:
            if not flat:
                x = x.flatten(1).expand(models, -1, -1) if shared else x.flatten(2).transpose(0, 1)
                flat, shared = True, False
            transposed = weight.transpose(1, 2)
            x = torch.bmm(x, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, transposed)
        if watch is not None:
            x = watch(layer.name, x)
        if layer.activation:
            x = function(x)
        if layer.dropout and drop is not None:
            x = drop(layer.name, x) if flat else drop(layer.name, x.transpose(0, 1)).transpose(0, 1)
        if layer.global_average_pool:
            x = x.mean(dim=(3, 4), keepdim=True)
    return x if flat else x.flatten(2).transpose(0, 1)


def _convolved_patches(images: Tensor, kernels: Tensor, biases: Tensor | None, stride: int) -> Tensor:
    """Return the convolution of images as one matrix product, whose outputs have their channels last in memory.

    The gradient of a few images from all models' kernels is several times faster so, and so is the pooling after it.
    """
    sides = [(side - kernel) // stride + 1 for side, kernel in zip(images.shape[2:], kernels.shape[2:], strict=True)]
    patches = F.unfold(images, kernels.shape[2:], stride=stride)
    return F.linear(patches.mT, kernels.flatten(1), biases).mT.unflatten(2, sides)
