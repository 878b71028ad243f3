"""What a report shows: how its cells compare with the paper's, and which of the paper's conclusions hold here.

A conclusion is a number of comparisons between cells, each of which should be won by its left side. They are made with
our values and with the paper's, so that a reader sees how far the paper's own figures follow it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from representation.reproduction.items import (
    LABELS,
    LARGE,
    MNIST,
    RELEASED,
    SEEDS,
    VARIANCES,
    ZOOS,
    zoo_label,
)
from representation.reproduction.state import FilledCell
from representation.reproduction.variations import AUGMENTATIONS

OURS = "our recipe"
NEAR = 0.02
"""A reconstruction whose R2 is at most this far below that of the best linear code is bounded by it."""

# --- how the cells of a table compare ---------------------------------------------------------------------------------


def compared(cells: Iterable[FilledCell]) -> str:
    """Return how many cells are at or above the paper's, below it within the interval, and below, and what bounds them.

    Variances are not counted, since larger ones are not better. Returns an empty string if there is nothing to count.
    """
    pairs = [pair for cell in cells if (pair := _Pair.of(cell)) is not None]
    by_recipe = {_name(released): [pair for pair in pairs if pair.released == released] for released in (False, True)}
    return " ".join(_counted(name, part) for name, part in by_recipe.items() if part)


class _Pair(NamedTuple):
    """A cell with a value of ours and one of the paper."""

    difference: float
    """Ours minus the paper's, as printed."""
    interval: float
    bound: float | None
    ours: float
    paper: float
    released: bool

    @classmethod
    def of(cls, filled: FilledCell) -> "_Pair | None":
        ours, paper, cell = filled.ours, filled.paper, filled.cell
        if cell is None or cell.metric == "variance" or not isinstance(ours, float) or not isinstance(paper, float):
            return None
        digits = 3 if filled.percent else 2
        difference = round(ours, digits) - round(paper, digits)
        return cls(difference, filled.interval or 0.0, filled.bound, ours, paper, cell.job.released)


def _counted(name: str, pairs: Sequence[_Pair]) -> str:
    above = sum(pair.difference >= 0 for pair in pairs)
    below = [pair for pair in pairs if pair.difference < -pair.interval]
    within = len(pairs) - above - len(below)
    text = f"Baselines and {name}" if name == OURS else f"The {name}"
    text += f": {above} of {len(pairs)} cells at or above the paper's, {within} below it within the interval, "
    text += f"{len(below)} below."
    bounds = [(pair, pair.bound) for pair in below if pair.bound is not None]
    if bounds:
        beyond = sum(pair.paper > bound for pair, bound in bounds)
        reached = sum(pair.ours > bound - NEAR for pair, bound in bounds)
        bounded = "1 reconstruction" if len(bounds) == 1 else f"{len(bounds)} reconstructions"
        text += f" Of the {bounded} below, the paper's value is above the best linear code of our "
        text += f"zoo in {beyond}, and ours is within {100 * NEAR:.0f} points of that code in {reached}."
    return text


# --- the paper's conclusions ------------------------------------------------------------------------------------------


class _Encoder(NamedTuple):
    """What distinguishes encoders of a zoo and a loss."""

    released: bool = False
    variation: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two numbers, each computed from some cells; the conclusion says that the left one is larger."""

    label: str
    left: Sequence[FilledCell]
    right: Sequence[FilledCell]
    """No cells: zero."""
    measure: Callable[[Sequence[float]], float] = mean

    def numbers(self, paper: bool) -> tuple[float, float] | None:
        """Return both numbers, ours or the paper's; None if a value is missing."""
        sides = []
        for side in (self.left, self.right):
            values = [cell.paper if paper else cell.ours for cell in side]
            known = [value for value in values if isinstance(value, float)]
            if len(known) < len(values):
                return None
            sides.append(self.measure(known) if known else 0.0)
        return sides[0], sides[1]

    def shown(self) -> str:
        """Return our numbers, such as ``EcD 90.0 > 88.1``; an empty string if a value is missing."""
        if (numbers := self.numbers(paper=False)) is None:
            return ""
        factor = 100 if self.left[0].percent else 1
        left, right = (f"{factor * value:.{1 if factor == 100 else 2}f}" for value in numbers)
        return f"{self.label} {left} {'=' if left == right else '>' if numbers[0] > numbers[1] else '<'} {right}"


@dataclass(frozen=True)
class Conclusion:
    """A conclusion of the paper, and what decides it."""

    statement: str
    places: str
    """The tables and figures whose cells it compares."""
    of: str
    """The encoders: `OURS` or `RELEASED`; empty if there are none."""
    comparisons: Sequence[Comparison]

    def verdict(self, paper: bool = False) -> str:
        """Return in how many comparisons it holds, by our values or by the paper's; ``-`` if none can be made."""
        made = [numbers for each in self.comparisons if (numbers := each.numbers(paper)) is not None]
        return f"{sum(left > right for left, right in made)} of {len(made)}" if made else "-"

    def numbers(self) -> str:
        """Return our numbers of every comparison that can be made."""
        return "; ".join(filter(None, (each.shown() for each in self.comparisons)))


def conclusions(cells: Iterable[FilledCell]) -> list[Conclusion]:
    """Return the paper's conclusions about which at least one comparison can be made with these cells."""
    scores = _Scores(cells)
    made = [_clusters(scores), _statistics(scores)]
    for released in (False, True):
        made += [_permutation(scores, released), _learned(scores, released), _harder(scores, released)]
        made += [_transfer(scores, released)]
    return [each for each in made if each.verdict() != "-"]


class _Scores:
    """The cells of a report, by what they show."""

    def __init__(self, cells: Iterable[FilledCell]) -> None:
        self._cells: dict[tuple[str | bool, ...], FilledCell] = {}
        for filled in cells:
            if (cell := filled.cell) is not None:
                kept = (cell.split, cell.job.variation, cell.job.released)
                key = (cell.job.zoo, cell.method, cell.target, cell.metric, cell.evaluated_on, *kept)
                self._cells.setdefault(key, filled)

    def find(
        self, zoo: str, method: str, target: str, metric: str = "r2", on: str = "", split: str = "test", *, of: _Encoder
    ) -> list[FilledCell]:
        """Return the cell of a score in a list; an empty list if the report has no such cell."""
        found = self._cells.get((zoo, method, target, metric, on, split, of.variation, of.released))
        return [] if found is None else [found]

    def learned(self, zoo: str, target: str, released: bool) -> list[FilledCell]:
        """Return the cell of the encoder that the paper's table of a zoo has, in a list."""
        losses = ("EcD", "Ec+D")
        return next(filter(None, (self.find(zoo, loss, target, of=_Encoder(released)) for loss in losses)), [])


def _clusters(scores: _Scores) -> Conclusion:
    def ratio(kind: str) -> list[FilledCell]:
        names = ("variance_within", "variance")
        return [c for n in names for c in scores.find(kind, VARIANCES, n, "variance", split="all", of=_Encoder())]

    comparisons = [
        Comparison(f"HYP-{number}", ratio(f"mnist_hyp_{number}_rand"), ratio(f"mnist_hyp_{number}_fix"), _quotient)
        for number in (1, 5)
    ]
    statement = "Fixed seeds make clusters: VARc / VAR is larger with random seeds than with fixed ones."
    return Conclusion(statement, "Table 4", "", _possible(comparisons))


def _quotient(values: Sequence[float]) -> float:
    return values[0] / values[1]


def _statistics(scores: _Scores) -> Conclusion:
    def cells(zoo: str, baseline: str) -> list[FilledCell]:
        return scores.find(zoo, baseline, "test_accuracy", of=_Encoder())

    comparisons = [Comparison(zoo_label(zoo), cells(zoo, "s(W)"), cells(zoo, "W")) for zoo in ZOOS]
    statement = "Layer statistics predict test accuracy better than weights: s(W) > W."
    return Conclusion(statement, "Tables 4 to 6, 13", "", _possible(comparisons))


def _learned(scores: _Scores, released: bool) -> Conclusion:
    comparisons = [
        Comparison(
            zoo_label(zoo),
            scores.learned(zoo, "test_accuracy", released),
            scores.find(zoo, "s(W)", "test_accuracy", of=_Encoder()),
        )
        for zoo in ZOOS
    ]
    statement = "Learned representations predict test accuracy better than layer statistics: learned > s(W)."
    return Conclusion(statement, "Tables 4 to 6, 13", _name(released), _possible(comparisons))


def _permutation(scores: _Scores, released: bool) -> Conclusion:
    def cells(loss: str, permuted: bool) -> list[FilledCell]:
        kinds = [_Encoder(released, "" if a == "PE" else a) for a in AUGMENTATIONS if ("P" in a) == permuted]
        found = [cell for kind in kinds for cell in scores.find("tetris_seed", loss, "reconstruction", of=kind)]
        return found if len(found) == len(kinds) else []

    comparisons = [Comparison(loss, cells(loss, True), cells(loss, False)) for loss in ("ED", "EcD", "Ec+D")]
    statement = "Permutation is the crucial augmentation: with it the mean reconstruction is better than without."
    return Conclusion(statement, "Table 3", _name(released), _possible(comparisons))


def _harder(scores: _Scores, released: bool) -> Conclusion:
    comparisons = []
    for seed, *others in (MNIST, ("tetris_seed", "tetris_hyp")):
        for target in ("epoch", "test_accuracy"):
            left = scores.learned(seed, target, released)
            comparisons += [
                Comparison(f"{LABELS[target]}, {zoo_label(zoo)}", left, scores.learned(zoo, target, released))
                for zoo in others
            ]
    statement = "Zoos of many hyper-parameters are harder: SEED zoos have higher scores than HYP zoos."
    return Conclusion(statement, "Tables 4, 5", _name(released), _possible(comparisons))


def _transfer(scores: _Scores, released: bool) -> Conclusion:
    targets = ("generalization_gap", "test_accuracy", "epoch")
    pairs = [(home, zoo) for home in LARGE for zoo in LARGE if zoo != home] + [(SEEDS[0], zoo) for zoo in SEEDS[1:]]
    comparisons = [
        Comparison(
            f"{LABELS[target]}, {zoo_label(home)} on {zoo_label(zoo)}",
            scores.find(home, "Ec+D", target, "kendall_tau", zoo, of=_Encoder(released)),
            (),
        )
        for target in targets
        for home, zoo in pairs
    ]
    statement = "Transfer to other zoos keeps the order: Kendall's tau is above zero."
    return Conclusion(statement, "Table 7, Figures 11 to 14", _name(released), _possible(comparisons))


def _possible(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons whose cells the report has; the right side of those with zero has none."""
    return [each for each in comparisons if each.left and (each.right or each.right == ())]


def _name(released: bool) -> str:
    return RELEASED if released else OURS
