"""The zoo specification: one YAML file that says everything that decides the bytes of a zoo.

`load_spec` reads and validates; `zootools.population` turns a valid `ZooSpec` into its models.
Nothing here imports torch: a bad specification is refused in a fraction of a second.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from zootools.errors import SpecError, did_you_mean
from zootools.yaml_reader import Key, parse_scalar, parse_yaml, read_yaml

MAX_MODELS = 1_000_000
"""No zoo is planned beyond this many models: the plan itself would not fit the memory."""

Activation = Literal["tanh", "relu", "sigmoid", "gelu", "leaky_relu", "silu"]
Init = Literal[
    "uniform",  # U[0, 1), all positive, as in the paper's released code
    "normal",  # N(0, init_std^2)
    "truncated_normal",  # N(0, init_std^2), redrawn beyond two standard deviations
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


class Section(BaseModel):
    """A frozen part of a specification: no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- images ----------------------------------------------------------------------------------------


class TetrisImages(Section):
    """4x4 grey images of four tetris shapes, made from a seed (`zootools.images.tetris`)."""

    name: Literal["tetris"]
    train: Count
    test: Count
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    seed: Seed = 0
    noise_train: Annotated[float, Field(ge=0, le=100)]
    noise_test: Annotated[float, Field(ge=0, le=100)]


class StoredImages(Section):
    """How images that lie in files are cut, resized and normalised.

    Pixels are scaled to [0, 1], then shifted by ``mean`` and divided by ``std``.
    """

    train: Count
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    test: Count | None = None
    crop: Size | None = None
    size: Size | None = None
    greyscale: bool = False
    mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    std: Annotated[float, Field(gt=0, le=10)] = 1.0


class DatasetImages(StoredImages):
    """A well-known data set: scikit-learn's bundled digits, or one that torchvision reads."""

    name: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "usps", "stl10"]


class FolderImages(StoredImages):
    """The user's own pictures: ``<data folder>/<folder>/{train,test}/<class>/<picture>``."""

    name: Literal["image_folder"]
    folder: Name


Images = Annotated[TetrisImages | DatasetImages | FolderImages, Discriminator("name")]


# --- architecture ------------------------------------------------------------------------------------


class Mlp(Section):
    """A fully connected network; its input and output sizes come from the images."""

    name: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=16)]
    bias: bool = True


class Cnn(Section):
    """One of the registered convolutional networks (`zootools.architectures`)."""

    name: Literal["cnn_small", "cnn_unterthiner", "cnn_large"]


Architecture = Annotated[Mlp | Cnn, Discriminator("name")]


# --- population: grid, sample, seeds -------------------------------------------------------------------


class Hyperparameters(Section):
    """What one model is trained with. The field names are the axes of a grid and columns of the metadata."""

    activation: Activation
    init: Init
    optimizer: Optimizer
    lr: LearningRate
    weight_decay: Decay = 0.0
    """Coupled L2 as in torch.optim, biases included."""
    l2: Decay = 0.0
    """Penalty l2 * sum(w^2) on kernels only, as in Keras."""
    dropout: Rate = 0.0
    train_fraction: Fraction = 1.0
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
    log_uniform: tuple[float, float] | None = None
    choice: Annotated[tuple[str | float, ...], Field(min_length=1, max_length=10_000)] | None = None

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
    """Configurations drawn at random; each is combined with every cell of the grid."""

    count: Count
    draw_seed: Seed = 0
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
    low: Seed = 1
    high: Seed = 1_000_000
    draw_seed: Seed = 0

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.high - self.low + 1 < self.per_configuration:
            raise ValueError(
                f"between low {self.low} and high {self.high} there are not {self.per_configuration} seeds"
            )
        return self


class Seeds(Section):
    """Exactly one of ``range`` (both ends included), ``fixed`` and ``random``."""

    range: tuple[Seed, Seed] | None = None
    fixed: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    random: RandomSeeds | None = None

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
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    train_metrics_images: Count | None = None
    """Train loss and accuracy are measured on the first so many training images; on all by default."""
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000)] = 1
    checkpoint_epochs: tuple[Annotated[int, Field(ge=0, le=100_000)], ...] | None = None

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
    validation: Annotated[float, Field(ge=0, le=1)] = 0.15
    test: Annotated[float, Field(ge=0, le=1)] = 0.15
    group_by: Literal["model", "configuration"] = "model"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, found {total:g}")
        return self


class ZooSpec(Section):
    """A whole specification. Two equal specifications make equal zoos, byte for byte."""

    name: Name
    description: Annotated[str, Field(max_length=10_000)] = ""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")] = "cc-by-4.0"
    images: Images
    architecture: Architecture
    grid: Grid
    sample: Sample | None = None
    seeds: Seeds
    models: Annotated[int, Field(ge=1, le=MAX_MODELS)] | None = None
    """Only the models with so many smallest ids: a spread over the grid."""
    training: Training
    split: Split = Split()

    @model_validator(mode="after")
    def _axes(self) -> Self:
        sampled = self.sample.axes if self.sample else {}
        for axis, draw in sampled.items():
            _check_draw(axis, draw)
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
        return self

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

    def dump(self) -> dict[str, Any]:
        """Return the specification as plain values, without what is at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _check_draw(axis: str, draw: Draw) -> None:
    """Refuse a draw that could leave the range of its axis, by validating its ends as values of the axis."""
    ends = draw.choice or draw.uniform or draw.log_uniform or ()
    for value in ends:
        try:
            Grid.model_validate({axis: (value,)})
        except ValidationError as error:
            detail = error.errors()[0]
            if detail["type"] == "literal_error":
                reason = f"found {value!r}{did_you_mean(str(value), _choices(detail))}"
            else:
                reason = f"found {value!r}; {_lower(detail['msg'])}"
            raise ValueError(f"sample.{axis}: {reason}") from None


def load_spec(path: Path, overrides: Sequence[str] = ()) -> ZooSpec:
    """Read a specification file and validate it.

    ``overrides`` are ``"key.path=value"`` strings, as given by ``--set``: each replaces (or adds) one value,
    is validated like the file itself, and ends in the zoo's own spec.yaml.

    Raises SpecError listing every fault with its file and line, what was found, and what is allowed.
    """
    values, places = read_yaml(path)
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override, places)
    return parse_spec(values, str(path), places)


def parse_spec(values: dict[str, Any], source: str, places: dict[Key, str] | None = None) -> ZooSpec:
    """Validate plain values that were read from ``source``; ``places`` says where each one stands."""
    try:
        return ZooSpec.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [
            _describe(detail, values, source, places or {})
            for detail in error.errors()
            # After a bad item pydantic also calls the list too short; the item's own error says it all.
            if not (detail["type"] == "too_short" and detail["input"])
        ]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def _apply_override(values: dict[str, Any], override: str, places: dict[Key, str]) -> None:
    key_text, separator, value_text = override.partition("=")
    key = tuple(key_text.split("."))
    if not separator or not all(key):
        raise SpecError(f"--set {override}: expected KEY=VALUE, such as training.epochs=5")
    target = values
    for name in key[:-1]:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise SpecError(f"--set {override}: {name} is not a section, it holds {target!r}")
    target[key[-1]] = _override_value(value_text)
    # What stood below this key before is gone, and errors in the new value are the command line's.
    for old in [place for place in places if place[: len(key)] == key]:
        del places[old]
    places[key] = f"--set {override}"


def _override_value(text: str) -> Any:
    text = text.strip()
    if text.startswith(("[", "{")):
        return parse_yaml(text, f"--set {text}")[0]
    return parse_scalar(text)


def _describe(detail: ErrorDetails, values: dict[str, Any], source: str, places: dict[Key, str]) -> str:
    """One line for one fault: place, key, what was found, what is allowed."""
    key = _document_key(detail["loc"], values)
    place = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), source)
    name = ".".join(map(str, key))
    prefix = f"{place}: {name}: " if name else f"{place}: "
    found = _shorten(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{prefix}unknown key{did_you_mean(str(key[-1]), _keys_at(detail['loc']))}"
        case "missing":
            return f"{prefix}is missing"
        case "literal_error" | "union_tag_invalid":
            choices = _choices(detail)
            wrong = detail["input"] if isinstance(detail["input"], str) else ""
            if detail["type"] == "union_tag_invalid":
                wrong, prefix = str(detail["ctx"]["tag"]), f"{prefix.removesuffix(': ')}.name: "
                found = repr(wrong)
            return f"{prefix}found {found}{did_you_mean(wrong, choices)}"
        case "union_tag_not_found":
            return f"{prefix}name is missing"
        case "value_error":
            return f"{prefix}{detail['ctx']['error']}"
        case "string_pattern_mismatch":
            return f"{prefix}found {found}, which does not match {detail['ctx']['pattern']}"
        case _:
            return f"{prefix}found {found}; {_lower(detail['msg'])}"


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _choices(detail: ErrorDetails) -> list[str]:
    key = "expected_tags" if detail["type"] == "union_tag_invalid" else "expected"
    text = detail["ctx"][key].replace(" or ", ", ")
    return [word.strip("' ") for word in text.split(",")]


def _document_key(location: tuple[str | int, ...], values: Any) -> Key:
    """Drop from a pydantic location what is no key of the document (the tag of a union, a type's name)."""
    key: list[str | int] = []
    for index, part in enumerate(location):
        is_key = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if is_key:
            key.append(part)
            values = values[part]
        elif index == len(location) - 1 and isinstance(values, dict):
            key.append(part)  # a missing key
    return tuple(key)


def _keys_at(location: tuple[str | int, ...]) -> Iterable[str]:
    """The keys that are allowed beside the unknown one, found by walking the sections' own fields."""
    sections: list[type[BaseModel]] = [ZooSpec]
    for part in location[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [inner for field in fields for inner in _sections_in(field.annotation)]
        else:  # the tag of a union, such as "tetris"
            sections = [section for section in sections if part in get_args(section.model_fields["name"].annotation)]
    return [name for section in sections for name in section.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
