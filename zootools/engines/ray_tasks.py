"""The driver's side of streaming tasks on a Ray cluster: results, deaths, lost machines, retries and cancelling.

Two drivers use it: that of a build (`zootools.engines.ray`) and that of a training of encoders
(`representation.training.distributed`). Ray itself does not retry their tasks, because a second attempt would compute
again what the driver has committed: the driver starts a new task, which resumes after the last committed result.
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
"""After this many results that the driver has not taken, a task pauses."""
LOSSES = 10
"""How many machines a piece of work may lose between two epochs. Machines come and go; but work that crashes every
machine must not crash all those that an autoscaler or a batch system starts in their place too."""
LOOK_EVERY = 5.0
"""Seconds that `Tasks.next_result` waits for a result, and between two looks at the machines of the cluster."""
WARN_AFTER = 60.0
"""Seconds without a running task before the first warning; the time doubles with every further one."""
SETTLE = 0.5
"""Seconds to wait before tasks that have not started are cancelled. Ray (2.60) can lose the cancelling of a task that
it is sending to a machine at that moment, or even abort this process."""
CANCEL_WITHIN = 10.0
"""Seconds to wait for the end of cancelled tasks."""
STARTED = ("started", None)
"""The first result of every task, which says that a worker runs it; `Tasks` keeps it to itself."""

Work = TypeVar("Work", bound=Hashable)


@dataclass(frozen=True)
class Death:
    """How a task ended whose worker died before it had sent all results."""

    how: str
    """One sentence for messages."""
    machine_lost: bool
    """Whether the whole machine was lost, which rarely is the fault of the task."""
    error: Exception
    """The exception of Ray, for ``raise ... from``."""


class Tasks(Generic[Work]):
    """Tasks under way, each known by the piece of work that it does.

    A context manager. When the block ends, however it ends, the tasks that have not ended are cancelled, and their end
    is waited for: a task whose results nobody takes would keep its processor for as long as this process is connected
    to the cluster.

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
        """Return the options of `ray.remote` for a task that needs these resources (``num_cpus``, ``memory``, ...)."""
        return {"num_returns": "streaming", "max_retries": 0, "_generator_backpressure_num_objects": AHEAD, **needs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._started.issuperset(self._running):
            time.sleep(SETTLE)
        left = {generator.completed(): generator for generator in self._running}
        until = time.monotonic() + CANCEL_WITHIN
        while left and time.monotonic() < until:
            for generator in left.values():
                with suppress(self._ray.exceptions.RayError):
                    self._ray.cancel(generator, force=True)
            # Ray does not say when it loses a cancelling, so a task that has not ended is cancelled again.
            ended, _ = self._ray.wait(list(left), num_returns=len(left), timeout=1)
            left = {reference: generator for reference, generator in left.items() if reference not in ended}

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
        """Reset the counts of deaths and losses of a piece of work, which has come an epoch further."""
        self._deaths[work] = self._losses[work] = 0

    def may_retry(self, work: Work, death: Death) -> bool:
        """Count a death; return whether to retry the work: up to `RETRIES` times since it last advanced.

        A lost machine is counted apart. Raises ClusterError after more than `LOSSES` of them.
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
        # Reinserted at the end, so that every task has its turn. A task is removed only when it has ended: if its
        # result, or what the driver does with it, raises an error, `__exit__` must find and cancel the task.
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
        """Log a warning when no task has been running for `WARN_AFTER` seconds.

        Nothing is raised, because a cluster may be busy with other work for days.
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
