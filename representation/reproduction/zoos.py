"""The zoos of a reproduction in its report: what was built, from what, in which time, and how accurate it became."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from representation.paper import published_accuracies
from representation.reproduction.items import zoo_label
from representation.reproduction.state import ReproductionState, ZooState
from zootools.bundled import find_spec
from zootools.open import open_zoo
from zootools.progress import duration
from zootools.spec import load_spec
from zootools.storage.manifest import read_manifest
from zootools.storage.unhashed import read_build_log

ZOOS_REMARK = (
    "Test accuracies are in %, of models that did not diverge: lowest and highest of all checkpoints from epoch 1, "
    "which the paper reports of two zoos (text on Figure 14), and the median at the last epoch. The digest is the "
    "start of the sha256 of zoo.json. zoos.json has whole digests, specifications, and the sessions of the builds."
)
"""Explains the table of zoos."""


class Accuracies(NamedTuple):
    """Test accuracies of the models of a zoo that did not diverge, as fractions."""

    lowest: float
    """Of all checkpoints from epoch 1, without the untrained networks."""
    highest: float
    """Of the same checkpoints."""
    last: float
    """The median at the last epoch."""

    @classmethod
    def of(cls, folder: Path) -> "Accuracies | None":
        """Return the accuracies of a zoo; None if all of its models diverged."""
        metadata = open_zoo(folder, where="epoch > 0").metadata
        if not len(metadata):
            return None
        epochs, accuracies = metadata["epoch"].to_numpy(), metadata["test_accuracy"].to_numpy()
        last = np.median(accuracies[epochs == epochs.max()])
        return cls(float(accuracies.min()), float(accuracies.max()), float(last))


def zoo_rows(state: ReproductionState) -> list[dict[str, str | int]]:
    """Return a row for each zoo, whether it is built or not, by the titles of the columns."""
    return [_row(state, name, zoo) for name, zoo in state.zoos.items()]


def _row(state: ReproductionState, name: str, zoo: ZooState) -> dict[str, str | int]:
    folder, paper = state.workspace.zoo(name), published_accuracies(name)
    changes = " ".join(state.workspace.scale.zoo_changes(name, zoo.stand_in)) or "as it is"
    models = f"{load_spec(find_spec(name)).model_count:,}"
    row: dict[str, str | int] = {"zoo": zoo_label(name), "models": "-", "of": models, "diverged": "-"}
    row |= {"checkpoints": "-", "test accuracy": "-", "in the paper": "-", "median at the end": "-"}
    row |= {"built in": "-", "digest": "-", "specification": zoo.reason or changes}
    if paper is not None:
        row["in the paper"] = _percent(*paper, digits=0)
    if state.workspace.is_built(name):
        counts, accuracies = read_manifest(folder).counts, Accuracies.of(folder)
        row |= {"models": f"{counts.expected:,}", "diverged": f"{counts.diverged:,}"}
        row |= {"checkpoints": f"{counts.checkpoints:,}", "built in": duration(build_seconds(folder))}
        row["digest"] = state.workspace.digest(name)[:12]
        if accuracies is not None:
            row["test accuracy"] = _percent(accuracies.lowest, accuracies.highest)
            row["median at the end"] = _percent(accuracies.last)
    return row


def _percent(*fractions: float, digits: int = 1) -> str:
    return " to ".join(f"{100 * fraction:.{digits}f}" for fraction in fractions)


def zoo_records(state: ReproductionState) -> dict[str, Any]:
    """Return for each zoo that is built, as plain values: what decided its bytes, its builds, and what came out."""
    return {name: _record(state, name) for name in state.zoos if state.workspace.is_built(name)}


def _record(state: ReproductionState, name: str) -> dict[str, Any]:
    folder = state.workspace.zoo(name)
    manifest, accuracies = read_manifest(folder).dump(), Accuracies.of(folder)
    return {
        "zoo_sha256": state.workspace.digest(name),
        "specification": load_spec(folder / "spec.yaml").dump(),
        "sessions": read_build_log(folder),
        **{key: manifest[key] for key in ("images_sha256", "fingerprints", "counts", "splits")},
        "test_accuracy": accuracies._asdict() if accuracies is not None else None,
    }


def build_seconds(folder: Path) -> float:
    """Return the wall time of the sessions that build.json has, which killed ones are not in; 0 if it has none."""
    seconds = [session.get("seconds") for session in read_build_log(folder)]
    return sum(found for found in seconds if isinstance(found, int | float))
