"""The whole of `represent` on small real zoos: results, transfer, refusals, command line."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from representation import Encoder, embed, represent
from representation.dataset import ZooDataset
from representation.encoders.attention import projection_head
from representation.evaluation.probes import ALPHAS
from representation.evaluation.results import SCHEMA, Results, Score, fixed
from representation.evaluation.scoring import permuted_views
from representation.output import default_out
from representation.paper import published
from representation.recipes import load_recipe
from representation.targets import IDENTITY, read_targets
from representation.training.linear_code import linear_code
from representation.training.memory import check_memory, estimate
from representation.training.train import Weights
from zootools import Zoo, build, open_zoo
from zootools.architectures import build_schema
from zootools.cli import main
from zootools.errors import SpecError, StorageError
from zootools.hub.publish import publish
from zootools.spec import Mlp, parse_spec

ONE_EPOCH = ["training.epochs=1"]
BASELINES = {"W", "PCA-linear", "PCA-cosine", "PCA-rbf", "s(W)", "s(W) Unterthiner", "untrained"}


@pytest.fixture(scope="module", autouse=True)
def frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, which is what matrices of this size need; and no UMAP: compiling it takes longer than all of this.

    The cache, in which scores of baselines are kept, is empty at first.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setitem(sys.modules, "umap", None)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


def make_zoo(folder: Path, name: str, **changes: Any) -> Path:
    """Build a zoo of small models, 32 of them in 8 configurations if nothing is changed."""
    spec = {
        "name": name,
        "images": {"name": "tetris", "train": 40, "test": 60, "noise_train": 0.3, "noise_test": 0.8},
        "architecture": {"name": "mlp", "hidden": [5], "bias": False},
        "grid": {
            "activation": ["tanh", "relu"],
            "init": ["uniform", "normal"],
            "optimizer": ["adam"],
            "lr": [1e-2, 1e-3],
        },
        "seeds": {"range": [1, 4]},
        "training": {"epochs": 3, "batch_size": 4},
        "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
    }
    build(parse_spec(spec | changes, "test"), folder / name, workers=1, quiet=True)
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("represent")


@pytest.fixture(scope="module")
def varied(folder: Path) -> Path:
    return make_zoo(folder, "varied")


@pytest.fixture(scope="module")
def learned(varied: Path, folder: Path) -> Results:
    """The results of two small encoders."""
    return represent(
        varied, "smoke", folder / "out", overrides=["training.epochs=1"], seeds=2, transfer_to=[varied], quiet=True
    )


def score(results: Results, **where: Any) -> dict[str, Any]:
    (row,) = [row for row in results.table.to_pylist() if where.items() <= row.items()]
    return row


# --- what comes out -------------------------------------------------------------------------------------------


def test_every_method_is_scored_on_every_property_and_split(learned: Results, folder: Path) -> None:
    rows = [row for row in learned.table.to_pylist() if row["evaluated_on"] == "varied"]
    assert {row["method"] for row in rows} == BASELINES | {"EcD", "linear code"}
    numbers = {"epoch", "lr", "generalization_gap", *(f"test_f1_{place}" for place in range(4))}
    numbers |= {f"{split}_{what}" for split in ("train", "test") for what in ("loss", "accuracy")}
    for method in BASELINES | {"EcD"}:
        found = {(row["target"], row["metric"], row["split"], row["probe"]) for row in rows if row["method"] == method}
        expected = {
            (target, metric, split, probe)
            for probe in ("paper", "standardised")
            for targets, metric, splits in (
                (numbers, "r2", ("train", "validation", "test")),
                (numbers, "kendall_tau", ("test",)),
                ({"activation", "init"}, "accuracy", ("train", "validation", "test")),
            )
            for target in targets
            for split in splits
        }
        if method == "EcD":
            expected |= {("reconstruction", "r2", split, None) for split in ("train", "validation", "test")}
        assert found == expected
    rebuilt = {row["split"] for row in rows if row["method"] == "linear code" and row["target"] == "reconstruction"}
    assert rebuilt == {"train", "validation", "test"}
    assert learned.excluded.keys() == {"optimizer", "UMAP"}
    assert learned.excluded["optimizer"] == "constant (adam) in the train split"
    assert pq.read_table(folder / "out" / "results.parquet").equals(learned.table)
    assert learned.table.schema.equals(SCHEMA)
    assert set(learned.table["recipe"].to_pylist()) == {"smoke training.epochs=1"}


def test_a_score_is_what_scikit_learn_finds(learned: Results, varied: Path) -> None:
    found = score(
        learned, method="W", probe="paper", split="test", target="test_loss", metric="r2", evaluated_on="varied"
    )
    parts = {
        name: open_zoo(varied, split=name, where=pc.field("epoch") > 0) for name in ("train", "validation", "test")
    }
    x = {name: np.c_[part.weights().double().numpy(), np.ones(len(part))] for name, part in parts.items()}
    y = {name: part.metadata["test_loss"].to_numpy() for name, part in parts.items()}
    models = [Ridge(alpha, fit_intercept=False, solver="svd").fit(x["train"], y["train"]) for alpha in ALPHAS]
    best = max(models, key=lambda model: model.score(x["validation"], y["validation"]))
    assert found["value"] == pytest.approx(best.score(x["test"], y["test"]), abs=1e-6)
    assert (found["alpha"], found["rows"]) == (best.alpha, len(parts["test"]))


def test_seeds_give_a_mean_and_an_interval(learned: Results) -> None:
    where = {"method": "EcD", "probe": "paper", "split": "test", "target": "epoch", "metric": "r2"}
    where["evaluated_on"] = "varied"
    first, second = (score(learned, seed=seed, **where)["value"] for seed in (0, 1))
    assert first != second
    (entry,) = [entry for entry in learned.summary() if where.items() <= asdict(entry).items()]
    assert entry.mean == pytest.approx((first + second) / 2)
    # Student's t with one degree of freedom: 12.706 standard errors, of which one is half the difference.
    assert entry.interval == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)
    where["method"] = "W"
    (alone,) = [entry for entry in learned.summary() if where.items() <= asdict(entry).items()]
    assert (alone.seeds, alone.interval) == (1, None)


def test_the_same_call_again_trains_nothing_and_finds_the_same(learned: Results, varied: Path, folder: Path) -> None:
    files = [folder / "out" / f"seed-{seed}" / "model.safetensors" for seed in (0, 1)]
    times = [path.stat().st_mtime_ns for path in files]
    changes = ["training.epochs=1", "description=the same in other words"]
    again = represent(varied, "smoke", folder / "out", overrides=changes, seeds=2, transfer_to=[varied], quiet=True)
    assert [path.stat().st_mtime_ns for path in files] == times
    for old, new in zip(learned.table.to_pylist(), again.table.to_pylist(), strict=True):
        value = pytest.approx(old["value"], abs=1e-6, nan_ok=True)
        assert new == old | {"value": value, "recipe": "smoke training.epochs=1 description=the same in other words"}


def test_embeddings_come_in_the_order_of_the_metadata(learned: Results, varied: Path, folder: Path) -> None:
    zoo = open_zoo(varied, split="test")
    stored = folder / "out" / "seed-0"
    found = embed(zoo, stored)
    assert found.shape == (len(zoo), 16)
    encoder = Encoder.from_pretrained(str(stored))
    row = zoo.metadata.to_pylist()[5]
    alone = encoder.embed(zoo.checkpoint(row["model_id"], row["epoch"]).weights())
    torch.testing.assert_close(found[5], alone[0])
    assert torch.equal(embed(zoo, encoder), found)


def test_without_an_encoder_embed_trains_the_default_recipe_once(varied: Path, in_folder: Path) -> None:
    found = embed(varied)
    encoder = Encoder.from_pretrained("representations/varied/default/seed-0")
    zoo = open_zoo(varied)
    assert found.shape == (len(zoo), load_recipe("default").sized(zoo.schema.size).encoder.length)
    assert torch.equal(encoder.embed(zoo.weights()), found)
    assert torch.equal(embed(zoo), found)


def test_text_has_a_cell_for_each_score_and_says_what_was_left_out(learned: Results) -> None:
    text = learned.render()
    assert "not scored: optimizer: constant (adam) in the train split" in text
    assert "not scored: UMAP: umap-learn is not installed" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("activation")]
    value = score(learned, method="W", probe="paper", split="test", target="activation", evaluated_on="varied")["value"]
    assert lines[0][1] == f"{100 * value:.1f}"
    assert "±" in lines[0][-1]


def test_beside_a_reconstruction_is_that_of_the_best_linear_code_and_that_of_training_networks(
    learned: Results, varied: Path
) -> None:
    test, train = (
        {
            method: score(learned, target="reconstruction", evaluated_on="varied", split=split, method=method, seed=0)
            for method in ("EcD", "linear code")
        }
        for split in ("test", "train")
    )
    recipe = load_recipe("smoke")
    zoos = [open_zoo(varied, split=split, where=pc.field("epoch") > 0) for split in ("train", "test")]
    code = linear_code(zoos[0].weights(), zoos[0].schema, recipe.encoder.length)
    assert code is not None
    for rows, zoo in zip((train, test), zoos, strict=True):
        views = permuted_views(zoo.schema, zoo.weights(), recipe)
        assert rows["linear code"]["value"] == pytest.approx(code.r2(views), abs=1e-9)
    lines = [line.split() for line in learned.render().splitlines() if line.startswith("reconstruction")]
    # One line for test networks and one for training networks, in each table of the zoo itself.
    assert [line[0] + line[1] * (line[1] == "(train)") for line in lines[:2]] == [
        "reconstruction",
        "reconstruction(train)",
    ]
    # The column of the encoder comes last.
    assert lines[0][-2] == f"{100 * test['linear code']['value']:.1f}"
    assert lines[1][-2] == f"{100 * train['linear code']['value']:.1f}"


def test_only_a_stated_number_of_training_checkpoints_is_used_where_it_is_expensive(
    varied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("representation.evaluation.baselines.MAX_FIT", 20)
    monkeypatch.setattr("representation.evaluation.scoring.MAX_ADAM", 30)
    monkeypatch.setattr("representation.evaluation.scoring.MAX_REBUILT", 10)
    monkeypatch.setattr("representation.evaluation.baselines.RbfPca.scored_on", 25)
    results = represent(varied, "smoke", folder / "samples", baselines_only=True, quiet=True)
    (train, test) = (results.counts[f"{split}_checkpoints"] for split in ("train", "test"))
    assert min(train, test) > 25
    larger = math.ceil(train / 30)
    text = f"batches of {10 * larger} at {larger} times the learning rate instead of batches of 10"
    assert f"varied: the paper's softmax layers are trained in {text}" in results.notes
    assert "PCA-rbf 20 checkpoints (probes on 25)" in results.render()
    assert f"PCA-linear {train} checkpoints, " in results.render()
    where = {"probe": "paper", "target": "epoch", "metric": "r2"}
    for split, count in (("train", train), ("test", test)):
        assert score(results, method="PCA-rbf", split=split, **where)["rows"] == 25
        assert score(results, method="PCA-linear", split=split, **where)["rows"] == count
    rebuilt = {"method": "linear code", "target": "reconstruction"}
    assert [score(results, split=split, **rebuilt)["rows"] for split in ("train", "test")] == [10, test]


# --- existing encoders, stored baselines, default folders ------------------------------------------------------


def test_an_existing_encoder_has_the_scores_of_its_training_and_trains_nothing(
    learned: Results, varied: Path, folder: Path, tmp_path: Path
) -> None:
    encoder = folder / "out" / "seed-0"
    results = represent(varied, out=tmp_path / "again", encoder=encoder, transfer_to=[varied], quiet=True)
    rows = [row for row in learned.table.to_pylist() if row["seed"] == 0]
    for old, new in zip(rows, results.table.to_pylist(), strict=True):
        changes = {"recipe": "seed-0"}
        if old["method"] == "EcD":
            changes["fitted_on"] = None  # what an encoder was trained on is not in its folder
        assert new == old | changes | {"value": pytest.approx(old["value"], abs=1e-6, nan_ok=True)}
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["results.parquet"]


def test_an_encoder_whose_recipe_is_not_known_is_scored_without_its_decoder(
    learned: Results, varied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hub" / "me" / "enc").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "out" / "seed-0" / name, tmp_path / "hub" / "me" / "enc" / name)
    monkeypatch.setenv("ZOOTOOLS_HUB", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    words = ["represent", str(varied), "--encoder", "me/enc", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    scored = [entry for entry in found["scores"] if entry["method"] == "encoder"]
    assert "epoch" in {entry["target"] for entry in scored}
    assert "reconstruction" not in {entry["target"] for entry in scored}
    assert any("the encoder me/enc: no recipe is known" in note for note in found["notes"])
    (path,) = (tmp_path / "representations" / "varied").iterdir()
    assert re.fullmatch("enc-[0-9a-f]{8}", path.name)
    assert [file.name for file in path.iterdir()] == ["results.parquet"]


def test_an_encoder_of_other_layers_is_refused_with_the_difference(
    learned: Results, folder: Path, tmp_path: Path
) -> None:
    wide = Encoder.build(
        build_schema(Mlp(name="mlp", hidden=(6,), bias=False), (1, 4, 4), 4), load_recipe("smoke").encoder
    )
    with pytest.raises(SpecError, match=r"the encoder encoder: does not fit .*varied.*\[5, 16\].*\[6, 16\]"):
        represent(folder / "varied", out=tmp_path / "out", encoder=wide)
    for changes in ({"seeds": 2}, {"epochs": 3}, {"engine": "ray"}, {"baselines_only": True}):
        with pytest.raises(SpecError, match=f"an existing encoder is not trained; leave out {next(iter(changes))}"):
            represent(folder / "varied", out=tmp_path / "out", encoder=wide, **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_baselines_are_computed_once_and_stored_rows_are_the_same(
    varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    capsys.readouterr()

    def stored(out: str, *changes: str) -> tuple[Results, set[str]]:
        overrides = ["epochs.first=3", *changes]  # a third of the checkpoints are enough
        results = represent(varied, "smoke", tmp_path / out, overrides=overrides, baselines_only=True)
        lines = capsys.readouterr().err.splitlines()
        return results, {line.split(",")[0] for line in lines if " stored " in line}

    first, none = stored("a")
    again, names = stored("b")
    assert (none, names) == (set(), BASELINES - {"untrained"})
    assert (again.table, again.notes, again.excluded) == (first.table, first.notes, first.excluded)
    # PCA has as many components as the encoder has numbers; the others do not depend on the recipe.
    assert stored("c", "encoder.latent=5")[1] == {"W", "s(W)", "s(W) Unterthiner"}
    assert stored("d", "epochs.first=2")[1] == set()


def test_a_stored_baseline_that_is_not_what_was_written_is_computed_again(
    varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options: Any = {"overrides": ["epochs.first=3"], "baselines_only": True, "quiet": True}
    first = represent(varied, "smoke", tmp_path / "a", **options)
    one, two, three, *_ = sorted((tmp_path / "cache" / "zootools" / "baselines").iterdir())
    good = two.read_bytes()
    one.write_bytes(one.read_bytes().replace(b'"rows": 1', b'"rows": 2', 1))
    two.write_bytes(three.read_bytes())  # intact, of another baseline
    three.unlink()
    three.symlink_to(tmp_path / "nowhere")
    again = represent(varied, "smoke", tmp_path / "b", **options)
    assert again.table == first.table
    assert [str(path) in " ".join(again.notes) for path in (one, two, three)] == [True, True, True]
    assert json.loads(two.read_bytes())["scores"] == json.loads(good)["scores"]
    # A cache that cannot be written stops nothing.
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    third = represent(varied, "smoke", tmp_path / "c", **options)
    assert third.table == first.table
    assert any("not kept for the next call" in note for note in third.notes)


def test_default_folders_of_other_parts_and_versions_are_different(varied: Path, tmp_path: Path) -> None:
    zoo = open_zoo(varied)
    assert default_out(zoo, "smoke") == Path("representations/varied/smoke")
    some = zoo.where(pc.field("lr") > 0.005)
    parts = [zoo, some, zoo.split("train"), open_zoo(varied, where=pc.field("epoch") == 3)]
    for org, tag in (("me", "v1"), ("you", "v1")):
        publish(varied, f"{org}/varied", hub=tmp_path / org, tag=tag)
        parts.append(open_zoo(f"{org}/varied", hub=tmp_path / org))
    commit = parts[-1].place.commit if parts[-1].place is not None else None
    assert commit is not None
    assert default_out(parts[-1], "smoke") == Path(f"representations/you--varied@{commit[:8]}/smoke")
    assert len({default_out(part, "smoke") for part in parts}) == len(parts)
    assert default_out(zoo.where(pc.field("lr") > 0.005), "smoke") == default_out(some, "smoke")


def test_a_folder_with_the_results_of_another_zoo_or_recipe_is_refused_before_anything_is_computed(
    varied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    represent(varied, "smoke", out, baselines_only=True, quiet=True)
    kept = (out / "baselines.parquet").read_bytes()
    with pytest.raises(SpecError, match=r"holds another table of results(.|\n)*encoder.latent: 16 there, 9 now"):
        represent(varied, "smoke", out, overrides=["encoder.latent=9"], baselines_only=True)
    part = open_zoo(varied, where=pc.field("lr") > 0.005)
    with pytest.raises(SpecError, match=r"holds another table of results(.|\n)*weights_sha256"):
        represent(part, "smoke", out, baselines_only=True)
    assert (out / "baselines.parquet").read_bytes() == kept
    (out / "baselines.parquet").write_text("mine")
    with pytest.raises(SpecError, match=r"baselines.parquet: exists, and is not a table of results"):
        represent(varied, "smoke", out, baselines_only=True)
    assert "seed 0" not in capsys.readouterr().err


def test_the_zoo_is_an_argument_or_an_option(varied: Path, in_folder: Path) -> None:
    for words in (["represent"], ["represent", str(varied), "--zoo", str(varied)]):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 2
        assert refused.stderr.splitlines()[-1].startswith(("Error: missing argument ZOO", "Error: found two zoos"))
    assert list(in_folder.iterdir()) == []


# --- the paper's figures --------------------------------------------------------------------------------------


def test_the_papers_figures_stand_beside_ours() -> None:
    assert published("tetris_seed", "tetris_seed", "EcD", "test_accuracy", "r2") == pytest.approx(0.902)
    assert published("mnist_hyp", "fashion_hyp", "Ec+D", "generalization_gap", "kendall_tau") == 0.27
    assert published("mnist_hyp", "fashion_hyp", "W", "test_accuracy", "r2") == pytest.approx(-2.11)
    for nothing in (
        ("tetris_seed", "tetris_seed", "EcD", "test_loss", "r2"),
        ("tetris_seed", "tetris_seed", "W", "epoch", "kendall_tau"),
        ("tetris_seed", "tetris_seed", "W", "reconstruction", "r2"),
        ("my_zoo", "my_zoo", "W", "epoch", "r2"),
        ("my_zoo", "other", "W", "epoch", "r2"),
    ):
        assert published(*nothing) is None

    about = {"method": "W", "probe": "paper", "split": "test", "metric": "r2", "seed": 0, "rows": 1}
    values = {"epoch": 0.675, "test_accuracy": 0.4, "test_f1_0": 0.266, "test_loss": 0.5, "lr": float("nan")}
    rows = [Score(**about, evaluated_on="tetris_seed", target=key, value=value) for key, value in values.items()]
    sizes = {f"{split}_models": 1 for split in ("train", "validation", "test")}
    text = Results.of(rows, "tetris_seed", "default", sizes, [], {}).render()
    cells = {
        line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.startswith(tuple(values))
    }
    assert cells == {
        "epoch": "67.5 > 55.4",
        "test_accuracy": "40.0 < 49.1",
        "test_f1_0": "26.6 = 26.6",
        "test_loss": "50.0",
        "lr": "undefined",
    }


def test_every_row_of_the_papers_figures_has_a_value_for_every_method() -> None:
    figures = yaml.safe_load((Path(sys.modules["representation"].__path__[0]) / "paper.yaml").read_text())
    sections = [*figures["zoos"].values()]
    sections += [
        section for home in figures["transfer"].values() for other in home.values() for section in other.values()
    ]
    assert len(sections) > 20
    for section in sections:
        assert {len(values) for values in section.values()} == {len(section["methods"])}


# --- transfer -------------------------------------------------------------------------------------------------


def test_transfer_scores_the_same_probes_on_the_test_split_of_the_other_zoo(learned: Results) -> None:
    # The zoo was transferred to itself: what its test split says must come out a second time.
    keys = ("method", "probe", "split", "target", "metric", "seed")
    rows = learned.table.to_pylist()
    at_home, away = (
        {tuple(row[key] for key in keys): row["value"] for row in rows if row["evaluated_on"] == name}
        for name in ("varied", "varied (2)")
    )
    assert {key[2] for key in away} == {"test"}
    assert len(away) == sum(key[2] == "test" for key in at_home)
    for key, value in away.items():
        assert value == pytest.approx(at_home[key], abs=1e-9)


def test_labels_of_another_zoo_are_matched_by_name(varied: Path, folder: Path) -> None:
    zoo = open_zoo(varied)
    other = changed(
        zoo,
        activation=lambda values: np.where(values == "tanh", "sigmoid", values),
        init=lambda values: np.full_like(values, "normal"),
        lr=lambda values: values * 0 + 1,
    )
    other = replace(other, stored_spec=other.spec.model_copy(update={"name": "other"}))
    recipe = load_recipe("smoke")
    home = ZooDataset.of(zoo, recipe)
    names, _ = home.choose()
    away = ZooDataset.of(other, recipe).as_transfer(home, names)
    assert home.splits["train"].targets["activation"].classes == ("relu", "tanh")
    labels = away.splits["test"].targets["activation"].values.tolist()
    truth = other.split("test").where(pc.field("epoch") > 0).metadata["activation"].to_pylist()
    assert labels == [{"relu": 0.0, "sigmoid": -1.0}[name] for name in truth]  # no probe can say sigmoid
    results = represent(varied, "smoke", folder / "o", transfer_to=[other], baselines_only=True, quiet=True)
    targets = {row["target"] for row in results.table.to_pylist() if row["evaluated_on"] == "other"}
    assert "activation" in targets
    assert not targets & {"init", "lr"}
    assert "other: init is not scored: constant (normal) there" in results.notes
    assert "other, paper probe, Kendall's tau" in results.render()


def test_transfer_to_other_layers_is_refused(varied: Path, folder: Path) -> None:
    zoo = open_zoo(varied)
    with_biases = build_schema(Mlp(name="mlp", hidden=(5,)), (1, 4, 4), 4)
    expected = r"where \S+varied has fc2.weight of shape \[4, 5\], \S+varied has fc1.bias of shape \[5\]"
    with pytest.raises(SpecError, match=expected):
        represent(zoo, "smoke", folder / "x", transfer_to=[replace(zoo, schema=with_biases)], baselines_only=True)


# --- zoos that say little, or nothing -------------------------------------------------------------------------


def changed(zoo: Zoo, **columns: Any) -> Zoo:
    """Return the zoo with columns of its metadata computed from the old ones, as numpy arrays."""
    table = zoo.metadata
    for name, change in columns.items():
        values = change(table[name].to_numpy(zero_copy_only=False).copy())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return replace(zoo, metadata=table)


def test_rows_without_a_finite_value_are_left_out_and_counted(varied: Path, folder: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[1::5], values[3::5] = np.nan, np.inf
        return values

    zoo = open_zoo(varied, where=pc.field("epoch") > 0)
    spoiled = changed(zoo, test_loss=spoil, lr=lambda v: np.full_like(v, np.nan), train_loss=lambda v: v * 0 + 7)
    results = represent(spoiled, "smoke", folder / "nan", baselines_only=True, quiet=True)
    bad = sum(index % 5 in (1, 3) for index in range(len(zoo)))
    assert f"varied: test_loss: {bad} checkpoints are left out: not a finite number" in results.notes
    assert results.excluded["lr"] == "never a finite number in the train split"
    assert results.excluded["train_loss"] == "constant (7) in the train split"

    # What is left is scored as if it were all there is.
    keep = np.array([index % 5 not in (1, 3) for index in range(len(zoo))])
    kept = replace(zoo, metadata=zoo.metadata.filter(pa.array(keep)))
    alone = represent(kept, "smoke", folder / "kept", baselines_only=True, quiet=True)
    where = {"method": "W", "probe": "paper", "split": "test", "target": "test_loss", "metric": "r2"}
    assert score(results, **where) == score(alone, **where) | {"value": pytest.approx(score(alone, **where)["value"])}


def test_zoos_without_enough_models_are_refused(varied: Path, folder: Path) -> None:
    zoo = open_zoo(varied)
    one = zoo.where(pc.field("model_id") == zoo.split("train").models[0])
    with pytest.raises(SpecError, match="splits train and test; models found: train 1, validation 0, test 0"):
        represent(one, "smoke", folder / "one", baselines_only=True, quiet=True)
    with pytest.raises(SpecError, match="epochs"):
        represent(zoo.where(pc.field("epoch") == 0), "smoke", folder / "zero", baselines_only=True, quiet=True)
    columns = [name for name in zoo.metadata.column_names if name in (*IDENTITY, "epoch")]
    bare = replace(zoo, metadata=zoo.metadata.select(columns)).where(pc.field("epoch") == 1)
    with pytest.raises(SpecError, match=r"no property can be predicted \(epoch: constant \(1\)"):
        represent(bare, "smoke", folder / "bare", baselines_only=True, quiet=True)


@pytest.mark.parametrize(
    ("name", "rates", "refusal"),
    [
        ("one", [0.01], "models found: train 1, validation 0, test 0"),
        ("constant", [i * 1e-300 for i in range(1, 11)], "all 15 checkpoints of the train split have the same weights"),
    ],
)
@pytest.mark.parametrize("what", [["--baselines-only"], ["--epochs", "1"]])
def test_z7_a_zoo_of_one_model_or_of_equal_weights_is_refused_by_that_name(
    folder: Path, name: str, rates: list[float], refusal: str, what: list[str]
) -> None:
    """Ten models of one seed that learn nothing are the same ten times, at every epoch."""
    grid = {"activation": ["tanh"], "init": ["uniform"], "optimizer": ["sgd"], "lr": rates}
    zoo = folder / name if (folder / name).exists() else make_zoo(folder, name, grid=grid, seeds={"fixed": [1]})
    words = ["represent", "--zoo", str(zoo), "--recipe", "smoke", "--out", str(folder / "refused"), *what]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert refusal in result.output
    assert not (folder / "refused").exists()


def test_a_zoo_without_validation_models_chooses_penalties_on_the_training_split(varied: Path, folder: Path) -> None:
    zoo = open_zoo(varied, where=pc.field("split") != "validation")
    results = represent(zoo, "smoke", folder / "noval", baselines_only=True, quiet=True)
    assert results.notes == ["varied: no validation split; penalties are chosen on the training split"]
    assert {row["split"] for row in results.table.to_pylist()} == {"train", "test"}


def test_a_zoo_whose_models_all_diverged_is_refused(folder: Path) -> None:
    grid = {"activation": ["relu"], "init": ["normal"], "optimizer": ["sgd"], "lr": [1.0], "weight_decay": [100.0]}
    wild = make_zoo(folder, "wild", grid=grid)
    assert open_zoo(wild).counts.diverged == 4
    with pytest.raises(SpecError, match="wild: has no checkpoints; 4 of 4 models diverged"):
        represent(wild, "smoke", folder / "w", baselines_only=True, quiet=True)


@pytest.mark.parametrize(
    ("value", "changes", "note"),
    [
        (torch.nan, [], "1 train checkpoints are left out: their weights are not finite"),
        (-torch.inf, ["largest_weight=100"], "1 train checkpoints are left out: a weight is not finite, or beyond 100"),
        (-1e25, ["largest_weight=100"], "1 train checkpoints are left out: a weight is not finite, or beyond 100"),
        (-1e25, [], "1 checkpoints have weights beyond 100 (up to 1e+25), which dominate the linear probes"),
    ],
)
def test_weights_that_are_not_finite_or_too_large_are_left_out_and_counted(
    varied: Path, tmp_path: Path, value: float, changes: list[str], note: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(varied, copy)
    zoo = open_zoo(copy)
    row = zoo.split("train").where(pc.field("epoch") == 2).metadata.to_pylist()[0]
    path = copy / "checkpoints" / f"stack-{row['stack']:05d}" / "epoch-0002.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    next(iter(tensors.values()))[row["row"]] = value
    save_file(tensors, path, metadata)
    recipe = load_recipe("smoke", changes)
    found = ZooDataset.of(open_zoo(copy, verify=False), recipe)
    assert [str(remark).split("; ")[0] for remark in found.notes] == [f"varied: {note}"]
    whole, left_out = len(zoo.split("train").where(pc.field("epoch") > 0)), note.count("left out")
    assert len(found.splits["train"]) == len(Weights.of(open_zoo(copy, verify=False), recipe).train) == whole - left_out


def test_a_score_of_exploded_weights_is_shown_by_its_order_of_magnitude() -> None:
    assert [fixed(value) for value in (84.12, -9_999.0, -2.2e36)] == ["84.1", "-9999.0", "-2e+36"]


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_takes_a_name_prints_one_json_object_and_writes_the_table(
    varied: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOTOOLS_HUB", str(in_folder / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder / "cache"))  # other tests have stored the scores of this zoo
    publish(varied, "group/varied", hub=in_folder / "hub")
    words = ["represent", "--zoo", "group/varied", "--recipe", "smoke", "--set", "encoder.latent=4", "--baselines-only"]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert "from the hub folder" in done.stderr
    assert {entry["method"] for entry in value["scores"]} == BASELINES | {"linear code"}
    assert (value["zoo"], value["recipe"]) == ("varied", "smoke encoder.latent=4")
    (path,) = (in_folder / "representations").glob("group--varied@*/smoke/baselines.parquet")
    table = pq.read_table(path)
    assert json.loads(table.schema.metadata[b"zootools"])["excluded"] == value["excluded"]
    text = CliRunner().invoke(main, words)
    assert "varied, standardised probe, R2 or accuracy in %" in text.stdout
    assert re.search(r"^s\(W\), seed 0 +stored ", text.stderr, re.MULTILINE)
    # Each row is shown on stderr when it is done: seconds, then test scores, as in the table.
    header, row = (
        next(line for line in done.stderr.splitlines() if line.startswith(start)) for start in (" ", "s(W), seed 0")
    )
    assert header.split()[:5] == ["fit", "embed", "probe", "reconstruction", "epoch"]
    epoch = row.removeprefix("s(W), seed 0").split()[3]  # s(W) has no reconstruction
    value = next(e for e in value["scores"] if (e["method"], e["target"], e["split"]) == ("s(W)", "epoch", "test"))
    assert epoch == f"{100 * value['mean']:.1f}"


def test_what_counts_as_a_property() -> None:
    table = pa.table(
        {
            "model_id": ["a", "b", "c"],
            "depth": pa.array([1, None, 3], pa.int16()),
            "rate": [0.5, float("inf"), float("nan")],
            "augmented": [True, False, None],
            "kind": pa.array(["x", "z", "y"], pa.large_string()),
            "recall": pa.array([[0.1, 0.2], [0.3], None]),
            "recording": [[0.0] * 101] * 3,
            "file": pa.array([b"1", b"2", b"3"]),
        }
    )
    found = read_targets(table)
    assert {name: target.classes for name, target in found.items() if target.classes} == {
        "augmented": ("false", "true"),
        "kind": ("x", "y", "z"),
    }
    nan = float("nan")
    assert {name: target.values.tolist() for name, target in found.items()} == {
        "depth": pytest.approx([1, nan, 3], nan_ok=True),
        "rate": pytest.approx([0.5, nan, nan], nan_ok=True),
        "augmented": pytest.approx([1, 0, nan], nan_ok=True),
        "kind": [0, 2, 1],
        "recall_0": pytest.approx([0.1, 0.3, nan], nan_ok=True),
        "recall_1": pytest.approx([0.2, nan, nan], nan_ok=True),
    }
    names = read_targets(pa.table({"name": [f"{i}" for i in range(101)]}))["name"]
    assert names.unfit() == "101 different labels"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--recipe", "smok"], 2, "did you mean 'smoke'"),
        (["--recipe", "smoke", "--set", "loss.knd=ED"], 2, "did you mean 'kind'"),
        (["--transfer-to", "nowhere"], 2, "nowhere"),
        (["--seeds", "0"], 2, "--seeds"),
    ],
)
def test_bad_input_is_one_clear_error(words: list[str], code: int, message: str, varied: Path, in_folder: Path) -> None:
    refused = CliRunner().invoke(main, ["represent", "--zoo", str(varied), "--baselines-only", *words])
    assert refused.exit_code == code
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(in_folder.iterdir()) == []


# --- populations of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e30, 3e38])
def test_odd_properties_and_huge_weights_have_finite_scores_or_a_reason(tmp_path: Path, scale: float) -> None:
    count, big = 36, 1 << 62
    schema = build_schema(Mlp(name="mlp", hidden=(2,), bias=False), (1, 1, 2), 2)
    weights = np.random.default_rng(0).uniform(-1, 1, (count, schema.size)) * scale
    columns: dict[str, Any] = {
        "weights": pa.array(list(weights.astype(np.float32)), pa.list_(pa.float32())),
        "split": ["train"] * 24 + ["validation"] * 4 + ["test"] * 8,
        "epoch": [5] * count,
        "largest": weights.max(1) / scale,
        "kind": pa.array(["a", "b", None, "b"] * 9).dictionary_encode(),
        "flag": [None, True, False, True] * 9,
        "nothing": pa.array([None] * count, pa.float64()),
        "no text": pa.array([None] * count, pa.string()),
        "one text": ["x"] * count,
        "constant": [3] * count,
        "seed of the order": [big + (row << 20) for row in range(count)],
        "same in float64": [big + row % 3 for row in range(count)],
        "large": pa.array([2**64 - 1 - (row << 20) for row in range(count)], pa.uint64()),
        "infinite": [float("inf"), 1.0, float("nan"), 2.0] * 9,
        "huge": [1.7e308, -1.7e308, 1.0, -1.7e308] * 9,
    }
    pq.write_table(pa.table(columns), tmp_path / "w.parquet")
    zoo = open_zoo(tmp_path / "w.parquet", schema=schema)
    results = represent(zoo, "smoke", tmp_path / "out", baselines_only=True, quiet=True)
    table = results.table.to_pylist()
    assert {"W", "PCA-linear", "s(W)"} <= {row["method"] for row in table}
    assert {"largest", "kind", "flag", "seed of the order", "large", "infinite"} <= {row["target"] for row in table}
    for name in ("nothing", "no text", "one text", "constant", "same in float64"):
        assert name in results.excluded
    assert any("huge" in name for name in results.excluded)
    # A rank correlation is not defined where all predictions are equal, as those from RBF features of huge weights are.
    undefined = {row["target"] for row in table if row["value"] is None and row["metric"] != "kendall_tau"}
    assert undefined <= {"huge"}
    for name in ("seed of the order", "same in float64", "large"):
        note = f"{name}: whole numbers beyond 2^53 are rounded to the nearest float64"
        assert any(note in text for text in results.notes)
    if scale > 1e38:
        assert results.excluded["untrained"] == "its features are not finite"
    assert "not scored: nothing: never a finite number" in results.render()


# --- before anything is computed ------------------------------------------------------------------------


def test_a_folder_with_another_training_is_refused_before_the_baselines(
    learned: Results, varied: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    with pytest.raises(SpecError, match=r"seed-0: holds another training(.|\n)*training.epochs: 1 there, 2 now"):
        represent(varied, "smoke", folder / "out", overrides=["training.epochs=2"])
    # The first seed would do; the second folder is another's.
    shutil.copytree(folder / "out" / "seed-0", folder / "mixed" / "seed-0")
    shutil.copytree(folder / "out" / "seed-0", folder / "mixed" / "seed-1")
    with pytest.raises(SpecError, match=r"seed-1: holds another training(.|\n)*seed: 0 there, 1 now"):
        represent(varied, "smoke", folder / "mixed", overrides=["training.epochs=1"], seeds=2)
    assert "W, seed 0" not in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")} == kept


def test_an_output_that_is_not_a_folder_is_refused_before_the_baselines(
    varied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="file: is not a folder"):
            represent(varied, "smoke", out, baselines_only=True)
    assert "W, seed 0" not in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("what", [["--baselines-only"], ["--epochs", "1"]])
def test_an_encoder_beyond_memory_is_refused_with_the_numbers_and_the_key(
    varied: Path, in_folder: Path, what: list[str]
) -> None:
    changes = ("width=65536", "hidden=65536", "blocks=20", "heads=1")
    words = [word for change in changes for word in ("--set", f"encoder.{change}")]
    refused = CliRunner().invoke(main, ["represent", "--zoo", str(varied), "--recipe", "smoke", *words, *what])
    assert refused.exit_code == 2, refused.output
    text = r"the encoder has [0-9,]+ parameters; .* needs at least [0-9,.]+ GB of memory.*, and [0-9,.]+ GB are free; "
    assert re.search(text + r"use a smaller encoder\.(width|hidden|blocks) \(now [0-9]+\)", refused.stderr), (
        refused.stderr
    )
    assert list(in_folder.iterdir()) == []


def test_a_batch_beyond_memory_names_the_batch_size(varied: Path) -> None:
    schema, recipe = open_zoo(varied).schema, load_recipe("smoke", ["training.batch_size=1000000"])
    with pytest.raises(SpecError, match=r"GB for a batch\).*use a smaller training.batch_size \(now 1000000\)"):
        check_memory(schema, recipe, rows=10**12)
    check_memory(schema, load_recipe("smoke"), rows=10**12)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["encoder.compression_token=false", "encoder.latent=5", "head.layers=0"],
        ["encoder.tokens=weight", "encoder.hidden=7", "encoder.blocks=3", "head.layers=2"],
        ["encoder={kind: feed_forward, latent: 9, layers: 3}"],
    ],
)
def test_the_estimate_counts_the_parameters_that_there_are(varied: Path, changes: list[str]) -> None:
    schema, recipe = open_zoo(varied).schema, load_recipe("smoke", changes)
    modules = Encoder.build(schema, recipe.encoder), projection_head(recipe.encoder.latent, recipe.head)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    assert estimate(schema, recipe, rows=100).parameters == sum(counts)
    assert estimate(schema, recipe, rows=100, training=False) == (counts[0], 4 * counts[0], 0)


def test_a_missing_package_is_named_with_its_extra_before_anything_is_computed(
    varied: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    words = ["represent", "--zoo", str(varied), "--recipe", "smoke", "--epochs", "1", "--track", "mine"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "track needs trackio: pip install 'zootools[track]'" in refused.stderr
    assert "seed 0" not in refused.stderr
    assert list(in_folder.iterdir()) == []
