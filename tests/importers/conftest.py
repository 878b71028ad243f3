"""Small populations of others, trained once for the room."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from populations import PATTERN, SCHEMA, Checkpoint, train, write_files, write_scores

from zootools import import_zoo
from zootools.storage.manifest import Manifest


@pytest.fixture(scope="session")
def checkpoints() -> list[Checkpoint]:
    """Six networks over four epochs."""
    return train(range(6))


@pytest.fixture
def files(tmp_path: Path, checkpoints: list[Checkpoint]) -> Path:
    """The networks as files in folders."""
    return write_files(tmp_path / "runs", checkpoints)


@pytest.fixture
def pickles(tmp_path: Path, checkpoints: list[Checkpoint]) -> Path:
    """The same as pickles."""
    return write_files(tmp_path / "pickles", checkpoints, "pt")


@pytest.fixture
def scores(tmp_path: Path, checkpoints: list[Checkpoint]) -> Path:
    """A table with the accuracies of these files."""
    return write_scores(tmp_path / "scores.csv", checkpoints)


@pytest.fixture
def import_files(tmp_path: Path, files: Path) -> Callable[..., Manifest]:
    """A function that imports these files into ``tmp_path / "zoo"``; its arguments replace the usual ones."""

    def run(path: Path = files, **options: Any) -> Manifest:
        usual: dict[str, Any] = {"model_schema": SCHEMA, "path_pattern": PATTERN, "constants": {"activation": "tanh"}}
        return import_zoo("state-dicts", path, tmp_path / "zoo", quiet=True, **{**usual, **options})

    return run
