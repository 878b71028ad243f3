"""The zoo specification: one YAML file with everything that decides the bytes of a zoo.

`load_spec` reads and validates it; `zootools.spec.model_configs` turns a valid `ZooSpec` into its models.
This package does not import torch, so that an invalid specification is refused in a fraction of a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import Discriminator, Field, model_validator

from zootools.errors import SpecError
from zootools.spec.images import Images
from zootools.spec.population import Grid, Hyperparameters, Sample, Seeds
from zootools.spec.registered import HOW_TO_REGISTER, is_registered
from zootools.spec.sections import Section, load_section, parse_section
from zootools.spec.short_forms import long_form
from zootools.spec.values import MAX_CHECKPOINTS, MAX_MODELS, Count, Line, Name

CnnName = Literal["cnn_small", "cnn_unterthiner", "cnn_large"]
"""The networks of `zootools.architectures.registry.CNNS`, which has a row for each."""


class Mlp(Section):
    """A fully connected network; its input and output sizes come from the images."""

    name: Literal["mlp"]
    """Linear layers with the model's activation and dropout between them."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=16)] = Field(
        examples=[[32, 32]]
    )
    """Widths of the hidden layers."""
    bias: bool = True
    """Whether the layers have biases."""


class Cnn(Section):
    """One of the registered convolutional networks (`zootools.architectures`)."""

    name: CnnName
    """The paper's CNN (2464 parameters on 28 x 28 grey images), that of Unterthiner et al. (4970 on one channel), and a
    larger one (10,853 on 32 x 32 in colour)."""


Architecture = Annotated[Mlp | Cnn, Discriminator("name")]


class OwnArchitecture(Section):
    """An architecture that `zootools.register_architecture` or an entry point has added."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Training(Section):
    """Length and steps of the training of every model, and the epochs whose checkpoints are kept."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Images of one step; the last step of an epoch takes the rest."""
    train_metrics_images: Count | None = None
    """Number of training images, from the first, on which train loss and accuracy are measured; all by default."""
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Interval of the epochs whose checkpoints are kept, from epoch 0 (the initialisation) on; the last epoch is always
    kept."""
    checkpoint_epochs: tuple[Annotated[int, Field(ge=0, le=100_000)], ...] | None = Field(
        default=None, examples=[[0, 1, 2, 5, 10]]
    )
    """Or: the epochs whose checkpoints are kept, in increasing order; the last epoch is always kept."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        epochs = self.checkpoint_epochs
        if epochs is None:
            return self
        if "checkpoint_every" in self.model_fields_set:
            raise ValueError("expected one of checkpoint_every and checkpoint_epochs, found both")
        if list(epochs) != sorted(set(epochs)):
            raise ValueError("checkpoint_epochs: expected increasing epochs, each once")
        return self

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """The epochs whose checkpoints are kept; 0 is the initialisation, the last epoch is always kept."""
        if self.checkpoint_epochs is None:
            kept = set(range(0, self.epochs + 1, self.checkpoint_every))
        else:
            kept = {epoch for epoch in self.checkpoint_epochs if epoch <= self.epochs}
        return tuple(sorted(kept | {self.epochs}))


class Split(Section):
    """The share of models (never of checkpoints) in each split, and which models stay together."""

    train: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the split `train`; the three add up to 1. A hash assigns each model, so the shares are approximate."""
    validation: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the split `validation`."""
    test: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the split `test`."""
    group_by: Literal["model", "configuration"] = "model"
    """Unit that is never divided between splits: all epochs of a model, or all models of a configuration."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, found {total:g}")
        return self


class ZooSpec(Section):
    """A whole specification. Two equal specifications make equal zoos, byte for byte."""

    hints = {"architecture": HOW_TO_REGISTER}  # noqa: RUF012 (pydantic keeps it off the fields)

    name: Name
    """Name of the zoo, and by default of its folder."""
    description: Annotated[str, Field(max_length=10_000)] = ""
    """A sentence or two for the card and for searches."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")] = "cc-by-4.0"
    """Licence of the zoo, as the Hub spells it."""
    authors: Annotated[tuple[Line, ...], Field(max_length=100)] = Field(default=(), examples=[["Ada Lovelace"]])
    """The names of the authors, for the card."""
    citation: Annotated[str, Field(max_length=10_000)] = ""
    """How to cite the zoo, for the card: a BibTeX entry, or a sentence."""
    homepage: Annotated[str, Field(max_length=500, pattern=r"^https?://[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+$")] | None = (
        None
    )
    """The address of a page about the zoo, for the card; it begins with `https://` or `http://`."""
    images: Images = Field(examples=["mnist", {"name": "mnist", "train": 10_000}])
    """The images that the models are trained on."""
    architecture: Architecture = Field(examples=["cnn_small", {"name": "mlp", "hidden": [32, 32]}])
    """The network of the models."""
    grid: Grid = Field(examples=[{"activation": "tanh", "init": "normal", "optimizer": "adam", "lr": [0.001, 0.0001]}])
    """The hyper-parameters of the models: all combinations of the lists of values."""
    sample: Sample | None = Field(default=None, examples=[{"count": 10, "lr": {"log_uniform": [0.0001, 0.01]}}])
    """Hyper-parameters that are drawn at random instead."""
    seeds: Seeds = Field(examples=[10, [1, 2, 3], {"range": [1, 10]}])
    """The seeds with which each configuration is trained."""
    models: Annotated[int, Field(ge=1, le=MAX_MODELS)] | None = None
    """Number of models to train: those with the smallest ids, which spreads them over the grid. `--models` sets it."""
    training: Training = Field(examples=[{"epochs": 10, "batch_size": 32}])
    """Training of every model."""
    split: Split = Field(default=Split(), examples=[{"train": 0.7, "validation": 0.15, "test": 0.15}])
    """Division of the models for what is learned from the zoo."""

    @model_validator(mode="after")
    def _axes(self) -> Self:
        sampled = self.sample.axes if self.sample else {}
        for axis, draw in sampled.items():
            draw.check(axis, type(self.grid))
        both = sorted(set(self.grid.axes) & set(sampled))
        if both:
            raise ValueError(f"{both[0]} is in both grid and sample; expected it in one of them")
        named = set(self.grid.axes) | set(sampled)
        for name, field in Hyperparameters.model_fields.items():
            if field.is_required() and name not in named:
                raise ValueError(f"grid.{name} is missing: every model needs it")
        if self.model_count > MAX_MODELS:
            raise ValueError(
                f"grid, sample and seeds make {self.model_count:,} models; at most {MAX_MODELS:,} are allowed"
            )
        models, kept = self.models or self.model_count, len(self.training.kept_epochs)
        if models * kept > MAX_CHECKPOINTS:
            raise ValueError(
                f"{models:,} models of {kept} checkpoints each make {models * kept:,}; at most {MAX_CHECKPOINTS:,} are "
                "allowed: keep fewer (training.checkpoint_every, checkpoint_epochs), or make several zoos"
            )
        return self

    @classmethod
    def variant(cls, values: dict[str, Any]) -> type[Self]:
        """Return `OwnSpec` for an architecture that a user has added, otherwise this class."""
        architecture = values.get("architecture")
        if cls is not ZooSpec or not isinstance(architecture, dict):
            return cls
        name = architecture.get("name")
        bundled = {"mlp", *get_args(CnnName)}
        return cast(type[Self], OwnSpec) if name not in bundled and is_registered(name) else cls

    @classmethod
    def long_form(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return plain values with the short forms written out (`zootools.spec.short_forms.long_form`)."""
        return long_form(values)

    @property
    def unknown_names(self) -> list[str]:
        """Names that this version does not know; only a `zootools.spec.stored_spec.StoredSpec` has any."""
        return []

    @property
    def configuration_count(self) -> int:
        """Number of configurations, by arithmetic: nothing is expanded."""
        count = self.sample.count if self.sample else 1
        for values in self.grid.axes.values():
            count *= len(values)
        return count

    @property
    def model_count(self) -> int:
        """Number of models of the whole population, before ``models`` selects a part of it."""
        return self.configuration_count * self.seeds.per_configuration


class OwnSpec(ZooSpec):
    """A specification whose architecture a user has added."""

    architecture: OwnArchitecture  # type: ignore[assignment]


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> ZooSpec:
    """Read a specification file and validate it.

    Args:
        path: the YAML file. Names of bundled specifications are found by `zootools.bundled.find_spec`.
        overrides: ``"key.path=value"`` strings, as given by ``--set``; they become part of the zoo's own spec.yaml.

    Raises SpecError listing every error with file, line and key, the value found, and the allowed values.
    """
    if not isinstance(path, str | Path):
        raise SpecError(f"load_spec: expected the path of a YAML file, found {type(path).__name__}")
    return load_section(ZooSpec, Path(path), overrides)


def parse_spec(values: dict[str, Any], source: str) -> ZooSpec:
    """Validate plain values that were read from ``source``. Raises SpecError as `load_spec` does."""
    return parse_section(ZooSpec, values, source)
