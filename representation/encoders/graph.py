"""The weights of a network as a graph: neurons in layers, and the weights between two layers as features of edges."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
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

    order: Tensor
    inverse: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.nodes = [1, *(layer.outputs for layer in schema.layers[:-1]), 1]
        """Neurons of each layer, from the image to the logits."""
        self.edges: list[Edges] = []
        """Between each two consecutive layers."""
        self.biases: list[int] = []
        """Biases of each neuron of the layers above the image; 0 without biases."""
        order: list[npt.NDArray[np.int64]] = []
        offset = 0
        for layer, below, above in zip(schema.layers, self.nodes, self.nodes[1:], strict=False):
            shape = Edges(above, below, layer.outputs // above * (layer.fan_in // below))
            flat = offset + np.arange(layer.outputs * layer.fan_in)
            pattern = "(above outputs below inputs) -> (above below outputs inputs)"
            order.append(rearrange(flat, pattern, above=above, below=below, inputs=layer.fan_in // below))
            self.edges.append(shape)
            offset += flat.size
            self.biases.append(layer.outputs // above if layer.bias else 0)
            if layer.bias:
                order.append(offset + np.arange(layer.outputs))
                offset += layer.outputs
        self._sizes = [part.size for part in order]
        whole = np.concatenate(order)
        # Not persistent: they follow from the schema.
        self.register_buffer("order", torch.from_numpy(whole), persistent=False)
        self.register_buffer("inverse", torch.from_numpy(np.argsort(whole)), persistent=False)

    def split(self, weights: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Cut flat weights ``[n, N]`` into edges ``[n, above, below, features]`` and biases ``[n, above, biases]``."""
        parts = iter(weights.index_select(1, self.order).split(self._sizes, dim=1))
        edges: list[Tensor] = []
        biases: list[Tensor | None] = []
        for shape, count in zip(self.edges, self.biases, strict=True):
            edges.append(next(parts).view(-1, *shape))
            biases.append(next(parts).view(-1, shape.above, count) if count else None)
        return edges, biases

    def join(self, edges: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Join edges and biases, as `split` returns them, to flat weights ``[n, N]``."""
        pairs = zip(edges, biases, strict=True)
        flat = [part.flatten(1) for pair in pairs for part in pair if part is not None]
        return torch.cat(flat, dim=1).index_select(1, self.inverse)

    def largest_layer(self, width: int) -> int:
        """Return the number of values of one network in the largest layer of width ``width`` per neuron or edge."""
        return max(width * max(self.nodes), *(edge.above * edge.below * edge.features for edge in self.edges))
