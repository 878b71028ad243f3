"""What others compute, in terms of ours: the layers of PyPI's `nfn`, and a graph network over a list of edges."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.equivariant import Features, PermutationLinear
from representation.encoders.graph import NeuronGraph
from representation.encoders.graph_blocks import GraphBlock
from zootools.architectures import Schema


def with_channels(graph: NeuronGraph, weights: Tensor) -> Features:
    """Return edges and biases of flat weights with channels, ``[n, channels, N]``, as the equivariant layers take."""
    edges, biases = graph.split(weights.flatten(0, 1))
    channels = weights.shape[1]
    return (
        [rearrange(edge, "(n c) above below f -> n above below (c f)", c=channels) for edge in edges],
        [None if bias is None else rearrange(bias, "(n c) above f -> n above (c f)", c=channels) for bias in biases],
    )


def flat(graph: NeuronGraph, features: Features, channels: int) -> Tensor:
    """Return flat weights with channels, ``[n, channels, N]``: the inverse of `with_channels`."""
    edges = [rearrange(edge, "n above below (c f) -> (n c) above below f", c=channels) for edge in features[0]]
    biases = [
        None if bias is None else rearrange(bias, "n above (c f) -> (n c) above f", c=channels) for bias in features[1]
    ]
    return graph.join(edges, biases).unflatten(0, (-1, channels))


def nfn_features(schema: Schema, weights: Tensor) -> Any:
    """Return nfn's features of flat weights with channels, ``[n, channels, N]``.

    A linear layer on a flattened image is a convolution for `nfn`: its kernel is the place in the image.
    """
    from nfn.common import WeightSpaceFeatures

    parts = {p.name: weights[:, :, p.offset : p.end].unflatten(2, p.shape) for p in schema.parameters}
    found = []
    for place, layer in enumerate(schema.layers):
        weight = parts[f"{layer.name}.weight"]
        block = schema.block(place - 1) if place else 1
        if block > 1:
            weight = rearrange(weight, "n c outputs (inputs block) -> n c outputs inputs block 1", block=block)
        found.append(weight)
    return WeightSpaceFeatures(found, [parts[f"{layer.name}.bias"] for layer in schema.layers])


def nfn_flat(features: Any) -> Tensor:
    """Return flat weights with channels, ``[n, channels, N]``, of nfn's features."""
    return torch.cat([part.flatten(2) for pair in features for part in pair], dim=2)


def nfn_layer(schema: Schema, kind: Literal["NP", "HNP"], inputs: int, outputs: int) -> Any:
    """Return a linear layer of `nfn`."""
    from nfn.common import network_spec_from_wsfeat
    from nfn.layers import HNPLinear, NPLinear

    spec = network_spec_from_wsfeat(nfn_features(schema, torch.zeros(1, inputs, schema.size)))
    return {"NP": NPLinear, "HNP": HNPLinear}[kind](spec, inputs, outputs)


View = Callable[[Tensor], Tensor]
"""A function of rows of our features that returns rows of nfn's."""


class _Copy:
    """Adds linear maps of `nfn` to a `PermutationLinear` whose parameters are zero."""

    def __init__(self, ours: PermutationLinear, inputs: int, outputs: int) -> None:
        self.ours, self.graph = ours, ours.graph
        self.channels = (inputs, outputs)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()

    def size(self, place: int, part: str) -> int:
        return self.graph.biases[place] if part == "bias" else self.graph.edges[place].features

    @torch.no_grad()
    def add(self, target: tuple[int, str], source: tuple[str, int, str], weight: Tensor, *views: View) -> None:
        """Add a matrix from a source to a target; ``views`` are those of the source, and of the target if any.

        A target is a layer, and ``edge`` or ``bias``. A source is ``own``, ``net`` or ``node``, a layer (of neurons for
        ``node``), and ``edge``, ``bias``, or for a neuron ``below``, ``bias`` or ``above``.
        """
        place, part = target
        kind, where, of = source
        if kind == "own" and not self.ours.paired[where]:  # the edge is the mean of one of its neurons
            above, below = self.graph.edges[where].above, self.graph.edges[where].below
            kind, where, of = ("node", where + 1, "below") if above > 1 else ("node", where, "above")
            assert above > 1 or below > 1
        layer = {"below": where - 1, "bias": where - 1, "above": where}[of] if kind == "node" else where
        size = self.channels[0] * self.size(layer, "bias" if of == "bias" else "edge")
        matrix = weight.flatten(1) @ (views[0](torch.eye(size)) if views else torch.eye(size)).T
        if len(views) > 1:
            rows = self.channels[1] * self.size(place, part)
            matrix = views[1](torch.eye(rows)) @ matrix
        if kind == "node" and self.graph.nodes[where] == 1:
            kind, where = "net", layer
            of = "bias" if of == "bias" else "edge"
        if kind == "own":
            self.ours.own[where].weight += matrix
        elif kind == "net":
            sizes = [self.channels[0] * size for pair in self._sizes() for size in pair]
            columns = self.ours.network.weight.split(self.ours.sizes)[2 * place + (part == "bias")]
            columns.split(sizes, dim=1)[2 * where + (of == "bias")].add_(matrix)
        else:
            role = 1 if part == "bias" else (0 if where == place + 1 else 2)
            rows_of = self.ours.neurons[where].weight.split(self.ours.parts[where])[role]
            sizes = [part // self.channels[1] * self.channels[0] for part in self.ours.parts[where]]
            rows_of.split(sizes, dim=1)[["below", "bias", "above"].index(of)].add_(matrix)

    def _sizes(self) -> list[tuple[int, int]]:
        return [(self.size(place, "edge"), self.size(place, "bias")) for place in range(len(self.graph.edges))]

    @torch.no_grad()
    def bias(self, target: tuple[int, str], *biases: Tensor, view: View | None = None) -> None:
        place, part = target
        total = sum(biases)
        assert isinstance(total, Tensor)
        own = self.ours.network.bias.split(self.ours.sizes)[2 * place + (part == "bias")]
        own.copy_(total if view is None else view(torch.eye(len(total))) @ total)


def copy_np(ours: PermutationLinear, theirs: Any) -> None:
    """Give a layer the parameters of nfn's NPLinear."""
    copy, last = _Copy(ours, theirs.c_in, theirs.c_out), len(ours.graph.edges) - 1
    for place in range(last + 1):
        part = {name: theirs.get_submodule(f"layer_{place}{name}") for name in ("", "_rc", "_r", "_c")}
        bias = {name: theirs.get_submodule(f"bias_{place}{name}") for name in ("", "_rc")}
        copy.add((place, "edge"), ("own", place, "edge"), part[""].weight)
        copy.bias((place, "edge"), *(layer.bias for layer in part.values()))
        copy.bias((place, "bias"), *(layer.bias for layer in bias.values()))
        lower = [(place, "above"), *([(place, "below"), (place, "bias")] if place else [])]
        upper = [(place + 1, "below"), (place + 1, "bias"), *([(place + 1, "above")] if place < last else [])]
        for target, weight, sources in (
            ("edge", part["_r"].weight, lower),
            ("edge", part["_c"].weight, upper),
            ("bias", bias[""].weight, upper),
        ):
            _add_columns(copy, (place, target), weight, [("node", *source) for source in sources])
        everything = [("net", layer, kind) for kind in ("edge", "bias") for layer in range(last + 1)]
        _add_columns(copy, (place, "edge"), part["_rc"].weight, everything)
        _add_columns(copy, (place, "bias"), bias["_rc"].weight, everything)


def _add_columns(
    copy: _Copy, target: tuple[int, str], weight: Tensor, sources: Sequence[tuple[Any, ...]], rows: View | None = None
) -> None:
    """Add the blocks of columns of a matrix, one for each source: kind, layer, part, and a view if there is one."""
    start = 0
    for kind, where, of, *view in sources:
        layer = {"below": where - 1, "bias": where - 1, "above": where}[of] if kind == "node" else where
        size = copy.channels[0] * copy.size(layer, "bias" if of == "bias" else "edge")
        source_view: View = view[0] if view else (lambda x: x)
        width = source_view(torch.zeros(1, size)).shape[1]
        views = [source_view] if rows is None else [source_view, rows]
        copy.add(target, (kind, where, of), weight[:, start : start + width], *views)
        start += width
    assert start == weight.shape[1], (target, start, weight.shape)


def copy_hnp(ours: PermutationLinear, theirs: Any) -> None:
    """Give a layer the parameters of nfn's HNPLinear; where that has a product with a mean twice, their sum."""
    copy, last = _Copy(ours, theirs.c_in, theirs.c_out), len(ours.graph.edges) - 1
    n_in, n_out, c = theirs.n_in, theirs.n_out, theirs.c_in
    ends: dict[int, tuple[View, View]] = {
        0: (
            lambda x: rearrange(x, "n (c i f) -> n (c f i)", c=c, i=n_in),
            lambda x: reduce(x, "n (c i f) -> n (c f)", "mean", c=c, i=n_in),
        ),
        last: (
            lambda x: rearrange(x, "n (c o f) -> n (c f o)", c=c, o=n_out),
            lambda x: reduce(x, "n (c o f) -> n (c f)", "mean", c=c, o=n_out),
        ),
    }
    rows: dict[int, View] = {  # our numbers of an edge from nfn's, for the products' rows
        place: lambda x, size=size: rearrange(x, "n (c f i) -> n (c i f)", c=theirs.c_out, i=size).T
        for place, size in ((0, n_in), (last, n_out))
    }

    def mean_of(place: int) -> list[View]:
        return [ends[place][1]] if place in ends else []

    biases: View = lambda x: reduce(x, "n (c o) -> n c", "mean", c=c)  # noqa: E731
    everything: list[tuple[Any, ...]] = [("net", place, "edge", *mean_of(place)) for place in range(last + 1)]
    everything += [("net", place, "bias", *([biases] if place == last else [])) for place in range(last + 1)]
    everything += [("net", 0, "edge", ends[0][0]), ("net", last, "edge", ends[last][0]), ("net", last, "bias")]
    whole_last = [("node", last, "above", ends[last][0])]
    whole_first = [("node", 1, "below", ends[0][0])]

    first = [*whole_first, ("node", 1, "above", *mean_of(1)), ("node", 1, "bias"), *(whole_last if last == 1 else [])]
    _add_columns(copy, (0, "edge"), theirs.w0_rpt.weight, first, rows[0])
    _add_columns(copy, (0, "edge"), theirs.w0_rbdcst.weight, everything, rows[0])
    copy.bias((0, "edge"), theirs.w0_rpt.bias, theirs.w0_rbdcst.bias, view=rows[0])
    _add_columns(copy, (0, "bias"), theirs.bias_0.weight, first)
    _add_columns(copy, (0, "bias"), theirs.bias_0_rc.weight, everything)
    copy.bias((0, "bias"), theirs.bias_0.bias, theirs.bias_0_rc.bias)

    final = [*whole_last, ("node", last, "below", *mean_of(last - 1)), *(whole_first if last == 1 else [])]
    _add_columns(copy, (last, "edge"), theirs.wfin_cpt.weight, final, rows[last])
    _add_columns(copy, (last, "edge"), theirs.wfin_cbdcst.weight, everything, rows[last])
    copy.bias((last, "edge"), theirs.wfin_cpt.bias, theirs.wfin_cbdcst.bias, view=rows[last])
    _add_columns(copy, (last, "bias"), theirs.bias_fin_rc.weight, everything)
    copy.bias((last, "bias"), theirs.bias_fin_rc.bias)

    for place in range(1, last):
        part = {name: theirs.get_submodule(f"layer_{place}{name}") for name in ("", "_rc", "_r", "_c")}
        bias = {name: theirs.get_submodule(f"bias_{place}{name}") for name in ("", "_rc")}
        copy.add((place, "edge"), ("own", place, "edge"), part[""].weight)
        copy.bias((place, "edge"), *(layer.bias for layer in part.values()))
        copy.bias((place, "bias"), *(layer.bias for layer in bias.values()))
        lower = [("node", place, "above"), ("node", place, "below", *mean_of(place - 1)), ("node", place, "bias")]
        upper = [("node", place + 1, "below"), ("node", place + 1, "bias")]
        upper += [("node", place + 1, "above", *mean_of(place + 1))]
        _add_columns(copy, (place, "edge"), part["_r"].weight, [*lower, *(whole_first if place == 1 else [])])
        upper = [*upper, *(whole_last if place == last - 1 else [])]
        _add_columns(copy, (place, "edge"), part["_c"].weight, upper)
        _add_columns(copy, (place, "bias"), bias[""].weight, upper)
        _add_columns(copy, (place, "edge"), part["_rc"].weight, everything)
        _add_columns(copy, (place, "bias"), bias["_rc"].weight, everything)


class EdgeList(nn.Module):
    """A `GraphBlock` as libraries for graphs compute it: over a list of edges, with gathers and scatters."""

    def __init__(self, block: GraphBlock, graph: NeuronGraph) -> None:
        super().__init__()
        self.block, self.nodes = block, sum(graph.nodes)
        self.edges = sum(edge.above * edge.below for edge in graph.edges)
        starts = [sum(graph.nodes[:place]) for place in range(len(graph.nodes) + 1)]
        pairs = [
            torch.cartesian_prod(torch.arange(*starts[place + 1 : place + 3]), torch.arange(*starts[place : place + 2]))
            for place in range(len(graph.edges))
        ]
        self.above, self.below = torch.cat(pairs).unbind(dim=1)

    def forward(self, neurons: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return new features ``[n * neurons, width]`` and ``[n * edges, width]`` of all networks in one graph."""
        block, width = self.block, self.block.width
        networks = torch.arange(len(neurons) // self.nodes)[:, None] * self.nodes
        above, below = (networks + self.above).flatten(), (networks + self.below).flatten()
        upper, lower, up, down, kept = block.of_neuron(block.norm(neurons)).split([*[width] * 4, 2 * width], dim=1)
        edges = edges + block.edge(F.relu(block.of_edge(edges) + upper[above] + lower[below]))
        from_below = torch.cat([block.upward(edges) * up[below], edges], dim=1)
        from_above = torch.cat([block.downward(edges) * down[above], edges], dim=1)
        means = [self._mean(part, target, len(neurons)) for part, target in ((from_below, above), (from_above, below))]
        return neurons + block.neuron(F.relu(kept + block.received(torch.cat(means, dim=1)))), edges

    @staticmethod
    def _mean(messages: Tensor, target: Tensor, count: int) -> Tensor:
        sums = messages.new_zeros(count, messages.shape[1]).index_add(0, target, messages)
        counts = messages.new_zeros(count).index_add(0, target, messages.new_ones(len(target)))
        return sums / counts.clamp_min(1)[:, None]
