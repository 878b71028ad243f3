"""Progress of work that is counted in bytes, on stderr."""

from typing import Self

from zootools.progress import Progress


class ByteProgress:
    """Counts bytes, and prints the finished share in percent with an estimate of the remaining time.

    Args:
        total: the bytes in all.
        activity: the first word of every line.
        quiet: print nothing.
    """

    def __init__(self, total: int, activity: str, quiet: bool) -> None:
        self._total, self._done = total, 0
        self._progress = Progress([100], 1, [0], quiet or total == 0, "percent", activity)

    def __enter__(self) -> Self:
        self._progress.update(0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__(*_)

    def tick(self, count: int) -> None:
        """Record that ``count`` more bytes are finished."""
        self._done += count
        if self._total:
            self._progress.update(0, self._done / self._total)
