"""`benchmarks/speedrun.py` on a small zoo: what stops a training, what is recorded; docs/speedrun.md is its record."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from zootools import build
from zootools.bundled import find_spec
from zootools.spec import load_spec

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def speedrun() -> ModuleType:
    """benchmarks/speedrun.py, importable by its name in its worker processes too."""
    path = Path(__file__).parents[2] / "benchmarks" / "speedrun.py"
    spec = importlib.util.spec_from_file_location("speedrun", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speedrun"] = module
    sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "tetris_seed"
    changes = ["models=36", "training.epochs=3", "images.train=60", "images.test=100"]
    changes.append("split={train: 0.6, validation: 0.2, test: 0.2}")
    build(load_spec(find_spec("tetris_seed"), changes), out, quiet=True)
    return out


def test_a_training_ends_with_its_recipe_or_with_the_budget_and_every_call_is_appended(
    speedrun: ModuleType, zoo: Path, tmp_path: Path
) -> None:
    first = ["--recipe", "smoke training.schedule=one_cycle", "--ladder", "2,1", "--seeds", "1"]
    for words in (first, ["--recipe", "smoke training.epochs=500", "--seeds", "1", "--budget", "0.5"]):
        done = CliRunner().invoke(speedrun.main, [str(zoo), *words, "--record", "--docs", str(tmp_path)])
        assert done.exit_code == 0, done.output
    record = speedrun.read_record(tmp_path / "speedrun.json")
    assert (tmp_path / "speedrun.md").read_text() == speedrun.render(record)
    (whole, stopped) = record.measurements
    # Neither length reaches the paper's cells, so both are tried.
    assert [(run.loss, run.epochs, run.whole) for run in whole.runs] == [("EcD", 1, True), ("EcD", 2, True)]
    (run,) = stopped.runs
    assert not run.whole
    assert 1 <= run.epochs < 500
    assert run.seconds >= 0.5
    assert set(run.test) == set(speedrun.CELLS)
    assert "| not after " in (tmp_path / "speedrun.md").read_text()


def test_a_ladder_is_for_recipes_whose_length_decides_the_learning_rate(speedrun: ModuleType) -> None:
    recipe = "smoke training.schedule=one_cycle"
    assert list(speedrun.trainings([recipe, "smoke"], [3, 1])) == [
        [f"{recipe} training.epochs=1", f"{recipe} training.epochs=3"],
        ["smoke"],
    ]


def test_the_cells_are_reached_all_at_once_or_not(speedrun: ModuleType) -> None:
    reached = {"reconstruction": 0.841, "epoch": 0.971, "test_accuracy": 0.95, "generalization_gap": 0.82}
    run = speedrun.Run(
        recipe="r", loss="EcD", seed=0, epochs=1, steps=1, seconds=1.0, whole=True, bound=0.5,
        validation=reached, test=reached | {"epoch": 0.969},
    )  # fmt: skip
    assert run.reaches(run.validation)
    assert not run.reaches(run.test)
    assert speedrun.verdict([run, run.model_copy(update={"test": reached})]) == "on 1 of 2 seeds"
    assert speedrun.verdict([run.model_copy(update={"whole": False, "seconds": 300.4})]) == "not after 300 s"


def test_the_goals_are_the_papers_cells_and_for_ed_no_more_than_a_linear_code_has(speedrun: ModuleType) -> None:
    goals = speedrun.goals("EcD", 0.5)
    assert list(goals) == list(speedrun.CELLS)
    assert [round(goal, 3) for goal in goals.values()] == [0.841, 0.97, 0.902, 0.819]
    assert speedrun.goals("ED", 0.9) == {"reconstruction": 0.9}
    assert speedrun.goals("ED", 0.99) == {"reconstruction": 0.961}


def test_the_documented_page_is_what_the_record_says(speedrun: ModuleType) -> None:
    assert (DOCS / "speedrun.md").read_text() == speedrun.render(speedrun.read_record(DOCS / "speedrun.json"))
