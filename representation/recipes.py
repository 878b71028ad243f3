"""Recipes: named settings of representation learning, as YAML files beside this module.

The defaults are the settings that the twelve scripts of the paper's released code have in common; a recipe file has the
others. Nothing here imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow.compute as pc
from pydantic import AfterValidator, Discriminator, Field, WithJsonSchema, model_validator

from representation.errors import PlacedError
from representation.loss_kinds import LOSS_KINDS
from zootools.bundled import find_bundled
from zootools.errors import SpecError, did_you_mean
from zootools.spec.sections import Override, Section, load_section
from zootools.zoo import Zoo

Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

LONGEST_LATENT, MOST_INVARIANT = 700, 128
"""The largest lengths that ``auto`` gives."""


def _known_loss(name: str) -> str:
    if name not in LOSS_KINDS:
        raise ValueError(f"found {name!r}{did_you_mean(name, LOSS_KINDS)}")
    return name


LossName = Annotated[str, AfterValidator(_known_loss), WithJsonSchema({"type": "string", "enum": list(LOSS_KINDS)})]
"""A row of `LOSS_KINDS`."""


class Epochs(Section):
    """The epochs of the zoo's models to train on. Epoch 0, the initialisation, is left out by default."""

    first: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """The first epoch."""
    last: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """The last epoch; by default the last one that the zoo has."""
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Step between the epochs, from ``first`` on."""

    def select(self, zoo: Zoo) -> Zoo:
        """Return the checkpoints of a zoo at these epochs. Raises SpecError if it has none."""
        stored = sorted(zoo.metadata["epoch"].unique().to_pylist())
        last = stored[-1] if self.last is None and stored else self.last or 0
        kept = [epoch for epoch in stored if self.first <= epoch <= last and (epoch - self.first) % self.every == 0]
        if not kept:
            found = f"its checkpoints are of the epochs {_short(stored)}" if stored else "it has no checkpoints"
            hint = "; epochs.first=0 takes them" if stored == [0] else ""
            wanted = self.dump() or "all but 0"
            raise PlacedError(zoo.folder, f"nothing to learn from: epochs are {wanted}, and {found}{hint}")
        return zoo.where(pc.field("epoch").isin(kept))


class Network(Section):
    """What all encoders have: the length of the representation."""

    latent: Width | Literal["auto"]
    """Length L of the representation z; ``auto`` is half of the number of weights, but at most 700: the paper's 50 for
    its MLP and 700 for its CNN."""

    def sized(self, weights: int) -> Self:
        """Return the same section with numbers in the place of ``auto``, for networks of ``weights`` weights."""
        if self.latent != "auto":
            return self
        return self.model_copy(update={"latent": max(2, min(weights // 2, LONGEST_LATENT))})

    @property
    def length(self) -> int:
        """The length of z. Raises SpecError if the section is not `sized`."""
        if self.latent == "auto":
            raise SpecError("encoder.latent is auto: its number follows from the networks (Recipe.sized)")
        return self.latent

    @property
    def compared(self) -> int:
        """How many of the numbers of z the contrast and the prediction of the statistics see: the first ones."""
        return self.length

    @property
    def coded(self) -> int:
        """How many of the numbers of z a linear map from the weights reaches: the last ones; 0 without the map."""
        return 0

    @property
    def starts_from_pca(self) -> bool:
        """Whether the linear maps begin as a linear code."""
        return False

    @property
    def standardises(self) -> bool:
        """Whether the weights are standardised."""
        return False

    @property
    def compresses(self) -> bool:
        """Whether the layer statistics are compressed before they are standardised."""
        return False

    @property
    def widest(self) -> int | None:
        """Layers with more inputs have a learning rate that is lower in proportion; None if all have the same."""
        return None


class Attention(Network):
    """Multi-head self-attention over tokens, with learned positions and pre-norm blocks; the decoder mirrors it."""

    kind: Literal["attention"]
    """A transformer encoder and decoder."""
    tokens: Literal["neuron", "weight"] = "neuron"
    """A token is a neuron or kernel, its incoming weights and its bias; or a single weight."""
    compression_token: bool = True
    """The bottleneck reads only the output of one extra, learned token; if false, the whole sequence."""
    width: Width
    """Length of a token inside the encoder."""
    heads: Depth
    """Number of attention heads, a divisor of `width`."""
    blocks: Depth
    """Number of blocks of the encoder, and of the decoder."""
    hidden: Width
    """Width of the feed-forward part of a block."""
    dropout: Rate = 0.1
    """Dropout after the attention and after the feed-forward part of a block."""
    attention_dropout: Rate = 0.1
    """Dropout of the attention's softmax."""
    positions_std: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Standard deviation of the initial positions and the initial compression token."""
    standardise: Literal["none", "layer"] = "none"
    """``layer``: each layer's weights, and its biases, get mean 0 and variance 1 over the training networks."""
    skip: Literal["none", "linear"] = "none"
    """``linear``: a linear map beside the encoder, from the weights to z, and one beside the decoder."""
    start: Literal["random", "pca"] = "random"
    """``pca``: the linear maps of `skip` begin as the best linear code of permuted training networks."""

    @property
    def coded(self) -> int:
        """See `Network.coded`."""
        return self.length if self.skip == "linear" else 0

    @property
    def starts_from_pca(self) -> bool:
        """See `Network.starts_from_pca`."""
        return self.start == "pca"

    @property
    def standardises(self) -> bool:
        """See `Network.standardises`."""
        return self.standardise == "layer"

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.start == "pca" and self.skip == "none":
            raise ValueError("start is pca, but there is no linear map (skip is none)")
        return self


class NeuronSet(Network):
    """A network over the set of neurons, equivariant to the permutations of all hidden layers, with linear maps.

    The first numbers of z are invariant to permutations, the others are not: they make the reconstruction possible.
    """

    kind: Literal["set"]
    """Neurons exchange messages along their weights."""
    invariant: Width | Literal["auto"] = "auto"
    """How many numbers of z are invariant; ``auto`` is three fifths of them, but at most 128."""
    width: Width = 64
    """Length of a neuron's features."""
    hidden: Width = 128
    """Width of the hidden layers."""
    blocks: Depth = 2
    """Number of exchanges of messages."""
    start: Literal["random", "pca"] = "pca"
    """``pca``: the linear maps begin as the best linear code of permuted training networks."""
    statistics: Literal["standardised", "compressed"] = "standardised"
    """How the layer statistics are scaled that the encoder reads and that `loss.statistics` predicts. ``standardised``:
    mean 0 and variance 1 over the training networks. ``compressed``: before that, 3 asinh(x / 3) of their distance x
    from the median, in deviations by the quartiles, so that few networks of huge weights do not decide the scale."""

    def sized(self, weights: int) -> Self:
        """Return the same section with numbers in the place of ``auto``, for networks of ``weights`` weights."""
        section = super().sized(weights)
        if section.invariant != "auto":
            return section
        return section.model_copy(update={"invariant": max(1, min(3 * section.length // 5, MOST_INVARIANT))})

    @property
    def compared(self) -> int:
        """The numbers that are invariant to permutations. Raises SpecError if the section is not `sized`."""
        if self.invariant == "auto":
            raise SpecError("encoder.invariant is auto: its number follows from the networks (Recipe.sized)")
        return self.invariant

    @property
    def coded(self) -> int:
        """The numbers of z that are not invariant."""
        return self.length - self.compared

    @property
    def starts_from_pca(self) -> bool:
        """See `Network.starts_from_pca`."""
        return self.start == "pca"

    @property
    def standardises(self) -> bool:
        """See `Network.standardises`."""
        return True

    @property
    def compresses(self) -> bool:
        """See `Network.compresses`."""
        return self.statistics == "compressed"

    @property
    def widest(self) -> int | None:
        """See `Network.widest`."""
        return 2 * self.width

    @model_validator(mode="after")
    def _split(self) -> Self:
        invariant = 1 if self.invariant == "auto" else self.invariant
        if self.latent != "auto" and invariant >= self.latent:
            raise ValueError(f"invariant {invariant} is not below latent {self.latent}")
        return self


class FeedForward(Network):
    """The paper's baseline FF: fully connected layers from the flat weights to z, of widths in equal steps."""

    kind: Literal["feed_forward"]
    """Fully connected layers with ReLU."""
    layers: Depth = 10
    """Number of linear layers of the encoder, and of the decoder."""
    dropout: Rate = 0.1
    """Dropout after every hidden layer."""


class Head(Section):
    """The projection head of the contrast: layers of Linear, batch norm, ReLU, then a last Linear and batch norm."""

    layers: Annotated[int, Field(ge=0, le=100)] = 3
    """Number of hidden layers."""
    hidden: Width = 50
    """Width of the hidden layers."""
    outputs: Width = 20
    """Length of the vectors that the contrast compares."""


class Loss(Section):
    """beta * reconstruction + (1 - beta) * contrast, or one of them alone (paper, section 3)."""

    kind: LossName
    """Reconstruction alone, contrast alone (NT-Xent), both, or reconstruction and a contrast of positive pairs only."""
    beta: Share = 0.5
    """Weight of the reconstruction in EcD and Ec+D; 1 - gamma of the released code."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Divides the cosine similarities of the contrast."""
    reduction: Literal["mean", "sum"] = "mean"
    """``mean`` as in the released code; ``sum`` as in equations 2 and 3: over weights, and over pairs."""
    reconstruction: Literal["global", "layerwise", "explained"] = "global"
    """``layerwise`` divides the squared error by the variance of the layer's weights, and weighs layers equally;
    ``explained`` divides it by the variance of permuted training networks, so that it is 1 - R2."""
    statistics: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of one more term: the squared error of a linear prediction of the network's standardised layer statistics
    s(W) from z. It needs no labels."""
    behaviour: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of one more term: the squared difference of the logits of a network and of its reconstruction on training
    images of its zoo, divided by the variance of the logits. It needs the files of the images."""
    target: Literal["view", "clean"] = "view"
    """Target of the reconstruction: the view itself with its erased zeros, or the view before erasing and noise."""
    positive: Literal["equation_3", "paper_code"] = "equation_3"
    """Contrast of Ec+D: equation 3 attracts the two views; the term of the released code repels them."""

    @model_validator(mode="after")
    def _behaviour(self) -> Self:
        if self.behaviour and not self.reconstructs:
            raise ValueError(f"behaviour is {self.behaviour:g}, but the loss {self.kind} does not reconstruct")
        return self

    @property
    def reconstructs(self) -> bool:
        """Whether the loss has a reconstruction term, and with it a decoder that is trained."""
        return LOSS_KINDS[self.kind].reconstructs

    @property
    def contrasts(self) -> bool:
        """Whether the loss has a contrast, and with it a projection head that is trained."""
        return bool(LOSS_KINDS[self.kind].contrast)


class Augmentation(Section):
    """How views are drawn."""

    permute: bool = True
    """Permute the neurons of every hidden layer, which does not change the function of the network."""
    orders: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many orders of each hidden layer there are to draw from, drawn once, as in the released code, which has 6 for
    a layer of 4 neurons; by default every order."""
    identical: bool = False
    """Both views of a network are one and the same draw, as in the released code without permutations."""
    erase_probability: Share = 0.5
    """Share of the views in which a block of the flat weights is set to zero."""
    erase_lower: Share = 0.02
    """Smallest length of the erased block, as a share of all weights."""
    erase_upper: Share = 0.33
    """Largest length of the erased block, as a share of all weights."""
    noise: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Standard deviation of the Gaussian noise."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.erase_lower > self.erase_upper:
            raise ValueError(f"erase_lower {self.erase_lower:g} is above erase_upper {self.erase_upper:g}")
        return self


class EncoderTraining(Section):
    """How the encoder is trained: Adam."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Passes over the checkpoints of the train split, or groups of `steps` steps."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps of an epoch; by default as many as one pass over the checkpoints takes. With a number, the length of the
    training does not depend on the size of the zoo."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Networks per step, each with two views; an epoch leaves out the rest that does not fill a batch."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    """Learning rate; for `one_cycle` the highest."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-9
    """L2 penalty, added to the gradient."""
    schedule: Literal["plateau", "one_cycle", "constant"] = "plateau"
    """``plateau``: times 0.3 after 10 epochs without a lower training loss, as in the released code; ``one_cycle``: up
    and down again over the whole training; ``constant``: `lr` throughout."""
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    """Precision of matrix products; weights, losses and optimizer are always float32. tf32 is for CUDA; ``auto`` is
    bf16 if the device has instructions for it, else fp32."""
    best: Literal["loss", "reconstruction"] = "loss"
    """The figure on the validation split by which the kept epoch is chosen."""

    def steps_of_epoch(self, checkpoints: int) -> int:
        """Return the steps of an epoch on a number of checkpoints, at least 1."""
        return self.steps or checkpoints // min(self.batch_size, checkpoints)


class Recipe(Section):
    """Everything that decides an encoder, except the zoo and the seed."""

    description: str = ""
    """A sentence for readers. It decides nothing: with another one, an encoder is still that of the recipe."""
    epochs: Epochs = Epochs()
    """The checkpoints to train on."""
    largest_weight: Annotated[float, Field(gt=0, le=1e38)] | None = None
    """Checkpoints with a weight of a larger absolute value are left out: models that explode and stay finite dominate
    variances and linear probes. By default only checkpoints with weights that are not finite are left out."""
    encoder: Annotated[Attention | FeedForward | NeuronSet, Discriminator("kind")]
    """The network to train."""
    head: Head = Head()
    """The projection head between z and the contrast."""
    loss: Loss
    """The loss to minimise."""
    augmentation: Augmentation = Augmentation()
    """How the two views of a network are drawn."""
    training: EncoderTraining
    """The optimizer, and the number of epochs."""

    def sized(self, weights: int) -> Self:
        """Return the recipe with numbers in the place of ``auto``, for networks of ``weights`` weights."""
        return self.model_copy(update={"encoder": self.encoder.sized(weights)})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.training.best == "reconstruction" and not self.loss.reconstructs:
            raise ValueError(f"training.best is reconstruction, but the loss {self.loss.kind} does not reconstruct")
        return self


def without_description(recipe: Recipe) -> Recipe:
    """Return the recipe without its description, which decides no encoder."""
    return recipe.model_copy(update={"description": ""})


RecipeIdentity = Annotated[Recipe, AfterValidator(without_description)]
"""The recipe of an identity: recipes that differ in the description only are the same there."""


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package by name, in alphabetical order."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str | Override] = ()) -> Recipe:
    """Read a recipe, given as a file or the name of a bundled one; ``overrides`` are ``"key.path=value"``.

    Raises SpecError listing every fault with its file and line, the value found, and the values allowed.
    """
    return load_section(Recipe, find_bundled(name_or_path, bundled_recipes(), "recipe"), overrides)


def _short(epochs: list[int]) -> str:
    return str(epochs) if len(epochs) <= 10 else f"{epochs[0]} to {epochs[-1]}"
