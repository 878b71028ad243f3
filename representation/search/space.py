"""The space of a search over recipes: a YAML file with the keys of a recipe that vary, and the objective.

>>> space, trials = load_search(Path("space.yaml"), "default")

Nothing here imports torch or Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from representation.recipes import Recipe, load_recipe
from zootools.errors import SpecError
from zootools.spec import Draw, Seed
from zootools.spec.model_configs import draw_value, unit_hash
from zootools.spec.sections import Override, Section, SectionError, parse_section, read_mapping


class Vary(Draw):
    """How one key of the recipe is drawn: as in a specification's ``sample``, and also integers and booleans."""

    choice: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1, max_length=10_000)] | None = None
    """One of these values, with equal probability."""


class SearchObjective(Section):
    """The validation score to maximise; the test split is never used."""

    score: Literal["probes", "reconstruction", "loss"] = "probes"
    """``probes``: the mean R2 of the paper's linear probes of ``targets``; ``reconstruction``: the R2 of the
    reconstructed weights; ``loss``: the validation loss, which is minimised. The last two need no labels."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Properties of the models; by default all numeric ones."""

    @property
    def sign(self) -> int:
        """-1 if the objective is minimised, else 1."""
        return -1 if self.score == "loss" else 1

    @property
    def text(self) -> str:
        """The name of the objective, for readers."""
        return {"probes": "mean R2 of the probes", "reconstruction": "R2 of the reconstruction", "loss": "loss"}[
            self.score
        ]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.targets and self.score != "probes":
            raise ValueError(f"targets are those of the score 'probes', found the score {self.score!r}")
        return self


class Stopping(Section):
    """Early stopping (ASHA): at epochs ``after``, ``after * factor``, ``after * factor**2``, ... a trial continues only
    if it is among the best 1 / ``factor`` of the trials that reached this epoch before it."""

    after: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """First epoch after which trials are compared."""
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    """One trial in ``factor`` continues."""


class Space(Section):
    """A search, without the recipe that it starts from."""

    trials: Annotated[int, Field(ge=1, le=10_000)]
    """Number of recipes to try."""
    seed: Seed = 0
    """Seed of the drawn values."""
    vary: Annotated[dict[str, Vary], Field(min_length=1)]
    """The keys of the recipe that vary, as in ``--set``: ``training.lr``."""
    objective: SearchObjective = SearchObjective()
    """The score to maximise."""
    stopping: Stopping = Stopping()
    """When bad trials are stopped."""


@dataclass(frozen=True)
class Trial:
    """One recipe of a search."""

    number: int
    changes: tuple[str, ...]
    """Overrides of the recipe that the search starts from, as for ``--set``."""
    recipe: Recipe


def load_search(path: Path, recipe: str, overrides: Sequence[str] = ()) -> tuple[Space, list[Trial]]:
    """Read a search space, and draw its trials for a recipe.

    A drawn value depends only on the seed, its key and the number of the trial, not on the number of trials or on other
    keys. A value from an interval is rounded if the recipe needs an integer.

    Raises SpecError listing every fault with its file and line, what was found, and what is allowed.
    """
    base = load_recipe(recipe, overrides)
    values, places = read_mapping(path)
    space = parse_section(Space, values, str(path), places)
    for key, draw in space.vary.items():
        place, section = places["vary", key], key.split(".")[0]
        if section == "epochs":
            raise SpecError(f"{place}: {key}: trials on different checkpoints of the zoo do not compare")
        if space.objective.score == "loss" and section in ("loss", "augmentation"):
            raise SpecError(f"{place}: {key}: such losses do not compare; use the objective score 'probes'")
        for end in draw.choice or draw.uniform or draw.log_uniform or ():
            change = Override(_change(base, key, draw, end), place)
            try:
                load_recipe(recipe, [*overrides, change])
            except SectionError as error:
                # An error of two keys together is reported below, if a drawn trial has it.
                if place in error.places:
                    raise
    trials = []
    for number in range(space.trials):
        positions = {key: unit_hash(space.seed, "search", key, number) for key in space.vary}
        changes = [_change(base, key, draw, draw_value(draw, positions[key])) for key, draw in space.vary.items()]
        try:
            drawn = load_recipe(recipe, [*overrides, *changes])
        except SpecError as error:
            heading = f"{path}: trial {number} ({' '.join(changes)}) is not a valid recipe"
            raise SpecError(heading, *(f"  {line}" for line in error.args)) from None
        if space.objective.score == "reconstruction" and not drawn.loss.reconstructs:
            reason = f"the loss {drawn.loss.kind} does not reconstruct"
            raise SpecError(f"{path}: objective.score: found 'reconstruction', but {reason}")
        trials.append(Trial(number, tuple(changes), drawn))
    return space, trials


def _change(base: Recipe, key: str, draw: Vary, value: Any) -> str:
    """Return ``key=value`` as for ``--set``; a value from an interval is rounded if the recipe needs an integer."""
    *path, last = key.split(".")
    section: Any = base
    for name in path:
        section = getattr(section, name, None)
    field = type(section).model_fields.get(last) if isinstance(section, Section) else None
    if draw.choice is None and field is not None and _takes_integers(field.annotation):
        value = round(value)
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _takes_integers(annotation: Any) -> bool:
    """Return whether a type is int, or a union or annotation of it, such as that of a key that may also be ``auto``."""
    return annotation is int or any(map(_takes_integers, get_args(annotation)))
