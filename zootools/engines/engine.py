"""What an engine is: it trains the stacks of a planned zoo, wherever its workers run.

A new engine is one module, with a class that has what `Engine` has, and one row of `zootools.engines.table.ENGINES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from zootools.storage.build_state import ZooFolder
from zootools.storage.records import Plan

if TYPE_CHECKING:
    from zootools.training.backend import Backend

RETRIES = 2
"""How often a stack is tried again after the death of its worker, unless it has come an epoch further."""

NOTHING: Mapping[str, float] = MappingProxyType({})


class Report(Protocol):
    """A function that an engine calls to report progress."""

    def __call__(self, stack: int, epochs: float, seconds: Mapping[str, float] = NOTHING, /) -> None:
        """Take the epochs that a stack has done; a fraction is the share of the epoch in progress.

        ``seconds`` are the processor seconds of the workers by phase since the last call (`zootools.phases.Phases`).
        """


Retried = Callable[[int, str], None]
"""Called with a stack whose worker died, and with how it died."""


@dataclass(frozen=True)
class BuildJob:
    """What a build asks an engine to train."""

    zoo: ZooFolder
    """The folder. This process holds its lock; its images are stored (`zootools.storage.image_tensors.map_images`)."""
    lock: int
    """The descriptor of the folder's lock, for other processes that write there: they must hold it too."""
    plan: Plan
    classes: int
    """Number of image classes."""
    backend: "Backend"
    workers: int | None
    """How many stacks to train at once; None for as many as the engine has room for."""


class Engine(Protocol):
    """Trains stacks and commits every epoch to the zoo's folder."""

    trains_here: bool
    """Whether its workers are processes of this machine, whose cores and memory then limit their number."""

    def train(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> dict[int, str]:
        """Train stacks; return those whose workers died more than `RETRIES` times, each with how the last one died.

        Args:
            job: the zoo and how to train it.
            stacks: indices of ``job.plan.stacks``, in the order in which to begin them.
            report: called after every epoch of a stack, or more often.
            retried: called after every death of a worker.

        Raises the ZooError that a worker raised; WorkerError when a worker cannot start, and for any other error of
        one; what `ZooFolder.fence` raises when the folder was moved or removed. What was committed before stays.
        """
        ...
