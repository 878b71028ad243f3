"""The weights of a network as a graph: neurons in layers, and the weights between two layers as features of edges."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zootools.architectures import Schema


class Edges(NamedTuple):
    """The shape of the weights between two layers of neurons."""

    above: int
    """Neurons of the layer that the weights lead to."""
    below: int
    """Neurons of the layer that they come from."""
    features: int
    """Weights of one edge: a kernel, or the inputs of one channel of a flattened image."""


class NeuronGraph(nn.Module):
    """Cuts flat weights into edges and biases, and joins them again.

    The neurons of a hidden layer are the nodes that its permutations move. Image and logits, which nothing moves, are
    one node each: all weights between the image and a neuron are the features of a single edge. So a permutation of
    neurons moves whole edges and biases, and never what is inside.
    """

    def __init__(self, schema: Schema, single_ends: bool = True) -> None:
        """Without ``single_ends``, each channel of the image (or each input of a linear layer) and each class is a node
        of its own, as if permutations moved them too.
        """
        super().__init__()
        first, last = (1, 1) if single_ends else (schema.layers[0].inputs, schema.classes)
        self.nodes = [first, *(layer.outputs for layer in schema.layers[:-1]), last]
        """Neurons of each layer, from the image to the logits."""
        self.edges: list[Edges] = []
        """Between each two consecutive layers."""
        self.biases: list[int] = []
        """Biases of each neuron of the layers above the image; 0 without biases."""
        self.sizes: list[int] = []
        """Lengths of the consecutive parts of the flat vector: the weights of a layer, then its biases if any."""
        self.are_biases: list[bool] = []
        """Which of these parts are biases."""
        self._outputs: list[int] = []
        for layer, below, above in zip(schema.layers, self.nodes, self.nodes[1:], strict=False):
            outputs = layer.outputs // above
            self.edges.append(Edges(above, below, outputs * (layer.fan_in // below)))
            self._outputs.append(outputs)
            self.biases.append(outputs if layer.bias else 0)
            self.sizes += [layer.outputs * layer.fan_in, *([layer.outputs] if layer.bias else [])]
            self.are_biases += [False, *([True] if layer.bias else [])]

    def split(self, weights: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Cut flat weights ``[n, N]`` into edges ``[n, above, below, features]`` and biases ``[n, above, biases]``.

        Only the weights of the logits, of which one neuron has several per edge, are copied.
        """
        parts = iter(weights.split(self.sizes, dim=1))
        edges: list[Tensor] = []
        biases: list[Tensor | None] = []
        for shape, outputs, count in zip(self.edges, self._outputs, self.biases, strict=True):
            flat = next(parts).view(-1, shape.above, outputs, shape.below, shape.features // outputs)
            edges.append(flat.transpose(2, 3).flatten(3))
            biases.append(next(parts).view(-1, shape.above, count) if count else None)
        return edges, biases

    def join(self, edges: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Join edges and biases, as `split` returns them, to flat weights ``[n, N]``."""
        flat: list[Tensor] = []
        for edge, bias, outputs in zip(edges, biases, self._outputs, strict=True):
            flat.append(edge.unflatten(3, (outputs, -1)).transpose(2, 3).flatten(1))
            flat += [] if bias is None else [bias.flatten(1)]
        return torch.cat(flat, dim=1)

    def largest_layer(self, width: int) -> int:
        """Return the number of values of one network in the largest layer of width ``width`` per neuron or edge."""
        return max(width * max(self.nodes), *(edge.above * edge.below * edge.features for edge in self.edges))
