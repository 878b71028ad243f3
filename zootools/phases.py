"""Processor seconds of the phases of a build, for `zootools build --profile`."""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Phases:
    """Adds up the processor seconds of this process by phase, and those that other processes report.

    Phases can be nested: a second is counted for the innermost one. Programs that this process has started and waited
    for, such as the compiler, are included.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        """Processor seconds by phase, in the order of the first occurrence."""
        self._phase: str | None = None
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a block for a phase."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of another process, or of another recorder."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return the seconds so far, and begin again with none."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _switch(self, phase: str | None) -> str | None:
        """Begin a phase; return the one that it interrupts."""
        before, now = self._phase, processor_seconds()
        if before is not None:
            self.add({before: now - self._since})
        self._phase, self._since = phase, now
        return before


def processor_seconds() -> float:
    """Return the processor seconds of this process, and of the programs that it has started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
