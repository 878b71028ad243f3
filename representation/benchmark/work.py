"""Pieces of work of the benchmark, one for each row that is to be computed, and how long they still take."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from representation.benchmark.methods.method import Method
from zootools.progress import duration


@dataclass(frozen=True)
class Work:
    """A method on a task with a seed."""

    task: str
    kind: type[Method]
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.kind.name}, seed {self.seed}"


class Remaining:
    """Counts finished rows, and estimates the time that the others take.

    A row takes the mean of the finished ones of its method in this run, or of all where its method has none yet.
    """

    def __init__(self, work: Iterable[Work]) -> None:
        self._left = Counter(piece.kind.name for piece in work)
        self._total = self._left.total()
        self._took: dict[str, list[float]] = defaultdict(list)
        self._last = time.monotonic()

    def finish(self, method: str) -> str:
        """Record a finished row of a method; return how many are finished, and the time that is left."""
        now = time.monotonic()
        self._took[method].append(now - self._last)
        self._last = now
        self._left[method] -= 1
        usual = mean(seconds for rows in self._took.values() for seconds in rows)
        left = sum(
            count * (mean(self._took[name]) if name in self._took else usual) for name, count in self._left.items()
        )
        finished = f"{self._total - self._left.total()} of {self._total} rows"
        return f"{finished}, about {duration(left)} left" if self._left.total() else finished
