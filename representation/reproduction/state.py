"""The state of a reproduction: every cell with our value, the paper's, and the reason if there is none of ours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from representation.evaluation.results import mean_and_interval
from representation.evaluation.scoring import LINEAR_CODE
from representation.reproduction.described import SECTIONS, described
from representation.reproduction.items import Cell, Item, Job
from representation.reproduction.scales import StandIn
from representation.reproduction.work import JobResult, Workspace

NOT_RUN = "not run before the reproduction was stopped"


@dataclass(frozen=True)
class ZooState:
    """Whether a zoo can be built, and with which images."""

    instead: str = ""
    """Name of the image set that `stand_in` replaces; empty for the right images."""
    stand_in: StandIn | None = None
    """The images that the zoo is built with instead."""
    reason: str = ""
    """Why it cannot be built; empty if it can."""


@dataclass(frozen=True)
class Picture:
    """A picture, or the reason why there is none."""

    file: Path | None = None
    note: str = ""
    """A remark on its content, and on missing zoos."""
    reason: str = ""
    """Why it was not drawn; empty if it was."""


@dataclass(frozen=True)
class FilledCell:
    """A cell of the report."""

    row: str
    column: str
    ours: float | str | None
    """The mean over seeds, R2 and accuracy as fractions, or a text; None if there is no value."""
    paper: float | str | None
    percent: bool = False
    interval: float | None = None
    """Half the width of the 95 % interval of the mean over seeds; None with a single seed."""
    seeds: int = 0
    reason: str = ""
    """Why there is no value of ours."""
    note: str = ""
    """A remark on our value: other images, missing seeds."""
    bound: float | None = None
    """Of a reconstruction: the R2 of the best linear code of the same length on the same networks."""
    cell: Cell | None = None


@dataclass
class ReproductionState:
    """The results of a reproduction, and what could not be done."""

    workspace: Workspace
    items: list[Item]
    seeds: int
    data: Path | None
    zoos: dict[str, ZooState] = field(default_factory=dict)
    failures: dict[tuple[Job, int], str] = field(default_factory=dict)
    """Jobs without a result, and why."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    _read: dict[tuple[Job, int], JobResult | None] = field(default_factory=dict, repr=False)
    """Cache of results: hundreds of cells share some dozens of them."""

    def filled(self, item: Item) -> list[list[FilledCell]]:
        """Return the cells of an item, grid by grid."""
        if item.name in SECTIONS:
            return [[FilledCell(*cell) for cell in described(item.name)]]
        return [[self._fill(cell) for cell in grid] for grid in item.grids]

    def results(self) -> Iterator[tuple[Job, JobResult]]:
        """Yield every job that was done with its result, seed by seed."""
        for job in dict.fromkeys(job for item in self.items for job in item.jobs):
            for seed in range(self.seeds):
                if (found := self.found(job, seed)) is not None:
                    yield job, found

    def found(self, job: Job, seed: int) -> JobResult | None:
        """Return the result of a job; None if it is not done."""
        if (job, seed) not in self._read:
            self._read[job, seed] = self.workspace.found(job, seed) if self.workspace.is_built(job.zoo) else None
        return self._read[job, seed]

    def _fill(self, cell: Cell) -> FilledCell:
        filled = partial(
            FilledCell, row=cell.row, column=cell.column, paper=cell.paper, percent=cell.percent, cell=cell
        )
        zoos = [self.zoos.get(zoo, ZooState()) for zoo in (cell.job.zoo, cell.evaluated_on) if zoo]
        if reason := next((zoo.reason for zoo in zoos if zoo.reason), ""):
            return filled(ours=None, reason=reason)
        values, reason = [], ""
        for seed in range(self.seeds):
            value = self._value(cell, seed)
            if isinstance(value, float):
                values.append(value)
            else:
                reason = value
        if not values:
            return filled(ours=None, reason=reason)
        notes = _replaced(zoos)
        notes += [f"{len(values)} of {self.seeds} seeds: {reason}"] * (len(values) < self.seeds)
        mean, interval = mean_and_interval(values)
        return filled(ours=mean, interval=interval, seeds=len(values), note="; ".join(notes), bound=self._bound(cell))

    def _bound(self, cell: Cell) -> float | None:
        """Return the R2 of the best linear code beside a reconstruction."""
        found = self.found(cell.job, 0)
        if found is None or cell.target != "reconstruction":
            return None
        place = (LINEAR_CODE, cell.split, cell.evaluated_on or cell.job.zoo)
        values = [row.value for row in found.rows if (row.method, row.split, row.evaluated_on) == place]
        return values[0] if values else None

    def _value(self, cell: Cell, seed: int) -> float | str:
        """Return a score, or the reason why there is none."""
        found = self.found(cell.job, seed)
        if found is None:
            return self.failures.get((cell.job, seed), NOT_RUN)
        zoo = cell.evaluated_on or cell.job.zoo
        if zoo not in found.identity.zoos:
            return NOT_RUN
        key = (cell.method, cell.target, cell.metric, cell.split, zoo)
        for row in found.rows:
            if (row.method, row.target, row.metric, row.split, row.evaluated_on) == key:
                return "undefined: nothing varies there" if row.value is None else row.value
        for name in (cell.target, cell.method):
            if name in found.excluded:
                return f"{name}: {found.excluded[name]}"
        for note in found.notes:
            if note.kind == "not_scored" and (note.zoo, note.target) == (zoo, cell.target):
                return str(note)
        return f"{zoo}: not scored"


def _replaced(zoos: Sequence[ZooState]) -> list[str]:
    """Return a remark for each stand-in."""
    instead: dict[str, set[str]] = {}
    for zoo in zoos:
        if zoo.stand_in is not None:
            instead.setdefault(zoo.stand_in.name, set()).add(zoo.instead)
    return [
        f"{name} in place of {' and '.join(sorted(missing))}, whose files are not here"
        for name, missing in instead.items()
    ]
