"""A mixin of methods that depend on files beside their source."""

from pathlib import Path
from typing import ClassVar


class ReadsFiles:
    """A method whose predictions depend on files: a changed file makes its rows stale, as a changed source does."""

    files: ClassVar[tuple[Path, ...]]
    """The files, in a fixed order."""
