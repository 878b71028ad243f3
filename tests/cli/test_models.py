"""Models as a table, by the beginnings of their ids, at their last and best epochs; the difference of two zoos."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from samples import TINY_ZOO

from zootools import Zoo, build, open_zoo
from zootools.cli import main
from zootools.errors import SpecError, ZooNotFoundError
from zootools.spec import parse_spec

Run = Callable[..., Result]


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "internal error" not in result.output, result.output
    return result


def by_model(zoo: Zoo) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each model, in the order of its epochs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(zoo.metadata.to_pylist(), key=lambda row: row["epoch"]):
        rows.setdefault(row["model_id"], []).append(row)
    return rows


@pytest.fixture(scope="module")
def other_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models 7 to 18 of the tiny zoo's kind, with a validation set."""
    out = tmp_path_factory.mktemp("zoos") / "other"
    images = TINY_ZOO["images"] | {"validation": 40}
    build(parse_spec(TINY_ZOO | {"images": images, "seeds": {"range": [7, 18]}}, "test"), out, workers=1, quiet=True)
    return out


# --- last and best -------------------------------------------------------------------------------------


def test_the_last_and_the_best_checkpoint_of_each_model_are_those_of_a_plain_search(look_zoo: Path) -> None:
    zoo = open_zoo(look_zoo, include_diverged=True)
    rows = by_model(zoo)
    assert {row["epoch"] for row in zoo.last().metadata.to_pylist()} > {4}, "some diverge before the last epoch"
    assert zoo.last().metadata.to_pylist() == [
        row for row in zoo.metadata.to_pylist() if row == rows[row["model_id"]][-1]
    ]
    merits: dict[str, Callable[[dict[str, Any]], float]] = {
        "test_accuracy": lambda row: float(row["test_accuracy"]),
        "test_loss": lambda row: -float(row["test_loss"]),
        "generalization_gap": lambda row: -abs(float(row["generalization_gap"])),
        "test_f1": lambda row: float(np.mean(row["test_f1"])),
    }
    for metric, merit in merits.items():
        best = {row["model_id"]: row for row in zoo.best(metric).metadata.to_pylist()}
        # `max` returns the first of equal values, which is that of the earliest epoch.
        assert best == {model: max(epochs, key=merit) for model, epochs in rows.items()}
        assert best != {row["model_id"]: row for row in zoo.last().metadata.to_pylist()}
        (one,) = zoo.best_checkpoint(metric).metadata.to_pylist()
        assert merit(one) == max(merit(row) for row in zoo.metadata.to_pylist())
    assert zoo.at("best").metadata.equals(zoo.best("test_accuracy").metadata)


def test_the_best_epoch_is_that_of_the_validation_set_if_there_is_one(other_zoo: Path) -> None:
    zoo = open_zoo(other_zoo)
    assert zoo.at("best").metadata.equals(zoo.best("validation_accuracy").metadata)
    assert not zoo.at("best").metadata.equals(zoo.best("test_accuracy").metadata)


def test_a_zoo_without_rows_has_no_last_and_no_best_checkpoint(tiny_zoo: Path) -> None:
    nothing = open_zoo(tiny_zoo).where("epoch > 7")
    assert (len(nothing.last()), len(nothing.best("test_loss"))) == (0, 0)
    with pytest.raises(SpecError, match="no checkpoint has a value of test_loss"):
        nothing.best_checkpoint("test_loss")


@pytest.mark.parametrize(
    ("metric", "text"), [("test_acuracy", "did you mean 'test_accuracy'"), ("seed", "allowed: "), ("lr", "allowed: ")]
)
def test_only_scores_are_metrics(tiny_zoo: Path, metric: str, text: str) -> None:
    with pytest.raises(SpecError, match=rf"metric: found '{metric}'.*{text}"):
        open_zoo(tiny_zoo).best(metric)


def test_networks_are_opened_at_their_last_and_best_epochs(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    model = zoo.models[3]
    last, best = zoo.state_dict(model, "last"), zoo.state_dict(model, "best")
    (epoch,) = zoo.model(model).best("test_accuracy").metadata["epoch"].to_pylist()
    assert all(tensor.equal(last[name]) for name, tensor in zoo.module(model, 2).state_dict().items())
    assert all(tensor.equal(best[name]) for name, tensor in zoo.state_dict(model, epoch).items())
    with pytest.raises(SpecError, match="epoch: found 'lats'; expected a number, 'last' or 'best'"):
        zoo.checkpoint(model, "lats")  # type: ignore[arg-type]


# --- ids by their beginning ----------------------------------------------------------------------------


def test_a_model_is_found_by_a_beginning_that_no_other_id_has(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    for model in zoo.models:
        length = next(n for n in range(1, 17) if sum(other.startswith(model[:n]) for other in zoo.models) == 1)
        assert zoo.model_id(model[:length]) == model
        assert zoo.model(model[:length]).models == [model]
        assert json.loads(run("show", tiny_zoo, model[:length], "--json").stdout)["model_id"] == model
    with pytest.raises(ZooNotFoundError, match="no model '' among 12"):
        zoo.model("")


def test_a_beginning_of_several_ids_is_refused_with_the_candidates(look_zoo: Path) -> None:
    models = open_zoo(look_zoo, include_diverged=True).models
    first = next(start for start in "0123456789abcdef" if sum(model.startswith(start) for model in models) > 1)
    candidates = sorted(model for model in models if model.startswith(first))
    refused = run("show", look_zoo, first)
    assert refused.exit_code == 2
    assert f"model '{first}': {len(candidates)} ids begin like this: {', '.join(candidates[:8])}" in refused.output
    nearly = f"{models[0][:-1]}{'0' if models[0][-1] != '0' else '1'}"
    assert f"no model {nearly!r} among 48; did you mean {models[0]!r}?" in run("show", look_zoo, nearly).output


def test_a_model_is_shown_at_one_epoch(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    model = zoo.models[5]
    for words, epoch in (
        (("1",), 1),
        (("last",), 2),
        (("best",), zoo.checkpoint(model, "best").metadata["epoch"][0].as_py()),
    ):
        shown = json.loads(run("show", tiny_zoo, model, "--epoch", *words, "--json").stdout)
        assert [row["epoch"] for row in shown["epochs"]] == [epoch]
    assert "has no epoch 9; stored: [0, 1, 2]" in run("show", tiny_zoo, model, "--epoch", "9").output
    assert (
        "found 'first'; expected a number from 0, 'last' or 'best'"
        in run("show", tiny_zoo, model, "--epoch", "first").output
    )


# --- models --------------------------------------------------------------------------------------------


def test_models_are_listed_with_the_values_of_their_last_epoch(look_zoo: Path) -> None:
    rows = by_model(open_zoo(look_zoo, include_diverged=True))
    listed = json.loads(run("models", look_zoo, "--json").stdout)["models"]
    hidden = ("stack", "row")
    assert listed == [
        {name: value for name, value in rows[row["model_id"]][-1].items() if name not in hidden} for row in listed
    ]
    assert len(listed) == 48
    at_one = json.loads(run("models", look_zoo, "--epoch", "1", "--json").stdout)["models"]
    assert {row["model_id"]: row["test_loss"] for row in at_one} == {
        model: epochs[1]["test_loss"] for model, epochs in rows.items() if len(epochs) > 1
    }


def test_a_condition_sees_the_chosen_checkpoint_only(look_zoo: Path) -> None:
    rows = by_model(open_zoo(look_zoo))
    middle = sorted(epochs[-1]["test_accuracy"] for epochs in rows.values())[len(rows) // 2]
    words = ("--where", f"test_accuracy > {middle} and status == 'ok'", "--sort", "-test_accuracy,model_id", "--json")
    expected = [epochs[-1] for epochs in rows.values() if epochs[-1]["test_accuracy"] > middle]
    expected.sort(key=lambda row: (-row["test_accuracy"], row["model_id"]))
    assert 0 < len(expected) < len(rows)
    listed = json.loads(run("models", look_zoo, *words).stdout)["models"]
    assert [row["model_id"] for row in listed] == [row["model_id"] for row in expected]


def test_csv_json_and_parquet_have_the_same_rows(tiny_zoo: Path, tmp_path: Path) -> None:
    columns = ["model_id", "seed", "test_f1", "test_loss", "row"]
    words = ("models", tiny_zoo, "--columns", ",".join(columns), "--sort", "test_loss")
    rows = json.loads(run(*words, "--json").stdout)["models"]
    assert [list(row) for row in rows] == [columns] * 12
    assert [row["test_loss"] for row in rows] == sorted(row["test_loss"] for row in rows)
    table = list(csv.reader(io.StringIO(run(*words, "--csv").stdout)))
    assert table[0] == columns
    assert [[row[0], int(row[1]), json.loads(row[2]), float(row[3]), int(row[4])] for row in table[1:]] == [
        list(row.values()) for row in rows
    ]
    assert pq.read_table(io.BytesIO(run(*words, "--parquet").stdout_bytes)).to_pylist() == rows
    written = run(*words, "--parquet", "-o", tmp_path / "models.parquet")
    assert (written.stdout, written.stderr.endswith("models.parquet: 12 models\n")) == ("", True)
    assert pq.read_table(tmp_path / "models.parquet").to_pylist() == rows


def test_the_table_has_short_ids_and_no_column_with_one_value(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    heading, names, *lines = run("models", tiny_zoo).stdout.splitlines()
    assert (
        heading
        == "12 of 12 models; in all rows: epoch 2, status ok, activation tanh, init uniform, optimizer adam, lr 0.01"
    )
    assert names.split()[:3] == ["model_id", "seed", "split"]
    assert [zoo.model_id(line.split()[0]) for line in lines] == zoo.models
    assert run("models", tiny_zoo, "--where", "epoch == 1").stdout == "0 of 12 models\n"
    chosen = run("models", tiny_zoo, "--columns", "epoch,seed").stdout.splitlines()
    assert [line.split() for line in chosen[1:3]] == [["epoch", "seed"], ["2", str(zoo.last().metadata["seed"][0])]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--sort", "test_acuracy"), "columns: found 'test_acuracy'; did you mean 'test_accuracy'?"),
        (("--columns", "sed"), "columns: found 'sed'; did you mean 'seed'?"),
        (("--sort", "-test_f1"), "test_f1 is a list of numbers"),
        (("--where", "test_accuracy >"), "where: 'test_accuracy >'"),
        (("-o", "models.csv"), "needs --csv, --json or --parquet"),
        (("--epoch", "-1"), "expected a number from 0"),
    ],
)
def test_wrong_options_of_models_are_refused(tiny_zoo: Path, words: tuple[str, ...], text: str) -> None:
    refused = run("models", tiny_zoo, *words)
    assert refused.exit_code == 2
    assert text in refused.output
    assert not Path("models.csv").exists()


def test_parquet_is_not_printed_on_a_terminal(tiny_zoo: Path) -> None:
    import subprocess
    import sys

    controller, terminal = os.openpty()
    words = [sys.executable, "-m", "zootools", "models", str(tiny_zoo), "--parquet"]
    refused = subprocess.run(words, stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(terminal)
    os.close(controller)
    assert refused.returncode == 2
    assert "give a file with -o, or a pipe" in refused.stderr


# --- export --------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_exported(look_zoo: Path, tmp_path: Path) -> None:
    zoo = open_zoo(look_zoo)
    for metric, merit in (("test_accuracy", 1), ("test_loss", -1)):
        rows = sorted(zoo.metadata.to_pylist(), key=lambda row: (-merit * row[metric], row["epoch"], row["model_id"]))
        result = run("export", look_zoo, "--best", metric, "-o", tmp_path / f"{metric}.safetensors")
        assert f"model {rows[0]['model_id']}, epoch {rows[0]['epoch']}, " in result.stderr
        expected = zoo.state_dict(rows[0]["model_id"], rows[0]["epoch"])
        exported = load_file(tmp_path / f"{metric}.safetensors")
        assert all(tensor.equal(exported[name]) for name, tensor in expected.items())
    model = zoo.models[-1]
    result = run("export", look_zoo, "--model", model[:9], "--best", "test_loss", "-o", tmp_path / "one.safetensors")
    (row,) = zoo.model(model).best("test_loss").metadata.to_pylist()
    assert f"model {model}, epoch {row['epoch']}, " in result.stderr


def test_the_last_checkpoints_of_all_models_are_exported(tiny_zoo: Path, tmp_path: Path) -> None:
    result = run("export", tiny_zoo, "--epoch", "last", "--format", "state-dicts", "-o", tmp_path / "out")
    assert "12 checkpoints" in result.stderr
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("epoch-*"))
    assert names == sorted(f"{model}/epoch-0002.safetensors" for model in open_zoo(tiny_zoo).models)
    refused = run("export", tiny_zoo, "--epoch", "last", "-o", tmp_path / "one.safetensors")
    assert "needs --model (or --best METRIC)" in refused.output


# --- diff ----------------------------------------------------------------------------------------------


def test_a_copy_is_equal(tiny_zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_zoo, tmp_path / "copy")
    (tmp_path / "copy" / "build.json").write_text('{"sessions": []}')
    same = run("diff", tiny_zoo, tmp_path / "copy")
    assert same.exit_code == 0
    assert same.stdout.startswith("equal: 12 models, 36 checkpoints, ")
    assert json.loads(run("diff", tiny_zoo, tmp_path / "copy", "--json").stdout)["equal"] is True


def test_a_zoo_that_has_grown_has_more_models_and_other_tables(tiny_zoo: Path, grown_zoo: Path) -> None:
    result = run("diff", tiny_zoo, grown_zoo, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    small, large = open_zoo(tiny_zoo), open_zoo(grown_zoo)
    assert found["specification"] == [{"key": "seeds.range", "first": [1, 12], "second": [1, 16]}]
    new = sorted({*large.models} - {*small.models})
    assert found["models"] == {"both": 12, "only_first": [], "only_second": new}
    assert (found["checkpoints"], found["columns"]) == ({"both": 36, "only_first": [], "only_second": []}, [])
    assert {name.partition("/")[0] for name in found["changed"]} <= {"data", "metadata", "spec.yaml"}
    assert "spec.yaml" in found["changed"]
    assert {name.partition("/")[0] for name in found["files"]["only_second"]} == {"checkpoints"}
    text = run("diff", tiny_zoo, grown_zoo).stdout
    for line in ("seeds.range: [1, 12] in the first, [1, 16] in the second", "12 in both", new[0]):
        assert line in text


def test_values_of_common_checkpoints_are_compared(tiny_zoo: Path, tmp_path: Path) -> None:
    """More noise in the test images changes the ids, so the models are the same and the images equal in a copy only."""
    from zootools.difference import diff

    one = open_zoo(tiny_zoo)
    column = one.metadata.column_names.index("test_loss")
    losses = one.metadata["test_loss"].to_numpy().copy()
    losses[[3, 7]] += [0.25, -0.5]
    changed = one.metadata.set_column(column, "test_loss", [losses])
    from dataclasses import replace

    found = diff(one, replace(one, metadata=changed.slice(1)))
    assert [(c.column, c.checkpoints, c.largest) for c in found.columns] == [("test_loss", 2, pytest.approx(0.5))]
    (first,) = one.metadata.slice(0, 1).to_pylist()
    assert found.checkpoints.only_first == [f"{first['model_id']}-epoch-{first['epoch']}"]
    assert not found.equal


def test_zoos_of_other_images_share_no_model(tiny_zoo: Path, other_zoo: Path) -> None:
    found = json.loads(run("diff", tiny_zoo, other_zoo, "--json").stdout)
    assert found["models"]["both"] == 0
    assert len(found["models"]["only_first"]) == len(found["models"]["only_second"]) == 12
    assert found["columns_in_one"] == ["validation_accuracy", "validation_loss"]
    assert {"key": "images.validation", "second": 40} in found["specification"]
