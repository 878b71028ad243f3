"""The zoo specification: one YAML file that says everything that decides the bytes of a zoo.

`load_spec` reads and validates; `zootools.spec.model_configs` turns a valid `ZooSpec` into its models.
Nothing here imports torch: a bad specification is refused in a fraction of a second.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Discriminator, Field, ValidationError, model_validator

from zootools.errors import SpecError, did_you_mean
from zootools.spec.sections import Section, choices_of, load_section, lower_first, parse_section
from zootools.spec.yaml_reader import Key

MAX_MODELS = 1_000_000
MAX_CHECKPOINTS = 10_000_000
"""No zoo is planned beyond this many models: the plan itself would not fit the memory."""

Activation = Literal["tanh", "relu", "sigmoid", "gelu", "leaky_relu", "silu"]
Init = Literal[
    "uniform",
    "normal",
    "truncated_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "xavier_uniform",
    "xavier_normal",
    "orthogonal",
]
Optimizer = Literal["adam", "sgd", "rmsprop"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Size = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=100)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1000)]
Finite = Annotated[float, Field(ge=-1000, le=1000)]


# --- images ----------------------------------------------------------------------------------------


class TetrisImages(Section):
    """4x4 grey images of four tetris shapes, made from a seed (`zootools.images.datasets.tetris`)."""

    name: Literal["tetris"]
    """Made here; no file is read."""
    train: Count
    """How many images the models are trained on; classes take turns."""
    test: Count
    """How many they are tested on."""
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """How many more are scored as `validation_loss` and `validation_accuracy`, with the noise of the test images."""
    seed: Seed = 0
    """Of the noise."""
    noise_train: Annotated[float, Field(ge=0, le=100)]
    """Standard deviation of the Gaussian noise on the training images; pixels without noise are 0 or 1."""
    noise_test: Annotated[float, Field(ge=0, le=100)]
    """The same for the test images."""


class StoredImages(Section):
    """How images are cut and normalised: crop, greyscale, size, mean and std, in this order."""

    train: Count
    """How many images the models are trained on: the first of the training part."""
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """How many of those that follow are scored as `validation_loss` and `validation_accuracy`."""
    test: Count | None = None
    """How many images of the test part the models are tested on; all by default."""
    crop: Size | None = None
    """Side of the square that is cut from the middle, in pixels."""
    size: Size | None = None
    """Side to which images are resized (bilinear, antialiased), in pixels."""
    greyscale: bool = False
    """Whether channels are averaged to one."""
    mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Subtracted from pixels in [0, 1], the same in every channel."""
    std: Annotated[float, Field(gt=0, le=10)] = 1.0
    """What pixels are divided by afterwards."""


class DatasetImages(StoredImages):
    """A well-known data set: scikit-learn's bundled digits, or one that torchvision reads."""

    name: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "usps", "stl10"]
    """`digits` needs no file; the others are downloaded by torchvision where they are missing."""


class FolderImages(StoredImages):
    """The user's own pictures: ``<data folder>/<folder>/{train,test}/<class>/<picture>``; ``size`` is required."""

    name: Literal["image_folder"]
    """Pictures in folders, one per class; classes are numbered by their sorted names."""
    folder: Name
    """Their folder below the data folder (`--data`, else $ZOOTOOLS_DATA, else the user's cache)."""


Images = Annotated[TetrisImages | DatasetImages | FolderImages, Discriminator("name")]


# --- architecture ------------------------------------------------------------------------------------


class Mlp(Section):
    """A fully connected network; its input and output sizes come from the images."""

    name: Literal["mlp"]
    """Linear layers with the model's activation and dropout between them."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=16)]
    """Widths of the hidden layers."""
    bias: bool = True
    """Whether its layers have biases."""


class Cnn(Section):
    """One of the registered convolutional networks (`zootools.architectures`)."""

    name: Literal["cnn_small", "cnn_unterthiner", "cnn_large"]
    """The paper's CNN (2464 parameters on 28 x 28 grey images), that of Unterthiner et al. (4970 on one channel), and a
    larger one (10,853 on 32 x 32 in colour)."""


Architecture = Annotated[Mlp | Cnn, Discriminator("name")]


# --- population: grid, sample, seeds -------------------------------------------------------------------


class Hyperparameters(Section):
    """What one model is trained with. The field names are the axes of a grid and columns of the metadata."""

    activation: Activation
    """After every hidden layer; `gelu` is the exact one."""
    init: Init
    """How kernels start. `uniform` is U[0, 1), all positive, as in the paper's released code; `normal` is
    N(0, init_std^2), `truncated_normal` the same redrawn beyond two standard deviations; kaiming, xavier and orthogonal
    as torch.nn.init has them by default."""
    optimizer: Optimizer
    """As torch.optim has them by default, but for the hyper-parameters below."""
    lr: LearningRate
    """Learning rate, the same in all epochs."""
    weight_decay: Decay = 0.0
    """Coupled L2 as in torch.optim, biases included."""
    l2: Decay = 0.0
    """Penalty l2 * sum(w^2) on kernels only, as in Keras."""
    dropout: Rate = 0.0
    """Share of the units that are dropped in training, in the layers whose schema says so."""
    train_fraction: Fraction = 1.0
    """The model sees only so much of the training images: the first ones."""
    momentum: Rate = 0.9
    """Of sgd (no Nesterov); the other optimizers do not read it."""
    init_std: Positive = 1.0
    """Of the inits normal and truncated_normal; the others do not read it."""
    bias_init: Finite = 0.01
    """Every bias starts at this constant (the released code of the paper uses 0.01)."""


Values = Field(default=None, min_length=1, max_length=10_000)


class Grid(Section):
    """The product of these lists is the set of configurations."""

    activation: tuple[Activation, ...] | None = Values
    init: tuple[Init, ...] | None = Values
    optimizer: tuple[Optimizer, ...] | None = Values
    lr: tuple[LearningRate, ...] | None = Values
    weight_decay: tuple[Decay, ...] | None = Values
    l2: tuple[Decay, ...] | None = Values
    dropout: tuple[Rate, ...] | None = Values
    train_fraction: tuple[Fraction, ...] | None = Values
    momentum: tuple[Rate, ...] | None = Values
    init_std: tuple[Positive, ...] | None = Values
    bias_init: tuple[Finite, ...] | None = Values

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The axes that the specification names, in its canonical order."""
        return {name: values for name, values in self if values is not None}

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        for name, values in self.axes.items():
            for index, value in enumerate(values):
                if value in values[:index]:
                    raise ValueError(f"{name}: the value {value!r} stands twice in the list")
        return self


class Draw(Section):
    """How one axis is drawn: exactly one of these; intervals are [low, high)."""

    uniform: tuple[float, float] | None = None
    """Uniform between low and high."""
    log_uniform: tuple[float, float] | None = None
    """Its logarithm is uniform between those of low and high."""
    choice: Annotated[tuple[str | float, ...], Field(min_length=1, max_length=10_000)] | None = None
    """One of these values, each as likely."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.uniform, self.log_uniform, self.choice)) != 1:
            raise ValueError("expected exactly one of uniform, log_uniform and choice")
        if self.uniform and not self.uniform[0] < self.uniform[1]:
            raise ValueError(f"uniform: expected [low, high] with low < high, found {list(self.uniform)}")
        if self.log_uniform and not 0 < self.log_uniform[0] < self.log_uniform[1]:
            raise ValueError(f"log_uniform: expected 0 < low < high, found {list(self.log_uniform)}")
        return self


class Sample(Section):
    """Configurations drawn at random; each is combined with every cell of the grid.

    An axis that is drawn does not stand in the grid. Draw number i of an axis is a hash of (draw_seed, axis, i), so a
    larger count keeps the earlier configurations. Drawn numbers have six digits.
    """

    count: Count
    """How many are drawn."""
    draw_seed: Seed = 0
    """Another one draws other configurations."""
    activation: Draw | None = None
    init: Draw | None = None
    optimizer: Draw | None = None
    lr: Draw | None = None
    weight_decay: Draw | None = None
    l2: Draw | None = None
    dropout: Draw | None = None
    train_fraction: Draw | None = None
    momentum: Draw | None = None
    init_std: Draw | None = None
    bias_init: Draw | None = None

    @property
    def axes(self) -> dict[str, Draw]:
        """The axes that the specification names, in its canonical order."""
        return {name: draw for name, draw in self if isinstance(draw, Draw)}


class RandomSeeds(Section):
    """Seeds drawn for each configuration by a hash of (draw_seed, configuration, index)."""

    per_configuration: Count
    """How many different seeds each configuration gets."""
    low: Seed = 1
    """The smallest seed that may be drawn."""
    high: Seed = 1_000_000
    """The largest seed that may be drawn."""
    draw_seed: Seed = 0
    """Another one draws other seeds."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.high - self.low + 1 < self.per_configuration:
            raise ValueError(
                f"between low {self.low} and high {self.high} there are not {self.per_configuration} seeds"
            )
        return self


class Seeds(Section):
    """Exactly one of these. Every configuration is trained once with each of its seeds."""

    range: tuple[Seed, Seed] | None = None
    """The first and the last seed, both included; every configuration gets all of them."""
    fixed: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    """These seeds, for every configuration."""
    random: RandomSeeds | None = None
    """Seeds of its own for each configuration."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.range, self.fixed, self.random)) != 1:
            raise ValueError("expected exactly one of range, fixed and random")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range: expected [first, last], found {list(self.range)}")
        if self.fixed is not None and len(set(self.fixed)) < len(self.fixed):
            raise ValueError("fixed: a seed stands twice in the list")
        return self

    @property
    def per_configuration(self) -> int:
        """How many models each configuration gets."""
        if self.random is not None:
            return self.random.per_configuration
        if self.fixed is not None:
            return len(self.fixed)
        assert self.range is not None
        return self.range[1] - self.range[0] + 1


# --- training and split ------------------------------------------------------------------------------------


class Training(Section):
    """How long and in which steps every model is trained, and when it is kept."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Images of one step; the last step of an epoch takes what is left."""
    train_metrics_images: Count | None = None
    """Train loss and accuracy are measured on the first so many training images; on all by default."""
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Every so many epochs a checkpoint is kept, from epoch 0 (the initialisation) on; the last one always."""
    checkpoint_epochs: tuple[Annotated[int, Field(ge=0, le=100_000)], ...] | None = None
    """Or: the epochs whose checkpoints are kept, in increasing order; the last one always."""

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
        """The epochs whose checkpoints are kept; 0 is the initialisation, the last one is always kept."""
        if self.checkpoint_epochs is None:
            kept = set(range(0, self.epochs + 1, self.checkpoint_every))
        else:
            kept = {epoch for epoch in self.checkpoint_epochs if epoch <= self.epochs}
        return tuple(sorted(kept | {self.epochs}))


class Split(Section):
    """The share of models (never of checkpoints) in each split, and what stays together."""

    train: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the split `train`; the three make 1. A model's split is decided by a hash, so shares are met roughly."""
    validation: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the split `validation`."""
    test: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the split `test`."""
    group_by: Literal["model", "configuration"] = "model"
    """What stays in one split: all epochs of a model, or all models of a configuration."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, found {total:g}")
        return self


class ZooSpec(Section):
    """A whole specification. Two equal specifications make equal zoos, byte for byte."""

    name: Name
    """What the zoo is called, and by default the name of its folder."""
    description: Annotated[str, Field(max_length=10_000)] = ""
    """A sentence or two for the card and for searches."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")] = "cc-by-4.0"
    """Of the zoo, as the Hub spells licences."""
    images: Images
    """What the models are trained on."""
    architecture: Architecture
    """What the models are."""
    grid: Grid
    """The hyper-parameters of the models: all combinations of the lists of values."""
    sample: Sample | None = None
    """Hyper-parameters that are drawn at random instead."""
    seeds: Seeds
    """The seeds with which each configuration is trained."""
    models: Annotated[int, Field(ge=1, le=MAX_MODELS)] | None = None
    """Only the models with so many smallest ids: a spread over the grid. `--models` sets it."""
    training: Training
    """How every model is trained."""
    split: Split = Split()
    """Which models are for training, validating and testing what is learned from the zoo."""

    @model_validator(mode="after")
    def _axes(self) -> Self:
        sampled = self.sample.axes if self.sample else {}
        for axis, draw in sampled.items():
            _check_draw(axis, draw, type(self.grid))
        both = sorted(set(self.grid.axes) & set(sampled))
        if both:
            raise ValueError(f"{both[0]} stands in grid and in sample; expected one of them")
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

    @property
    def unknown_names(self) -> list[str]:
        """What a stored specification names and this version does not know (`StoredSpec`): here nothing."""
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
        """Number of models of the whole population (before ``models`` takes a part of it)."""
        return self.configuration_count * self.seeds.per_configuration


def _check_draw(axis: str, draw: Draw, grid: type[Grid]) -> None:
    """Refuse a draw that could leave the range of its axis, by validating its ends as values of the axis."""
    ends = draw.choice or draw.uniform or draw.log_uniform or ()
    for value in ends:
        try:
            grid.model_validate({axis: (value,)})
        except ValidationError as error:
            detail = error.errors()[0]
            if detail["type"] == "literal_error":
                reason = f"found {value!r}{did_you_mean(str(value), choices_of(detail))}"
            else:
                reason = f"found {value!r}; {lower_first(detail['msg'])}"
            raise ValueError(f"sample.{axis}: {reason}") from None


# --- reading what another version has built --------------------------------------------------------------

Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""What a registered name looks like."""
_REGISTERED = {"activation": Activation, "init": Init, "optimizer": Optimizer}


def _names(union: Any) -> set[str]:
    """Return the names by which the sections of a union are told apart."""
    return {
        name for section in get_args(get_args(union)[0]) for name in get_args(section.model_fields["name"].annotation)
    }


class UnknownImages(StoredImages):
    """Images of a data set that this version does not know."""

    model_config = ConfigDict(extra="allow")

    name: Word

    @model_validator(mode="after")
    def _unknown(self) -> Self:
        if self.name in _names(Images):
            raise ValueError(f"{self.name} is known")
        return self


class UnknownArchitecture(Section):
    """An architecture that this version does not know; zoo.json has its layers."""

    model_config = ConfigDict(extra="allow")

    name: Word

    @model_validator(mode="after")
    def _unknown(self) -> Self:
        if self.name in _names(Architecture):
            raise ValueError(f"{self.name} is known")
        return self


class StoredGrid(Grid):
    """A grid with values that this version does not know."""

    activation: tuple[Word, ...] | None = Values  # type: ignore[assignment]
    init: tuple[Word, ...] | None = Values  # type: ignore[assignment]
    optimizer: tuple[Word, ...] | None = Values  # type: ignore[assignment]


class StoredSpec(ZooSpec):
    """The specification of a zoo that another version of zootools has built, with names that this one does not know.

    Reading takes none of them: the layers are in zoo.json, the columns follow from the keys. Building takes all.
    """

    images: TetrisImages | DatasetImages | FolderImages | UnknownImages  # type: ignore[assignment]
    architecture: Mlp | Cnn | UnknownArchitecture  # type: ignore[assignment]
    grid: StoredGrid

    @property
    def unknown_names(self) -> list[str]:
        """What is unknown, such as ``architecture 'resnet'``."""
        found = [f"images {self.images.name!r}"] if self.images.name not in _names(Images) else []
        if self.architecture.name not in _names(Architecture):
            found.append(f"architecture {self.architecture.name!r}")
        for axis, known in _REGISTERED.items():
            draw: Draw | None = getattr(self.sample, axis, None)
            values = getattr(self.grid, axis) or (draw and draw.choice) or ()
            found += [f"{axis} {value!r}" for value in values if value not in get_args(known)]
        return found


def load_spec(path: Path, overrides: Sequence[str] = ()) -> ZooSpec:
    """Read a specification file and validate it.

    ``overrides`` are ``"key.path=value"`` strings, as given by ``--set``; they end in the zoo's own spec.yaml.
    Raises SpecError listing every fault with its file and line, what was found, and what is allowed.
    """
    return load_section(ZooSpec, path, overrides)


def parse_spec(values: dict[str, Any], source: str) -> ZooSpec:
    """Validate plain values that were read from ``source``."""
    return parse_section(ZooSpec, values, source)


def parse_stored_spec(values: dict[str, Any], source: str, places: dict[Key, str] | None = None) -> ZooSpec:
    """Like `parse_spec`, for the specification of a zoo that is to be read: it may have `ZooSpec.unknown_names`."""
    try:
        return parse_section(ZooSpec, values, source, places)
    except SpecError:
        with suppress(SpecError):
            return parse_section(StoredSpec, values, source, places)
        raise
