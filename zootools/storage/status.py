"""The progress of a build, as its folder records it."""

from collections import Counter
from pathlib import Path
from typing import Any

from zootools.spec import ZooSpec
from zootools.storage.build_state import StackRecord, ZooFolder
from zootools.storage.manifest import is_partial, read_manifest


def epochs_done(record: StackRecord | None, spec: ZooSpec) -> int:
    """Return how many epochs of a stack are trained, those after its last model diverged included."""
    if record is None:
        return 0
    return spec.training.epochs if record.done else max(record.epoch, 0)


def status(out: Path) -> dict[str, Any]:
    """Return how the build of a folder stands: expected = ok + diverged + failed + missing, always.

    A model is ``ok`` when its last epoch is stored, ``missing`` while it is not, ``failed`` when the last session
    gave its stack up.
    """
    zoo = ZooFolder(out)
    plan = zoo.read_plan()
    if plan is None:
        manifest = read_manifest(out)
        return {"state": "partial" if is_partial(manifest) else "finished", **manifest["counts"]}
    counts: Counter[str] = Counter()
    epochs, done = 0, 0
    for ids, found in zip(plan.stacks, zoo.read_records(plan), strict=True):
        record = found or StackRecord({})
        counts["diverged"] += len(record.stopped)
        counts[record.standing] += len(ids) - len(record.stopped)
        epochs += epochs_done(record, plan.spec)
        done += record.done
    return {
        "state": "unfinished",
        "expected": sum(len(ids) for ids in plan.stacks),
        "ok": counts["ok"],
        "diverged": counts["diverged"],
        "failed": counts["failed"],
        "missing": counts["missing"],
        "stacks": len(plan.stacks),
        "stacks_done": done,
        "epochs_done": epochs,
        "epochs_expected": len(plan.stacks) * plan.spec.training.epochs,
    }
