"""Progress of a training or an import on stderr: a bar on a terminal, otherwise a line every 30 seconds."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Self

from zootools.text import say

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Counts the epochs of all models over all stacks, and estimates the remaining time.

    The count never decreases, and equals the total exactly when every stack has finished all its epochs. A retried
    stack is counted again only from the epoch that it had reached before.

    Args:
        sizes: number of models of each stack.
        epochs: epochs of every model.
        done: epochs that each stack had finished before this session.
        quiet: show nothing.
        unit: name of the counted unit.
        activity: the first word of every line.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        epochs: int,
        done: Sequence[float],
        quiet: bool = False,
        unit: str = "model-epochs",
        activity: str = "training",
    ) -> None:
        self._sizes, self._epochs = sizes, epochs
        self._done = [min(max(part, 0), epochs) for part in done]
        self._total = sum(sizes) * epochs
        self._whole = sum(size * math.floor(part) for size, part in zip(sizes, self._done, strict=True))
        self._parts = {stack: sizes[stack] * (part % 1) for stack, part in enumerate(self._done) if part % 1}
        """The finished part of each stack's epoch in progress. Whole epochs are counted separately, as integers: a
        float sum that is updated by differences would drift."""
        self._count = self._at_start = self._whole + math.fsum(self._parts.values())
        self._unit, self._activity = unit, activity
        self._quiet, self._begun, self._last = quiet, time.monotonic(), 0.0
        self._first: tuple[float, float] | None = None
        """Time and count at the first update: the speed is measured from there, without the start-up."""
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._at_start,
                unit=unit,
                desc=activity,
                file=sys.stderr,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._count > self._at_start:
            self._line()

    def update(self, stack: int, epochs: float) -> None:
        """Record that a stack has finished ``epochs`` epochs."""
        before, now, size = self._done[stack], min(epochs, self._epochs), self._sizes[stack]
        if now > before:
            self._done[stack] = now
            self._whole += size * (math.floor(now) - math.floor(before))
            self._parts[stack] = size * (now % 1)
            if not self._parts[stack]:
                del self._parts[stack]
            self._count = self._whole + math.fsum(self._parts.values())
        if self._first is None:
            self._first = time.monotonic(), self._count
            if self._bar is not None:
                self._bar.initial = self._count
                self._bar.unpause()
        if self._bar is not None:
            self._bar.n = self._count
            self._bar.refresh()
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._line()

    @property
    def share(self) -> float:
        """The finished fraction of the total, from 0 to 1."""
        return self._count / self._total

    def seconds_left(self) -> float | None:
        """Return the remaining seconds at the speed of this session; None before its first progress."""
        if self._first is None or self._count <= self._first[1]:
            return None
        elapsed, fresh = time.monotonic() - self._first[0], self._count - self._first[1]
        return (self._total - self._count) * elapsed / fresh

    def retried(self, stack: int, reason: str) -> None:
        """Print that the worker of a stack died, and that the stack is retried."""
        if not self._quiet:
            say(f"the worker of stack {stack} died ({reason}); its last whole epoch is kept", err=True)

    def _line(self) -> None:
        if self._quiet:
            return
        self._last = time.monotonic()
        seconds = self.seconds_left()
        left = "" if seconds is None else f", about {duration(seconds)} left"
        elapsed, done = self._last - self._begun, math.floor(self._count)
        say(f"{self._activity}: {done} of {self._total} {self._unit} in {duration(elapsed)}{left}", err=True)


def duration(seconds: float) -> str:
    """Return a readable time: ``2h05m``, ``3m20s``, ``14s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
