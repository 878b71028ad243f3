"""Zoos that several files of this room damage copies of."""

import shutil
from pathlib import Path

import pytest
from crash import SMALL, TINY, Builders

from zootools.verify import faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the specifications of two small zoos."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "small.yaml").write_text(SMALL)
    return folder


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specification of six models in two stacks."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, builders: Builders, spec: Path) -> Path:
    """The zoo of `spec`; read only."""
    out = tmp_path_factory.mktemp("finished") / "zoo"
    assert builders.build(spec, out) == 0
    return out


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory, builders: Builders, spec: Path) -> Path:
    """A build that was stopped by a folder in the place of the last shard but one of its second stack; read only."""
    out = tmp_path_factory.mktemp("unfinished") / "zoo"
    blocked = out / "checkpoints/stack-00001/epoch-0002.safetensors"
    (out / ".work").mkdir(parents=True)
    (blocked / "in the way").mkdir(parents=True)
    assert builders.build(spec, out) == 74
    shutil.rmtree(blocked)
    assert list(faults(out)) == []
    return out
