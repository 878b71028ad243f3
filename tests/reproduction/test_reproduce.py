"""`zootools reproduce` at its smallest scale: every cell, every picture, resuming, refusals; the report in docs/."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from representation import represent
from representation.reproduction import reproduce
from representation.reproduction.conclusions import compared, conclusions
from representation.reproduction.described import SECTIONS, described
from representation.reproduction.estimate import plan
from representation.reproduction.faults import with_running_gap
from representation.reproduction.grids import Marks, Shown
from representation.reproduction.items import (
    ITEMS,
    LARGE,
    RUNNING_GAP,
    VARIANCES,
    ZOOS,
    Job,
    all_jobs,
    find_items,
    zoo_label,
)
from representation.reproduction.job_costs import job_memory
from representation.reproduction.report import MARK
from representation.reproduction.scales import SCALES, Scale
from representation.reproduction.state import NOT_RUN, FilledCell, ReproductionState
from representation.reproduction.work import Workspace, do
from representation.training.folder import TrainingFolder
from representation.training.train import Weights, train_epochs
from zootools import build, open_zoo
from zootools.building.planning import zoo_schema
from zootools.bundled import find_spec
from zootools.images.datasets import load_images
from zootools.images.sets import IMAGE_SETS, missing_files
from zootools.memory import available_memory
from zootools.rng import data_order
from zootools.spec import ZooSpec, load_spec
from zootools.spec.model_configs import expand
from zootools.training.reference import train_reference

DOCUMENTS = Path(__file__).parents[2] / "docs"


def command(*words: str | Path) -> list[str]:
    """Return a command line of `reproduce` with one thread in every process."""
    return [sys.executable, "-m", "zootools", "reproduce", *map(str, words)]


def cells(text: str) -> dict[str, list[list[list[str]]]]:
    """Return the cells of each table of a Markdown report below each heading."""
    found: dict[str, list[list[list[str]]]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        blocks = re.findall(r"(?:^\|.*\|\n?)+", body, flags=re.MULTILINE)
        found[heading] = [
            [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
            for block in blocks
        ]
    return found


def by_name(block: list[list[str]]) -> dict[tuple[str, str], str]:
    """Return the cells of a table by row and column."""
    columns = block[0][1:]
    return {(line[0], c): cell for line in block[2:] for c, cell in zip(columns, line[1:], strict=True)}


def without_mark(text: str) -> str:
    """Return the text of a cell without the letter of its remark."""
    return re.sub(r"\[[a-z]+\]", "", text).strip()


def check_zoos(
    block: list[list[str]], records: dict[str, Any], table: list[dict[str, Any]], missing: Sequence[str] = ()
) -> None:
    """Compare the table of the zoos with zoos.json, and the digests of both with those of the cells."""
    rows = {line[0]: dict(zip(block[0], line, strict=True)) for line in block[2:]}
    assert rows.keys() == {zoo_label(name) for name in (*records, *missing)}
    used = {row["zoo"]: row["zoo_sha256"] for row in table if row["zoo_sha256"]}
    assert used.items() <= {name: record["zoo_sha256"] for name, record in records.items()}.items()
    assert len(used) > len(records) / 2  # on SVHN-SEED nothing is fitted
    for name, record in records.items():
        row, accuracy = rows[zoo_label(name)], record["test_accuracy"]
        assert row["digest"] == record["zoo_sha256"][:12]
        assert row["models"] == f"{record['counts']['expected']:,}"
        assert row["test accuracy"] == f"{100 * accuracy['lowest']:.1f} to {100 * accuracy['highest']:.1f}"
        assert row["median at the end"] == f"{100 * accuracy['last']:.1f}"
        assert record["sessions"]
        assert ZooSpec.model_validate_json(json.dumps(record["specification"])).name == name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without any image file."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, data: Path) -> ReproductionState:
    """All tables and figures at the smoke scale, made by two workers."""
    return reproduce(["all"], "smoke", tmp_path_factory.mktemp("all"), data=data, workers=2, quiet=True)


# --- what comes out -------------------------------------------------------------------------------------------------


def test_every_cell_has_a_figure_or_says_why_not(everything: ReproductionState) -> None:
    assert [item.name for item in everything.items] == list(ITEMS)
    for item in everything.items:
        filled = [cell for grid in everything.filled(item) for cell in grid]
        assert filled or item.picture
        for cell in filled:
            assert (cell.ours is None) == bool(cell.reason), cell
            assert cell.reason != NOT_RUN
            ours_alone = item.name == "faults" or (item.name == "gap" and cell.row.endswith("of the checkpoint"))
            assert (cell.paper is None) == ours_alone
        if item.picture:
            picture = everything.pictures[item.name]
            assert picture.reason or (picture.file and picture.file.read_bytes().startswith(b"\x89PNG"))
    numbers = [c for item in everything.items for grid in everything.filled(item) for c in grid if c.cell]
    assert sum(cell.ours is not None for cell in numbers) > 0.9 * len(numbers) > 500


def test_cells_on_images_that_stand_in_for_others_say_so(everything: ReproductionState) -> None:
    assert {name for name, zoo in everything.zoos.items() if zoo.instead} == {
        zoo for zoo in ZOOS if not zoo.startswith("tetris")
    }
    (grid,) = everything.filled(ITEMS["table7"])
    notes = {cell.row: cell.note for cell in grid if cell.ours is not None}
    assert notes["MNIST-HYP on itself, tau"] == "scikit-learn's digits in place of mnist, whose files are not here"
    assert "mnist and svhn" in notes["MNIST-HYP on SVHN-HYP, tau"]
    assert not any(cell.note for grid in everything.filled(ITEMS["table5"]) for cell in grid)


def test_the_files_of_the_report_agree(everything: ReproductionState) -> None:
    out = everything.workspace.out
    text = (out / "reproduction.md").read_text()
    assert text.startswith(MARK)
    assert "zootools reproduce all --scale smoke --data DIR" in text
    tables = cells(text)
    table = pq.read_table(out / "reproduction.parquet").to_pylist()
    page = (out / "reproduction.html").read_text()
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)  # nothing is fetched
    for item in everything.items:
        rows = [row for row in table if row["item"] == item.name]
        filled = [cell for grid in everything.filled(item) for cell in grid]
        assert [(row["row"], row["column"]) for row in rows] == [(cell.row, cell.column) for cell in filled]
        assert [row["ours"] for row in rows] == [c.ours if c.cell else None for c in filled]
        assert all(
            len(row["zoo_sha256"]) == 64 and row["seconds"] > 0 and row["machine"] for row in rows if row["ours"]
        )
        for block in tables[item.heading]:
            assert all(all(line) for line in block[2:])  # no cell is empty
        assert f'id="{item.name}"' in page
    (zoos,) = tables["The zoos"]
    check_zoos(zoos, json.loads((out / "zoos.json").read_text()), table)
    for picture in everything.pictures.values():
        assert picture.file is None or f"reproduction/{picture.file.name}" in text
    assert page.count("data:image/png") == sum(picture.file is not None for picture in everything.pictures.values())


def test_the_report_has_the_accuracies_of_the_zoos_beside_the_papers(everything: ReproductionState) -> None:
    out = everything.workspace.out
    rows = by_name(cells((out / "reproduction.md").read_text())["The zoos"][0])
    papers = {zoo: rows[zoo_label(zoo), "in the paper"] for zoo in ZOOS}
    assert {zoo: text for zoo, text in papers.items() if text != "-"} == {
        "mnist_seed": "20 to 95",
        "svhn_seed": "20 to 75",
    }
    accuracy = json.loads((out / "zoos.json").read_text())["mnist_seed"]["test_accuracy"]
    table = open_zoo(out / "zoos" / "mnist_seed").metadata.to_pandas()
    trained = table[table.epoch > 0].test_accuracy
    assert (accuracy["lowest"], accuracy["highest"]) == (trained.min(), trained.max())
    assert accuracy["last"] == pytest.approx(table[table.epoch == 2].test_accuracy.median())


def test_a_cell_is_what_represent_finds(everything: ReproductionState, tmp_path: Path) -> None:
    zoo = everything.workspace.zoo("tetris_seed")
    recipe, changes = everything.workspace.scale.recipe_words(Job("tetris_seed", "EcD"))
    results = represent(zoo, recipe, tmp_path / "r", overrides=changes, quiet=True)
    expected = {
        (row["method"], row["target"]): row["value"]
        for row in results.table.to_pylist()
        if row["probe"] in ("paper", None) and row["split"] == "test" and row["metric"] == "r2"
    }
    filled = everything.filled(ITEMS["table5"])[0] + everything.filled(ITEMS["table1"])[0]
    compared = 0
    for cell in filled:
        assert cell.cell is not None
        if cell.cell.method in ("W", "s(W)", "EcD") and not cell.cell.job.released:
            value = expected[cell.cell.method, cell.cell.target]
            assert cell.ours == pytest.approx(value, abs=1e-4, rel=1e-3)
            compared += 1
    assert compared > 20


def test_the_gap_of_an_epoch_has_the_accuracy_of_its_training_steps(tmp_path: Path) -> None:
    spec = load_spec(find_spec("tetris_seed"), ["models=1", "training.epochs=6"])
    build(spec, tmp_path / "zoo", quiet=True)
    zoo, images, (model,) = open_zoo(tmp_path / "zoo"), load_images(spec.images), expand(spec)
    start, *rows = with_running_gap(zoo).metadata.to_pylist()
    assert start[RUNNING_GAP] == pytest.approx(start["generalization_gap"])
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    guessed: list[torch.Tensor] = []
    trained = train_reference(zoo.schema, model, images, spec.training.batch_size, spec.training.epochs)
    next(trained).register_forward_hook(lambda _, __, logits: guessed.append(logits.argmax(1)))
    for row, _ in zip(rows, trained, strict=True):
        order = torch.from_numpy(data_order(model.seed, row["epoch"], len(images.train)))
        right = (torch.cat(guessed) == images.train.labels[order.long()]).double()
        guessed.clear()
        assert row[RUNNING_GAP] == pytest.approx(float(right.mean()) - row["test_accuracy"], abs=0.02)
    assert RUNNING_GAP not in with_running_gap(zoo.where(pc.field("epoch") != 3)).metadata.column_names


def test_variances_are_over_checkpoints_and_within_groups(everything: ReproductionState) -> None:
    zoo = open_zoo(everything.workspace.zoo("mnist_hyp_5_rand"), where=pc.field("epoch") > 0)
    weights = zoo.weights().double().numpy()
    groups = np.array([f"{row['init']} {row['activation']}" for row in zoo.metadata.to_pylist()])
    within = np.mean([weights[groups == group].var(axis=0).mean() for group in np.unique(groups)])
    grid = {(cell.row, cell.column): cell.ours for cell in everything.filled(ITEMS["table4"])[0]}
    assert grid["VAR", "MNIST-HYP-5-RAND-SEED"] == pytest.approx(weights.var(axis=0).mean())
    assert grid["VARc", "MNIST-HYP-5-RAND-SEED"] == pytest.approx(within)
    twice = {f"{row}{by}" for row in ("Rtr", "Rtes") for by in ("", ", paper's encoder")}
    assert {row for row, _ in grid} == {"VAR", "VARc"} | twice


def test_checkpoints_that_are_left_out_decide_no_variance(everything: ReproductionState, tmp_path: Path) -> None:
    scale, zoo = everything.workspace.scale, "mnist_hyp_1_fix"
    (tmp_path / "zoos").symlink_to(everything.workspace.zoo(zoo).parent)
    weights = open_zoo(tmp_path / "zoos" / zoo, where=pc.field("epoch") > 0).weights().double()
    size = weights.abs().amax(dim=1)
    half = float(size.median())
    nothing = f"{zoo}: all {len(size)} checkpoints are left out: a weight is not finite, or beyond 1e-09"
    for limit, outcome in (half, ""), (1e-9, nothing):
        workspace = Workspace(tmp_path, replace(scale, recipes={zoo: (f"largest_weight={limit}",)}))
        assert do(workspace, Job(zoo, VARIANCES), 0, ()) == outcome
    (row, _) = json.loads((tmp_path / "results" / f"{zoo}-variances-seed-0.json").read_bytes())["rows"]
    kept = weights[size <= half]
    assert row["rows"] == len(kept) < len(weights)
    assert row["value"] == pytest.approx(kept.var(dim=0, correction=0).mean().item())


def test_words_of_specifications_and_schemas_stand_beside_the_papers(everything: ReproductionState) -> None:
    (layers,) = everything.filled(ITEMS["table11"])
    differing = {(cell.row, cell.column): (cell.ours, cell.paper) for cell in layers if cell.ours != cell.paper}
    assert differing == {("conv3", "pooling"): ("none", "2"), ("fc2", "parameters"): ("210", "200")}
    assert all(cell.ours == cell.paper for cell in everything.filled(ITEMS["table10"])[0])
    assert all(cell.ours == cell.paper for cell in everything.filled(ITEMS["table9"])[0])


def test_how_a_cell_is_written() -> None:
    marks = Marks()

    def shown(ours: float | str | None, paper: float | str | None, **more: object) -> Shown:
        return Shown.of(FilledCell("row", "column", ours, paper, **more), marks)  # type: ignore[arg-type]

    assert shown(0.9644, 0.97, percent=True).markdown == "96.4 < 97.0"
    assert shown(0.9701, 0.97, percent=True, interval=0.004, seeds=3).markdown == "97.0±0.4 = 97.0"
    assert shown(0.866, 0.841, percent=True, bound=0.9176).markdown == "86.6 > 84.1, PCA 91.8"
    assert shown(0.36, -0.02, note="digits").markdown == "0.36 > -0.02 [a]"
    assert shown(None, 0.97, percent=True, reason="no zoo").markdown == "[b] (97.0)"
    assert shown(None, 0.97, percent=True, reason="no zoo").mark == "[b]"
    assert shown(0.866, None, percent=True, interval=0.01, seeds=3, bound=0.9).markdown == "86.6±1.0, PCA 90.0"
    assert shown(None, None, percent=True, reason="no zoo").markdown == "[b]"
    assert shown("tanh", "tanh").markdown == "tanh"
    assert shown("210", "200").markdown == "210 ≠ 200"
    assert "0,114,178" in shown(0.9, 0.5).colour  # blue above the paper, orange below
    assert "230,159,0" in shown(0.5, 0.9).colour
    assert marks.texts == {"digits": "a", "no zoo": "b"}


def test_a_report_counts_its_cells_and_says_which_conclusions_hold(everything: ReproductionState) -> None:
    text = (everything.workspace.out / "reproduction.md").read_text()
    (rows,) = cells(text)["Conclusions of the paper"]
    assert {line[2] for line in rows[2:]} == {"-", "our recipe", "paper's encoder"}
    for item in everything.items:
        section = text.partition(f"## {item.heading}\n")[2].partition("\n## ")[0]
        ours = sum(
            cell.ours is not None and cell.paper is not None and not cell.cell.job.released
            for grid in everything.filled(item)
            for cell in grid
            if cell.cell is not None and cell.cell.metric != "variance"
        )
        counted = re.search(r"Baselines and our recipe: \d+ of (\d+) cells", section)
        assert ours == (int(counted.group(1)) if counted else 0), item.name


def test_the_papers_own_figures_follow_its_conclusions_but_for_two() -> None:
    every = [cell for item in ITEMS.values() for cell in item.cells]
    found = {
        (each.statement.partition(":")[0], each.of): each
        for each in conclusions([FilledCell(c.row, c.column, c.paper, c.paper, c.percent, cell=c) for c in every])
    }
    for each in found.values():
        assert each.verdict() == each.verdict(paper=True)
        broken = [line for line in each.numbers().split("; ") if " > " not in line]
        made, _, of = each.verdict().partition(" of ")
        assert int(of) - int(made) == len(broken)
        if each.statement.startswith("Layer statistics"):
            assert broken == ["MNIST-HYP-1-FIX-SEED 72.9 < 73.6"]
        elif each.statement.startswith("Transfer"):
            assert broken == ["GGap, SVHN-HYP on MNIST-HYP -0.04 < 0.00"]
        else:
            assert broken == []
    assert len(found) == 10


def test_cells_are_counted_with_their_intervals_and_bounds() -> None:
    cell = next(c for c in ITEMS["table1"].cells if (c.row, c.column) == ("EcD", "Rec"))

    def filled(ours: float | None, interval: float | None = None, bound: float | None = None) -> FilledCell:
        return FilledCell("EcD", "Rec", ours, 0.841, True, interval, bound=bound, cell=cell)

    assert compared([filled(None)]) == ""
    below = [filled(0.8, bound=0.81), filled(0.5, bound=0.9)]
    assert compared([filled(0.8411), filled(0.9), filled(0.83, 0.02), *below]) == (
        "Baselines and our recipe: 2 of 5 cells at or above the paper's, 1 below it within the interval, 2 below. "
        "Of the 2 reconstructions below, the paper's value is above the best linear code of our zoo in 1, and ours is "
        "within 2 points of that code in 1."
    )


# --- again, and after an end ------------------------------------------------------------------------------------------


def test_what_is_there_is_used(everything: ReproductionState, data: Path) -> None:
    out = everything.workspace.out
    kept = sorted([*out.glob("results/*"), *out.glob("encoders/*/*/model.safetensors"), *out.glob("zoos/*/zoo.json")])
    assert len(kept) > 100
    times = [path.stat().st_mtime_ns for path in kept]
    fewer = reproduce(["table1", "table4", "table7", "table13"], "smoke", out, data=data, workers=2, quiet=True)
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert len(cells((out / "reproduction.md").read_text())) == 7  # these, conclusions, zoos, encoders
    for item in fewer.items:
        assert fewer.filled(item) == everything.filled(item)


def test_a_changed_recipe_is_done_again(everything: ReproductionState) -> None:
    job = Job("tetris_seed", "ED")
    assert everything.workspace.found(job, 0) is not None
    assert everything.workspace.found(job, 1) is None
    assert Workspace(everything.workspace.out, SCALES["cpu"]).found(job, 0) is None
    changes = (*SCALES["smoke"].recipes["tetris_seed"], "description=the same in other words")
    reworded = replace(SCALES["smoke"], recipes={"tetris_seed": changes})
    assert Workspace(everything.workspace.out, reworded).found(job, 0) is not None


def start(out: Path, data: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a reproduction, and wait for its first result."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = (*words, "--out", str(out), "--data", str(data), "--workers", "2")
    running = subprocess.Popen(command(*words), env=environment, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("results/*.json")):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.02)
    return running


def test_a_killed_run_is_resumed_and_leaves_no_worker(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    running = start(out, data, "table1", "table3")
    workers = psutil.Process(running.pid).children(recursive=True)
    assert workers
    running.kill()
    running.communicate()
    psutil.wait_procs(workers, timeout=60)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    done = {path: path.stat().st_mtime_ns for path in out.glob("results/*.json")}
    assert not (out / "reproduction.md").exists()
    state = reproduce(["table1", "table3"], "smoke", out, data=data, workers=2, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for name in ("table1", "table3"):
        assert all(isinstance(cell.ours, float) for cell in state.filled(ITEMS[name])[0])


def test_the_time_of_an_encoder_has_all_sessions_of_its_training(everything: ReproductionState, tmp_path: Path) -> None:
    workspace, job = replace(everything.workspace, out=tmp_path), Job("tetris_seed", "ED")
    (tmp_path / "zoos").symlink_to(everything.workspace.out / "zoos")
    zoo, recipe = open_zoo(workspace.zoo("tetris_seed")), workspace.scale.recipe_of(job)
    next(train_epochs(Weights.of(zoo, recipe, quiet=True), recipe, workspace.encoder(job, 0), 0, quiet=True))
    folder = TrainingFolder(workspace.encoder(job, 0))
    measured = folder.cpu_seconds()
    assert measured > 0
    assert do(workspace, job, 0, ()) == ""
    record = json.loads(folder.record.read_text())
    assert record["cpu_seconds"] >= measured
    folder.record.write_text(json.dumps(record | {"cpu_seconds": 10_000.0}))
    assert do(workspace, job, 0, ()) == ""
    again = workspace.found(job, 0)
    assert again is not None
    assert again.cpu_seconds > 10_000


def test_encoders_that_do_not_fit_into_memory_together_are_trained_in_turn(
    everything: ReproductionState, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_batch(size: int) -> Scale:
        recipe = (*SCALES["smoke"].recipes["tetris_seed"], "encoder.hidden=4096", f"training.batch_size={size}")
        return replace(SCALES["smoke"], recipes={"tetris_seed": recipe})

    one, two = (job_memory(with_batch(size), Job("tetris_seed", "ED")) for size in (1000, 2000))
    most = min(10**6, int(available_memory() / (two - one) * 1000))  # recipes allow a million
    monkeypatch.setitem(SCALES, "smoke", with_batch(most))
    (tmp_path / "zoos").symlink_to(everything.workspace.out / "zoos")
    reproduce(["table1"], "smoke", tmp_path, data=data, seeds=2, workers=2, only="encoders", quiet=True)
    results = [tmp_path / "results" / f"tetris_seed-{loss}-seed-{n}.json" for loss in ("Ec", "ED") for n in (0, 1)]
    ends = sorted((path.stat().st_mtime, json.loads(path.read_bytes())["seconds"]) for path in results)
    for (end, _), (later, seconds) in itertools.pairwise(ends):
        assert end < later - seconds + 0.1


def test_while_a_worker_does_the_last_job_of_a_zoo_the_other_does_those_of_the_next(
    everything: ReproductionState, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = SCALES["smoke"].recipes
    long = (*recipes["tetris_seed"], "training.steps=600")
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], recipes={**recipes, "tetris_seed": long}))
    (tmp_path / "zoos").symlink_to(everything.workspace.out / "zoos")
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(everything.workspace.out / "results" / "tetris_seed-baselines-seed-0.json", results)
    reproduce(["table5"], "smoke", tmp_path, data=data, seeds=1, workers=2, only="encoders", quiet=True)
    last, following = (results / f"tetris_{job}-seed-0.json" for job in ("seed-EcD", "hyp-baselines"))
    begun = following.stat().st_mtime - json.loads(following.read_bytes())["seconds"]
    assert begun < last.stat().st_mtime


def test_the_papers_encoders_of_all_zoos_are_trained_after_all_other_encoders(
    everything: ReproductionState, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zoos").symlink_to(everything.workspace.out / "zoos")
    reproduce(["table5"], "smoke", tmp_path, data=data, seeds=1, workers=1, only="encoders")
    lines = [line for line in capsys.readouterr().err.splitlines() if ": done" in line]
    assert ["jobs take about" in line for line in lines] == [True] * 5 + [False]
    results = sorted((tmp_path / "results").iterdir(), key=lambda path: path.stat().st_mtime)
    assert ["-paper-" in path.name for path in results] == [False] * 4 + [True] * 2
    for path in (tmp_path / "results").glob("*-baselines-*"):
        path.unlink()
    reproduce(["table5"], "smoke", tmp_path, data=data, seeds=1, workers=1, only="encoders")
    lines = [line for line in capsys.readouterr().err.splitlines() if ": done" in line]
    assert ["jobs take about" in line for line in lines] == [True, False], "only jobs without an encoder are left"


def test_the_time_of_encoders_is_estimated_by_those_of_their_kind_that_this_machine_trained(
    everything: ReproductionState, tmp_path: Path
) -> None:
    def seconds(out: Path) -> dict[str, float]:
        planned = plan(find_items(["table1", "table5"]), Workspace.at(out, SCALES["smoke"]), 2, 1, None)
        return {entry.encoder: entry.seconds for entry in planned.encoders}

    (tmp_path / "zoos").symlink_to(everything.workspace.out / "zoos")
    (tmp_path / "results").mkdir()
    by_arithmetic = seconds(tmp_path)
    of_this_machine, name = [], "tetris_seed-EcD-seed-0.json"
    result = json.loads((everything.workspace.out / "results" / name).read_bytes())
    for change in ({"machine": "another"}, {"cpu_seconds": 1000.0}, {"cpu_seconds": 2000.0}):
        (tmp_path / "results" / name).write_text(json.dumps(result | change))
        of_this_machine.append(seconds(tmp_path))
    other, slow, slower = of_this_machine
    assert other["tetris_hyp-EcD"] == by_arithmetic["tetris_hyp-EcD"]
    assert slow["tetris_seed-EcD"] == pytest.approx(1000, abs=0.1)  # one of two seeds is left
    assert slow["tetris_seed-ED"] == pytest.approx(2000, rel=0.2)  # its operations differ
    assert slow["tetris_hyp-EcD"] > 100 * by_arithmetic["tetris_hyp-EcD"]
    for encoder, value in slower.items():
        if "-paper" in encoder:  # of another architecture, of which no encoder was trained
            assert value == slow[encoder] == by_arithmetic[encoder]
        else:
            assert value == pytest.approx(2 * slow[encoder], rel=1e-3)


def test_each_stage_alone_leaves_the_others_undone(everything: ReproductionState, tmp_path: Path, data: Path) -> None:
    def stage(what: str, only: str, out: Path = tmp_path) -> ReproductionState:
        return reproduce([what], "smoke", out, data=data, workers=2, only=only, quiet=True)

    for only in ("encoders", "report"):
        assert {c.reason for c in stage("table13", only).filled(ITEMS["table13"])[0]} == {"no zoo: it is not built"}
    pictures = stage("figure8", "zoos").pictures
    assert pictures == {}
    assert [path.name for path in (tmp_path / "zoos").iterdir()] == ["mnist_hyp"]
    assert not (tmp_path / "encoders").exists()
    there = tmp_path / "there"
    there.mkdir()
    for name in ("zoos", "encoders", "results"):
        (there / name).symlink_to(everything.workspace.out / name)
    again = stage("table13", "report", there)
    assert again.filled(ITEMS["table13"]) == everything.filled(ITEMS["table13"])
    for name in ("figure8", "figure14"):  # which show encoders
        drawn = stage(name, "report", there).pictures[name]
        assert drawn.file, drawn.reason
        assert drawn.file.is_relative_to(there)


def test_an_interrupted_run_reports_what_there_is(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    running = start(out, data, "table3")
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "the same command resumes" in said
    text = (out / "reproduction.md").read_text()
    assert NOT_RUN in text
    assert all(all(line) for line in cells(text)[ITEMS["table3"].heading][0][2:])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel1"], "did you mean 'table1'"),
        (["figure2"], "did you mean 'figure"),
        (["table1", "--scale", "fulll"], "did you mean 'full'"),
        (["table1", "--seeds", "0"], "--seeds"),
        (["table1", "--only", "zoo"], "did you mean 'zoos'"),
        ([], "WHAT"),
    ],
)
def test_bad_input_is_one_clear_error(words: list[str], message: str, tmp_path: Path) -> None:
    refused = subprocess.run(command(*words), capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_one_json_object(tmp_path: Path) -> None:
    words = ["table8", "table9", "figure6", "figure9", "figure10", "--json"]
    done = subprocess.run(command(*words), capture_output=True, text=True, cwd=tmp_path, check=True)
    value = json.loads(done.stdout)
    assert (value["scale"], value["without"], value["pictures_without"]) == ("smoke", 0, {})
    assert all((tmp_path / file).exists() for file in value["files"])


def test_a_dry_run_plans_the_papers_zoos_and_encoders(tmp_path: Path) -> None:
    words = ["table2", "--scale", "full", "--dry-run", "--json"]
    done = subprocess.run(command(*words), capture_output=True, text=True, cwd=tmp_path, check=True)
    value = json.loads(done.stdout)
    assert [(zoo["zoo"], zoo["models"], zoo["checkpoints"]) for zoo in value["zoos"]] == [("tetris_seed", 1000, 76_000)]
    assert len(value["encoders"]) == 6
    assert sum(entry["recipe"] == "default loss.kind=EcD" for entry in value["encoders"]) == 1
    plain = next(entry for entry in value["encoders"] if entry["encoder"] == "tetris_seed-EcD-paper")
    assert plain["recipe"] == "tetris_seed_paper_code loss.kind=EcD"
    assert (plain["epochs"], plain["checkpoints"]) == (1000, 674 * 75)
    tokens = next(entry for entry in value["encoders"] if entry["encoder"] == "tetris_seed-EcD-paper-AttW")
    assert tokens["seconds"] > 5 * plain["seconds"] > 0  # a hundred tokens instead of nine
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_what_the_folder_lacks(everything: ReproductionState, tmp_path: Path, data: Path) -> None:
    def plan(out: Path, *words: str) -> dict[str, Any]:
        line = command("table5", "--dry-run", "--json", "--data", str(data), "--out", str(out), *words)
        return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)

    def missing(found: dict[str, Any]) -> list[list[int]]:
        return [[entry["to_train"] for entry in found[kind]] for kind in ("zoos", "encoders")]

    there = everything.workspace.out
    done, more, nothing = plan(there), plan(there, "--seeds", "3"), plan(tmp_path)
    assert (missing(done), done["seconds"]) == ([[0, 0], [0, 0, 0, 0]], 0)
    assert missing(more) == [[0, 0], [2, 2, 2, 2]]
    assert missing(nothing) == [[36, 60], [1, 1, 1, 1]]
    assert min(more["seconds"], nothing["seconds"]) > 0
    assert missing(plan(there, "--only", "zoos")) == [[0, 0], []]
    assert missing(plan(tmp_path, "--only", "zoos")) == [[36, 60], []]
    assert missing(plan(there, "--only", "encoders")) == [[], [0, 0, 0, 0]]
    assert missing(plan(tmp_path, "--only", "encoders")) == [[], []]
    assert list(tmp_path.iterdir()) == []
    for folder in ("zoos", "encoders"):
        (tmp_path / folder).symlink_to(there / folder)
    assert missing(plan(tmp_path)) == [[0, 0], [0, 0, 0, 0]], "to score an encoder is not to train it"


def test_a_dry_run_knows_the_images_that_a_zoo_was_built_with(everything: ReproductionState, tmp_path: Path) -> None:
    for file in missing_files(IMAGE_SETS["mnist"], tmp_path):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()  # the zoos are of digits, which nothing would take the place of now
    words = ["table4", "--dry-run", "--json", "--data", str(tmp_path), "--out", str(everything.workspace.out)]
    done = subprocess.run(command(*words), capture_output=True, text=True, check=True)
    assert {zoo["to_train"] for zoo in json.loads(done.stdout)["zoos"]} == {0}


def test_a_dry_run_counts_the_images_that_stand_in_for_others(tmp_path: Path) -> None:
    for folder in [tmp_path / "svhn10k" / split / str(label) for split in ("train", "test") for label in range(10)]:
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "0.png")
    words = ["figure14", "--scale", "paper", "--dry-run", "--json", "--data", str(tmp_path)]
    done = subprocess.run(command(*words), capture_output=True, text=True, cwd=tmp_path, check=True)
    seconds = {zoo["zoo"]: zoo["seconds"] for zoo in json.loads(done.stdout)["zoos"]}
    images = SCALES["paper"].spec("mnist_seed").images
    assert seconds["svhn_seed"] == pytest.approx(seconds["mnist_seed"] * 8000 / images.train, rel=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_every_zoo_and_recipe_of_every_scale_is_valid(scale: str) -> None:
    settings = SCALES[scale]
    for zoo in ZOOS:
        assert settings.spec(zoo).name == zoo
    for job in all_jobs([settings.part_of(item) for item in find_items(["all"])]):
        recipe = settings.recipe_of(job)
        assert not job.learns or recipe.loss.kind == job.method
        if job.zoo == "tetris_seed" and not job.variation.startswith("c"):
            assert recipe.sized(zoo_schema(settings.spec(job.zoo)).size).encoder.length == 50


# --- the reports in docs/ ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(DOCUMENTS.glob("reproduction*.md")), ids=lambda page: page.stem)
def test_a_documented_report_was_generated_and_has_the_papers_figures(page: Path) -> None:
    """A report of an older version, or of some items, has only a part of the cells."""
    text = page.read_text()
    assert text.startswith(MARK)
    tables, marks, compared = cells(text), Marks(), 0
    for item in ITEMS.values():
        grids = [
            [FilledCell(c.row, c.column, None, c.paper, c.percent, reason="x", cell=c) for c in g] for g in item.grids
        ]
        if item.name in SECTIONS:
            grids = [
                [FilledCell(row, column, None, paper, reason="x") for row, column, _, paper in described(item.name)]
            ]
        for grid, block in zip(grids, tables.get(item.heading, []), strict=item.heading in tables):
            found = by_name(block)
            there = [cell for cell in grid if (cell.row, cell.column) in found]
            assert there
            for cell in there:
                published = Shown.of(cell, marks).paper
                written = re.sub(r"(, PCA [-\d.e]+)? ?(\[[a-z]+\] ?)?$", "", found[cell.row, cell.column])
                written = re.sub(r"^\[[a-z]+\] ", "", written)
                alone, beside = r"(-?\d[-\d.e±+]*)?", rf"(^|^\(|[<>=≠] ){re.escape(published)}\)?$"
                assert re.search(beside, written) if published else re.fullmatch(alone, written), (item.name, cell.row)
                assert found[cell.row, cell.column], "a cell has a value, or a remark about why there is none"
                compared += bool(published)
    assert compared > 60
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "scale", "least", "missing"),
    [("reproduction", "cpu", 700, ()), ("reproduction-paper", "paper", 500, LARGE[:3])],
)
def test_the_table_of_a_documented_report_has_its_values(
    name: str, scale: str, least: int, missing: Sequence[str]
) -> None:
    tables, compared = cells((DOCUMENTS / f"{name}.md").read_text()), 0
    table = pq.read_table(DOCUMENTS / name / "reproduction.parquet").to_pylist()
    for item in [SCALES[scale].part_of(item) for item in ITEMS.values() if item.name not in SECTIONS]:
        written = [by_name(block) for block, _ in zip(tables.get(item.heading, []), item.grids, strict=True)]
        named = [
            (cell, texts[cell.row, cell.column]) for g, texts in zip(item.grids, written, strict=True) for cell in g
        ]
        rows = [row for row in table if row["item"] == item.name]
        for (cell, text), row in zip(named, rows, strict=True):
            assert (row["row"], row["column"]) == (cell.row, cell.column)
            values = {name: row[name] for name in ("ours", "interval", "bound", "reason")}
            filled = FilledCell(cell.row, cell.column, paper=cell.paper, percent=cell.percent, cell=cell, **values)
            assert without_mark(text) == without_mark(Shown.of(filled, Marks()).markdown)
            compared += row["ours"] is not None
    assert compared > least
    (zoos,) = tables["The zoos"]
    check_zoos(zoos, json.loads((DOCUMENTS / name / "zoos.json").read_text()), table, missing)
