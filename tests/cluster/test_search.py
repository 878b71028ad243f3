"""Encoders trained on a Ray cluster, and a search over recipes: the same bytes, the better recipe, interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from examples import examples
from threadpoolctl import threadpool_limits

from representation import Results, load_recipe, represent
from representation.search.run import COLUMNS
from representation.search.space import load_search
from representation.training.memory import estimate
from zootools import open_zoo
from zootools.cli import main
from zootools.engines.cluster import connect
from zootools.errors import SpecError, WorkerError

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
SMALL = ["training.batch_size=5"]
LR = "training.lr: {choice: [1.0e-9, 1.0e-2]}"
SPACE = f"""\
trials: 6
seed: 1
vary:
  {LR}
objective: {{score: loss}}
stopping: {{factor: 2}}
"""


KIND = "loss.kind: {choice: [Ec]}\nobjective: {score: reconstruction}"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray of two cores for all tests; and no UMAP: compiling it takes longer than all of this."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setitem(sys.modules, "umap", None)
        with connect(workers=2):
            yield


@pytest.fixture
def space(tmp_path: Path) -> Callable[..., Path]:
    """Write a search space; ``(old, new)`` pairs replace parts of `SPACE`."""

    def write(*changes: tuple[str, str]) -> Path:
        text = SPACE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write


def contents(folder: Path) -> dict[str, Any]:
    """Return what is in all files of a folder, without how many seconds it took."""

    def timeless(value: Any) -> Any:
        return {key: item for key, item in value.items() if key not in ("seconds", "cpu_seconds")}

    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "training.json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


# --- encoders on a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoders of two seeds, trained by the local engine in its own process (so are the workers of a cluster)."""
    out = tmp_path_factory.mktemp("local")
    in_process(represented(tiny_zoo, out, 30))
    return out


def represented(zoo: Path, out: Path, epochs: int) -> str:
    """Return the statement for `in_process` that trains two seeds."""
    return f"represent({str(zoo)!r}, 'smoke', Path({str(out)!r}), seeds=2, epochs={epochs}, quiet=True, **settings)"


def in_process(statement: str) -> None:
    """Run a statement in a fresh process, with nothing set that zootools itself does not set."""
    lines = [
        "import sys",
        "sys.modules['umap'] = None",  # as here, see `cluster`
        "import torch",
        "from pathlib import Path",
        "from representation import load_recipe, represent",
        "from representation.training.train import Weights, train_epochs",
        "from zootools import open_zoo",
        "torch.set_num_threads(1)",
        f"settings = {{'overrides': {SMALL!r}}}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", "\n".join([*lines, statement])], env=environment, check=True)


def on_ray(zoo: Path, out: Path, **changes: Any) -> Results:
    return represent(zoo, "smoke", out, **{"overrides": SMALL, "seeds": 2, "epochs": 30, "engine": "ray"} | changes)


def test_both_engines_make_the_same_files_and_a_training_is_continued_by_either(
    tiny_zoo: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(
        f"recipe = load_recipe('smoke', [*settings['overrides'], 'training.epochs=30'])\n"
        f"weights = Weights.of(open_zoo({str(tiny_zoo)!r}), recipe)\n"
        f"begun = train_epochs(weights, recipe, Path({str(tmp_path / 'seed-1')!r}), 1, quiet=True)\n"
        "for _ in range(20): next(begun)"
    )
    on_ray(tiny_zoo, tmp_path)
    assert contents(tmp_path) == contents(local)
    assert "30 of 60 epochs" not in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*")}
    on_ray(tiny_zoo, tmp_path, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*")}
    assert capsys.readouterr().err == ""


def test_a_seed_whose_worker_dies_is_resumed_after_its_last_epoch_and_given_up_without_progress(
    tiny_zoo: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    log, killed = tmp_path / "seed-0" / "log.jsonl", set[int]()
    many = 60  # more than are trained before the first worker dies

    def kill() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        while len(killed) < 3:
            for process in psutil.process_iter(["cmdline"]):
                if "seed 0" in " ".join(process.info["cmdline"] or []) and process.pid not in killed:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        killed.add(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(WorkerError, match=r"seed-0: its workers died 3 times after epoch \d+") as error:
        on_ray(tiny_zoo, tmp_path, epochs=many)
    thread.join()
    assert error.value.exit_code == 74
    found = re.findall(r"seed 0 died; another one resumes after epoch (\d+)", capsys.readouterr().err)
    assert len(found) == 2
    assert found[0] == found[1]
    assert 3 <= int(found[0]) < many
    on_ray(tiny_zoo, tmp_path, epochs=many, quiet=True)
    out = tmp_path_factory.mktemp("whole")
    in_process(represented(tiny_zoo, out, many))
    assert contents(tmp_path) == contents(out)


def test_what_a_training_refuses_on_a_cluster_is_refused_by_its_own_name(
    tiny_zoo: Path, local: Path, tmp_path: Path
) -> None:
    wild = [*SMALL, "training.lr=100", "loss.kind=ED", "encoder={kind: feed_forward, latent: 6}"]
    with pytest.raises(SpecError, match=f"{tmp_path}/seed-0: the loss is no longer finite after epoch"):
        on_ray(tiny_zoo, tmp_path, overrides=wild, seeds=1, quiet=True)
    with pytest.raises(
        SpecError, match=r"holds another training; use another folder\n  recipe.training.lr: 0.001 there"
    ):
        on_ray(tiny_zoo, local, overrides=[*SMALL, "training.lr=0.5"])
    with pytest.raises(SpecError, match="track: the encoders of a cluster are not tracked"):
        on_ray(tiny_zoo, tmp_path, track="mine")
    with pytest.raises(SpecError, match="engine: found 'rey'; did you mean 'ray'"):
        on_ray(tiny_zoo, tmp_path, engine="rey")


@pytest.mark.parametrize("share", [1.5, 0.5])
def test_trainings_that_do_not_fit_into_the_memory_of_a_machine_together_run_in_turn(
    tiny_zoo: Path, tmp_path: Path, share: float
) -> None:
    """The machine has 1.5 times the memory that one of two is estimated to need, or half of it, and a core for each."""
    recipe = load_recipe("smoke", SMALL)
    memory = int(share * estimate(open_zoo(tiny_zoo).schema, recipe, recipe.training.batch_size).total)
    on_cluster = f"settings['engine'] = 'ray'; {represented(tiny_zoo, tmp_path, 30)}"
    in_process(f"import ray; ray.init(num_cpus=2, _memory={memory}, include_dashboard=False); {on_cluster}")
    first, second = sorted(
        [path.stat().st_mtime_ns for path in (tmp_path / f"seed-{seed}").iterdir() if path.is_file()] for seed in (0, 1)
    )
    assert max(first) < min(second)


# --- a search -------------------------------------------------------------------------------------------------


def searched(out: Path) -> dict[str, Any]:
    trials: dict[str, Any] = json.loads((out / "search.json").read_text())["trials"]
    return trials


def test_a_search_finds_the_better_recipe_resumes_after_an_interruption_and_is_repeatable(
    tiny_zoo: Path, space: Callable[..., Path], tmp_path: Path
) -> None:
    first, second, path = tmp_path / "first", tmp_path / "second", space()

    def interrupt() -> None:
        while not (first / "search.json").exists() or len(searched(first)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        represent(tiny_zoo, "smoke", first, overrides=SMALL, epochs=8, search=path, quiet=True)
    thread.join()
    before = searched(first)
    assert 2 <= len(before) < 6
    assert not (first / "best.yaml").exists()
    results = represent(tiny_zoo, "smoke", first, overrides=SMALL, epochs=8, search=path, quiet=True)
    assert before.items() <= searched(first).items()

    _, trials = load_search(path, "smoke", [*SMALL, "training.epochs=8"])
    table = pq.read_table(first / "search.parquet")
    assert table.schema.equals(COLUMNS)
    rows = {row["trial"]: row for row in table.to_pylist()}
    assert {number: row["changes"] for number, row in rows.items()} == {t.number: " ".join(t.changes) for t in trials}
    hopeless = {number for number, row in rows.items() if row["changes"] == "training.lr=1e-09"}
    assert 2 <= len(hopeless) <= 4
    assert {(rows[n]["outcome"], rows[n]["epochs"]) for n in rows.keys() - hopeless} == {("finished", 8)}
    assert any(rows[number]["outcome"] == "stopped" and rows[number]["epochs"] < 8 for number in hopeless)
    best = min(rows.keys() - hopeless)
    assert load_recipe(str(first / "best.yaml")).training.lr == 1e-2
    assert results.recipe == "smoke training.batch_size=5 training.epochs=8 training.lr=0.01"
    assert f"trial {best} of space.yaml" in results.notes[-1]
    assert pq.read_table(first / f"trial-{best:05d}" / "results.parquet").equals(results.table)
    log = [json.loads(line) for line in (first / f"trial-{best:05d}/seed-0/log.jsonl").read_text().splitlines()]
    assert rows[best]["objective"] == pytest.approx(min(line["validation_total"] for line in log), rel=1e-3)

    words = ["represent", "--zoo", str(tiny_zoo), "--recipe", "smoke", "--set", *SMALL, "--epochs", "8", "--json"]
    words += ["--search", str(path), "--out", str(second), "--engine", "ray"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recipe"] == results.recipe
    assert contents(second / f"trial-{best:05d}/seed-0") == contents(first / f"trial-{best:05d}/seed-0")
    assert pq.read_table(second / f"trial-{best:05d}/results.parquet").equals(results.table)
    assert (second / "best.yaml").read_bytes() == (first / "best.yaml").read_bytes()
    for number, trial in searched(first).items():
        again = searched(second)[number]["curve"]
        common = slice(min(len(trial["curve"]), len(again)))
        assert again[common] == trial["curve"][common]
    with pytest.raises(SpecError, match=r"holds another search; use another folder\n  search.seed: 1 there, 2 now"):
        represent(tiny_zoo, "smoke", second, overrides=SMALL, epochs=8, search=space(("seed: 1", "seed: 2")))


def test_a_trial_whose_worker_dies_begins_anew_and_the_search_ends_as_if_nothing_had_happened(
    tiny_zoo: Path, space: Callable[..., Path], tmp_path: Path
) -> None:
    """No trial is stopped early: that would depend on which one is first."""
    path = space(("1.0e-9", "1.0e-3"), ("trials: 6", "trials: 3"), ("factor: 2", "after: 9"))
    killed = list[str]()

    def kill() -> None:
        while not (tmp_path / "killed/search.json").exists():
            time.sleep(0.01)
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if re.search(r"ray::.*train", process.name() + " ".join(process.cmdline())):
                        process.kill()
                        killed.append(process.name())
                        break

    for name in ("whole", "killed"):
        thread = threading.Thread(target=kill, daemon=True)
        if name == "killed":
            thread.start()
        represent(tiny_zoo, "smoke", tmp_path / name, overrides=SMALL, epochs=4, search=path, quiet=True)
    thread.join()
    assert len(killed) == 1
    assert searched(tmp_path / "killed") == searched(tmp_path / "whole")
    for file in ("search.parquet", "best.yaml"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_trials_are_scored_as_results_are_and_one_that_diverges_is_never_chosen(
    tiny_zoo: Path, space: Callable[..., Path], tmp_path: Path
) -> None:
    wild = [*SMALL, "encoder={kind: feed_forward, latent: 6}", "loss.kind=ED"]
    path = space(("1.0e-9", "100"), ("score: loss", "targets: [test_loss, epoch]"), ("factor: 2", "after: 50"))
    results = represent(tiny_zoo, "smoke", tmp_path, overrides=wild, epochs=20, search=path, quiet=True)
    rows = pq.read_table(tmp_path / "search.parquet").to_pylist()
    assert {(row["changes"], row["outcome"], row["target"], row["value"] is None) for row in rows} == {
        ("training.lr=100", "diverged", None, True),
        ("training.lr=0.01", "finished", "test_loss", False),
        ("training.lr=0.01", "finished", "epoch", False),
    }
    assert all(row["objective"] is None for row in rows if row["outcome"] == "diverged")
    best = int(results.notes[-1].split()[1])
    scores = [row for row in rows if row["trial"] == best]
    assert [row["objective"] for row in scores] == pytest.approx([sum(row["value"] for row in scores) / 2] * 2)
    for score in scores:
        where = {name: score[name] for name in ("method", "probe", "split", "target", "metric", "seed", "recipe")}
        (reported,) = [row for row in results.table.to_pylist() if where.items() <= row.items()]
        assert score["split"] == "validation"
        assert reported["value"] == pytest.approx(score["value"], abs=1e-6)


# --- spaces ---------------------------------------------------------------------------------------------------


def test_draws_depend_on_nothing_but_seed_key_and_number(space: Callable[..., Path]) -> None:
    keys = "training.lr: {log_uniform: [1.0e-4, 1.0e-2]}\n  encoder.latent: {log_uniform: [4, 64]}"
    old = (LR, keys)
    _, few = load_search(space(old), "smoke")
    beside = ("vary:", "vary:\n  encoder.compression_token: {choice: [true, false]}")
    _, more = load_search(space(old, ("trials: 6", "trials: 60"), beside), "smoke")
    assert [set(trial.changes) < set(grown.changes) for trial, grown in zip(few, more, strict=False)] == [True] * 6
    rates = [trial.recipe.training.lr for trial in more]
    assert all(1e-4 <= rate < 1e-2 for rate in rates)
    assert 0.3 < sum(rate < 1e-3 for rate in rates) / 60 < 0.7
    assert {type(trial.recipe.encoder.latent) for trial in more} == {int}
    assert {trial.recipe.encoder.compression_token for trial in more} == {True, False}
    _, other = load_search(space(old, ("seed: 1", "seed: 2")), "smoke")
    assert not {trial.changes for trial in few} & {trial.changes for trial in other}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("trials: 6", "trial: 6"), ":1: trial: unknown key; did you mean 'trials'?"),
        (("training.lr", "training.lrr"), ":4: training.lrr: unknown key; did you mean 'lr'?"),
        (("training.lr", "lr"), ":4: lr: unknown key"),
        (("choice", "chioce"), ":4: vary.training.lr.chioce: unknown key; did you mean 'choice'?"),
        (("1.0e-2]", "1000]"), ":4: training.lr: found 1000; input should be less than or equal to 100"),
        ((SPACE[SPACE.index(LR) :], KIND.replace("Ec", "EcDD")), ":4: loss.kind: found 'EcDD'; did you mean 'EcD'?"),
        ((LR, "encoder.width: {choice: [17]}"), ": trial 0 (encoder.width=17) is not a valid recipe"),
        ((LR, "epochs.first: {choice: [0, 1]}"), ":4: epochs.first: trials on different checkpoints"),
        ((SPACE[SPACE.index(LR) :], KIND), "the loss Ec does not reconstruct"),
        (
            (SPACE[SPACE.index(LR) :], "loss.beta: {choice: [1]}\nobjective: {score: loss}"),
            ":4: loss.beta: such losses",
        ),
        (("score: loss", "score: los"), ":5: objective.score: found 'los'; did you mean 'loss'?"),
        (("score: loss", "score: loss, targets: [epoch]"), ":5: objective: targets are those of the score"),
        (("score: loss", "targets: [epcoh]"), "objective.targets: found 'epcoh'; did you mean 'epoch'?"),
        (("score: loss", "targets: [activation]"), "targets: activation: not numeric in the train split"),
        (("score: loss", "targets: [lr]"), "targets: lr: constant (0.01) in the train split"),
        (("factor: 2", "factor: 1"), ":6: stopping.factor: found 1; input should be greater than or equal to 2"),
    ],
)
def test_faults_of_a_space_are_named_before_anything_is_trained(
    tiny_zoo: Path, space: Callable[..., Path], tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = space(change)
    with pytest.raises(SpecError) as error:
        represent(tiny_zoo, "smoke", tmp_path / "out", search=path, quiet=True)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--search", "space.yaml"], ["--engine", "ray"]])
def test_without_ray_one_line_says_what_is_missing(
    words: list[str], tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "space.yaml").write_text(SPACE)
    refused = CliRunner().invoke(main, ["represent", "--zoo", str(tiny_zoo), "--recipe", "smoke", *words])
    assert (refused.exit_code, refused.stdout) == (2, "")
    named = " ".join(words) if words[0] == "--engine" else words[0]
    missing = "needs the package ray, which is not installed: pip install 'zootools[ray]'"
    assert refused.stderr == f"zootools: {named} {missing}\n"


def test_baselines_are_not_searched_for(tiny_zoo: Path, space: Callable[..., Path]) -> None:
    with pytest.raises(SpecError, match="baselines have no recipe to search for"):
        represent(tiny_zoo, "smoke", search=space(), baselines_only=True)


def test_the_space_of_the_documentation_is_one(tmp_path: Path) -> None:
    (text,) = [example.text for example in examples(PAGE) if example.file == "space.yaml"]
    (tmp_path / "space.yaml").write_text(text)
    settings, trials = load_search(tmp_path / "space.yaml", "default")
    assert len(trials) == settings.trials == 20
