"""How much memory a population of others may take."""

from pathlib import Path

from zootools.errors import DamagedZooError, SpecError
from zootools.memory import available_memory, gigabytes

MAX_BYTES = 16 << 30
"""Memory that weights and properties may take, all files together."""
MAX_REPEATS, SMALL_FILE = 1000, 256 << 20
"""Files may unpack to a multiple of their size, and bytes besides; beyond it their content only repeats itself."""


class Memory:
    """How much memory the files of a population may still take."""

    def __init__(self, stored: int) -> None:
        """Take the size of the files, in bytes."""
        free, repeats = available_memory(), SMALL_FILE + MAX_REPEATS * stored
        self.left = min(MAX_BYTES, free, repeats)
        self.error: type[DamagedZooError | SpecError] = SpecError
        if self.left == repeats:
            self.error, self.why = DamagedZooError, f"is the most that files of {stored} bytes may take"
        else:
            self.why = "is free" if self.left == free else "is the most that a population of others may take"
        self.limit = self.left

    def take(self, path: Path, size: int) -> None:
        """Count what a file takes. Raises SpecError, or DamagedZooError where a small file only repeats itself."""
        if size > self.left:
            there = "" if self.left == self.limit else f" ({gigabytes(self.limit - self.left)} are taken already)"
            raise self.error(
                f"{path}: would take {gigabytes(size)} of memory; {gigabytes(self.limit)} {self.why}{there}"
            )
        self.left -= size
