"""Streaming tasks of a Ray cluster: which of them are under way, what they send, and how they die.

The driver of a build and that of a training of encoders differ in what their tasks compute and in what they do with
the results; the rest is here. A task is started once: Ray does not retry it, because its second attempt would repeat
what the driver has already committed. The driver starts another one after the last result that it has.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from zootools.engines.cluster import import_ray
from zootools.engines.engine import RETRIES
from zootools.errors import ClusterError, StorageError, WorkerError, ZooError

LOG = logging.getLogger(__name__)

AHEAD = 2
"""Results that a task may have computed and the driver not yet taken."""
LOSSES = 10
"""How many machines a piece of work may lose between two of its results. Machines come and go; but work that takes
every machine down must not do so for ever with those that an autoscaler or a batch system starts anew."""
LOOK_EVERY = 5.0
"""Seconds that `Tasks.next_result` waits for a result."""
WARN_AFTER = 60.0
"""Seconds without a started task before the first warning; every further one comes after twice as many."""
STARTED = ("started", None)
"""The first result of every task: a worker runs it. It is not passed on to the driver."""

Work = TypeVar("Work", bound=Hashable)


@dataclass(frozen=True)
class Death:
    """The end of a task whose worker died before it had sent all of its results."""

    how: str
    """One sentence."""
    machine_lost: bool
    """Whether the whole machine was lost, which is not the fault of the task."""
    error: Exception
    """What Ray raised."""


class Tasks(Generic[Work]):
    """Tasks under way, each known by the piece of work that it does.

    A context manager. When the block ends, however it ends, the tasks that have not ended are cancelled: a task whose
    results nobody takes would keep its processor for as long as this process is connected to the cluster.

    Args:
        name: returns what messages call a piece of work, such as ``stack 3``.
    """

    def __init__(self, name: Callable[[Work], str]) -> None:
        self._ray, self._name = import_ray(), name
        self._running: dict[Any, Work] = {}
        self._started: set[Any] = set()
        self._idle_since, self._warn_after = time.monotonic(), WARN_AFTER
        self._deaths, self._losses = Counter[Work](), Counter[Work]()

    @staticmethod
    def options(needs: Mapping[str, float]) -> dict[str, Any]:
        """Return the options of `ray.remote` for a task that needs these processors and GPUs (``num_cpus``, ...)."""
        return {"num_returns": "streaming", "max_retries": 0, "_generator_backpressure_num_objects": AHEAD, **needs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for generator in self._running:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(generator, force=True)

    def __len__(self) -> int:
        return len(self._running)

    def add(self, generator: Any, work: Work) -> None:
        """Take charge of a task that was sent to the cluster.

        Args:
            generator: the task's results, as calling a remote function returns them.
            work: what the task does.
        """
        self._running[generator] = work

    def forget(self, work: Work) -> None:
        """Expect no more results of a task that has sent its last one."""
        for generator in [generator for generator, found in self._running.items() if found == work]:
            del self._running[generator]

    def next_result(self) -> tuple[Work, Any] | None:
        """Wait for the next result of any task; return it with the work that it belongs to.

        The result is what the task yielded, or a `Death`. None is returned when no result came within `LOOK_EVERY`
        seconds, and when a task has started or ended.

        Raises the ZooError that a task raised; WorkerError for any other error of a task; StorageError when Ray itself
        fails.
        """
        ready, _ = self._ray.wait(list(self._running), timeout=LOOK_EVERY)
        result = self._result_of(ready[0]) if ready else None
        self._warn_if_idle()
        return result

    def advanced(self, work: Work) -> None:
        """Forget the deaths of a piece of work: it has come further."""
        self._deaths[work] = self._losses[work] = 0

    def may_retry(self, work: Work, death: Death) -> bool:
        """Count a death; return whether the work may be tried again: `RETRIES` times before it comes further.

        Raises ClusterError when it has lost more than `LOSSES` machines.
        """
        if not death.machine_lost:
            self._deaths[work] += 1
            return self._deaths[work] <= RETRIES
        self._losses[work] += 1
        if self._losses[work] > LOSSES:
            raise ClusterError(
                f"{self._name(work)} has lost {self._losses[work]} machines one after the other and got no epoch "
                "further; find out why they are lost, the same command resumes"
            ) from death.error
        return True

    def _result_of(self, generator: Any) -> tuple[Work, Any] | None:
        errors = self._ray.exceptions
        # To the end of the row, so that every task has its turn. It leaves the row only when it has ended, so that it
        # is cancelled whatever is raised before.
        work = self._running[generator] = self._running.pop(generator)
        try:
            result = self._ray.get(next(generator))
        except StopIteration:
            del self._running[generator]
            return None
        except errors.RayTaskError as error:
            if isinstance(error.cause, ZooError):
                raise error.cause from error
            raise WorkerError(f"{self._name(work)} cannot be trained: {_first_sentence(error)}") from error
        except (errors.NodeDiedError, errors.ObjectLostError) as error:
            del self._running[generator]
            return work, Death(f"its machine is lost: {_first_sentence(error)}", machine_lost=True, error=error)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            del self._running[generator]
            return work, Death(_first_sentence(error), machine_lost=False, error=error)
        except errors.RayError as error:
            raise StorageError(f"the cluster fails: {_first_sentence(error)}; the same command resumes") from error
        if result == STARTED:
            self._started.add(generator)
            return None
        return work, result

    def _warn_if_idle(self) -> None:
        """Warn when no task has been running for long.

        It may be so for days, on a cluster that is busy with other work, and so nothing is raised.
        """
        self._started.intersection_update(self._running)
        now = time.monotonic()
        if self._started or not self._running:
            self._idle_since, self._warn_after = now, WARN_AFTER
        elif now - self._idle_since >= self._warn_after:
            LOG.warning(
                "no task has started for %.0f s: the machines of the cluster are busy with other work or cannot start "
                "workers (`ray status` says more); waiting for them",
                now - self._idle_since,
            )
            self._warn_after *= 2


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]
