"""The best linear code of permuted networks, against its definition: PCA of every network in all of its orders."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from representation.recipes import Augmentation
from representation.training.augmentation import Augmenter
from representation.training.linear_code import linear_code
from representation.training.reconstruction import reconstruction_r2
from zootools.architectures import Schema, build_schema
from zootools.images.datasets import ImageData
from zootools.spec import Mlp


def networks(rows: int, schema: Schema, seed: int = 0) -> Tensor:
    """Networks that vary in few directions more than in others, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(6, schema.size, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(rows, schema.size, generator=generator)
    return torch.randn(rows, 6, generator=generator) @ maps + 0.3 * noise + torch.linspace(0, 2, schema.size)


def every_order(weights: Tensor, schema: Schema) -> Tensor:
    """Return the networks with the neurons of their hidden layers in every order."""
    layers = schema.layers[:-1]
    orders = itertools.product(*(itertools.permutations(range(layer.outputs)) for layer in layers))
    names = [layer.name for layer in layers]
    index = [schema.permutation_index(dict(zip(names, order, strict=True))) for order in orders]
    return torch.cat([weights[:, torch.from_numpy(order)] for order in index])


@pytest.mark.parametrize("hidden", [(4,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_explains_as_much_as_pca_of_all_orders_of_the_networks(hidden: tuple[int, ...], bias: bool) -> None:
    schema = build_schema(Mlp(name="mlp", hidden=hidden, bias=bias), (1, 2, 2), 3)
    weights = networks(30, schema)
    views = every_order(weights, schema).double()
    centred = views - views.mean(dim=0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    for length in (1, 5, 9, 1000):
        code = linear_code(weights, schema, length)
        assert code is not None
        assert code.components.shape == (schema.size, min(length, schema.size))
        torch.testing.assert_close(code.components.T @ code.components, torch.eye(len(code.components.T)).double())
        torch.testing.assert_close(code.mean, views.mean(dim=0), rtol=1e-6, atol=1e-6)
        assert code.r2(views) == pytest.approx(float(variances[:length].sum() / variances.sum()), abs=1e-6)


def test_without_permutations_it_is_the_pca_of_the_weights() -> None:
    schema = build_schema(Mlp(name="mlp", hidden=(4,)), (1, 2, 2), 3)
    weights = networks(50, schema)
    centred = weights.double() - weights.double().mean(dim=0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    code = linear_code(weights, schema, 4, permute=False)
    assert code is not None
    assert code.r2(weights) == pytest.approx(float(variances[:4].sum() / variances.sum()), abs=1e-6)


def test_it_does_not_matter_how_the_networks_are_permuted(problem: tuple[Schema, ImageData]) -> None:
    schema, _ = problem
    weights = networks(20, schema)
    augmenter = Augmenter(schema, Augmentation(erase_probability=0.0))
    permuted = augmenter.views(weights, torch.Generator().manual_seed(3), copies=1).clean
    codes = [linear_code(rows, schema, 10) for rows in (weights, permuted)]
    assert codes[0] is not None
    assert codes[1] is not None
    assert codes[0].r2(weights) == pytest.approx(codes[1].r2(weights), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("rows", [1, 2, 20])
def test_any_finite_weights_have_a_code_with_finite_numbers(rows: int, scale: float) -> None:
    schema = build_schema(Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), 4)
    weights = torch.rand(rows, schema.size, generator=torch.Generator().manual_seed(0)) * scale
    code = linear_code(weights, schema, 8)
    assert code is not None
    assert code.components.isfinite().all()
    assert code.mean.isfinite().all()
    value = code.r2(weights)
    assert math.isnan(value) if rows == 1 or not scale else math.isfinite(value)


@pytest.mark.parametrize("factor", [1.0, 1e30])
def test_the_r2_of_a_reconstruction_is_that_of_its_formula_for_weights_of_any_size(factor: float) -> None:
    networks = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rebuilt = 0.5 * networks
    expected = 1 - (networks - rebuilt).square().sum() / (networks - networks.mean(dim=0)).square().sum()
    found = reconstruction_r2((factor * networks).float(), lambda rows: 0.5 * rows)
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert math.isnan(reconstruction_r2(torch.full((3, 4), factor), lambda rows: rows))
