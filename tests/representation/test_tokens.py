"""Tokens and augmentations: they lose nothing, and permuted networks are the same networks."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from samples import ARCHITECTURES, make_model
from scipy.stats import chisquare
from torch import Tensor

from representation.encoders.tokens import Tokenizer
from representation.recipes import Augmentation
from representation.reproduction.equivariance import trajectories
from representation.reproduction.faults import untransposed
from representation.training.augmentation import Augmenter
from zootools.architectures import Schema, build_schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.images.datasets import ImageData, Subset
from zootools.importers.tensorflow_layout import layout_of
from zootools.spec import Mlp

SCHEMAS: dict[str, Callable[[], Schema]] = {
    "mlp": lambda: build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4),
    "mlp_biases": lambda: build_schema(Mlp(name="mlp", hidden=(5,)), (1, 4, 4), 4),
    "mlp_deep": lambda: build_schema(ARCHITECTURES["mlp_deep"], (1, 4, 4), 4),
    "cnn_small": lambda: build_schema(ARCHITECTURES["cnn_small"], (1, 28, 28), 10),
    "cnn_small_colour": lambda: build_schema(ARCHITECTURES["cnn_small"], (3, 32, 32), 10),
    "cnn_unterthiner": lambda: build_schema(ARCHITECTURES["cnn_unterthiner"], (1, 28, 28), 10),
    "cnn_large": lambda: build_schema(ARCHITECTURES["cnn_large"], (3, 32, 32), 10),
}
PERMUTE = Augmentation(erase_probability=0.0)
NOTHING = Augmentation(permute=False, erase_probability=0.0)


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> Schema:
    return SCHEMAS[request.param]()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(schema: Schema, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random networks whose outputs are of the order of one."""
    weights = torch.randn(count, schema.size, generator=generator(1), dtype=torch.float64)
    for layer, parameter in zip(schema.layers, schema.parameters[:: 1 + schema.layers[0].bias], strict=True):
        weights[:, parameter.offset : parameter.end] /= math.sqrt(layer.fan_in)
    return weights.to(dtype)


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["neuron", "weight"])
def test_joining_the_tokens_of_weights_returns_the_weights(schema: Schema, kind: Literal["neuron", "weight"]) -> None:
    tokenizer, weights = Tokenizer(schema, kind), draw(schema, 3)
    groups = tokenizer.split(weights)
    assert [tuple(group.shape) for group in groups] == [(3, *shape) for shape in tokenizer.shapes]
    assert sum(group.shape[1] for group in groups) == tokenizer.length
    assert torch.equal(tokenizer.join(groups), weights)


def test_a_neuron_token_is_a_neurons_weights_and_its_bias_last(schema: Schema) -> None:
    weights = torch.arange(schema.size, dtype=torch.float64)[None]
    parts = {p.name: weights[0, p.offset : p.end].view(p.shape) for p in schema.parameters}
    for layer, group in zip(schema.layers, Tokenizer(schema, "neuron").split(weights), strict=True):
        expected = parts[f"{layer.name}.weight"].flatten(1)
        if layer.bias:
            expected = torch.cat([expected, parts[f"{layer.name}.bias"][:, None]], dim=1)
        assert torch.equal(group[0], expected)


def test_the_papers_networks_have_as_many_tokens_as_its_code() -> None:
    lengths = {name: Tokenizer(SCHEMAS[name](), "neuron").length for name in ("mlp", "cnn_small", "cnn_unterthiner")}
    assert lengths == {"mlp": 9, "cnn_small": 48, "cnn_unterthiner": 58}


def _outputs(schema: Schema, flat: Tensor, images: Tensor) -> Tensor:
    return stacked_forward(schema, parameter_views(schema, flat), images, "tanh")


# --- permutation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_permuted_network_computes_the_same_function(schema: Schema, dtype: torch.dtype, tolerance: float) -> None:
    weights = draw(schema, 20, dtype)
    permuted = Augmenter(schema, PERMUTE).views(weights, generator(), copies=1).augmented
    images = torch.randn(16, *schema.input_shape, generator=generator(), dtype=dtype)

    before, after = (_outputs(schema, flat, images) for flat in (weights, permuted))
    assert (weights != permuted).any(dim=1).float().mean() > 0.9
    assert before.std() > 0.01
    assert ((after - before).norm() / before.norm()).item() < tolerance


def test_permutations_are_those_of_the_schema(schema: Schema) -> None:
    """Each drawn index is the one that `Schema.permutation_index` makes of the orders read from it."""
    for index in Augmenter(schema, PERMUTE).permutations(5, torch.device("cpu"), generator()).numpy():
        orders = {}
        for layer, rows in zip(schema.layers[:-1], schema.neuron_tokens().values(), strict=False):
            size = layer.fan_in
            orders[layer.name] = [(index[row[0]] - rows[0][0]) // size for row in rows]
        assert np.array_equal(index, schema.permutation_index(orders))


def test_permutations_of_five_neurons_are_uniform_over_all_120() -> None:
    schema, draws = SCHEMAS["mlp"](), 60_000
    index = Augmenter(schema, PERMUTE).permutations(draws, torch.device("cpu"), generator(7))
    orders = (index[:, :80:16] // 16).tolist()
    counts = Counter(map(tuple, orders))
    assert set(counts) == set(itertools.permutations(range(5)))
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_layers_are_permuted_independently_of_each_other() -> None:
    schema = build_schema(Mlp(name="mlp", hidden=(3, 3)), (1, 2, 2), 2)
    index = Augmenter(schema, PERMUTE).permutations(36_000, torch.device("cpu"), generator(3))
    first = index[:, :12:4] // 4
    second = (index[:, 15:24:3] - 15) // 3
    counts = Counter(zip(map(tuple, first.tolist()), map(tuple, second.tolist()), strict=True))
    assert len(counts) == 36
    assert chisquare(list(counts.values())).pvalue > 0.001


# --- faults of the paper's released code ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn_small", "cnn_unterthiner"])
def test_in_the_order_of_tensorflow_a_permutation_changes_the_function(name: str) -> None:
    schema = SCHEMAS[name]()
    weights, index = draw(schema, 20), untransposed(schema)
    assert index.sort().values.equal(torch.arange(schema.size))
    permuted = Augmenter(schema, PERMUTE).views(weights[:, index], generator(), copies=1).augmented[:, index.argsort()]
    images = torch.randn(16, *schema.input_shape, generator=generator())
    before, after = (_outputs(schema, flat, images) for flat in (weights, permuted))
    assert ((after - before).norm() / before.norm()).item() > 0.1
    kernel = next(variable.shape for variable in layout_of(schema) if variable.is_kernel)
    values = weights[0, index][: math.prod(kernel)].reshape(kernel)
    assert values.movedim((-1, -2), (0, 1)).equal(weights[0][: values.numel()].view(schema.parameters[0].shape))


def test_views_draw_from_the_number_of_orders_that_there_are() -> None:
    schema = SCHEMAS["mlp"]()
    augmenter = Augmenter(schema, Augmentation(orders=6, erase_probability=0.0))
    drawn = [augmenter.permutations(300, torch.device("cpu"), generator(seed)) for seed in (0, 1)]
    found = [set(map(tuple, (index[:, :80:16] // 16).tolist())) for index in drawn]
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_identical_views_are_one_draw() -> None:
    schema = SCHEMAS["mlp"]()
    views = Augmenter(schema, Augmentation(identical=True, noise=0.1)).views(draw(schema, 8), generator()).augmented
    assert views[:8].equal(views[8:])


# --- training commutes with permutation (appendix A) ------------------------------------------------------------


def double(images: ImageData) -> ImageData:
    parts = (Subset(part.images.double(), part.labels) for part in (images.train, images.validation, images.test))
    return ImageData(*parts, images.classes)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_training_a_permuted_network_is_permuting_a_trained_one(
    problem: tuple[Schema, ImageData], optimizer: str
) -> None:
    schema, images = problem
    # At this learning rate a first step of the wrong sign, where rounding decides it, is below the tolerance.
    model = make_model(1, optimizer=optimizer, init="kaiming_uniform", weight_decay=0.01, lr=1e-4)
    for data, tolerance in ((images, 1e-4), (double(images), 1e-10)):
        result = trajectories(schema, model, data, batch_size=4, epochs=2)
        size = result.weights["A"].norm(dim=1)
        assert (result.distance("Ap", "B") <= tolerance * size).all()
        assert (result.distance("A", "B") > 0.1 * size).all()
        assert (result.weights["A"][1:] != result.weights["A"][:-1]).any(dim=1).all()
        assert result.accuracies["A"] == result.accuracies["Ap"] == result.accuracies["B"]


# --- views ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [NOTHING, PERMUTE, Augmentation(noise=0.1)])
def test_views_share_memory_with_nothing(settings: Augmentation) -> None:
    schema = SCHEMAS["cnn_small"]()
    weights = draw(schema, 4)
    views, original = Augmenter(schema, settings).views(weights, generator()), weights.clone()
    first, second = views.augmented[:4], views.augmented[4:]
    kept, clean = second.clone(), views.clean.clone()
    first.fill_(7)
    assert torch.equal(second, kept)
    assert torch.equal(views.clean, clean)
    assert torch.equal(weights, original)


def test_two_views_are_drawn_afresh() -> None:
    schema = SCHEMAS["cnn_small"]()
    views = Augmenter(schema, Augmentation(noise=0.1)).views(draw(schema, 4), generator()).augmented
    assert (views[:4] != views[4:]).float().mean() > 0.5


def test_without_augmentation_a_view_is_a_copy() -> None:
    schema = SCHEMAS["mlp"]()
    weights = draw(schema, 4)
    views = Augmenter(schema, NOTHING).views(weights, generator())
    assert torch.equal(views.augmented, weights.repeat(2, 1))


def test_erasing_zeroes_one_block_of_the_drawn_length_with_the_drawn_probability() -> None:
    schema, count = SCHEMAS["mlp"](), 20_000
    settings = Augmentation(erase_probability=0.5, erase_lower=0.03, erase_upper=0.3, permute=False)
    erased = Augmenter(schema, settings).erased(count, torch.device("cpu"), generator(5))
    length = erased.sum(1)
    hit = length > 0
    assert hit.float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert length[hit].min() == 3
    assert length[hit].max() == 30
    assert length[hit].float().mean().item() == pytest.approx(16.5, abs=0.3)
    edges = torch.nn.functional.pad(erased.int(), (1, 1)).diff().abs().sum(1)
    assert set(edges[hit].tolist()) == {2}
    start = erased[hit].int().argmax(1)
    assert start.min() == 0
    assert erased[hit][:, -1].any()


def test_noise_is_gaussian_of_the_given_size_and_goes_where_nothing_is_erased() -> None:
    schema = SCHEMAS["cnn_small"]()
    weights = torch.ones(200, schema.size)
    views = Augmenter(schema, Augmentation(noise=0.05, erase_probability=1.0)).views(weights, generator())
    assert torch.equal(views.clean, weights.repeat(2, 1))
    left = views.augmented[views.augmented != 0] - 1
    assert left.mean().item() == pytest.approx(0, abs=1e-3)
    assert left.std().item() == pytest.approx(0.05, rel=0.01)
    assert len(left) / views.augmented.numel() == pytest.approx(1 - 0.175, abs=0.02)
