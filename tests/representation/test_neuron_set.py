"""The set encoder: its symmetries, its start, its limits, and that no label reaches it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from samples import ARCHITECTURES
from torch import Tensor

from representation.encoders.encoder import Encoder
from representation.encoders.graph import NeuronGraph
from representation.encoders.neuron_set import NeuronSetDecoder, NeuronSetEncoder
from representation.recipes import Augmentation, Loss, Recipe, load_recipe
from representation.training.augmentation import Augmenter
from representation.training.linear_code import linear_code
from representation.training.losses import Objective
from representation.training.start import start_encoder
from representation.training.train import train_encoder
from representation.training.trainer import EncoderTrainer
from zootools import open_zoo
from zootools.architectures import Layer, Schema, build_schema
from zootools.errors import SpecError

SCHEMAS = {
    name: build_schema(architecture, (1, 28, 28), 10) for name, architecture in ARCHITECTURES.items() if name != "mlp"
} | {
    "mlp": build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4),
    "one layer": Schema("linear", (1, 3, 3), (Layer("fc1", "linear", 9, 4, activation=False),)),
    "one neuron": Schema("narrow", (1, 3, 3), (Layer("fc1", "linear", 9, 1), Layer("fc2", "linear", 1, 4))),
}
COMPRESSED = "encoder.statistics=compressed"


def recipe(*overrides: str) -> Recipe:
    small = ["encoder={kind: set, latent: 20, width: 16, hidden: 24}", "training.batch_size=8"]
    return load_recipe("default", [*small, "training.epochs=2", "training.steps=5", *overrides])


def networks(schema: Schema, count: int = 40) -> Tensor:
    """Return random networks whose weights differ in mean and deviation from layer to layer."""
    weights = torch.randn(count, schema.size, generator=torch.Generator().manual_seed(0))
    for number, parameter in enumerate(schema.parameters):
        weights[:, parameter.offset : parameter.end] *= 0.5 + number
        weights[:, parameter.offset : parameter.end] += number
    return weights


def trained(schema: Schema, *overrides: str) -> Encoder:
    """Return an encoder after some steps, and a random change of every parameter."""
    weights = networks(schema)
    trainer = EncoderTrainer(schema, weights, weights[:10], recipe(*overrides), 0, torch.device("cpu"))
    trainer.train_epoch()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trainer.encoder.eval()


def permutations(schema: Schema, count: int) -> list[dict[str, np.ndarray]]:
    draws = np.random.default_rng(0)
    return [{layer.name: draws.permutation(layer.outputs) for layer in schema.layers[:-1]} for _ in range(count)]


@pytest.mark.parametrize(("name", "overrides"), [*((name, ()) for name in SCHEMAS), ("mlp_deep", (COMPRESSED,))])
def test_invariant_numbers_do_not_change_under_permutations_of_all_hidden_layers(
    name: str, overrides: tuple[str, ...]
) -> None:
    schema = SCHEMAS[name]
    encoder, weights = trained(schema, *overrides), networks(schema)
    z, invariant = encoder.embed(weights), encoder.architecture.compared
    assert z.shape == (40, 20)
    assert z[:, :invariant].std(dim=0).min() > 1e-4  # they are not constants
    for permutation in permutations(schema, 5):
        permuted = encoder.embed(weights[:, schema.permutation_index(permutation)])
        torch.testing.assert_close(permuted[:, :invariant], z[:, :invariant], rtol=0, atol=1e-5)
        if len(schema.layers) > 1 and name != "one neuron":
            assert (permuted[:, invariant:] - z[:, invariant:]).abs().max() > 1e-2


@pytest.mark.parametrize("name", SCHEMAS)
def test_layers_of_encoder_and_decoder_commute_with_permutations(name: str) -> None:
    schema = SCHEMAS[name]
    network, graph = trained(schema), NeuronGraph(schema)
    assert isinstance(network.encoder, NeuronSetEncoder)
    assert isinstance(network.decoder, NeuronSetDecoder)
    weights = network.standardised(networks(schema, 6))
    permutation = permutations(schema, 1)[0]
    index = schema.permutation_index(permutation)
    orders = [[0], *(permutation[layer.name] for layer in schema.layers[:-1]), [0]]
    with torch.no_grad():
        neurons = network.encoder.neurons(*graph.split(weights))
        permuted = network.encoder.neurons(*graph.split(weights[:, index]))
        for order, before, after in zip(orders, neurons, permuted, strict=True):
            torch.testing.assert_close(after, before[:, order], rtol=0, atol=1e-5)
        decoded = graph.join(*network.decoder.weights(neurons))
        again = graph.join(*network.decoder.weights([x[:, order] for x, order in zip(neurons, orders, strict=True)]))
    torch.testing.assert_close(again, decoded[:, index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCHEMAS)
def test_edges_and_biases_join_to_the_same_weights(name: str) -> None:
    graph, weights = NeuronGraph(SCHEMAS[name]), networks(SCHEMAS[name], 3)
    edges, biases = graph.split(weights)
    assert torch.equal(graph.join(edges, biases), weights)
    assert [tuple(edge.shape[1:]) for edge in edges] == [tuple(shape) for shape in graph.edges]


@pytest.mark.parametrize("kind", ["set", "attention"])
def test_the_linear_paths_begin_as_the_best_linear_code_and_stay_so(tiny_zoo: Path, kind: str) -> None:
    zoo = open_zoo(tiny_zoo)
    train, test = zoo.split("train").weights(), zoo.split("test").weights()
    changes = ["loss.kind=ED", "training.lr=1e-4", "training.steps=50"]
    if kind == "attention":
        small = "latent: 20, width: 16, heads: 2, blocks: 1, hidden: 16, standardise: layer, skip: linear, start: pca"
        changes.append(f"encoder={{kind: attention, {small}}}")
    settings = recipe(*changes)
    trainer = EncoderTrainer(zoo.schema, train, test, settings, 0, torch.device("cpu"))
    code = linear_code(train, zoo.schema, trainer.recipe.encoder.coded)
    assert code is not None
    permuted = Augmenter(zoo.schema, Augmentation(erase_probability=0)).views(test, copies=1).clean
    bound = code.r2(permuted)
    if kind == "set":  # the layers beside the linear paths begin at zero
        views = trainer.encoder.reconstruct(permuted).double()
        error = (views - permuted).square().sum() / (permuted - permuted.double().mean(0)).square().sum()
        assert 1 - float(error) == pytest.approx(bound, abs=0.005)
    for _ in range(6):
        trainer.train_epoch()
    views = trainer.encoder.reconstruct(permuted).double()
    error = (views - permuted).square().sum() / (permuted - permuted.double().mean(0)).square().sum()
    assert 1 - float(error) > bound - 0.005


def test_no_label_enters_the_encoder(tiny_zoo: Path, tmp_path: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    kept = ("model_id", "configuration_id", "seed", "epoch", "split", "status", "stack", "row")
    order = np.random.default_rng(0).permutation(len(zoo))
    columns = {
        name: zoo.metadata[name] if name in kept else zoo.metadata[name].take(pa.array(order))
        for name in zoo.metadata.column_names
    }
    shuffled = replace(zoo, metadata=pa.table(columns))
    assert shuffled.metadata["test_accuracy"] != zoo.metadata["test_accuracy"]
    files = []
    for name, source in (("as they are", zoo), ("shuffled", shuffled)):
        train_encoder(source, recipe(), tmp_path / name, quiet=True)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


WEIGHTS = {
    "huge": lambda x: 1e30 * x,
    "hardly varying": lambda x: 1 + 1e-6 * x,
    "equal": lambda x: x[:1].expand(len(x), -1).clone(),
    "one network": lambda x: x[:1].clone(),
    "one wild among many": lambda x: torch.cat([x[:-1], 1e20 * x[-1:]]),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_extreme_weights_give_finite_encoders(kind: str) -> None:
    schema = SCHEMAS["mlp"]
    weights = WEIGHTS[kind](networks(schema, 60))
    trainer = EncoderTrainer(schema, weights, weights[-9:], recipe("training.lr=1e-3"), 0, torch.device("cpu"))
    losses = {**trainer.train_epoch(), **trainer.validate()}
    assert all(map(math.isfinite, losses.values())), losses
    assert trainer.encoder.embed(weights).isfinite().all()
    assert trainer.encoder.reconstruct(weights).isfinite().all()


def test_the_error_divided_by_the_variance_is_the_unexplained_share() -> None:
    schema = SCHEMAS["mlp"]
    weights = networks(schema, 500)
    objective = Objective(Loss(kind="ED", reconstruction="explained"), schema, weights)
    outputs = weights + torch.randn(weights.shape, generator=torch.Generator().manual_seed(3))
    r2 = 1 - (outputs - weights).square().sum() / (weights - weights.mean(dim=0)).square().sum()
    assert objective(outputs, weights, None).total.item() == pytest.approx(1 - r2.item(), rel=1e-5)


def test_the_prediction_of_the_statistics_is_a_term_and_leaves_its_mark() -> None:
    schema = SCHEMAS["mlp_deep"]
    weights = networks(schema, 64) * torch.linspace(0.5, 2, 64)[:, None]  # statistics that vary together
    errors = {}
    for weight in (0.0, 10.0):
        settings = recipe(f"loss.statistics={weight}", "loss.kind=Ec", "training.lr=3e-3", "training.steps=60")
        trainer = EncoderTrainer(schema, weights, weights[:20], settings, 0, torch.device("cpu"))
        first, last = trainer.train_epoch(), trainer.train_epoch()
        assert last["total"] == pytest.approx(last["contrast"] + weight * last["statistics"], rel=1e-4)
        errors[weight] = (first["statistics"], last["statistics"])
    assert errors[0.0] == (0.0, 0.0)
    assert 0 < errors[10.0][1] < 0.7 * errors[10.0][0]


def test_compressed_statistics_do_not_let_one_huge_network_hide_the_others() -> None:
    schema = SCHEMAS["mlp_deep"]
    weights = networks(schema, 64) * torch.linspace(0.5, 2, 64)[:, None]
    weights[0] *= 1000
    spread = {}
    for scale in ("standardised", "compressed"):
        settings = recipe(f"encoder.statistics={scale}").sized(schema.size)
        encoder = start_encoder(schema, settings, weights)
        statistics = encoder.encoder.statistics(encoder.standardised(weights))
        assert torch.allclose(statistics.var(dim=0, correction=0), torch.ones(()), atol=1e-3)
        assert torch.allclose(statistics.mean(dim=0), torch.zeros(()), atol=1e-3)
        spread[scale] = statistics[1:].std(dim=0).median().item()
    assert spread["compressed"] > 20 * spread["standardised"]


def test_compressed_statistics_that_most_networks_share_are_finite() -> None:
    schema = SCHEMAS["mlp_deep"]
    weights = torch.ones(40, schema.size)  # all quartiles are equal
    weights[0] = 2
    trainer = EncoderTrainer(schema, weights, weights[:9], recipe(COMPRESSED), 0, torch.device("cpu"))
    assert math.isfinite(trainer.train_epoch()["total"])
    assert trainer.encoder.embed(weights).isfinite().all()


def test_lengths_follow_from_the_networks() -> None:
    lengths = {name: load_recipe("default").sized(schema.size).encoder.length for name, schema in SCHEMAS.items()}
    assert (lengths["mlp"], lengths["cnn_small"], lengths["cnn_large"]) == (50, 700, 700)
    assert load_recipe("default").sized(100).encoder.compared == 30
    assert load_recipe("default").sized(2464).encoder.compared == 128
    with pytest.raises(SpecError, match="invariant 9 is not below latent 9"):
        recipe("encoder={kind: set, latent: 9, invariant: 9}")


@pytest.mark.parametrize("change", ["training.precision=fp32", "training.precision=bf16", COMPRESSED])
def test_a_restored_training_continues_with_the_same_bits(change: str) -> None:
    schema, weights = SCHEMAS["mlp_deep"], networks(SCHEMAS["mlp_deep"])
    settings = recipe(change)
    whole, first, second = (
        EncoderTrainer(schema, weights, weights[:9], settings, 0, torch.device("cpu")) for _ in range(3)
    )
    whole.train_epoch()
    whole.train_epoch()
    first.train_epoch()
    second.restore(*first.save())
    second.train_epoch()
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[name]), name
