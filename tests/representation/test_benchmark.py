"""The benchmark: tasks that pin a population, methods behind one protocol, rows that resume and compare."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from scipy.stats import kendalltau
from torch import Tensor

from representation.benchmark.bench import BenchResults, bench
from representation.benchmark.making import make_task
from representation.benchmark.methods import encoded
from representation.benchmark.methods.method import NAMES, Examples, Method, Population, Problem
from representation.benchmark.methods.table import METHODS
from representation.benchmark.metrics import accuracy
from representation.benchmark.results import Result, read_rows, write_table
from representation.benchmark.run import jackknife
from representation.benchmark.tasks import Task, bundled_tasks, load_task, write_task
from representation.recipes import Augmentation, Epochs, bundled_recipes, load_recipe
from representation.training.augmentation import Augmenter
from zootools import Zoo, build, open_zoo
from zootools.architectures import Schema, build_schema
from zootools.bundled import bundled_specs
from zootools.cli import main
from zootools.errors import SpecError, ZooNotFoundError
from zootools.spec import Mlp, parse_spec

COSTS = {"fit_seconds", "predict_seconds", "peak_bytes"}
SPEC: dict[str, Any] = {
    "name": "small",
    "images": {"name": "tetris", "train": 40, "test": 50, "noise_train": 0.3, "noise_test": 0.8},
    "architecture": {"name": "mlp", "hidden": [5], "bias": False},
    "grid": {
        "activation": ["tanh", "relu"],
        "init": ["uniform"],
        "optimizer": ["adam"],
        "lr": [1e-2, 1e-3],
        "dropout": [0.0],
    },
    "seeds": {"range": [1, 8]},
    "training": {"epochs": 3, "batch_size": 4},
    "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The zoo, and one of the same name from other seeds."""
    root, other = tmp_path_factory.mktemp("zoos"), SPEC | {"seeds": {"range": [11, 18]}}
    for name, spec in (("small", SPEC), ("other", other)):
        build(parse_spec(spec, "test"), root / name, quiet=True)
    return {name: root / name for name in ("small", "other")}


@pytest.fixture(scope="module")
def zoo(folders: dict[str, Path]) -> Zoo:
    return open_zoo(folders["small"])


@pytest.fixture(scope="module")
def task(zoo: Zoo) -> Task:
    return make_task(zoo, "test_accuracy")


class Constant(Method):
    """Predicts one number, or what the test sets."""

    name, trains, invariant = "constant", False, True
    answer: ClassVar[float] = 0.5
    parameters = 0

    def fit(self, train: Examples, validation: Examples) -> None:
        assert len(train) > 0

    def predict(self, population: Population) -> Tensor:
        assert not hasattr(population, "labels")
        return torch.full((len(population),), self.answer, dtype=torch.float64)


def run(tasks: list[Any], methods: list[Any], zoo: Zoo, out: Path, **more: Any) -> BenchResults:
    return bench(tasks, methods, [zoo], out=out, quiet=True, **more)


def without_costs(results: BenchResults) -> list[dict[str, Any]]:
    return [row.model_dump(exclude=COSTS) for row in results.results]


# --- tasks ----------------------------------------------------------------------------------------------------


def test_bundled_tasks_are_complete_and_of_bundled_specifications() -> None:
    assert len(bundled_tasks()) >= 10
    for name in bundled_tasks():
        task = load_task(name)
        assert task.name == name
        assert {zoo.name for zoo in task.zoos} <= bundled_specs().keys()
        assert task.ceiling is not None, name
        assert 0 < task.statistics.majority < 1, name
        assert min(split.models for split in task.statistics.splits.values()) > 0, name


def test_statistics_are_those_of_the_population(zoo: Zoo, task: Task, tmp_path: Path) -> None:
    write_task(task, tmp_path / "mine.yaml")
    assert load_task(str(tmp_path / "mine.yaml")) == task
    test = zoo.split("test").where(pc.field("epoch") > 0).metadata
    truth = test["test_accuracy"].to_numpy()
    statistics = task.statistics
    assert statistics.splits["test"].checkpoints == len(truth)
    assert statistics.test.median == pytest.approx(float(np.median(truth)), rel=1e-5)
    assert statistics.majority == pytest.approx(np.unique(truth, return_counts=True)[1].max() / len(truth), rel=1e-5)
    # A ranker without ties that makes no mistake.
    ranks = np.argsort(np.argsort(truth, kind="stable"))
    assert len(np.unique(truth)) < len(truth)
    assert statistics.ceilings["kendall_tau"] == pytest.approx(kendalltau(truth, ranks).statistic, rel=1e-5)
    # The mean of each configuration and epoch, but for one degree of freedom of each.
    groups = [f"{row['configuration_id']}/{row['epoch']}" for row in test.to_pylist()]
    within = sum(
        np.square(values - values.mean()).sum()
        for values in (truth[[other == group for other in groups]] for group in {*groups})
    )
    expected = 1 - within / (len(truth) - len({*groups})) / truth.var()
    assert statistics.ceilings["r2"] == pytest.approx(expected, rel=1e-4)


def test_another_population_is_refused_by_name_and_can_be_pinned(
    folders: dict[str, Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_task(task, tmp_path / f"{task.name}.yaml")
    with pytest.raises(SpecError) as refused:
        bench([task], ["W"], [folders["other"]], out=tmp_path / "out")
    first, _, command = str(refused.value).splitlines()
    assert first.startswith(f"{task.name}: {folders['other']}: is not the population of small that the task pins")
    assert not (tmp_path / "out").exists()
    command = command.replace(f"--like {task.name}", f"--like {task.name}.yaml")
    assert CliRunner().invoke(main, command.split()[1:], catch_exceptions=False).exit_code == 0
    mine = load_task("mine.yaml")
    assert mine.zoo.sha256 != task.zoo.sha256
    assert mine.model_copy(update={"zoo": task.zoo, "statistics": task.statistics}) == task
    assert bench([mine], ["W"], [folders["other"]], out=tmp_path / "out", quiet=True).results[0].score is not None


def test_a_task_names_the_command_that_builds_its_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(command: str, folder: str) -> str:
        arguments = [*shlex.split(command)[1:], "-q", "-o", folder]
        assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
        return make_task(open_zoo(folder), "test_accuracy").zoo.build_command

    monkeypatch.chdir(tmp_path)
    command = built("zootools build tetris_seed --models 12 --epochs 2 --set images.noise_train=0.25", "first")
    assert "--models 12" in command
    assert built(command, "again") == command
    first, again = (make_task(open_zoo(folder), "test_accuracy") for folder in ("first", "again"))
    assert first == again
    with pytest.raises(ZooNotFoundError) as missing:
        bench([first], ["W"], out="out")
    assert str(missing.value).endswith(f"build it: {command}")


def test_a_planted_leak_is_refused(zoo: Zoo, task: Task, tmp_path: Path) -> None:
    model = zoo.split("train").models[0]
    moved = pc.and_(pc.equal(zoo.metadata["model_id"], model), pc.equal(zoo.metadata["epoch"], 2))
    place = zoo.metadata.column_names.index("split")
    column = pc.if_else(moved, pa.scalar("test", zoo.metadata["split"].type), zoo.metadata["split"])
    leaking = replace(zoo, metadata=zoo.metadata.set_column(place, zoo.metadata.schema.field(place), column))
    for attempt in (
        lambda: make_task(leaking, "test_accuracy"),
        lambda: run([task], ["W"], leaking, tmp_path / "out"),
    ):
        with pytest.raises(SpecError, match=f"leak: 1 models have checkpoints in the train split.*{model}"):
            attempt()


def test_equal_weights_in_two_splits_are_a_leak(zoo: Zoo) -> None:
    """Models of one seed and initialisation begin as the same network."""
    with pytest.raises(SpecError, match=r"leak: .* same weights .* epochs\.first=1"):
        make_task(zoo, "test_accuracy", epochs=Epochs(first=0))


def test_another_zoo_can_be_scored_and_may_not_share_models(folders: dict[str, Path], zoo: Zoo, tmp_path: Path) -> None:
    other = open_zoo(folders["other"])
    assert other.stored_spec is not None
    away = replace(other, stored_spec=other.stored_spec.model_copy(update={"name": "away"}))
    task = make_task(zoo, "activation", scored_on=away)
    results = bench([task], ["s(W)"], [zoo, away], out=tmp_path, quiet=True).results
    test = away.split("test").where(pc.field("epoch") > 0)
    assert (results[0].networks, task.statistics.splits["test"].models) == (len(test), len(test.models))
    itself = replace(zoo, stored_spec=away.stored_spec)
    moved = itself.metadata["split"].combine_chunks().dictionary_encode().cast(pa.string())
    swapped = pc.if_else(pc.equal(moved, "train"), "test", pc.if_else(pc.equal(moved, "test"), "train", moved))
    place = itself.metadata.column_names.index("split")
    field = itself.metadata.schema.field(place)
    crossed = replace(itself, metadata=itself.metadata.set_column(place, field, swapped.cast(field.type)))
    with pytest.raises(SpecError, match=r"small: leak: .* test split of away"):
        make_task(zoo, "activation", scored_on=crossed)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("dropout", r"dropout cannot be scored: it is constant \(0\)"),
        ("init", r"init cannot be scored: it is constant \(uniform\)"),
        ("test_acuracy", "did you mean 'test_accuracy'"),
    ],
)
def test_a_target_without_two_values_is_refused(zoo: Zoo, target: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        make_task(zoo, target)


def test_metrics_belong_to_a_kind_of_target(zoo: Zoo) -> None:
    assert make_task(zoo, "lr").metric == "kendall_tau"
    assert make_task(zoo, "activation").statistics.ceilings == {"accuracy": 1.0}
    with pytest.raises(SpecError, match="metric: found 'r2'"):
        make_task(zoo, "activation", metric="r2")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded.Pretrained, "files", (bundled_recipes()["smoke"],))


# --- runs -----------------------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_their_order(zoo: Zoo, task: Task, tmp_path: Path) -> None:
    activation = make_task(zoo, "activation")
    methods = ["W", "PCA", "MLP"]
    first = run([task, activation], methods, zoo, tmp_path / "a", seeds=1)
    second = run([activation, task], methods[::-1], zoo, tmp_path / "b", seeds=1)
    assert len(first.results) == 2 * 3
    assert without_costs(first) == without_costs(second)
    assert all(row.score is not None and row.interval is not None and row.fit_seconds > 0 for row in first.results)
    assert without_costs(BenchResults(read_rows(tmp_path / "a" / "results.parquet"))) == without_costs(first)


@pytest.mark.usefixtures("short")
def test_methods_share_an_encoder_without_a_trace(
    zoo: Zoo, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But in the seconds: each row has those of the whole method."""
    methods, found = ["encoder", "encoder-MLP", "encoder-tuned"], []
    for name, order in (("a", methods), ("b", methods[::-1])):
        monkeypatch.setattr(encoded, "_TRAINED", {})
        found.append(run([task], order, zoo, tmp_path / name, seeds=2))
        assert len(encoded._TRAINED) == 2  # one for each seed
        trained = {seed: seconds for (_, seed, *_), (_, seconds) in encoded._TRAINED.items()}
        assert all(row.fit_seconds > trained[row.seed] for row in found[-1].results)
    assert without_costs(found[0]) == without_costs(found[1])


def test_a_changed_recipe_makes_the_rows_of_its_encoder_stale(
    zoo: Zoo, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, methods = Path(shutil.copy(bundled_recipes()["smoke"], tmp_path)), ["W", "encoder"]
    monkeypatch.setattr(encoded.Pretrained, "files", (recipe,))

    def rows() -> dict[str, tuple[int, str | None]]:
        run([task], methods, zoo, tmp_path / "out", seeds=1)
        files = sorted((tmp_path / "out" / "rows").glob("*.json"))
        return {row.method: (file.stat().st_mtime_ns, row.code_sha256) for file in files for row in read_rows(file)}

    first = rows()
    assert rows() == first
    with recipe.open("a") as file:
        file.write("# The same settings, but who knows that?\n")
    changed = rows()
    assert changed["W"] == first["W"]
    assert changed["encoder"][0] > first["encoder"][0]
    assert changed["encoder"][1] != first["encoder"][1]


@pytest.mark.slow
def test_a_run_counts_its_rows_and_estimates_the_rest(
    zoo: Zoo, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench([task], ["W"], [zoo], out=tmp_path)
    capsys.readouterr()
    bench([task], ["W", "s(W)", "MLP"], [zoo], seeds=2, out=tmp_path)
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.rpartition("  ")[2].partition(", about ")[0] for line in lines] == ["(1 of 3 rows", "(2 of 3 rows"]
    assert all(line.endswith(" left)") for line in lines)
    assert last.endswith("  (3 of 3 rows)")


def test_the_time_left_knows_that_rows_share_an_encoder(
    zoo: Zoo, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row trains the only encoder, and nothing is known of the others, which train none."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(load_recipe("smoke", ["training.epochs=50"]).dump()))
    monkeypatch.setattr(encoded.Pretrained, "files", (recipe,))
    monkeypatch.setattr(encoded, "_TRAINED", {})
    bench([task, make_task(zoo, "activation")], ["encoder", "encoder-MLP"], [zoo], seeds=1, out=tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("(1 of 4 rows, about 0s left)")


def test_a_killed_run_keeps_its_rows(folders: dict[str, Path], zoo: Zoo, task: Task, tmp_path: Path) -> None:
    write_task(task, tmp_path / "mine.yaml")
    words = ["bench", "mine.yaml", "--zoo", str(folders["small"]), "-o", "out", "--seeds", "20"]
    words += ["--method", "W", "--method", "MLP"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "zootools", *words], cwd=tmp_path, env=environment)
    rows = tmp_path / "out" / "rows"
    limit = time.monotonic() + 300
    while len(list(rows.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert 2 <= len(kept) < 21
    resumed = run([task], ["W", "MLP"], zoo, tmp_path / "out", seeds=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = run([task], ["W", "MLP"], zoo, tmp_path / "new", seeds=2)
    both = [row for row in without_costs(resumed) if row["seed"] < 2]
    assert both == without_costs(whole)


@pytest.mark.parametrize(
    ("answer", "metric", "reason"),
    [
        (0.5, "kendall_tau", "kendall_tau is not defined: all predictions are equal"),
        (float("nan"), "kendall_tau", "predictions are not finite"),
        (float("inf"), "r2", "predictions are not finite"),
    ],
)
def test_an_undefined_score_has_a_reason_and_no_number(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: float, metric: str, reason: str
) -> None:
    monkeypatch.setattr(Constant, "answer", answer)
    results = run([make_task(zoo, "test_accuracy", metric=metric)], [Constant], zoo, tmp_path)
    (row,) = results.results
    assert row.score is None
    assert row.interval is None
    assert reason in (row.reason or "")
    assert f"none: {row.reason}" in results.markdown()
    assert json.loads(json.dumps(results.to_json()))["summary"][0]["score"] is None


def test_a_method_of_the_wrong_kind_is_refused(zoo: Zoo, task: Task, tmp_path: Path) -> None:
    class Wrong(Constant):
        name = "wrong"

        def predict(self, population: Population) -> Tensor:
            return torch.zeros(len(population), 1)

    with pytest.raises(SpecError, match=r"wrong: predict: found torch.float32 of shape \[\d+, 1\]; expected \[\d+\]"):
        run([task], [Wrong], zoo, tmp_path)
    with pytest.raises(SpecError, match="method: found 'treez'; did you mean 'trees'"):
        run([task], ["treez"], zoo, tmp_path)
    with pytest.raises(SpecError, match="did you mean 'tetris_seed_gap'"):
        run(["tetris_seed_gab"], ["W"], zoo, tmp_path)
    with pytest.raises(SpecError, match="expected a name, or a subclass of Method"):
        run([task], [Wrong(Problem(zoo.schema, "lr", (), "r2"))], zoo, tmp_path)


def test_a_method_that_runs_networks_is_not_told_what_it_predicts(zoo: Zoo, tmp_path: Path) -> None:
    class Runs(Constant):
        name, runs = "runs", True

    (row,) = run([make_task(zoo, "activation")], [Runs], zoo, tmp_path).results
    assert row.score is None
    assert row.reason == "it is given the activation function, which is the target"


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    truth = torch.tensor([0, 1] * 10)
    predicted = torch.tensor([0, 1, 1, 1, 0] * 4)
    right = (truth == predicted).double()
    expected = 2.0930240544 * float(right.std() / 20**0.5)  # Student's t with 19 degrees of freedom
    assert jackknife(accuracy, truth, predicted, [f"{model:02}" for model in range(20)]) == pytest.approx(expected)
    assert jackknife(accuracy, truth, predicted, ["a", "b"] * 10) is None


def test_rows_of_others_stand_beside_ours(folders: dict[str, Path], zoo: Zoo, task: Task, tmp_path: Path) -> None:
    theirs = run([task], ["W"], zoo, tmp_path / "theirs").results[0]
    better = theirs.model_copy(update={"method": "<b>|x", "score": 0.99})
    foreign = theirs.model_copy(update={"task_sha256": "0" * 64})
    write_table(tmp_path / "rows.parquet", [better, foreign])
    (tmp_path / "rows.json").write_text(json.dumps([better.model_dump(mode="json")]))
    for name in ("rows.parquet", "rows.json"):
        results = run([task], ["W"], zoo, tmp_path / "ours", compare=[tmp_path / name])
        assert [(entry.method, entry.source) for entry in results.summary()] == [
            ("W", ""),
            ("<b>|x", str(tmp_path / name)),
        ]
        text, page = (tmp_path / "ours" / "table.md").read_text(), (tmp_path / "ours" / "table.html").read_text()
        assert text.index("&lt;b&gt;\\|x | 0.990") < text.index("| W | ")
        assert "<b>" not in page + text
    assert (
        "rows.parquet: its rows of"
        in run([task], ["W"], zoo, tmp_path / "ours", compare=[tmp_path / "rows.parquet"]).notes[0]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"task": "x"}]', "row 0: task_sha256: Field required"),
        (b"{", "is not a table of results"),
        (b'"x"', "row 0"),
        (b"[" * 100_000, "is not a table of results"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("rows.json", "rows.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match=message if name == "rows.json" else "is not a table of results"):
            read_rows(tmp_path / name)


def test_a_small_file_of_rows_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"score": np.zeros(50_000_000)}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(SpecError, match="is not a table of results"):
        read_rows(path)


# --- methods --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> Schema:
    return build_schema(Mlp(name="mlp", hidden=(6, 5)), (1, 4, 4), 3)


def examples(schema: Schema, count: int, seed: int, classes: bool) -> Examples:
    """Networks whose weights have a scale that is to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(count, generator=generator)
    networks = scale[:, None] * torch.randn(count, schema.size, generator=generator)
    labels = (scale > 1).long() if classes else scale.double()
    return Examples(networks, torch.full((count,), NAMES.index("relu")), labels)


@pytest.mark.parametrize(
    ("name", "classes"),
    [*((name, False) for name in METHODS), ("W", True), ("trees", True)],
)
@pytest.mark.usefixtures("short")
def test_every_method_learns_and_says_whether_it_is_invariant(name: str, classes: bool, schema: Schema) -> None:
    kind, labels = METHODS[name], ("small", "large") if classes else ()
    problem = Problem(schema, "scale", labels, "accuracy" if classes else "kendall_tau")
    train, validation, test = (examples(schema, count, seed, classes) for seed, count in enumerate((150, 50, 60)))
    torch.manual_seed(0)
    method = kind(problem)
    method.fit(train, validation)
    permuted = Augmenter(schema, Augmentation(erase_probability=0.0)).views(test.networks, copies=1).clean
    found, moved = (method.predict(Population(networks, test.activations)) for networks in (test.networks, permuted))
    assert found.shape == (len(test),)
    assert method.parameters > 0
    if kind.invariant:
        # Logits of random networks have both signs, so that their scale is hard to learn from few of them.
        bounds = (0.6, 0.35) if kind.runs else (0.75, 0.5)
        assert problem.score(test.labels, found) > bounds[0 if classes else 1]
        assert (found - moved).abs().max() <= 1e-5
    elif not classes:
        assert (found - moved).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["W", "MLP"])
def test_a_method_needs_no_validation_split(name: str, schema: Schema) -> None:
    train = examples(schema, 60, 0, classes=False)
    method = METHODS[name](Problem(schema, "scale", (), "r2"))
    method.fit(train, train.rows(torch.arange(0)))
    assert method.predict(train).isfinite().all()


def test_networks_run_as_the_zoo_runs_them(zoo: Zoo) -> None:
    part = zoo.where(pc.field("epoch") == 3)
    names = part.metadata["activation"].to_pylist()
    population = Population(part.weights(), torch.tensor([NAMES.index(name) for name in names]))
    images = torch.randn(7, *zoo.schema.input_shape)
    logits = population.run(zoo.schema, images)
    assert len({*names}) == 2
    for place in range(0, len(part), 5):
        row = part[place]
        with torch.no_grad():
            expected = zoo.module(row["model_id"], 3)(images)
        assert torch.allclose(logits[place], expected, atol=1e-5)


def test_every_row_is_complete(zoo: Zoo, task: Task, tmp_path: Path) -> None:
    (row,) = run([task], ["s(W)"], zoo, tmp_path).results
    assert isinstance(row, Result)
    assert {name for name, value in row if value is None} <= {"reason", "accuracy"}
    assert row.r2 is not None
    assert row.score == row.kendall_tau
    assert row.ceiling == task.ceiling
