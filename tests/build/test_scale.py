"""Very large zoos: the limits are known before anything is trained, and the simulated run of docs/scale.md runs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from samples import make_spec

from zootools.building.planning import MANY_FILES, plan_stacks, zoo_schema
from zootools.errors import SpecError
from zootools.spec.model_configs import expand
from zootools.storage.manifest import MAX_STACK_MODELS


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    """benchmarks/scale.py, importable by its name in worker processes too."""
    path = Path(__file__).parents[2] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_simulated_run_makes_a_zoo_that_is_one(scale: ModuleType, tmp_path: Path) -> None:
    spec, out = scale.specification(600, 2), tmp_path / "zoo"
    assert scale.measure_expand(spec, out) == {"models": 600, "stacks": 3}
    assert scale.measure_build(spec, out)["rows"] == 1800
    assert scale.measure_again(spec, out) == {"rows": 600}
    assert scale.measure_open(spec, out) == {"rows": 1800}
    assert scale.measure_weights(spec, out)["megabytes"] == 1
    assert scale.measure_verify(spec, out)["megabytes"] >= 1


def test_more_checkpoints_than_a_manifest_may_have_are_refused_by_the_specification() -> None:
    with pytest.raises(SpecError, match=r"1,000,000 models of 11 checkpoints each make 11,000,000; at most 10,000,000"):
        scaled(1_000_000, epochs=10)
    with pytest.raises(SpecError, match="checkpoint_epochs"):
        scaled(200_000, epochs=50)
    scaled(1_000_000, epochs=9)
    scaled(1_000_000, epochs=50, checkpoint_epochs=[0, 50])


def scaled(models: int, **training: object) -> object:
    grid = {"activation": ["tanh"], "init": ["uniform"], "optimizer": ["adam"], "lr": [1e-3]}
    return make_spec(grid=grid, seeds={"range": [1, models]}, training={"batch_size": 10, **training})


def test_stacks_grow_where_there_would_be_more_files_than_a_hub_takes(scale: ModuleType) -> None:
    spec = scale.specification(40_000, 75)
    models, schema = expand(spec), zoo_schema(spec)
    for checkpoints, largest in ((26, 256), (76, 512), (900, MAX_STACK_MODELS)):
        stacks = plan_stacks(models, schema, checkpoints)
        assert max(map(len, stacks)) == largest
        assert checkpoints * len(stacks) <= MANY_FILES
        assert sorted(model for stack in stacks for model in stack) == [model.model_id for model in models]
