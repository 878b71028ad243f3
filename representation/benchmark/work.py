"""Pieces of work of the benchmark, one for each row that is to be computed, and how long they still take."""

import time
from collections import defaultdict
from collections.abc import Hashable, Iterable
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
    encoder: Hashable = None
    """Equal for rows that share a trained encoder: the first of them trains it. None for a row that shares none."""

    def __str__(self) -> str:
        return f"{self.task}, {self.kind.name}, seed {self.seed}"


class Remaining:
    """Counts finished rows, and estimates the time that the others take.

    A row takes the mean of the finished ones of its method in this run, or of all where its method has none yet. The
    rows that train an encoder for others are a kind of their own: on CNNs they take minutes, and the others seconds.
    """

    def __init__(self, work: Iterable[Work]) -> None:
        self._left = {(piece.task, piece.kind.name, piece.seed): piece for piece in work}
        self._total = len(self._left)
        self._took: dict[str, list[float]] = defaultdict(list)
        self._trained: dict[Hashable, float] = {}
        self._last = time.monotonic()

    def finish(self, task: str, method: str, seed: int) -> str:
        """Record a finished row; return how many are finished, and the time that is left."""
        now, piece = time.monotonic(), self._left.pop((task, method, seed))
        took, self._last = now - self._last, now
        if piece.encoder is None or piece.encoder in self._trained:
            self._took[method].append(took)
        else:
            self._trained[piece.encoder] = took
        finished = f"{self._total - len(self._left)} of {self._total} rows"
        return f"{finished}, about {duration(self._seconds_left())} left" if self._left else finished

    def _seconds_left(self) -> float:
        known = {name: mean(seconds) for name, seconds in self._took.items()}
        usual = mean(seconds for rows in self._took.values() for seconds in rows) if known else 0.0
        training = mean(self._trained.values()) if self._trained else usual
        encoders = {piece.encoder for piece in self._left.values()} - {None, *self._trained}
        return sum(known.get(name, usual) for _, name, _ in self._left) + len(encoders) * training
