"""The gradient of many networks of linear layers, without autograd.

Autograd returns the gradient of each weight as a new tensor, and transposed; bringing them into the order of the flat
vector takes as long as the products themselves. Here the products write into one matrix of that order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zootools.architectures import Layer, Schema
from zootools.architectures.networks import Dropout, activation_of, parameter_views


class LinearGradient:
    """Computes the gradients of M networks of linear layers on the CPU.

    Args:
        schema: the layers, all of them linear.
        weights: the flat weights, ``[M, parameters]``; they may change between calls.
        activation: the activation that all models share.
        batch_size: samples of one step.
    """

    def __init__(self, schema: Schema, weights: Tensor, activation: str, batch_size: int) -> None:
        self._layers, self._activation = schema.layers, activation_of(activation)
        self._gradient = torch.zeros_like(weights)
        self._images = torch.empty(len(weights) * batch_size, *schema.input_shape)
        self._inputs = self._images.view(len(weights), batch_size, -1)
        self._weights, self._gradients = parameter_views(schema, weights), parameter_views(schema, self._gradient)

    def compute(
        self, images: Tensor, order: Tensor, delta_of: Callable[[Tensor], Tensor], drop: Dropout | None
    ) -> Tensor:
        """Return the gradient of each model's loss, ``[M, parameters]``; the next call overwrites it.

        Args:
            images: all images, ``[count, *input_shape]``.
            order: the images of each model's batch, int32 ``[M, B]``.
            delta_of: maps logits ``[M, B, classes]`` to the gradient of the loss with respect to them.
            drop: drops units of ``[M, B, units]`` activations; None without dropout.
        """
        torch.index_select(images, 0, order.flatten(), out=self._images)
        inputs, tails = [self._inputs], list[tuple[Tensor, Tensor]]()
        for layer in self._layers:
            sums = self._product(layer, inputs[-1])
            # Autograd is used for what follows a product: activation and dropout.
            with torch.enable_grad():
                tail = sums.requires_grad_()
                if layer.activation:
                    tail = self._activation(tail)
                if layer.dropout and drop is not None:
                    tail = drop(layer.name, tail)
            tails.append((sums, tail))
            inputs.append(tail.detach())
        delta = delta_of(inputs[-1])
        for index, layer in reversed(list(enumerate(self._layers))):
            sums, tail = tails[index]
            if tail is not sums:
                (delta,) = torch.autograd.grad(tail, sums, delta)
            torch.bmm(delta.transpose(1, 2), inputs[index], out=self._gradients[f"{layer.name}.weight"])
            if layer.bias:
                torch.sum(delta, 1, out=self._gradients[f"{layer.name}.bias"])
            if index:
                delta = torch.bmm(delta, self._weights[f"{layer.name}.weight"])
        return self._gradient

    def _product(self, layer: Layer, inputs: Tensor) -> Tensor:
        transposed = self._weights[f"{layer.name}.weight"].transpose(1, 2)
        if not layer.bias:
            return torch.bmm(inputs, transposed)
        return torch.baddbmm(self._weights[f"{layer.name}.bias"].unsqueeze(1), inputs, transposed)
