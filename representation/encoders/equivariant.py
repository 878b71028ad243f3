"""Layers that commute with the permutations of all hidden layers, for encoders and for supervised readers.

They treat all neurons of a layer alike, and pool over the axes that permutations move. Edges are tensors
``[n, above, below, channels * features]`` and biases ``[n, above, channels * biases]``, as `NeuronGraph.split` gives
them for one channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.graph import NeuronGraph
from representation.recipes import NeuronSet

CHANNELS = 16
"""Numbers of a neuron that a message carries along each weight."""
Features = tuple[list[Tensor], list[Tensor | None]]
"""Edges and biases."""


class Messages(nn.Module):
    """One exchange between neurons: each gets messages along its weights, and the mean of its layer.

    A message is the sum over the neighbours of what they carry times the weights between, as in a forward and in a
    backward pass of the network. Only hidden layers exchange messages: image and logits have a single node. All
    neurons of a layer share the parameters.
    """

    def __init__(self, graph: NeuronGraph, settings: NeuronSet) -> None:
        super().__init__()
        width = settings.width
        self.between = [edge.above > 1 and edge.below > 1 for edge in graph.edges]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in graph.nodes)
        exchanging = [any(self.between[max(place - 1, 0) : place + 1]) for place in range(len(graph.nodes))]
        self.carried = nn.ModuleList(nn.Linear(width, CHANNELS) if some else nn.Identity() for some in exchanging)
        self.updates = nn.ModuleList()
        for place in range(len(graph.nodes)):
            messages = [
                edge.features * CHANNELS
                for edge, between in list(zip(graph.edges, self.between, strict=True))[max(place - 1, 0) : place + 1]
                if between
            ]
            self.updates.append(perceptron(2 * width + sum(messages), settings.hidden, width))

    def forward(self, neurons: Sequence[Tensor], edges: Sequence[Tensor]) -> list[Tensor]:
        """Return new features ``[n, neurons, width]`` of each layer, from the old ones and the edges."""
        normed = [norm(x) for norm, x in zip(self.norms, neurons, strict=True)]
        carried = [layer(x) for layer, x in zip(self.carried, normed, strict=True)]
        messages: list[list[Tensor]] = [[] for _ in neurons]
        for place, edge in enumerate(edges):
            if self.between[place]:
                _, above, below, features = edge.shape
                edge = edge.to(carried[0].dtype)
                # Matrix products for each network: [above * f, below] by [below, c], [below * f, above] by [above, c].
                upward = edge.transpose(2, 3).flatten(1, 2) @ carried[place]
                downward = edge.flatten(2).mT @ carried[place + 1]
                messages[place + 1].append(upward.view(-1, above, features * CHANNELS) * below**-0.5)
                messages[place].append(downward.view(-1, below, features * CHANNELS) * above**-0.5)
        updates = zip(neurons, self.updates, normed, messages, strict=True)
        return [old + updated(update, x, *parts) for old, update, x, parts in updates]


class PermutationLinear(nn.Module):
    """Every linear map from weights to weights that commutes with permutations (Zhou et al. 2023, NFN).

    With a `NeuronGraph` of single ends these are the maps of NFN_HNP, without them those of NFN_NP. What an edge
    becomes is a sum of four products: of itself, of both its neurons, and of the whole network. A neuron is the mean
    of its edges from below, that of its edges to above, and its bias; a network is the means of its layers. So each
    large tensor is read by one product and by two means, and the terms that the published form computes twice (where
    a layer has a single neuron, the mean over it is the edge itself) are computed once.
    """

    def __init__(self, graph: NeuronGraph, inputs: int, outputs: int) -> None:
        """Args: ``inputs`` and ``outputs`` are channels."""
        super().__init__()
        self.graph = graph
        self.paired = [edge.above > 1 and edge.below > 1 for edge in graph.edges]
        features = [edge.features for edge in graph.edges]
        self.sizes = [size * outputs for pair in zip(features, graph.biases, strict=True) for size in pair]
        """Numbers of one edge and of one neuron's biases in each layer, after this map."""
        common = inputs * (sum(features) + sum(graph.biases))
        self.own = nn.ModuleList(
            nn.Linear(inputs * size, outputs * size, bias=False) if paired else nn.Identity()
            for size, paired in zip(features, self.paired, strict=True)
        )
        self.neurons = nn.ModuleList()
        self.parts: list[list[int]] = []
        """For each layer of neurons the numbers for edges from below, biases, and edges to above."""
        for place, count in enumerate(graph.nodes):
            below = features[place - 1] if place else 0
            above = features[place] if place < len(features) else 0
            biases = graph.biases[place - 1] if place else 0
            size = below + biases + above
            self.parts.append([below * outputs, biases * outputs, above * outputs])
            self.neurons.append(nn.Linear(inputs * size, outputs * size, bias=False) if count > 1 else nn.Identity())
        self.network = nn.Linear(common, outputs * (sum(features) + sum(graph.biases)))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw the parameters uniformly, with the bound of one linear layer of all inputs of an output (as `nfn`)."""
        targets = self.network.weight.split(self.sizes), self.network.bias.split(self.sizes)
        for number, (weight, bias) in enumerate(zip(*targets, strict=True)):
            place, is_bias = number // 2, number % 2 == 1
            blocks = [weight]
            above, below = self.neurons[place + 1], self.neurons[place]
            if isinstance(above, nn.Linear):
                blocks.append(above.weight.split(self.parts[place + 1])[1 if is_bias else 0])
            if isinstance(below, nn.Linear) and not is_bias:
                blocks.append(below.weight.split(self.parts[place])[2])
            own = self.own[place]
            if isinstance(own, nn.Linear) and not is_bias:
                blocks.append(own.weight)
            bound = sum(block.shape[1] for block in blocks) ** -0.5
            for block in (*blocks, bias):
                block.uniform_(-bound, bound)

    def forward(self, edges: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Features:
        """Return edges ``[n, above, below, outputs * features]`` and biases ``[n, above, outputs * biases]``."""
        incoming, outgoing = [means(edge, dim=2) for edge in edges], [means(edge, dim=1) for edge in edges]
        whole = [part[:, None] for part in self.network(_of_layers(incoming, biases)).split(self.sizes, dim=1)]
        neurons: list[tuple[Tensor, ...] | None] = []
        for place, layer in enumerate(self.neurons):
            bias = biases[place - 1] if place else None
            known = [
                *incoming[max(place - 1, 0) : place],
                *([] if bias is None else [bias]),
                *outgoing[place : place + 1],
            ]
            several = isinstance(layer, nn.Linear)
            neurons.append(layer(torch.cat(known, dim=2)).split(self.parts[place], dim=2) if several else None)
        new_edges: list[Tensor] = []
        new_biases: list[Tensor | None] = []
        for place, (edge, own) in enumerate(zip(edges, self.own, strict=True)):
            common, bias, (below, above) = whole[2 * place], whole[2 * place + 1], neurons[place : place + 2]
            if above is not None:
                common, bias = common + above[0], bias + above[1]
            new_biases.append(None if biases[place] is None else bias)
            if below is None:
                new_edges.append(common[:, :, None])
            elif above is None:
                new_edges.append((common + below[2])[:, None])
            else:
                new = own(edge)
                new += common[:, :, None]
                new += below[2][:, None]
                new_edges.append(new)
        return new_edges, new_biases


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def updated(layers: nn.Module, x: Tensor, *messages: Tensor) -> Tensor:
    """Return what a `perceptron` gives for features ``[n, neurons, width]`` beside their mean, and messages.

    The product with the mean, the same for all neurons of a layer, is computed once; nothing is copied side by side.
    """
    assert isinstance(layers, nn.Sequential)
    first, activation, last = layers
    assert isinstance(first, nn.Linear)
    width = x.shape[2]
    own, common, *others = first.weight.split([width, width, *(part.shape[2] for part in messages)], dim=1)
    if x.shape[1] == 1:
        hidden = F.linear(x, own + common, first.bias)
    else:
        hidden = F.linear(x, own) + F.linear(x.mean(dim=1, keepdim=True), common, first.bias)
    for part, weight in zip(messages, others, strict=True):
        hidden = hidden + F.linear(part, weight)
    outputs: Tensor = last(activation(hidden))
    return outputs


def rectified(edges: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Features:
    """Return ReLU of what `PermutationLinear` returns; its largest tensors are overwritten, which saves a copy."""
    wide = [F.relu_(edge) if edge.shape[1] > 1 and edge.shape[2] > 1 else F.relu(edge) for edge in edges]
    return wide, [None if bias is None else F.relu(bias) for bias in biases]


def pooled(edges: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Return what no permutation of hidden layers changes, ``[n, numbers]``: means of edges and biases of each layer.

    Nothing is pooled over the ends: neurons of the image and of the logits have numbers of their own.
    """
    parts = [means(edges[0], dim=1).flatten(1), *(edge.mean(dim=(1, 2)) for edge in edges[1:-1])]
    parts += [bias.mean(dim=1) for bias in biases[:-1] if bias is not None]
    parts.append(means(edges[-1], dim=2).flatten(1))
    return torch.cat(parts if biases[-1] is None else [*parts, biases[-1].flatten(1)], dim=1)


def means(edges: Tensor, dim: int) -> Tensor:
    """Return the mean over one axis; its gradient multiplies the small tensor, not every edge's own."""
    return edges.sum(dim=dim) * (1 / edges.shape[dim])


def _of_layers(incoming: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Return the means of edges and of biases of every layer, from those of the edges of each neuron."""
    pairs = zip(incoming, biases, strict=True)
    return torch.cat([part.mean(dim=1) for pair in pairs for part in pair if part is not None], dim=1)
