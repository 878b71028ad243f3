"""Recipes: named settings of representation learning, as YAML files beside this module.

The defaults are what the twelve scripts of the paper's released code have in common; a recipe file says what
differs. Nothing here imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow.compute as pc
from pydantic import Discriminator, Field, model_validator

from zootools.bundled import find_bundled
from zootools.errors import SpecError
from zootools.sections import Section, load_section
from zootools.zoo import Zoo

Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Epochs(Section):
    """Which epochs of the zoo's models are learned from. Epoch 0, the initialisation, is left out."""

    first: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    last: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Of the epochs from ``first`` on, only every so many."""

    def select(self, zoo: Zoo) -> Zoo:
        """Return the checkpoints of a zoo at these epochs. Raises SpecError when there are none."""
        stored = sorted(zoo.metadata["epoch"].unique().to_pylist())
        last = stored[-1] if self.last is None and stored else self.last or 0
        kept = [epoch for epoch in stored if self.first <= epoch <= last and (epoch - self.first) % self.every == 0]
        if not kept:
            found = f"its checkpoints are of the epochs {_short(stored)}" if stored else "it has no checkpoints"
            hint = "; epochs.first=0 takes them" if stored == [0] else ""
            wanted = self.dump() or "all but 0"
            raise SpecError(f"{zoo.folder}: nothing to learn from: epochs are {wanted}, and {found}{hint}")
        return zoo.where(pc.field("epoch").isin(kept))


class Attention(Section):
    """Multi-head self-attention over tokens, with learned positions and pre-norm blocks; the decoder mirrors it."""

    kind: Literal["attention"]
    tokens: Literal["neuron", "weight"] = "neuron"
    compression_token: bool = True
    """Only the output of one learned extra token goes into the bottleneck, else the whole sequence."""
    latent: Width
    """Length L of the representation z."""
    width: Width
    """Length of a token inside the encoder."""
    heads: Depth
    blocks: Depth
    hidden: Width
    """Width of the feed-forward part of a block."""
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    positions_std: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Spread of the learned positions and the compression token at the start."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class FeedForward(Section):
    """The paper's baseline FF: fully connected layers from the flat weights to z, of widths in equal steps."""

    kind: Literal["feed_forward"]
    latent: Width
    layers: Depth = 10
    dropout: Rate = 0.1


class Head(Section):
    """The projection head of the contrast: layers of Linear, batch norm, ReLU, then a last Linear and batch norm."""

    layers: Annotated[int, Field(ge=0, le=100)] = 3
    hidden: Width = 50
    outputs: Width = 20


class Loss(Section):
    """beta * reconstruction + (1 - beta) * contrast, or one of them alone (paper, section 3)."""

    kind: Literal["ED", "Ec", "EcD", "Ec+D"]
    beta: Share = 0.5
    """Weight of the reconstruction in EcD and Ec+D; 1 - gamma of the released code."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.1
    reduction: Literal["mean", "sum"] = "mean"
    """``mean`` as in the released code; ``sum`` as equations 2 and 3 are printed: over weights, and over pairs."""
    reconstruction: Literal["global", "layerwise"] = "global"
    """``layerwise`` divides the squared error by the variance of the layer's weights, and counts layers equally."""
    target: Literal["view", "clean"] = "view"
    """What is reconstructed: the view itself, erased zeros included, or what it was before erasing and noise."""
    positive: Literal["equation_3", "paper_code"] = "equation_3"
    """Contrast of Ec+D: attraction of the two views, or what the released code computes: it repels them."""


class Augmentation(Section):
    """How views are drawn."""

    permute: bool = True
    erase_probability: Share = 0.5
    erase_lower: Share = 0.02
    erase_upper: Share = 0.33
    """Bounds of the erased block, as a share of all weights."""
    noise: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Standard deviation of the Gaussian noise."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.erase_lower > self.erase_upper:
            raise ValueError(f"erase_lower {self.erase_lower:g} is above erase_upper {self.erase_upper:g}")
        return self


class Training(Section):
    """How the encoder is trained: Adam."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-9
    schedule: Literal["plateau", "one_cycle", "constant"] = "plateau"
    """``plateau``: times 0.3 after 10 epochs without a lower training loss, as in the released code."""
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    """Of the products of matrices; weights, losses and optimizer are always float32. tf32 is for CUDA; ``auto`` is
    bf16 where the device computes in it, else fp32."""
    best: Literal["loss", "reconstruction"] = "loss"
    """Which figure of the validation split chooses the kept epoch."""


class Recipe(Section):
    """Everything that decides an encoder, but for the zoo and the seed."""

    description: str = ""
    epochs: Epochs = Epochs()
    encoder: Annotated[Attention | FeedForward, Discriminator("kind")]
    head: Head = Head()
    loss: Loss
    augmentation: Augmentation = Augmentation()
    training: Training

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.training.best == "reconstruction" and self.loss.kind == "Ec":
            raise ValueError("training.best is reconstruction, but the loss Ec does not reconstruct")
        return self


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package by name, in alphabetical order."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, given as a file or the name of a bundled one; ``overrides`` are ``"key.path=value"``.

    Raises SpecError listing every fault with its file and line, what was found, and what is allowed.
    """
    return load_section(Recipe, find_bundled(name_or_path, bundled_recipes(), "recipe"), overrides)


def _short(epochs: list[int]) -> str:
    return str(epochs) if len(epochs) <= 10 else f"{epochs[0]} to {epochs[-1]}"
