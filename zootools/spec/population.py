"""The sections that make the models of a zoo differ: ``grid``, ``sample`` and ``seeds``."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from zootools.errors import did_you_mean
from zootools.spec.faults import choices_of, lower_first
from zootools.spec.sections import Section
from zootools.spec.values import MAX_MODELS, Count, Seed

Activation = Literal["tanh", "relu", "sigmoid", "gelu", "leaky_relu", "silu"]
"""In the order of the enum in zootools/native/network.h. `zootools.architectures.networks.ACTIVATIONS` has them too."""
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
"""In the order of the enum in zootools/native/network.h. `zootools.training.group.OPTIMIZER_STATE` has them too."""

LearningRate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=100)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1000)]
Finite = Annotated[float, Field(ge=-1000, le=1000)]


class Hyperparameters(Section):
    """The hyper-parameters of one model. The fields are the axes of a grid and columns of the metadata."""

    activation: Activation
    """Activation after every hidden layer; `gelu` is the exact one."""
    init: Init
    """Distribution of the initial kernels. `uniform` is U[0, 1), all positive, as in the paper's released code;
    `normal` is N(0, init_std^2), `truncated_normal` the same redrawn beyond two standard deviations; kaiming, xavier
    and orthogonal as torch.nn.init has them by default."""
    optimizer: Optimizer
    """Optimizer with the defaults of torch.optim, except for the hyper-parameters below."""
    lr: LearningRate
    """Learning rate, the same in all epochs."""
    weight_decay: Decay = 0.0
    """Coupled L2 as in torch.optim, biases included."""
    l2: Decay = 0.0
    """Penalty l2 * sum(w^2) on kernels only, as in Keras."""
    dropout: Rate = 0.0
    """Share of the units that are dropped in training, in the layers whose schema has dropout."""
    train_fraction: Fraction = 1.0
    """Share of the training images that the model sees: the first ones."""
    momentum: Rate = 0.9
    """Momentum of `sgd` (no Nesterov); the other optimizers ignore it."""
    init_std: Positive = 1.0
    """Standard deviation of the inits `normal` and `truncated_normal`; the others ignore it."""
    bias_init: Finite = 0.01
    """Initial value of every bias (the released code of the paper uses 0.01)."""


def axis_field(*examples: Any) -> Any:
    """Return the field of an axis: a list of values, or None."""
    return Field(default=None, min_length=1, max_length=10_000, examples=list(examples))


class Grid(Section):
    """The product of these lists is the set of configurations."""

    activation: tuple[Activation, ...] | None = axis_field("tanh", ["tanh", "relu"])
    init: tuple[Init, ...] | None = axis_field("kaiming_uniform", ["kaiming_uniform", "normal"])
    optimizer: tuple[Optimizer, ...] | None = axis_field("adam", ["adam", "sgd"])
    lr: tuple[LearningRate, ...] | None = axis_field(0.001, [0.001, 0.0001])
    weight_decay: tuple[Decay, ...] | None = axis_field(0.001, [0.0, 0.001])
    l2: tuple[Decay, ...] | None = axis_field(0.001, [0.0, 0.001])
    dropout: tuple[Rate, ...] | None = axis_field(0.5, [0.0, 0.5])
    train_fraction: tuple[Fraction, ...] | None = axis_field(0.5, [0.5, 1.0])
    momentum: tuple[Rate, ...] | None = axis_field(0.9, [0.0, 0.9])
    init_std: tuple[Positive, ...] | None = axis_field(0.1, [0.1, 0.5])
    bias_init: tuple[Finite, ...] | None = axis_field(0.0, [0.0, 0.01])

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The axes that the specification names, in the order of the fields."""
        return {name: values for name, values in self if values is not None}

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        for name, values in self.axes.items():
            for index, value in enumerate(values):
                if value in values[:index]:
                    raise ValueError(f"{name}: duplicate value {value!r}")
        return self


class Draw(Section):
    """Distribution of one axis: exactly one of these; intervals are [low, high)."""

    uniform: tuple[float, float] | None = Field(default=None, examples=[[0.0, 0.5]])
    """Uniform between low and high."""
    log_uniform: tuple[float, float] | None = Field(default=None, examples=[[0.0001, 0.01]])
    """The logarithm is uniform between those of low and high."""
    choice: Annotated[tuple[str | float, ...], Field(min_length=1, max_length=10_000)] | None = Field(
        default=None, examples=[["tanh", "relu"], [0.1, 0.5]]
    )
    """One of these values, with equal probability."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.uniform, self.log_uniform, self.choice)) != 1:
            raise ValueError("expected exactly one of uniform, log_uniform and choice")
        if self.uniform and not self.uniform[0] < self.uniform[1]:
            raise ValueError(f"uniform: expected [low, high] with low < high, found {list(self.uniform)}")
        if self.log_uniform and not 0 < self.log_uniform[0] < self.log_uniform[1]:
            raise ValueError(f"log_uniform: expected 0 < low < high, found {list(self.log_uniform)}")
        return self

    def check(self, axis: str, grid: type[Grid]) -> None:
        """Raise ValueError if the draw can leave the range of its axis: its ends must be valid in a grid."""
        for value in self.choice or self.uniform or self.log_uniform or ():
            try:
                grid.model_validate({axis: (value,)})
            except ValidationError as error:
                detail = error.errors()[0]
                if detail["type"] == "literal_error":
                    reason = f"found {value!r}{did_you_mean(str(value), choices_of(detail))}"
                else:
                    reason = f"found {value!r}; {lower_first(detail['msg'])}"
                raise ValueError(f"sample.{axis}: {reason}") from None


class Sample(Section):
    """Configurations drawn at random; each is combined with every cell of the grid.

    An axis is either drawn or in the grid. Draw number i of an axis is a hash of (draw_seed, axis, i), so a larger
    count keeps the earlier configurations. Drawn numbers have six digits.
    """

    count: Count
    """Number of draws."""
    draw_seed: Seed = 0
    """Seed of the draws."""
    activation: Draw | None = Field(default=None, examples=[{"choice": ["tanh", "relu"]}])
    init: Draw | None = Field(default=None, examples=[{"choice": ["normal", "orthogonal"]}])
    optimizer: Draw | None = Field(default=None, examples=[{"choice": ["adam", "sgd"]}])
    lr: Draw | None = Field(default=None, examples=[{"log_uniform": [0.0001, 0.01]}])
    weight_decay: Draw | None = Field(default=None, examples=[{"uniform": [0.0, 0.5]}])
    l2: Draw | None = Field(default=None, examples=[{"uniform": [0.0, 0.5]}])
    dropout: Draw | None = Field(default=None, examples=[{"uniform": [0.0, 0.5]}])
    train_fraction: Draw | None = Field(default=None, examples=[{"uniform": [0.1, 0.5]}])
    momentum: Draw | None = Field(default=None, examples=[{"uniform": [0.0, 0.5]}])
    init_std: Draw | None = Field(default=None, examples=[{"uniform": [0.1, 0.5]}])
    bias_init: Draw | None = Field(default=None, examples=[{"uniform": [0.0, 0.5]}])

    @property
    def axes(self) -> dict[str, Draw]:
        """The axes that the specification names, in the order of the fields."""
        return {name: draw for name, draw in self if isinstance(draw, Draw)}


class RandomSeeds(Section):
    """Seeds drawn for each configuration by a hash of (draw_seed, configuration, index)."""

    per_configuration: Count
    """Number of different seeds of each configuration."""
    low: Seed = 1
    """The smallest seed that can be drawn."""
    high: Seed = 1_000_000
    """The largest seed that can be drawn."""
    draw_seed: Seed = 0
    """Seed of the draws."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.high - self.low + 1 < self.per_configuration:
            raise ValueError(f"low {self.low} to high {self.high} are fewer than {self.per_configuration} seeds")
        return self


class Seeds(Section):
    """Exactly one of these. Every configuration is trained once with each of its seeds."""

    range: tuple[Seed, Seed] | None = Field(default=None, examples=[[1, 10]])
    """The first and the last seed, both included; every configuration gets all of them."""
    fixed: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_MODELS)] | None = Field(
        default=None, examples=[[1, 2, 3]]
    )
    """These seeds, for every configuration."""
    random: RandomSeeds | None = Field(default=None, examples=[{"per_configuration": 5}])
    """Different random seeds for each configuration."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.range, self.fixed, self.random)) != 1:
            raise ValueError("expected exactly one of range, fixed and random")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range: expected [first, last], found {list(self.range)}")
        for seed, times in Counter(self.fixed or ()).items():
            if times > 1:
                raise ValueError(f"fixed: duplicate seed {seed}")
        return self

    @property
    def per_configuration(self) -> int:
        """Number of models of each configuration."""
        if self.random is not None:
            return self.random.per_configuration
        if self.fixed is not None:
            return len(self.fixed)
        assert self.range is not None
        return self.range[1] - self.range[0] + 1
