"""Measure the equivariant readers of the benchmark against other implementations, on one thread and the same batch.

    python benchmarks/equivariant.py

One line for each architecture, reader and number of networks: the processor milliseconds of a forward and a backward
pass of ours and of the other one, and their ratio. The two take turns, and the medians of the rounds are printed. NFN
is compared with PyPI's `nfn` at the channels of its paper, whose parameters ours copies. The graph network is compared
with the same function over a list of edges, with gathers and scatters, and with the layers that neural graphs were
published with (Kofinas et al. 2024), on PyTorch Geometric: another function of the same graph, of the same width and
depth, whose messages go in one direction only. Install with

    pip install nfn torch_geometric
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Scripts here see benchmarks/representation.py before the package of that name.
sys.path.append(sys.path.pop(0))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "servers"))

import torch
from references import EdgeList, copy_hnp, copy_np, nfn_features, nfn_flat, nfn_layer
from torch import Tensor, nn
from torch.nn import functional as F

from representation.encoders.equivariant import PermutationLinear, rectified
from representation.encoders.graph import NeuronGraph
from representation.encoders.graph_blocks import GraphBlock
from zootools.architectures import Schema, build_schema
from zootools.spec import Cnn

CHANNELS = (1, 16, 16, 5)
WIDTH, BLOCKS = 32, 3
Pass = Callable[[], Tensor]


def functionals(schema: Schema, count: int, kind: str) -> tuple[Pass, Pass]:
    """Return a forward and backward pass of our equivariant layers with ReLU, and one of nfn's."""
    from nfn.layers import TupleOp

    graph, weights = NeuronGraph(schema, single_ends=kind == "HNP"), torch.randn(count, schema.size)
    ours, theirs = nn.ModuleList(), nn.Sequential()
    for before, after in itertools.pairwise(CHANNELS):
        layer = nfn_layer(schema, "HNP" if kind == "HNP" else "NP", before, after)
        copied = PermutationLinear(graph, before, after)
        (copy_hnp if kind == "HNP" else copy_np)(copied, layer)
        ours.append(copied)
        theirs.extend([layer, TupleOp(nn.ReLU())])
    features = nfn_features(schema, weights[:, None])

    def our_pass() -> Tensor:
        ours.zero_grad()
        edges, biases = graph.split(weights)
        for layer in ours:
            edges, biases = rectified(*layer(edges, biases))
        found = sum(part.sum() for part in (*edges, *biases) if part is not None)
        assert isinstance(found, Tensor)
        found.backward()
        return found.detach()

    def their_pass() -> Tensor:
        theirs.zero_grad()
        found = nfn_flat(theirs(features)).sum()
        found.backward()
        return found.detach()

    return our_pass, their_pass


def graphs(schema: Schema, count: int) -> tuple[Pass, Pass]:
    """Return a forward and backward pass of our graph blocks, and one over a list of edges."""
    graph = NeuronGraph(schema)
    blocks = nn.ModuleList(GraphBlock(graph, WIDTH) for _ in range(BLOCKS))
    listed = [EdgeList(block, graph) for block in blocks if isinstance(block, GraphBlock)]
    neurons, edges = (torch.randn(size, count, WIDTH) for size in (listed[0].nodes, listed[0].edges))
    inputs = [part.flatten(0, 1) for part in (neurons, edges)]
    rows = [part.transpose(0, 1).flatten(0, 1) for part in (neurons, edges)]
    return through(blocks, *inputs), through(nn.ModuleList(listed), *rows)


def published_graphs(schema: Schema, count: int) -> tuple[Pass, Pass]:
    """Return a pass of our graph blocks, and one of PNA with modulated messages and a perceptron of each edge."""
    from torch_geometric.nn import PNAConv

    class Modulated(PNAConv):  # type: ignore[misc]
        """Messages are scaled and shifted by their edge."""

        def __init__(self, degrees: Tensor) -> None:
            kinds = ["mean", "min", "max", "std"], ["identity", "amplification"]
            super().__init__(WIDTH, WIDTH, *kinds, degrees)
            self.of_edge = nn.Linear(WIDTH, 2 * WIDTH)

        def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor) -> Tensor:
            scale, shift = self.of_edge(edge_attr)[:, None].chunk(2, dim=-1)
            found: Tensor = scale * super().message(x_i, x_j, None) + shift
            return found

    class Published(nn.Module):
        """An update of the neurons, then one of the edges from their two ends."""

        def __init__(self, above: Tensor, below: Tensor, last: bool) -> None:
            super().__init__()
            self.above, self.below, self.is_last = above, below, last
            self.neurons, self.norm = Modulated(above.bincount().bincount()), nn.LayerNorm(WIDTH)
            self.edge, self.source, self.target, self.hidden = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, neurons: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            ends = torch.stack([self.below, self.above])
            neurons = F.silu(self.norm(self.neurons(neurons, ends, edges)))
            if self.is_last:  # nothing reads its edges
                return neurons, edges
            found = self.edge(edges) + self.source(neurons)[self.below] + self.target(neurons)[self.above]
            return neurons, self.hidden(F.silu(found))

    graph = NeuronGraph(schema)
    blocks = nn.ModuleList(GraphBlock(graph, WIDTH) for _ in range(BLOCKS))
    one = EdgeList(GraphBlock(graph, WIDTH), graph)
    networks = torch.arange(count)[:, None] * one.nodes
    ends = (networks + one.above).flatten(), (networks + one.below).flatten()
    published = nn.ModuleList(Published(*ends, last=place == BLOCKS - 1) for place in range(BLOCKS))
    inputs = [torch.randn(size * count, WIDTH) for size in (one.nodes, one.edges)]
    return through(blocks, *inputs), through(published, *inputs)


def through(layers: nn.ModuleList, neurons: Tensor, edges: Tensor) -> Pass:
    """Return a forward and backward pass of updates of a graph."""

    def one_pass() -> Tensor:
        layers.zero_grad()
        nodes, lines = neurons, edges
        for layer in layers:
            nodes, lines = layer(nodes, lines)
        found = nodes.sum()
        found.backward()
        return found.detach()

    return one_pass


def milliseconds(step: Pass, seconds: float) -> float:
    """Return the processor milliseconds of one pass."""
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        step()
        count += 1
    return 1000 * (time.process_time() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each implementation in a round")
    parser.add_argument("--networks", type=int, nargs="+", default=[8, 32], help="sizes of the batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'architecture':16} {'reader':14} {'other':15} {'networks':>8} {'ours':>9} {'other':>9} {'ratio':>6}")
    peers: list[tuple[str, str, Callable[[Schema, int], tuple[Pass, Pass]]]] = [
        ("NFN-HNP", "nfn", partial(functionals, kind="HNP")),
        ("NFN-NP", "nfn", partial(functionals, kind="NP")),
        ("graph-network", "list of edges", graphs),
        ("graph-network", "neural graphs", published_graphs),
    ]
    for name, count, (reader, peer, make) in itertools.product(
        ("cnn_unterthiner", "cnn_small"), arguments.networks, peers
    ):
        schema = build_schema(Cnn(name=name), (1, 28, 28), 10)
        ours, theirs = make(schema, count)
        if make is not published_graphs:
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-2)
        pairs = [
            (milliseconds(ours, arguments.seconds), milliseconds(theirs, arguments.seconds))
            for _ in range(arguments.rounds)
        ]
        ratio = statistics.median(other / our for our, other in pairs)
        our, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:16} {reader:14} {peer:15} {count:8} {our:6.1f} ms {other:6.1f} ms {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
