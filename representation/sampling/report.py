"""What a sampling has made, for the command line and for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.storage.audit import Audit, AuditRow, Curve
from zootools.zoo import Zoo, open_folder


@dataclass(frozen=True)
class Sampled:
    """A finished zoo of samples."""

    zoo: str
    """Its folder."""
    parent: str
    """The name of the zoo that was sampled."""
    settings: dict[str, str]
    """What decides the samples beside the parent."""
    audit: Audit
    accuracy: Curve
    """Test accuracy of the samples over the epochs of their training."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read a zoo of samples."""
        zoo = open_folder(folder)
        imported = zoo.imported
        assert imported is not None, "it was sampled"
        assert imported.parent is not None, "samples have a parent"
        assert imported.audit is not None, "a zoo of samples is finished only with its audit"
        accuracy = curve("samples", zoo.metadata)
        return cls(str(folder), imported.parent.name, dict(imported.options), imported.audit, accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``zootools sample --json`` prints them."""
        return {
            "zoo": self.zoo,
            "parent": self.parent,
            "settings": self.settings,
            "audit": self.audit.model_dump(),
            "verdict": verdict(self.audit),
            "accuracy": self.accuracy.model_dump(),
        }


def curve(name: str, metadata: pa.Table) -> Curve:
    """Return the test accuracies of checkpoints by epoch."""
    epochs = sorted(pc.unique(metadata["epoch"]).to_pylist())
    scores = [metadata.filter(pc.equal(metadata["epoch"], epoch))["test_accuracy"].to_numpy() for epoch in epochs]
    return curve_of(name, epochs, scores)


def curve_of(name: str, epochs: Sequence[int], scores: Sequence[npt.NDArray[np.float64]]) -> Curve:
    """Return a curve from the accuracies at each epoch."""
    return Curve(
        networks=name,
        count=max(map(len, scores), default=0),
        epochs=list(epochs),
        mean=[round(float(np.mean(values)), 4) for values in scores],
        std=[round(float(np.std(values)), 4) for values in scores],
    )


def scratch_curve(zoo: Zoo, same: dict[str, object], epochs: int) -> Curve | None:
    """Return the accuracies of a zoo's own networks, which were trained from scratch, over their first epochs.

    ``same`` are the hyper-parameters that they must have. None for a zoo whose epoch 0 is not an initialisation, or
    without these epochs.
    """
    if zoo.stored_spec is None and (zoo.imported is None or zoo.imported.kind != "align"):
        return None
    condition = pc.field("epoch") <= epochs
    for name, value in same.items():
        if name in zoo.metadata.column_names:
            condition &= pc.field(name) == value
    chosen = zoo.where(condition).metadata
    return curve("from scratch", chosen) if chosen.num_rows else None


def verdict(audit: Audit) -> str:
    """Return an audit in one sentence."""
    rows: dict[str, AuditRow] = {row.networks: row for row in audit.rows}
    samples, training = rows["samples"], rows["training networks"]
    return (
        f"{100 * audit.nearer:.0f} % of the samples are nearer to a training network than half of the training "
        f"networks are to any other model (median distance {samples.distance:g}, of training networks "
        f"{training.distance:g}); the images that they misclassify overlap with those of the nearest training network "
        f"by {samples.overlap:.2f}, of training networks by {training.overlap:.2f}"
    )
