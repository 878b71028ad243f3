"""The line between two networks, what is merged from several, and alignment by what networks compute."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from samples import ARCHITECTURES
from torch import Tensor

from representation.alignment import match_weights, permuted
from representation.behaviour import load_zoo_images, predictions, scored
from representation.compare_networks import compare_pairs, compare_two
from representation.geometry import ensemble, greedy_soup, line, merges, pair, rescaling
from representation.matching import JUDGED, match_activations, match_straight_through
from zootools import open_zoo
from zootools.architectures import Schema, build_schema
from zootools.architectures.networks import parameter_views, stacked_forward
from zootools.cli import main
from zootools.errors import SpecError, ZooNotFoundError
from zootools.images.datasets import ImageData, Subset
from zootools.spec import Mlp
from zootools.zoo import Zoo


def flat(*tensors: list[float] | list[list[float]]) -> Tensor:
    return torch.cat([torch.tensor(tensor, dtype=torch.float32).flatten() for tensor in tensors])


def on_line(first: Tensor, second: Tensor, points: int = 11) -> Tensor:
    return torch.stack([(1 - t) * first + t * second for t in torch.linspace(0, 1, points)])


def shuffled(schema: Schema, weights: Tensor, seed: int) -> Tensor:
    draws = np.random.default_rng(seed)
    rows = [
        schema.permutation_index({group.name: draws.permutation(group.size) for group in schema.permutation_groups})
        for _ in weights
    ]
    return weights.gather(1, torch.from_numpy(np.stack(rows)))


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Zoo:
    return open_zoo(tiny_zoo)


@pytest.fixture(scope="module")
def images(zoo: Zoo) -> ImageData:
    return load_zoo_images(zoo)


def test_the_counterexample_of_git_re_basin_has_a_barrier_under_every_permutation() -> None:
    """App. A.6: y = 1 if x1 < 0 and x2 > 0, by two hidden layers of two ReLU."""
    schema = build_schema(Mlp(name="mlp", hidden=(2, 2)), (1, 1, 2), 2)
    corners = torch.rand(20_000, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x1, x2 = corners[:, 0, 0].unbind(dim=1)
    subset = Subset(corners, ((x1 < 0) & (x2 > 0)).long())
    # Not (relu(x1) + relu(-x2) > 0), and min(relu(-x1), relu(x2)) > 0.
    first = flat([[1, 0], [0, -1]], [0, 0], [[1, 1], [0, 0]], [0, 0], [[0, 0], [-10_000, 0]], [0, 0.1])
    second = flat([[-1, 0], [0, 1]], [0, 0], [[1, 0], [1, -1]], [0, 0], [[0, 0], [1000, -1000]], [0, -0.2])
    swaps = itertools.product([[0, 1], [1, 0]], repeat=2)
    for one, two in swaps:
        copy = second[torch.from_numpy(schema.permutation_index({"fc1": one, "fc2": two}))]
        found = line("plain", schema, on_line(first, copy), subset, "relu")
        assert min(found.accuracy[0], found.accuracy[-1]) > 0.999
        assert found.barrier == pytest.approx(0.25, abs=0.01)


def test_a_line_to_itself_or_to_a_permuted_copy_has_no_barrier(zoo: Zoo, images: ImageData) -> None:
    weights = zoo.last().weights()
    copy = shuffled(zoo.schema, weights[:1], 1)[0]
    for other in (weights[0], copy):
        found = pair(zoo.schema, weights[0], other, images, "tanh")
        assert (found.distance_aligned, found.agreement) == (0, 1)
        for drawn in found.lines[1:] if other is copy else found.lines:
            assert drawn.barrier == 0
            assert drawn.loss_barrier < 1e-6
    assert found.distance > 1
    plain = found.lines[0].loss
    assert abs(plain[5] - plain[0]) > 1e-3  # permuting the neurons has moved the network


def test_rescaling_gives_activations_the_interpolated_mean_and_deviation(zoo: Zoo, images: ImageData) -> None:
    weights, shown = zoo.last().weights(), images.train.images
    networks = on_line(weights[0], weights[1], 5)
    watch, seen = rescaling(zoo.schema, networks, shown, "tanh"), dict[str, Tensor]()

    def look(name: str, x: Tensor) -> Tensor:
        seen[name] = watch(name, x)
        return seen[name]

    stacked_forward(zoo.schema, parameter_views(zoo.schema, networks), shown, "tanh", watch=look)
    std, mean = torch.std_mean(seen["fc1"], dim=1, correction=0)
    share = torch.linspace(0, 1, 5)[:, None]
    for values in (std, mean):
        torch.testing.assert_close(values, values[0] + share * (values[-1] - values[0]), rtol=1e-4, atol=1e-5)
    plain, repaired = (line("", zoo.schema, networks, images.test, "tanh", w) for w in (None, watch))
    assert (plain.loss[0], plain.loss[-1]) == pytest.approx((repaired.loss[0], repaired.loss[-1]), abs=1e-5)
    assert plain.loss[2] != pytest.approx(repaired.loss[2], abs=1e-3)


def test_soups_and_ensembles_are_what_they_are_called(zoo: Zoo, images: ImageData) -> None:
    weights = zoo.last().weights()
    rows = {row.name: row for row in merges(zoo.schema, weights, images, "tanh")}
    own = scored(zoo.schema, weights, images.test, "tanh")
    assert rows["mean of the networks"].accuracy == pytest.approx(own.accuracy.mean())
    assert rows["average"].networks == rows["ensemble"].networks == len(weights)
    soup, size = greedy_soup(zoo.schema, weights, images.train, "tanh")
    first, last = scored(zoo.schema, torch.stack([weights[0], soup]), images.train, "tanh").accuracy
    assert last >= first
    assert 1 <= size <= len(weights)
    alone = scored(zoo.schema, weights[:1], images.test, "tanh")
    same = ensemble(zoo.schema, weights[:1].repeat(3, 1), images.test, "tanh")
    assert same == pytest.approx((alone.loss[0], alone.accuracy[0]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_of_a_permuted_copy_are_matched_exactly(name: str) -> None:
    shape = (3, 32, 32) if name == "cnn_large" else (1, 28, 28)
    schema = build_schema(ARCHITECTURES[name], shape, 10)
    generator = torch.Generator().manual_seed(0)
    weights = 0.2 * torch.randn(2, schema.size, generator=generator)
    shown = torch.randn(60, *shape, generator=generator)
    copies = shuffled(schema, weights[:1].repeat(3, 1), 2)
    orders = match_activations(schema, copies, weights[0], shown, "tanh")
    assert torch.equal(permuted(schema, orders, copies), weights[:1].repeat(3, 1))
    constant = match_activations(schema, weights, torch.zeros(schema.size), shown, "tanh")  # correlates with nothing
    for order, group in zip(constant, schema.permutation_groups, strict=True):
        assert torch.equal(order.sort(dim=1).values, torch.arange(group.size).expand(2, -1))


def test_straight_through_is_never_worse_than_matched_weights_where_it_is_judged(zoo: Zoo, images: ImageData) -> None:
    weights, schema = zoo.last().weights(), zoo.schema
    orders = match_straight_through(schema, weights, weights[0], images.train, "tanh")
    judge = Subset(images.train.images[:JUDGED], images.train.labels[:JUDGED])
    losses = [
        scored(schema, (permuted(schema, found, weights) + weights[0]) / 2, judge, "tanh").loss
        for found in (orders, match_weights(schema, weights, weights[0]))
    ]
    assert (losses[0] <= losses[1] + 1e-6).all()
    assert (losses[0] < losses[1] - 1e-3).any()


def test_two_networks_of_a_zoo_are_compared_by_id_and_epoch(zoo: Zoo, images: ImageData, tmp_path: Path) -> None:
    first, second = zoo.models[:2]
    found = compare_two(zoo, f"{first}@0", second[:10])
    assert (found.first, found.second) == (f"{first}@0", f"{second}@2")
    both = torch.stack([zoo.checkpoint(first, 0).weights()[0], zoo.checkpoint(second, 2).weights()[0]])
    guesses = predictions(zoo.schema, both, images.test.images, "tanh")
    assert found.pair.agreement == pytest.approx(float((guesses[0] == guesses[1]).double().mean()))
    recorded = zoo.checkpoint(second, 2).metadata["test_accuracy"][0].as_py()
    assert found.pair.lines[0].accuracy[-1] == pytest.approx(recorded)
    picture = tmp_path / "line.svg"
    done = CliRunner().invoke(main, ["compare", str(zoo.folder), first, second, "--plot", str(picture), "--json"])
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in json.loads(done.stdout)["lines"]] == ["plain", "aligned", "rescaled"]
    assert b"test accuracy" in picture.read_bytes()
    text = CliRunner().invoke(main, ["compare", str(zoo.folder), first, second]).stdout
    assert "average, aligned" in text
    assert "barrier" in text


def test_pairs_of_a_zoo_have_a_distribution(zoo: Zoo) -> None:
    found = compare_pairs(zoo, 5)
    assert found.pairs == 5
    assert found == compare_pairs(zoo, 5)
    for values in found.quantiles.values():
        assert values == sorted(values)
    assert found.quantiles["distance_aligned"][2] < found.quantiles["distance"][2]
    shown = CliRunner().invoke(main, ["compare", str(zoo.folder), "--pairs", "2"])
    assert shown.exit_code == 0, shown.output
    assert "loss barrier rescaled" in shown.stdout


def test_what_cannot_be_compared_is_refused_by_name(zoo: Zoo) -> None:
    first = zoo.models[0]
    with pytest.raises(ZooNotFoundError, match="has no epoch 7; stored: "):
        compare_two(zoo, f"{first}@7", first)
    with pytest.raises(SpecError, match="found the epoch 'x'; expected MODEL or MODEL@EPOCH"):
        compare_two(zoo, f"{first}@x", first)
    with pytest.raises(SpecError, match="has 1 models that can be compared; a pair needs two"):
        compare_pairs(zoo.model(first), 1)
    assert zoo.stored_spec is not None
    with pytest.raises(SpecError, match="does not say which images"):
        load_zoo_images(replace(zoo, stored_spec=None))
    other = build_schema(Mlp(name="mlp", hidden=(3,)), (1, 4, 4), 4)
    with pytest.raises(SpecError, match=r"the reference: found the shape \(1, 67\); networks of mlp are \[n, 100\]"):
        match_weights(zoo.schema, zoo.weights(), torch.zeros(other.size))
    for arguments, expected in ((["--pairs", "2", first], "takes neither"), ([first], "expected two networks")):
        refused = CliRunner().invoke(main, ["compare", str(zoo.folder), *arguments])
        assert (refused.exit_code, expected in refused.output) == (2, True)


def test_the_command_aligns_by_every_method(zoo: Zoo, tmp_path: Path) -> None:
    for method in ("activations", "straight-through"):
        arguments = ["align", str(zoo.folder), "--method", method, "-o", str(tmp_path / method), "--quiet", "--json"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        copies = open_zoo(tmp_path / method)
        assert copies.imported is not None
        assert copies.imported.options["method"] == json.loads(done.stdout)["method"] == method
        assert copies.imported.check.largest_difference == 0
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "activations")]).stdout
    assert "zootools align, not by training" in shown
    wrong = CliRunner().invoke(main, ["align", str(zoo.folder), "--method", "weight", "-o", str(tmp_path / "x")])
    assert (wrong.exit_code, "did you mean 'weights'" in wrong.output) == (2, True)
