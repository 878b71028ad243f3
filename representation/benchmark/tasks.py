"""Tasks: YAML files in ``representation/tasks``, each of a pinned population, a target, a metric and their statistics.

Nothing here imports torch.
"""

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from representation.recipes import Epochs
from zootools.bundled import find_bundled
from zootools.filesystem.files import write_durably
from zootools.hashing import canonical_json
from zootools.spec.sections import Section, load_section
from zootools.spec.values import Count, Line, Name
from zootools.storage.records import Digest

MetricName = Literal["kendall_tau", "r2", "accuracy"]
"""A key of `representation.benchmark.metrics.METRICS`."""


class PinnedZoo(Section):
    """A zoo, and the hash of those of its checkpoints that the task is about."""

    name: Name
    """The name of the zoo: that of its specification."""
    hub: Line | None = None
    """Where it is published: ``ORG/NAME@REVISION``; None if it has to be built or named by ``--zoo``."""
    models: Count | None = None
    """The number of models that were built, if not all: ``zootools build NAME --models N``."""
    settings: tuple[Line, ...] = ()
    """What differs from the bundled specification of that name: ``zootools build NAME --set KEY=VALUE``."""
    sha256: Digest
    """Hash of layers, splits, epochs, labels and weights (`representation.benchmark.populations`)."""

    @property
    def build_command(self) -> str:
        """The command that builds it."""
        models = [] if self.models is None else ["--models", str(self.models)]
        return shlex.join(["zootools", "build", self.name, *models, *(f"--set={text}" for text in self.settings)])


class SplitCounts(Section):
    """The size of a split."""

    models: int
    checkpoints: int


class Distribution(Section):
    """The labels of a split: quartiles, mean and standard deviation of a number, or how often each class occurs."""

    minimum: float | None = None
    quartile: float | None = None
    median: float | None = None
    upper_quartile: float | None = None
    maximum: float | None = None
    mean: float | None = None
    deviation: float | None = None
    classes: dict[str, int] | None = None


class Statistics(Section):
    """What a population says about the scores that are possible on it; computed from it, never written by hand."""

    splits: dict[str, SplitCounts]
    left_out: int = 0
    """Checkpoints without a finite label, or with a weight beyond 100: networks that explode decide linear probes."""
    train: Distribution
    test: Distribution
    majority: float
    """The share of the test networks at the most frequent value or class."""
    tied: float | None = None
    """The share of pairs of test networks with the same number."""
    ceilings: dict[MetricName, float | None]
    """The score of a predictor without a mistake, by each metric of the target's kind; None where it is not defined.

    ``kendall_tau``: tau-b of a ranker without ties; one that ties what labels tie can exceed it. ``r2``: that of a
    predictor that knows the mean of every configuration and epoch, but not which seed it sees; None where no seed
    repeats a configuration. A reader of weights can exceed it, because weights tell seeds apart. ``accuracy``: the
    share of the test networks whose class a training network has.
    """


class Task(Section):
    """One task of the benchmark."""

    name: Name
    description: Line
    """A sentence for readers."""
    zoo: PinnedZoo
    """The zoo whose train split is fitted to, and whose validation split methods choose on; by its stored splits."""
    scored_on: PinnedZoo | None = None
    """The zoo whose test split is scored, of the same layers; None for the same zoo."""
    epochs: Epochs = Epochs()
    """The epochs of the checkpoints."""
    where: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """A condition on the metadata that the checkpoints fulfil (`zootools.conditions`)."""
    target: Line
    """The column of the metadata that is predicted."""
    metric: MetricName
    """The metric of the score."""
    statistics: Statistics

    @property
    def ceiling(self) -> float | None:
        """The score of a predictor without a mistake (`Statistics.ceilings`); None where it is not defined."""
        return self.statistics.ceilings.get(self.metric)

    @property
    def sha256(self) -> str:
        """Hash of what decides a score: populations, filter, target and metric."""
        pinned = [zoo.sha256 for zoo in self.zoos]
        return hashlib.sha256(
            canonical_json([pinned, self.epochs.dump(), self.where, self.target, self.metric]).encode()
        ).hexdigest()

    @property
    def zoos(self) -> list[PinnedZoo]:
        """The zoos that it needs."""
        return [self.zoo] if self.scored_on is None else [self.zoo, self.scored_on]


def bundled_tasks() -> dict[str, Path]:
    """Return the tasks that come with the package by name, in alphabetical order."""
    folder = Path(__file__).parents[1] / "tasks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_task(name_or_path: str) -> Task:
    """Read a task, given as a file or the name of a bundled one.

    Raises SpecError listing every fault with its file and line, the value found, and the values allowed.
    """
    return load_section(Task, find_bundled(name_or_path, bundled_tasks(), "task"))


def task_text(task: Task) -> str:
    """Return the YAML text of a task."""
    return yaml.safe_dump(task.dump(), sort_keys=False, width=100, allow_unicode=True)


def write_task(task: Task, path: Path) -> None:
    """Write a task as a YAML file."""
    write_durably(path, task_text(task).encode())
