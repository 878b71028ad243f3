"""`loss.behaviour`: reconstructed networks are compared with the networks by what they compute on images."""

import json
from pathlib import Path

import pytest
import torch

from representation import load_recipe, train_encoder
from representation.training.behaviour import Behaviour
from zootools import open_zoo
from zootools.errors import SpecError

SMALL = ["training.epochs=1", "training.steps=3", "training.batch_size=8", "encoder.latent=8"]


def test_it_is_zero_for_equal_functions_and_one_for_networks_that_compute_nothing(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo).last()
    behaviour, weights, schema = Behaviour.of(zoo), zoo.weights(), zoo.schema
    order = schema.permutation_index({layer.name: range(layer.outputs)[::-1] for layer in schema.layers[:-1]})

    def loss(outputs: torch.Tensor) -> float:
        return float(behaviour.loss(schema, outputs, weights, torch.Generator().manual_seed(0)))

    assert loss(weights) == 0
    assert loss(weights[:, order]) < 1e-10  # permuted neurons are far away in weights and compute the same
    silent = weights.clone()
    silent[:, schema.parameters[-1].offset :] = 0  # without biases, the logits are 0
    assert loss(silent) > 0.9
    assert 0 < loss(weights * 1.01) < 0.01


def test_it_is_a_term_of_the_loss_only_where_a_recipe_has_it(tiny_zoo: Path, tmp_path: Path) -> None:
    lines = {}
    for weight in (0, 2):
        recipe = load_recipe("reconstruction", [*SMALL, f"loss.behaviour={weight}"])
        assert ("behaviour" in recipe.dump()["loss"]) == bool(weight)
        train_encoder(open_zoo(tiny_zoo), recipe, tmp_path / str(weight), quiet=True)
        lines[weight] = json.loads((tmp_path / str(weight) / "log.jsonl").read_text())
    assert "train_behaviour" not in lines[0]
    for part in ("train", "validation"):
        term = lines[2][f"{part}_behaviour"]
        assert term > 0
        assert lines[2][f"{part}_total"] == pytest.approx(lines[2][f"{part}_reconstruction"] + 2 * term, rel=1e-4)


def test_recipes_and_zoos_without_it_are_refused(look_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="behaviour is 1, but the loss Ec does not reconstruct"):
        load_recipe("default", ["loss.kind=Ec", "loss.behaviour=1"])
    recipe = load_recipe("reconstruction", [*SMALL, "loss.behaviour=1"])
    with pytest.raises(SpecError, match="expects one activation; found relu, tanh"):
        train_encoder(open_zoo(look_zoo), recipe, tmp_path, quiet=True)
