"""Progress of work whose parts are of different size, in percent, on stderr."""

from typing import Self

from zootools.progress import Progress


class PercentProgress:
    """Prints the finished share of some work in percent, with an estimate of the remaining time.

    Args:
        total: the size of the work: bytes, or steps.
        activity: the first word of every line.
        quiet: print nothing.
    """

    def __init__(self, total: int, activity: str, quiet: bool) -> None:
        self._total, self._done = total, 0
        self._progress = Progress([100], 1, [0], quiet or total == 0, "percent", activity)

    def __enter__(self) -> Self:
        self._progress.update(0, 0)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    def tick(self, count: int = 1) -> None:
        """Record that ``count`` more of the total are finished."""
        self._done += count
        if self._total:
            self._progress.update(0, self._done / self._total)
