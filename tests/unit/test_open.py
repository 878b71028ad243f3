"""Opening zoos: the table of sources."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import zootools.open
from zootools.architectures import Layer, Schema
from zootools.errors import ZooNotFoundError
from zootools.hub.foreign import ForeignZoo
from zootools.open import open_zoo
from zootools.source import Request
from zootools.storage.manifest import Counts

SCHEMA = Schema("toy", (2, 1, 1), (Layer("fc1", "linear", 2, 3, bias=False),))


class NpySource:
    """The weights of models in a NumPy file: ``[models, parameters]``."""

    def accepts(self, request: Request) -> bool:
        return str(request.path).endswith(".npy")

    def open(self, request: Request) -> ForeignZoo:
        if not Path(request.path).exists():
            raise ZooNotFoundError(f"{request.path}: is not there")
        flat = np.load(request.path)
        rows = len(flat)
        table = {
            "model_id": [str(row) for row in range(rows)],
            "epoch": [0] * rows,
            "split": ["train", "test"] * (rows // 2),
            "status": ["ok"] * (rows - 1) + ["diverged"],
            "row": range(rows),
        }
        counts = Counts(expected=rows, ok=rows - 1, diverged=1, failed=0, missing=0, checkpoints=rows)
        return ForeignZoo(Path(request.path), None, SCHEMA, pa.table(table), counts, {}, flat=flat)


def test_a_source_is_a_class_and_a_row_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.save(tmp_path / "weights.npy", flat)
    with pytest.raises(ZooNotFoundError, match="is a file"):
        open_zoo(tmp_path / "weights.npy")
    monkeypatch.setattr(zootools.open, "SOURCES", (NpySource(), *zootools.open.SOURCES))
    zoo = open_zoo(tmp_path / "weights.npy")
    assert zoo.models == ["0", "1", "2"]
    assert torch.equal(zoo.split("test").weights(), torch.from_numpy(flat[1:2]))
    assert torch.equal(zoo.where("split == 'train'").dataset(["model_id"])[1]["weights"], torch.from_numpy(flat[2]))
    assert len(open_zoo(tmp_path / "weights.npy", include_diverged=True)) == 4
    with pytest.raises(ZooNotFoundError, match="is not there"):
        open_zoo(tmp_path / "nothing.npy")
    with pytest.raises(ZooNotFoundError, match="no such folder"):  # every other request is passed to the next source
        open_zoo(tmp_path / "nothing")
