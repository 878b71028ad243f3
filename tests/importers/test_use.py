"""A zoo that was imported is used like any other: described, verified, loaded and represented."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasets import load_dataset
from foreign_zoos import write_ray_zoo, write_small_cnn_zoo
from populations import PATTERN, train, write_files, write_schema, write_scores

from zootools import export_zoo, open_zoo
from zootools.cli import main

Source = Callable[[Path], list[str]]
"""A function that writes a population into a folder, and returns the words of its import."""


def ray_zoo(folder: Path) -> list[str]:
    """Twelve trials of three checkpoints."""
    write_ray_zoo(folder / "runs", [{"seed": seed} for seed in range(12)])
    return ["ray-zoo", str(folder / "runs")]


def small_cnn_zoo(folder: Path) -> list[str]:
    """Twelve models at three steps."""
    write_small_cnn_zoo(folder / "small", ["relu", "tanh"] * 6, steps=(0, 1, 86))
    return ["small-cnn-zoo", str(folder / "small")]


def state_dicts(folder: Path) -> list[str]:
    """Twelve models of four epochs in files of their own, with a table of accuracies."""
    checkpoints = train(range(12))
    write_files(folder / "files", checkpoints)
    write_scores(folder / "scores.csv", checkpoints)
    write_schema(folder / "schema.json")
    options = ["--schema", str(folder / "schema.json"), "--properties", str(folder / "scores.csv")]
    return ["state-dicts", str(folder / "files"), *options, "--path-pattern", PATTERN, "--set", "activation=tanh"]


def parquet(folder: Path) -> list[str]:
    """The same, exported as Parquet files."""
    run(["import", *state_dicts(folder), "-o", str(folder / "first"), "--check", "0"])
    export_zoo(open_zoo(folder / "first"), folder / "exported", "index-dict")
    return ["parquet", str(folder / "exported"), "--schema", str(folder / "exported" / "schema.json")]


def run(words: list[str]) -> str:
    """Run a command of zootools, and return its output."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("source", [ray_zoo, small_cnn_zoo, state_dicts, parquet])
def test_an_imported_zoo_is_described_verified_loaded_and_represented(source: Source, tmp_path: Path) -> None:
    zoo = str(tmp_path / "zoo")
    words = source(tmp_path)
    run(["import", *words, "-o", zoo, "--check", "0"])
    count = len(open_zoo(zoo))
    described = json.loads(run(["info", zoo, "--json"]))
    assert (described["checkpoints"], described["imported"]["imported_from"]) == (count, words[0])
    run(["verify", zoo])
    loaded = load_dataset(zoo, cache_dir=str(tmp_path / "cache"))
    assert sum(len(rows) for rows in loaded.values()) == count
    words = ["represent", "--zoo", zoo, "--baselines-only", "--recipe", "smoke", "-o", str(tmp_path / "out"), "--json"]
    methods = {row["method"] for row in json.loads(run(words))["scores"] if row["target"] == "test_accuracy"}
    assert {"W", "s(W)", "PCA-linear"} <= methods
