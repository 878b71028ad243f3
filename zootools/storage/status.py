"""The progress of a build, as its folder records it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zootools.spec import ZooSpec
from zootools.storage.build_state import ZooFolder
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


@dataclass(frozen=True)
class BuildStatus:
    """The progress of the build of a zoo."""

    state: Literal["finished", "partial", "unfinished"]
    """``partial`` is a zoo with a manifest, some of whose models are not trained to the end."""
    counts: ModelCounts
    """A `Counts`, with the number of checkpoints, unless the zoo is unfinished."""
    progress: StackProgress | None = None
    """None unless the zoo is unfinished."""

    def to_json(self) -> dict[str, Any]:
        """Return all numbers by name, as ``zootools status --json`` prints them."""
        progress = asdict(self.progress) if self.progress else {}
        return {"state": self.state, **self.counts.model_dump(), **progress}


def epochs_done(record: StackRecord | None, spec: ZooSpec) -> int:
    """Return the number of trained epochs of a stack; all of them if its last models diverged before the end."""
    if record is None:
        return 0
    return spec.training.epochs if record.done else max(record.epoch, 0)


def status(out: Path) -> BuildStatus:
    """Return the progress of the build of a zoo in a folder.

    Raises ZooNotFoundError if there is no zoo, DamagedZooError for a damaged plan, record or manifest.
    """
    zoo = ZooFolder(out)
    plan = zoo.read_plan()
    if plan is None:
        manifest = read_manifest(out)
        return BuildStatus("partial" if manifest.is_partial else "finished", manifest.counts)
    return unfinished_status(plan, zoo.read_records(plan))


def unfinished_status(plan: Plan, records: Sequence[StackRecord | None]) -> BuildStatus:
    """Return the progress of a build, from its plan and the records of its stacks."""
    progress = StackProgress(
        stacks=len(plan.stacks),
        stacks_done=sum(record is not None and record.done for record in records),
        epochs_done=sum(epochs_done(record, plan.spec) for record in records),
        epochs_expected=len(plan.stacks) * plan.spec.training.epochs,
    )
    return BuildStatus("unfinished", count_outcomes(plan, records), progress)
