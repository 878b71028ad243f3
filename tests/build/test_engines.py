"""Engines: a new one is a class that has what `zootools.engines.engine.Engine` has, and one row of the table."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from crash import TINY, tree

from representation.pipeline import ENCODER_ENGINES
from zootools import build
from zootools.building.builder import preview
from zootools.engines.engine import BuildJob, Engine, Report, Retried
from zootools.engines.table import ENGINES, open_engine
from zootools.engines.worker import train_stack
from zootools.errors import ClusterError, SpecError, differences
from zootools.spec import load_spec
from zootools.storage.image_tensors import map_images


class Toy:
    """An engine that trains in this very process, and that a worker never leaves."""

    trains_here = True

    def __init__(self, address: str | None = None) -> None:
        if address is not None:
            raise ClusterError(f"address {address}: toys have none")

    def train(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> dict[int, str]:
        models, images = job.plan.models(), map_images(job.zoo, job.classes, job.backend.device)
        for stack in stacks:
            own = [models[model] for model in job.plan.stacks[stack]]
            train_stack(job.zoo, stack, own, job.plan.schema, job.plan.spec.training, images, job.backend, report)
        return {}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    monkeypatch.setitem(ENGINES, "toy", Toy)
    return Toy


def test_an_engine_of_one_class_and_one_row_builds_the_same_bytes(toy: type[Engine], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    spec = load_spec(tmp_path / "tiny.yaml")
    assert preview(spec, tmp_path / "toy", engine="toy").size.models == 6
    for engine in ("local", "toy"):
        build(spec, tmp_path / engine, engine=engine, backend="torch", workers=1, quiet=True)
    assert tree(tmp_path / "toy") == tree(tmp_path / "local")
    assert json.loads((tmp_path / "toy" / "build.json").read_text())["sessions"][-1]["engine"] == "toy"
    with pytest.raises(ClusterError, match="toys have none"):
        build(spec, tmp_path / "other", engine="toy", address="auto")
    with pytest.raises(SpecError, match="engine: found 'toi'; did you mean 'toy'"):
        build(spec, tmp_path / "other", engine="toi")
    assert not (tmp_path / "other").exists()


def test_every_engine_of_the_table_has_what_an_engine_has() -> None:
    pytest.importorskip("ray", reason="lacks ray (pip install 'zootools[ray]')")
    assert {name: open_engine(name).trains_here for name in ENGINES} == {"local": True, "ray": False}
    assert set(ENCODER_ENGINES) <= set(ENGINES)
    with pytest.raises(ClusterError, match=re.escape("address 'auto': the local engine has none")):
        open_engine("local", "auto")


def test_differences_name_each_key_with_both_values() -> None:
    there, here = {"a": 1, "b": "x", "c": None}, {"a": 2, "b": "x", "d": [1]}
    assert differences(there, here) == ["a: 1 there, 2 here", "d: None there, [1] here"]
    assert differences(there, here, "now", show=str, missing="default")[-1] == "d: default there, [1] now"
    assert differences(there, there) == []
