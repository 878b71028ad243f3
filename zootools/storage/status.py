"""The progress of a build, as its folder records it, and whether a process is at work on it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zootools.errors import ZooNotFoundError
from zootools.filesystem.holder import Holder, utc
from zootools.filesystem.inside import stat_inside
from zootools.filesystem.lock import lock_state
from zootools.spec import ZooSpec
from zootools.storage.build_state import MANIFEST, PLAN, ZooFolder
from zootools.storage.manifest import ModelCounts, count_outcomes, read_manifest
from zootools.storage.records import Plan, StackRecord


@dataclass(frozen=True)
class StackProgress:
    """The progress of the stacks of an unfinished zoo."""

    stacks: int
    stacks_done: int
    epochs_done: int
    """The sum over all stacks, see `epochs_done`."""
    epochs_expected: int
    model_epochs_done: int
    """The sum over all models."""
    model_epochs_expected: int


@dataclass(frozen=True)
class Activity:
    """The process that builds an unfinished zoo, or built it last. All times are in seconds since 1970."""

    running: bool | None
    """Whether a process holds the lock of the folder, or the lease in the store; None if that is not known."""
    holder: Holder | None
    """This process, or the last one; None if nothing describes it."""
    now: float
    """The time of this look."""
    written: float | None = None
    """When a plan or record in the folder was last written."""
    heard_of: float | None = None
    """When the lease in a store was last renewed."""

    def rate(self, done: int) -> float | None:
        """Return the model-epochs per second since the training began; None if none is finished, or it is not known.

        Args:
            done: the model-epochs of the zoo that are finished.
        """
        if not self.running or self.holder is None or self.holder.trains_since is None:
            return None
        seconds, fresh = self.now - self.holder.trains_since, done - self.holder.trained_before
        return fresh / seconds if seconds > 0 and fresh > 0 else None

    def to_json(self, progress: StackProgress, name: str, where: str) -> Iterator[tuple[str, Any]]:
        """Yield what is known by name, for a zoo of this name at a path or URL."""
        if self.holder is not None:
            known = self.holder.model_dump(include={"process", "host", "engine"}, exclude_none=True)
            since = {"since": utc(self.holder.began)} if self.holder.began else {}
            yield "builder" if self.running else "last_builder", known | since
        if self.running:
            if self.holder is not None and self.holder.began:
                yield "running_seconds", round(max(0, self.now - self.holder.began), 1)
            rate = self.rate(progress.model_epochs_done)
            yield "model_epochs_per_second", rate
            left = progress.model_epochs_expected - progress.model_epochs_done
            yield "time_left_seconds", None if rate is None else round(left / rate, 1)
        for key, seconds in (("last_written", self.written), ("last_heard_of", self.heard_of)):
            if seconds is not None:
                yield key, utc(seconds)
        if self.running is None:
            yield "not_known", "whether a process is at work"
        if not self.running:
            yield "resumed_by", f"zootools build SPEC --out {where} (SPEC: the specification of {name})"


@dataclass(frozen=True)
class BuildStatus:
    """The progress of the build of a zoo."""

    state: Literal["finished", "partial", "running", "interrupted", "unfinished"]
    """``partial`` is a zoo with a manifest, some of whose models are not trained to the end; of an ``unfinished`` one
    it is not known whether a process builds it."""
    counts: ModelCounts
    """A `Counts`, with the number of checkpoints, unless the zoo is unfinished."""
    progress: StackProgress | None = None
    """None unless the zoo is unfinished."""
    activity: Activity | None = None
    """None unless the zoo is unfinished."""
    name: str = ""
    where: str = ""
    """The name of an unfinished zoo, and its path or URL."""

    def to_json(self) -> dict[str, Any]:
        """Return all numbers by name, as ``zootools status --json`` prints them."""
        value = {"state": self.state, **self.counts.model_dump()}
        if self.progress is not None and self.activity is not None:
            value |= asdict(self.progress) | dict(self.activity.to_json(self.progress, self.name, self.where))
        return value


def epochs_done(record: StackRecord | None, spec: ZooSpec) -> int:
    """Return the number of trained epochs of a stack; all of them if its last models diverged before the end."""
    if record is None:
        return 0
    return spec.training.epochs if record.done else max(record.epoch, 0)


def status(out: Path, activity: Activity | None = None, where: str | None = None) -> BuildStatus:
    """Return the progress of the build of a zoo in a folder, without disturbing the process that builds it.

    Args:
        out: the folder.
        activity: the process that builds it; by default the one that holds the lock of the folder.
        where: the path or URL of the zoo, if it is not that of the folder.

    Raises ZooNotFoundError if there is neither a zoo nor the plan of one, DamagedZooError for a damaged plan, record or
    manifest.
    """
    zoo = ZooFolder(out)
    plan = zoo.read_plan()
    if plan is not None:
        return unfinished_status(plan, zoo.read_records(plan), activity or _activity(zoo), where or str(out))
    running, holder = lock_state(zoo.lock)
    if running and not zoo.has(MANIFEST):
        raise ZooNotFoundError(f"{out}: {holder or 'a process'} is at work there, and has not written a plan yet")
    manifest = read_manifest(out)
    return BuildStatus("partial" if manifest.is_partial else "finished", manifest.counts)


def unfinished_status(plan: Plan, records: Sequence[StackRecord | None], activity: Activity, where: str) -> BuildStatus:
    """Return the progress of a build, from its plan, the records of its stacks, and the process that builds it."""
    done = [epochs_done(record, plan.spec) for record in records]
    progress = StackProgress(
        stacks=len(plan.stacks),
        stacks_done=sum(record is not None and record.done for record in records),
        epochs_done=sum(done),
        epochs_expected=len(plan.stacks) * plan.spec.training.epochs,
        model_epochs_done=sum(len(ids) * epochs for ids, epochs in zip(plan.stacks, done, strict=True)),
        model_epochs_expected=sum(map(len, plan.stacks)) * plan.spec.training.epochs,
    )
    states: dict[bool | None, Literal["running", "interrupted", "unfinished"]]
    states = {True: "running", False: "interrupted", None: "unfinished"}
    counts = count_outcomes(plan, records)
    return BuildStatus(states[activity.running], counts, progress, activity, plan.spec.name, where)


def _activity(zoo: ZooFolder) -> Activity:
    """Return the process that holds or held the lock of a folder, and when the folder was last written."""
    running, holder = lock_state(zoo.lock)
    times = []
    for name in (PLAN, *(f".work/{entry}" for entry in zoo.entries(".work") if entry.endswith(".record"))):
        with suppress(OSError):
            times.append(stat_inside(zoo.path, name).st_mtime)
    return Activity(running, holder, time.time(), max(times, default=None))
