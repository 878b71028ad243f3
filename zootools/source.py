"""What `zootools.open.open_zoo` needs of a format or a place in order to open populations from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zootools.architectures import Schema
from zootools.zoo import Zoo
from zootools.zoo_name import Address


@dataclass(frozen=True)
class Request:
    """The arguments of `zootools.open.open_zoo` that say which population to open, and how."""

    path: str | Path
    revision: str | None = None
    hub: str | Path | None = None
    schema: str | Path | Schema | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.path, Address):
            object.__setattr__(self, "revision", self.revision or self.path.revision)
            object.__setattr__(self, "hub", self.hub or self.path.hub)


class Source(Protocol):
    """A format or a place of populations; `zootools.open.SOURCES` has one row for each."""

    def accepts(self, request: Request) -> bool:
        """Whether this source opens the request, as its arguments and the existing files tell; nothing is read."""

    def open(self, request: Request) -> Zoo:
        """Return the population with all its checkpoints, those of diverged models included.

        Raises ZooNotFoundError when there is no such population, DamagedZooError when its files are damaged, SpecError
        when the arguments do not fit it, HubError or StorageError when it cannot be fetched.
        """
