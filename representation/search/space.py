"""The space of a search over recipes: a YAML file that says which keys of a recipe vary, and what is best.

>>> space, trials = load_search(Path("space.yaml"), "default")

Nothing here imports torch or Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from representation.recipes import Recipe, load_recipe
from zootools.errors import SpecError
from zootools.spec import Draw, Seed
from zootools.spec.model_configs import draw_value, unit_hash
from zootools.spec.sections import Override, Section, SectionError, parse_section, read_mapping


class Vary(Draw):
    """How one key of the recipe is drawn: as in a specification's ``sample``, whole numbers and truth values too."""

    choice: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1, max_length=10_000)] | None = None
    """One of these values, each as likely."""


class SearchObjective(Section):
    """What the best trial has most of, on the validation split; of the test split nothing is looked at."""

    score: Literal["probes", "reconstruction", "loss"] = "probes"
    """``probes``: the mean R2 of the paper's linear probes for ``targets``; ``reconstruction``: the R2 of the
    reconstructed weights; ``loss``: the validation loss, the lower the better. The last two need no labels."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Properties of the models, all that are numbers by default."""

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return -1 if self.score == "loss" else 1

    @property
    def text(self) -> str:
        """What it is, in words."""
        return {"probes": "mean R2 of the probes", "reconstruction": "R2 of the reconstruction", "loss": "loss"}[
            self.score
        ]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.targets and self.score != "probes":
            raise ValueError(f"targets are those of the score 'probes', found the score {self.score!r}")
        return self


class Stopping(Section):
    """When a trial is given up (ASHA): at epochs ``after``, ``after * factor``, ``after * factor**2``, ... a trial goes
    on only if it is among the best 1 / ``factor`` of those that came so far before it."""

    after: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """The first epoch after which trials are compared."""
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    """One trial in so many goes on."""


class Space(Section):
    """A whole search, but for the recipe that it starts from."""

    trials: Annotated[int, Field(ge=1, le=10_000)]
    """How many recipes are tried."""
    seed: Seed = 0
    """Another one draws other recipes."""
    vary: Annotated[dict[str, Vary], Field(min_length=1)]
    """By key of the recipe, as in ``--set``: ``training.lr``."""
    objective: SearchObjective = SearchObjective()
    """What is searched for."""
    stopping: Stopping = Stopping()
    """When a trial is given up."""


@dataclass(frozen=True)
class Trial:
    """One recipe of a search."""

    number: int
    changes: tuple[str, ...]
    """What it changes in the recipe that the search starts from, as for ``--set``."""
    recipe: Recipe


def load_search(path: Path, recipe: str, overrides: Sequence[str] = ()) -> tuple[Space, list[Trial]]:
    """Read a search space, and draw the trials that it makes of a recipe.

    A drawn value depends on nothing but the seed, its key and the number of the trial: more trials, or another key
    beside it, change none. Where the recipe wants a whole number, one from an interval is rounded.

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
                # A fault of two keys together is none of this key alone, and the drawn trials may not have it.
                if place in error.places:
                    raise
    trials = []
    for number in range(space.trials):
        positions = {key: unit_hash(space.seed, "search", key, number) for key in space.vary}
        changes = [_change(base, key, draw, draw_value(draw, positions[key])) for key, draw in space.vary.items()]
        try:
            drawn = load_recipe(recipe, [*overrides, *changes])
        except SpecError as error:
            heading = f"{path}: trial {number} ({' '.join(changes)}) is no valid recipe"
            raise SpecError(heading, *(f"  {line}" for line in error.args)) from None
        if space.objective.score == "reconstruction" and not drawn.loss.reconstructs:
            reason = f"the loss {drawn.loss.kind} does not reconstruct"
            raise SpecError(f"{path}: objective.score: found 'reconstruction', but {reason}")
        trials.append(Trial(number, tuple(changes), drawn))
    return space, trials


def _change(base: Recipe, key: str, draw: Vary, value: Any) -> str:
    """Return ``key=value`` as ``--set`` reads it, a number from an interval rounded where the recipe wants it whole."""
    *path, last = key.split(".")
    section: Any = base
    for name in path:
        section = getattr(section, name, None)
    field = type(section).model_fields.get(last) if isinstance(section, Section) else None
    if draw.choice is None and field is not None and field.annotation is int:
        value = round(value)
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
