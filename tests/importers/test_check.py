"""The proof of an import: correct populations pass, and every planted mistake is an error that names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from populations import IMAGES, PATTERN, SCHEMA, Checkpoint
from safetensors.torch import save_file
from torch import Tensor

from zootools import import_zoo
from zootools.errors import SpecError
from zootools.spec import DatasetImages
from zootools.storage.manifest import Manifest

State = dict[str, Tensor]
Import = Callable[..., Manifest]


def kernels(state: State, dimension: int, change: Callable[[Tensor], Tensor]) -> State:
    """Change all kernels of convolutions (4) or dense layers (2)."""
    return {name: change(w) if w.dim() == dimension else w for name, w in state.items()}


def in_tensorflows_order(kernel: Tensor) -> Tensor:
    """The values of a kernel in the order (height, width, in, out), with the shape that an importer gives them."""
    axes = (2, 3, 1, 0) if kernel.dim() == 4 else (1, 0)
    return kernel.permute(axes).reshape(kernel.shape).contiguous()


def biases_first(state: State) -> State:
    """The values of every layer with its biases before its weights."""
    changed: State = {}
    names = list(state)
    for weight, bias in zip(names[::2], names[1::2], strict=True):
        flat = torch.cat([state[bias], state[weight].reshape(-1)])
        changed[weight] = flat[: state[weight].numel()].reshape(state[weight].shape)
        changed[bias] = flat[state[weight].numel() :]
    return changed


def renumbered(state: State) -> State:
    """The classes in another order."""
    order = torch.tensor([3, 7, 0, 1, 9, 8, 2, 6, 5, 4])
    last = sorted(state, key=lambda name: (int(name.split(".")[0]), name))[-2:]
    return {name: tensor[order] if name in last else tensor for name, tensor in state.items()}


MISTAKES: dict[str, tuple[Callable[[State], State], dict[str, object], str]] = {
    "convolutions": (
        lambda state: kernels(state, 4, in_tensorflows_order), {},
        "the convolution kernels are still in TensorFlow's order",
    ),
    "dense": (
        lambda state: kernels(state, 2, in_tensorflows_order), {},
        "the dense kernels are still in TensorFlow's order",
    ),
    "all": (
        lambda state: kernels(kernels(state, 2, in_tensorflows_order), 4, in_tensorflows_order), {},
        "all kernels are still in TensorFlow's order",
    ),
    "turned": (
        lambda state: kernels(state, 4, lambda kernel: kernel.transpose(2, 3).contiguous()), {},
        "height and width of the convolution kernels are exchanged",
    ),
    "biases": (biases_first, {}, "the biases of each layer precede its weights"),
    "classes": (renumbered, {}, "the classes are numbered in another order"),
    "activation": (dict, {"constants": {"activation": "relu"}}, "the activation is tanh"),
    "nonsense": (
        lambda state: kernels(state, 4, lambda kernel: kernel.abs()), {},
        "none of these explains the recorded accuracies",
    ),
}  # fmt: skip
"""What is done to the files, the options of the import, and what its error says."""


@pytest.fixture
def planted(tmp_path: Path, checkpoints: list[Checkpoint], scores: Path) -> Callable[[str], Manifest]:
    """A function that imports the population with one of `MISTAKES`."""

    def run(mistake: str) -> Manifest:
        change, options, _ = MISTAKES[mistake]
        for checkpoint in checkpoints:
            path = tmp_path / "wrong" / f"seed{checkpoint.seed}" / f"epoch{checkpoint.epoch}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(change(checkpoint.state), path)
        usual: dict[str, Any] = {
            "images": IMAGES,
            "constants": {"activation": "tanh"},
            "path_pattern": PATTERN,
            "model_schema": SCHEMA,
        }
        merged: dict[str, Any] = {**usual, "properties": scores, **options}
        return import_zoo("state-dicts", tmp_path / "wrong", tmp_path / "zoo", quiet=True, **merged)

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_an_error_that_names_it(
    planted: Callable[[str], Manifest], mistake: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"of 16 checkpoints do not reach their recorded test_accuracy") as refused:
        planted(mistake)
    print(f"\n{mistake}: {refused.value}")
    assert MISTAKES[mistake][2] in str(refused.value)
    assert not (tmp_path / "zoo").exists()


def test_another_normalisation_is_named(
    tmp_path: Path, import_files: Import, scores: Path, checkpoints: list[Checkpoint]
) -> None:
    """The networks were trained on images without a normalisation, as the first kernel and its bias can express."""
    for checkpoint in checkpoints:
        state = dict(checkpoint.state)
        first = state["0.weight"]
        state["0.weight"] = first / 0.4
        state["0.bias"] = state["0.bias"] - first.sum(dim=(1, 2, 3)) * 0.3 / 0.4
        save_file(state, tmp_path / "runs" / f"seed{checkpoint.seed}" / f"epoch{checkpoint.epoch}.safetensors")
    with pytest.raises(SpecError, match=r"if the images are not normalised \(mean 0, std 1\)"):
        import_files(properties=scores, images=IMAGES)
    plain = DatasetImages(name="digits", train=300, test=200)
    assert import_files(properties=scores, images=plain).imported is not None


def test_what_was_not_checked_is_said(import_files: Import, scores: Path, tmp_path: Path) -> None:
    manifest = import_files(properties=scores)
    assert manifest.imported is not None
    reason = "the images that the models were trained on are not given (--images)"
    assert manifest.imported.check.not_checked == reason
    assert "**not checked** on images" in (tmp_path / "zoo" / "README.md").read_text()


def test_a_check_can_be_left_out_and_the_card_says_so(
    planted: Callable[[str], Manifest], import_files: Import, scores: Path, tmp_path: Path
) -> None:
    manifest = import_files(properties=scores, images=IMAGES, check=0, constants={"activation": "relu"})
    assert manifest.imported is not None
    assert "not asked for" in manifest.imported.check.not_checked
    assert "not asked for" in (tmp_path / "zoo" / "README.md").read_text()


def test_the_numbers_of_the_check_are_in_the_manifest(import_files: Import, scores: Path, tmp_path: Path) -> None:
    import_files(properties=scores, images=IMAGES, check=5)
    check = json.loads((tmp_path / "zoo" / "zoo.json").read_text())["imported"]["check"]
    assert (check["checkpoints"], check["images"]) == (5, "200 test images of digits")
    assert check["column"] == "test_accuracy"
    assert check["largest_difference"] == 0
    assert check["permutation_difference"] < 1e-4


def test_images_of_another_size_are_refused(import_files: Import, scores: Path, tmp_path: Path) -> None:
    images = DatasetImages(name="digits", train=300, test=200, size=10)
    with pytest.raises(SpecError, match="1 x 10 x 10 pixels and 10 classes, but the layers take 1 x 8 x 8"):
        import_files(properties=scores, images=images)
    assert not (tmp_path / "zoo").exists()
