"""The cells of an item as text: grids of rows and columns, with marks for the remarks below them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from representation.reproduction.conclusions import compared
from representation.reproduction.items import Item
from representation.reproduction.state import FilledCell, ReproductionState

FULL_COLOUR = 0.3
"""Difference of R2, accuracy or tau at which a cell has its full colour."""


@dataclass
class Marks:
    """Letters for the remarks below a table."""

    texts: dict[str, str] = field(default_factory=dict)

    def of(self, text: str) -> str:
        """Return ``[letter]`` for a remark; an empty string for no remark."""
        if not text:
            return ""
        number = len(self.texts)
        letter = chr(ord("a") + number % 26) * (1 + number // 26)
        return f"[{self.texts.setdefault(text, letter)}]"


@dataclass(frozen=True)
class FilledItem:
    """An item with its cells, remarks and picture."""

    item: Item
    grids: list["Grid"]
    marks: Marks
    file: Path | None
    remarks: list[str]

    @classmethod
    def of(cls, state: ReproductionState, item: Item) -> "FilledItem":
        """Fill an item."""
        marks, picture = Marks(), state.pictures.get(item.name)
        grids = [Grid.of(cells, marks) for cells in state.filled(item)]
        remarks = list(filter(None, (compared(cell for grid in state.filled(item) for cell in grid), item.note)))
        if item.picture:
            reason = picture.reason if picture else "not drawn before the reproduction was stopped"
            remarks += [f"No picture: {reason}."] if reason else [picture.note] if picture and picture.note else []
        return cls(item, grids, marks, picture.file if picture else None, remarks)


@dataclass(frozen=True)
class Grid:
    """The cells of a table by row and column."""

    columns: list[str]
    rows: list[tuple[str, list["Shown | None"]]]

    @classmethod
    def of(cls, cells: Sequence[FilledCell], marks: Marks) -> "Grid":
        """Arrange cells in rows, in the order in which their rows first occur."""
        rows = Counter(cell.row for cell in cells)
        (longest, _), *_ = rows.most_common()  # a row with every column gives their order
        columns = [cell.column for cell in cells if cell.row == longest]
        there = {(cell.row, cell.column): Shown.of(cell, marks) for cell in cells}
        return cls(columns, [(row, [there.get((row, column)) for column in columns]) for row in rows])

    @property
    def has_gaps(self) -> bool:
        """Whether a cell exists neither here nor in the paper."""
        return any(cell is None for _, cells in self.rows for cell in cells)


@dataclass(frozen=True)
class Shown:
    """A cell as text."""

    ours: str
    """Our value; empty if there is none."""
    sign: str
    """``<``, ``>``, ``=`` or ``≠`` between ours and the paper's."""
    paper: str
    mark: str
    colour: str = ""
    """Background of the cell, as CSS."""
    bound: str = ""
    """``PCA 91.8`` for a reconstruction: what the best linear code has."""

    @classmethod
    def of(cls, filled: FilledCell, marks: Marks) -> "Shown":
        """Format a cell."""
        mark = marks.of(filled.reason or filled.note)
        paper = _printed(filled.paper, filled)
        if filled.ours is None:
            return cls("", "", paper, mark)
        ours = _number(filled.ours, filled)
        if filled.paper is None:
            return cls(_with_interval(ours, filled), "", "", mark, bound=_bound(filled))
        if not isinstance(filled.ours, float) or not isinstance(filled.paper, float):
            return cls(ours, "=" if ours == paper else "≠", paper, mark, "" if ours == paper else colour_of(-0.5))
        sign = "=" if ours == paper else "<" if filled.ours < filled.paper else ">"
        scale = 1.0 if filled.cell is None or filled.cell.metric != "variance" else abs(filled.paper)
        background = colour_of((filled.ours - filled.paper) / scale / FULL_COLOUR)
        return cls(_with_interval(ours, filled), sign, paper, mark, background, _bound(filled))

    @property
    def markdown(self) -> str:
        """``96.4 < 97.0``; ``86.6 > 84.1, PCA 91.8``; ``[a] (97.0)`` without a value of ours, or ``96.4`` alone."""
        if not self.ours:
            return f"{self.mark} ({self.paper})" if self.paper else self.mark
        alone = not self.paper or (self.sign == "=" and not self.ours[0].isdigit())
        text = self.ours if alone else f"{self.ours} {self.sign} {self.paper}"
        return f"{text}{f', {self.bound}' * bool(self.bound)} {self.mark}".strip()


def _with_interval(ours: str, filled: FilledCell) -> str:
    return ours if filled.interval is None else f"{ours}±{_number(filled.interval, filled)}"


def _bound(filled: FilledCell) -> str:
    return "" if filled.bound is None else f"PCA {_number(filled.bound, filled)}"


def _number(value: float | str | None, filled: FilledCell) -> str:
    if not isinstance(value, float):
        return str(value)
    if filled.percent:
        return f"{100 * value:.1f}" if abs(value) < 1000 else f"{100 * value:.0e}"
    if filled.cell is None or filled.cell.metric != "variance":
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.0e}"


def _printed(value: float | str | None, filled: FilledCell) -> str:
    """Return the paper's value with the number of digits that the paper prints; an empty string for no value."""
    if value is None:
        return ""
    if not isinstance(value, float) or not filled.percent:
        return _number(value, filled)
    return f"{100 * value:.2f}".removesuffix("0")


def colour_of(difference: float) -> str:
    """Return blue if ours is above the paper's, orange if below; colour-blind readers can tell them apart."""
    strength = round(min(abs(difference), 1.0) * 0.55, 2)
    return f"rgba({'0,114,178' if difference > 0 else '230,159,0'},{strength})" if strength else ""
