"""Alignment of networks: exact where it can be, and a zoo of copies that computes the same functions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from samples import ARCHITECTURES
from torch import Tensor

from representation.align_zoo import align_zoo
from representation.alignment import aligned, distances, match_weights, permuted
from representation.recipes import Augmentation
from representation.training.augmentation import Augmenter
from zootools import open_zoo
from zootools.architectures import Schema, build_schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.errors import SpecError, ZooNotFoundError
from zootools.storage.manifest import read_manifest
from zootools.verify import faults
from zootools.zoo import Zoo


def drawn(schema: Schema, count: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(count, schema.size, generator=torch.Generator().manual_seed(seed))


def shuffled(schema: Schema, weights: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return weights.gather(1, Augmenter(schema, Augmentation()).permutations(len(weights), weights.device, generator))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_permutation_of_a_permuted_copy_is_found_exactly(name: str) -> None:
    shape, classes = ((3, 32, 32), 10) if name == "cnn_large" else ((1, 28, 28), 10)
    schema = build_schema(ARCHITECTURES[name], shape, classes)
    weights = drawn(schema, 4, 0)
    copies = shuffled(schema, weights, 1)
    assert not torch.equal(copies, weights)
    assert torch.equal(aligned(schema, copies, weights), weights)
    orders = match_weights(schema, copies, weights)
    assert [order.shape for order in orders] == [(4, layer.outputs) for layer in schema.layers[:-1]]
    assert torch.equal(permuted(schema, orders, copies), weights)
    assert float(distances(schema, copies, weights).diagonal().max()) == 0


@pytest.mark.parametrize("name", ["mlp_deep", "cnn_small"])
def test_alignment_to_another_network_is_nearer_and_computes_the_same(name: str) -> None:
    schema = build_schema(ARCHITECTURES[name], (1, 28, 28), 10)
    weights = drawn(schema, 6, 2)
    copies = aligned(schema, weights, weights[0])
    before, after = ((networks - weights[0]).norm(dim=1) for networks in (weights, copies))
    assert torch.equal(copies[0], weights[0])
    assert bool((after[1:] < before[1:]).all())
    images = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    first, second = (
        stacked_forward(schema, parameter_views(schema, networks), images, "relu") for networks in (weights, copies)
    )
    assert float((first - second).abs().max()) < 1e-6 * float(first.abs().max())


def test_distances_modulo_permutation_do_not_depend_on_the_order_of_the_neurons() -> None:
    schema = build_schema(ARCHITECTURES["mlp_deep"], (1, 4, 4), 4)
    weights = drawn(schema, 5, 4)
    found = distances(schema, weights, weights)
    np.testing.assert_allclose(found.diagonal(), 0)
    again = distances(schema, shuffled(schema, weights, 5), shuffled(schema, weights, 6))
    assert float((again - found).abs().mean()) < 0.05 * float(found.mean())  # the descent may end elsewhere


def test_weights_that_are_not_finite_are_refused_by_row() -> None:
    schema = build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4)
    weights = drawn(schema, 3, 0)
    weights[1, 5] = torch.nan
    with pytest.raises(SpecError, match="the networks: row 1 of 3 has weights that are not finite"):
        match_weights(schema, weights, weights[0])
    with pytest.raises(SpecError, match="the reference: row 0 of 1"):
        match_weights(schema, weights[:1], weights[1])


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Zoo:
    return open_zoo(tiny_zoo)


def test_a_zoo_of_aligned_copies_is_a_zoo_that_names_its_parent(zoo: Zoo, tmp_path: Path) -> None:
    done = align_zoo(zoo, tmp_path / "aligned", to=zoo.models[2][:8], quiet=True)
    assert done.reference == zoo.models[2]
    assert done.distance_after < done.distance_before
    copies = open_zoo(tmp_path / "aligned")
    assert list(faults(copies.folder)) == []
    assert copies.metadata.select(["model_id", "epoch"]) == zoo.metadata.select(["model_id", "epoch"])
    assert copies.metadata["test_accuracy"] == zoo.metadata["test_accuracy"]
    images = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    moved = 0
    for model in zoo.models:
        for epoch in (0, 2):
            moved += not torch.equal(copies.checkpoint(model, epoch).weights(), zoo.checkpoint(model, epoch).weights())
            with torch.no_grad():
                assert torch.allclose(
                    copies.module(model, epoch)(images), zoo.module(model, epoch)(images), rtol=0, atol=1e-6
                )
    assert moved == 2 * done.moved > 0
    record, manifest = copies.imported, read_manifest(zoo.folder)
    assert record is not None
    assert record.kind == "align"
    assert record.parent is not None
    assert (record.parent.name, record.parent.sha256) == ("tiny", manifest.sha256)
    assert record.options == {"method": "weights", "reference": done.reference, "to": zoo.models[2][:8]}
    assert record.check.largest_difference == 0
    card = (copies.folder / "README.md").read_text()
    assert "not the result of a training" in card
    assert manifest.sha256 in card


def test_aligning_again_changes_nothing_and_an_aligned_zoo_is_its_own_alignment(zoo: Zoo, tmp_path: Path) -> None:
    first = align_zoo(zoo, tmp_path / "first", quiet=True)
    before = (tmp_path / "first" / "zoo.json").read_bytes()
    assert align_zoo(zoo, tmp_path / "first", quiet=True) == first
    assert (tmp_path / "first" / "zoo.json").read_bytes() == before
    again = align_zoo(open_zoo(tmp_path / "first"), tmp_path / "second", to=first.reference, quiet=True)
    assert (again.moved, again.distance_after) == (0, pytest.approx(first.distance_after))


def test_a_zoo_that_cannot_be_aligned_is_refused_by_name(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has 1 models that did not diverge; alignment needs two or more"):
        align_zoo(zoo.model(zoo.models[0]), tmp_path / "out", quiet=True)
    with pytest.raises(SpecError, match="method: found 'weight'; did you mean 'weights'"):
        align_zoo(zoo, tmp_path / "out", method="weight", quiet=True)
    with pytest.raises(ZooNotFoundError):
        align_zoo(zoo, tmp_path / "out", to="nothing", quiet=True)
    with pytest.raises(SpecError, match="is inside of what is imported"):
        align_zoo(zoo, zoo.folder / "aligned", quiet=True)
    assert not (tmp_path / "out").exists()
