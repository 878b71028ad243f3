"""Recipes: every bundled one is valid, and what is wrong is named."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

from representation.recipes import Attention, Epochs, bundled_recipes, load_recipe
from zootools import open_zoo
from zootools.bundled import bundled_specs
from zootools.errors import SpecError

TEXT = """\
encoder: {kind: attention, latent: 6, width: 8, heads: 2, blocks: 1, hidden: 12}
loss: {kind: EcD}
training: {epochs: 3}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*changes: tuple[str, str]) -> str:
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_bundled_recipe_is_valid_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.epochs.first == 1  # the initialisation is left out


def test_every_zoo_of_the_paper_has_a_recipe_in_both_kinds() -> None:
    zoos = {
        name for name in bundled_specs() if not (name.startswith(("digits", "svhn_seed")) or name.endswith("_2022"))
    }
    assert len(zoos) == 12
    expected = {f"{zoo}_{kind}" for zoo in zoos for kind in ("paper_text", "paper_code")}
    assert set(bundled_recipes()) == expected | {"default", "reconstruction", "smoke"}


def test_the_defaults_are_what_the_papers_scripts_share() -> None:
    recipe = load_recipe("tetris_seed_paper_code")
    assert isinstance(recipe.encoder, Attention)
    assert (recipe.encoder.tokens, recipe.encoder.compression_token, recipe.encoder.dropout) == ("neuron", True, 0.1)
    augmentation, training = recipe.augmentation, recipe.training
    assert (augmentation.erase_probability, augmentation.erase_lower, augmentation.erase_upper) == (0.5, 0.02, 0.33)
    assert (training.batch_size, training.lr, training.weight_decay) == (500, 1e-4, 1e-9)
    assert (recipe.loss.temperature, recipe.loss.reduction, recipe.loss.target) == (0.1, "mean", "view")


def test_values_can_be_overridden(write: Callable[..., str]) -> None:
    recipe = load_recipe(write(), ["training.lr=1e-3", "loss.kind=Ec+D", "epochs={first: 0, every: 5}"])
    assert recipe.training.lr == 1e-3
    assert recipe.loss.kind == "Ec+D"
    assert recipe.epochs == Epochs(first=0, every=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs: 3", "epoch: 3"), r"recipe.yaml:3: training.epoch: unknown key; did you mean 'epochs'?"),
        (("latent: 6", "latnt: 6"), r"recipe.yaml:1: encoder.latnt: unknown key; did you mean 'latent'?"),
        (("EcD", "EcDD"), r"recipe.yaml:2: loss.kind: found 'EcDD'; did you mean 'EcD'?"),
        (("attention", "atention"), r"encoder.kind: found 'atention'; did you mean 'attention'?"),
        (("width: 8", "width: 9"), r"recipe.yaml:1: encoder: width 9 is not a multiple of heads 2"),
        (("epochs: 3", "epochs: three"), r"recipe.yaml:3: training.epochs: found 'three'"),
        (("kind: EcD}", "kind: Ec}"), "training.best is reconstruction, but the loss Ec does not reconstruct"),
        (("kind: EcD", "kind: EcD, beta: 1.5"), r"loss.beta: found 1.5; input should be less than or equal to 1"),
    ],
)
def test_faults_are_named_with_line_key_and_nearest_choice(
    write: Callable[..., str], change: tuple[str, str], message: str
) -> None:
    overrides = ["training.best=reconstruction"] if "reconstruct" in message else []
    with pytest.raises(SpecError) as error:
        load_recipe(write(change), overrides)
    assert message in str(error.value)


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match=r"no such file or bundled recipe; did you mean 'default'\?"):
        load_recipe("defualt")


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [(Epochs(), [1, 2]), (Epochs(first=0), [0, 1, 2]), (Epochs(last=1), [1]), (Epochs(first=0, every=2), [0, 2])],
)
def test_epochs_choose_the_checkpoints(tiny_zoo: Path, epochs: Epochs, kept: list[int]) -> None:
    chosen = epochs.select(open_zoo(tiny_zoo)).metadata["epoch"]
    assert sorted(pc.unique(chosen).to_pylist()) == kept


def test_epochs_that_the_zoo_does_not_have_are_refused(tiny_zoo: Path) -> None:
    with pytest.raises(
        SpecError, match=r"epochs are \{'first': 9\}, and its checkpoints are of the epochs \[0, 1, 2\]"
    ):
        Epochs(first=9).select(open_zoo(tiny_zoo))
