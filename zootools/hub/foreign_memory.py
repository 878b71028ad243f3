"""The memory that a population of another tool may take."""

from pathlib import Path

from zootools.errors import DamagedZooError, SpecError
from zootools.memory import available_memory, gigabytes

MAX_BYTES = 16 << 30
"""Bytes that weights and properties may take, all files together."""
MAX_REPEATS, SMALL_FILE = 1000, 256 << 20
"""Files may unpack to ``MAX_REPEATS`` times their size and ``SMALL_FILE`` bytes more; only repetition needs more."""


class Memory:
    """The memory that the files of a population may still take."""

    def __init__(self, stored: int) -> None:
        """Begin with the limit for files of ``stored`` bytes together."""
        free, repeats = available_memory(), SMALL_FILE + MAX_REPEATS * stored
        self.left = min(MAX_BYTES, free, repeats)
        self.error: type[DamagedZooError | SpecError] = SpecError
        if self.left == repeats:
            self.error, self.why = DamagedZooError, f"is the most that files of {stored} bytes may take"
        else:
            self.why = "is free" if self.left == free else "is the most that a population of another tool may take"
        self.limit = self.left

    def take(self, path: Path, size: int) -> None:
        """Subtract ``size`` bytes for a file.

        Raises SpecError where fewer are left, DamagedZooError where files of this size must repeat themselves.
        """
        if size > self.left:
            there = "" if self.left == self.limit else f" ({gigabytes(self.limit - self.left)} are already taken)"
            raise self.error(
                f"{path}: would take {gigabytes(size)} of memory; {gigabytes(self.limit)} {self.why}{there}"
            )
        self.left -= size
