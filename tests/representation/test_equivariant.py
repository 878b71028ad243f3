"""The equivariant layers and the readers of the benchmark made of them: their symmetries, and what others compute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from references import EdgeList, copy_hnp, copy_np, flat, nfn_features, nfn_flat, nfn_layer, with_channels
from samples import ARCHITECTURES
from torch import Tensor, nn

from representation.benchmark.bench import bench
from representation.benchmark.making import make_task
from representation.benchmark.methods.functionals import NfnHnp, NfnNp
from representation.benchmark.methods.graph_network import NeuronGraphs
from representation.benchmark.methods.method import Examples, Population, Problem
from representation.benchmark.methods.neuron_sets import DeepSets
from representation.benchmark.methods.probing import Probing
from representation.benchmark.methods.table import METHODS
from representation.benchmark.methods.trained import TrainedMethod
from representation.benchmark.methods.transformer import Transformer
from representation.encoders.equivariant import PermutationLinear
from representation.encoders.graph import NeuronGraph
from representation.encoders.graph_blocks import GraphBlock
from representation.evaluation.baselines import UnfitError
from zootools import open_zoo
from zootools.architectures import Layer, Schema, build_schema
from zootools.spec import Mlp

READERS: tuple[type[TrainedMethod], ...] = (NfnHnp, NfnNp, DeepSets, NeuronGraphs, Transformer, Probing)
SIDES = {"mlp": (4, 4), "mlp_deep": (4, 4)}
SCHEMAS = {
    name: build_schema(architecture, (1, *SIDES.get(name, (28, 28))), 10)
    for name, architecture in ARCHITECTURES.items()
} | {
    "one layer": Schema("linear", (1, 3, 3), (Layer("fc1", "linear", 9, 4, activation=False),)),
    "one neuron": Schema("narrow", (1, 3, 3), (Layer("fc1", "linear", 9, 1), Layer("fc2", "linear", 1, 4))),
}
"""Every bundled architecture, and layers without anything to permute."""
WITH_BIASES = {name: SCHEMAS[name] for name in ("mlp_deep", "cnn_small", "cnn_unterthiner")} | {
    "two layers": build_schema(Mlp(name="mlp", hidden=(5,)), (3, 2, 2), 4)
}
"""What `nfn` knows."""


def networks(schema: Schema, count: int, seed: int = 0) -> Examples:
    """Return random networks whose weights differ in mean and deviation from layer to layer, and labels."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, schema.size, generator=generator)
    for number, parameter in enumerate(schema.parameters):
        weights[:, parameter.offset : parameter.end] *= (0.5 + number) / 10
        weights[:, parameter.offset : parameter.end] += number / 10
    activations = torch.arange(count) % 2  # tanh and relu
    return Examples(weights, activations, torch.randn(count, generator=generator).double())


def permutation(schema: Schema, seed: int = 0) -> Tensor:
    """Return the index of the flat weights with all hidden neurons permuted."""
    draws = np.random.default_rng(seed)
    orders = {layer.name: draws.permutation(layer.outputs) for layer in schema.layers[:-1]}
    return torch.from_numpy(schema.permutation_index(orders))


@pytest.mark.parametrize("kind", ["NP", "HNP"])
@pytest.mark.parametrize("name", WITH_BIASES)
def test_linear_layers_equal_those_of_nfn_for_equal_parameters(name: str, kind: str) -> None:
    schema = WITH_BIASES[name]
    torch.manual_seed(0)
    theirs = nfn_layer(schema, kind, 2, 3)
    graph = NeuronGraph(schema, single_ends=kind == "HNP")
    ours = PermutationLinear(graph, 2, 3)
    (copy_hnp if kind == "HNP" else copy_np)(ours, theirs)
    weights = torch.randn(3, 2, schema.size)
    with torch.no_grad():
        expected = nfn_flat(theirs(nfn_features(schema, weights)))
        found = flat(graph, ours(*with_channels(graph, weights)), 3)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("single_ends", [True, False], ids=["HNP", "NP"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_linear_layers_commute_with_permutations(name: str, single_ends: bool) -> None:
    schema = SCHEMAS[name]
    graph = NeuronGraph(schema, single_ends)
    torch.manual_seed(0)
    layer, weights, index = PermutationLinear(graph, 2, 3), torch.randn(3, 2, schema.size), permutation(schema)

    def outputs(inputs: Tensor) -> Tensor:
        return flat(graph, layer(*with_channels(graph, inputs)), 3)

    with torch.no_grad():
        before, after = outputs(weights), outputs(weights[:, :, index])
        torch.testing.assert_close(after, before[:, :, index], rtol=0, atol=1e-5)
        assert before.std() > 0.1
        # The maps of NP commute with permutations of the classes too, those of HNP do not.
        last, classes = schema.parameters[-2 if schema.layers[-1].bias else -1], torch.arange(schema.size)
        for parameter in schema.parameters[schema.parameters.index(last) :]:
            classes[parameter.offset : parameter.end] = (
                classes[parameter.offset : parameter.end].view(schema.classes, -1).flip(0).flatten()
            )
        difference = (outputs(weights[:, :, classes]) - before[:, :, classes]).abs().max()
        assert difference > 1e-2 if single_ends else difference < 1e-5


@pytest.mark.parametrize("name", ["mlp", "cnn_small", "one neuron"])
def test_a_block_of_the_graph_network_equals_a_list_of_edges(name: str) -> None:
    graph, width, count = NeuronGraph(SCHEMAS[name]), 6, 3
    torch.manual_seed(0)
    block = GraphBlock(graph, width)
    listed = EdgeList(block, graph)
    inputs = [torch.randn(size, count, width, requires_grad=True) for size in (listed.nodes, listed.edges)]
    found = block(*(part.flatten(0, 1) for part in inputs))
    gradients = torch.autograd.grad(sum(part.pow(3).sum() for part in found), [*inputs, *block.parameters()])
    # The list of edges has all rows of a network one after the other.
    expected = [
        part.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
        for part in listed(*(part.transpose(0, 1).flatten(0, 1) for part in inputs))
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(sum(part.pow(3).sum() for part in expected), [*inputs, *block.parameters()])
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_mark_of_invariance_is_right(name: str, kind: type[TrainedMethod]) -> None:
    schema, examples = SCHEMAS[name], networks(SCHEMAS[name], 24)
    torch.manual_seed(0)
    method = kind(Problem(schema, "anything", (), "r2"))
    method._scale(examples.labels)
    method.module = method.network(examples)
    predicted = method.predict(examples)
    assert predicted.std() > 1e-4  # it is no constant
    permuted = Population(examples.networks[:, permutation(schema)], examples.activations)
    difference = (method.predict(permuted) - predicted).abs().max()
    if kind.invariant or len(schema.layers) == 1 or name == "one neuron":
        assert difference <= min(1e-5, 1e-3 * float(predicted.std()))
    else:
        assert difference > 0.1 * predicted.std()


def test_readers_run_through_the_benchmark(tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedMethod, "epochs", 2)
    zoo = open_zoo(tiny_zoo)
    tasks = [make_task(zoo, "test_accuracy"), make_task(zoo, "epoch", metric="r2")]
    results = bench(tasks, [kind.name for kind in READERS], zoos=[zoo], out=tmp_path, seeds=1, quiet=True).results
    assert len(results) == 2 * len(READERS)
    for row in results:
        assert row.parameters is not None, row.reason
        assert row.parameters > 1000
        assert row.score is not None, (row.method, row.reason)
        assert row.invariant == METHODS[row.method].invariant


def test_the_functional_with_parameters_for_each_pixel_has_a_limit() -> None:
    schema = build_schema(ARCHITECTURES["mlp_deep"], (1, 28, 28), 10)
    with pytest.raises(UnfitError, match=r"it would have [0-9,]+ parameters .* at most 20,000,000"):
        NfnHnp(Problem(schema, "anything", (), "r2")).network(networks(schema, 4))


def test_probing_refuses_networks_that_it_cannot_run() -> None:
    schema = SCHEMAS["mlp"]
    examples = networks(schema, 4)
    unknown = Examples(examples.networks, torch.tensor([0, 1, -1, 0]), examples.labels)
    with pytest.raises(UnfitError, match="activation functions are not recorded"):
        Probing(Problem(schema, "anything", (), "r2")).fit(unknown, unknown)


def test_probing_learns_its_images() -> None:
    schema, examples = SCHEMAS["mlp"], networks(SCHEMAS["mlp"], 16)
    method = Probing(Problem(schema, "anything", (), "r2"))
    method._scale(examples.labels)
    module = method.module = method.network(examples)
    method._loss(method.outputs(examples), examples.labels).backward()
    gradients = [module.codes.grad, *(layer.weight.grad for layer in module.generator if isinstance(layer, nn.Linear))]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
