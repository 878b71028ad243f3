"""Populations that zootools did not publish: Parquet with a weights column, and a schema from the user."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import Blob, HubServer, Repo

from zootools import open_zoo
from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.hub.foreign import read_schema

INDEX = {
    "layer": [[0, "conv2d"], [3, "conv2d"], [6, "conv2d"], [9, "fc"], [11, "fc"]],
    "idx_start": [0, 208, 1414, 1514, 2254],
    "idx_length": [208, 1206, 100, 740, 210],
    "kernel_no": [8, 6, 4, 20, 10],
    "kernel_size": [25, 25, 4, 9, 1],
    "channels_in": [1, 8, 6, 4, 20],
}
"""The index of the 2464-parameter network as published zoos have it."""


def rows(flat: np.ndarray[Any, Any], **columns: Any) -> pa.Table:
    """A table of flat weights, as anybody would write it: lists without a fixed length."""
    weights = pa.array(list(flat), pa.list_(pa.float32()))
    return pa.table({**{name: pa.array(values) for name, values in columns.items()}, "weights": weights})


@pytest.fixture
def schema_file(tmp_path: Path, tiny_zoo: Path) -> Path:
    """A layer schema in a file of its own."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(json.loads((tiny_zoo / "zoo.json").read_text())["schema"]))
    return path


def test_a_data_set_on_the_hub_opens_with_a_schema(
    server: HubServer, tiny_zoo: Path, schema_file: Path, tmp_path: Path
) -> None:
    zoo = open_zoo(tiny_zoo)
    flat = zoo.weights().numpy()
    accuracy, activation = zoo.metadata["test_accuracy"], ["tanh"] * len(zoo)
    table = rows(flat, accuracy=accuracy.to_pylist(), activation=activation, nested=[{"a": 1}] * len(zoo))
    half = len(zoo) // 2
    files = {".gitattributes": Blob(b"", False), "setup.py": Blob(b"raise SystemExit", False)}
    for name, part in (("data/train-0.parquet", table[:half]), ("data/test-0.parquet", table[half:])):
        pq.write_table(part, tmp_path / "part.parquet")
        files[name] = Blob((tmp_path / "part.parquet").read_bytes(), True)
    repo = server.repos["stranger/weights"] = Repo(private=False)
    repo.add("main", files)
    foreign = open_zoo("stranger/weights", hub=server.url, schema=schema_file)
    order = foreign.metadata["row"].to_numpy()
    assert torch.equal(foreign.split("train").weights(), torch.from_numpy(flat[:half]))
    assert torch.equal(foreign.split("test").weights(), torch.from_numpy(flat[half:]))
    assert sorted(order) == list(range(len(zoo)))
    assert {"accuracy", "activation", "model_id", "epoch"} <= set(foreign.metadata.column_names)
    assert "nested" not in foreign.metadata.column_names
    model = foreign.split("test").models[0]
    images = torch.rand(3, *foreign.schema.input_shape)
    expected = zoo.module(zoo.metadata["model_id"][half].as_py(), zoo.metadata["epoch"][half].as_py())(images)
    assert torch.equal(foreign.module(model, 0)(images), expected)
    assert not [request for request in server.requests if "setup.py" in request.path]
    with pytest.raises(SpecError, match="was not built by zootools"):
        _ = foreign.spec


def test_the_command_line_takes_a_schema(tiny_zoo: Path, schema_file: Path, tmp_path: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    columns = {name: zoo.metadata[name].to_pylist() for name in ("epoch", "split", "model_id", "test_accuracy")}
    pq.write_table(rows(zoo.weights().numpy(), **columns), tmp_path / "w.parquet")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "zootools", *arguments]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    shown = run("info", "w.parquet", "--json", "--schema", str(schema_file))
    assert json.loads(shown.stdout)["checkpoints"] == len(zoo), shown.stderr
    learnt = run(
        "represent", "--zoo", "w.parquet", "--baselines-only", "--json", "-o", "out", "--schema", str(schema_file)
    )
    assert "test_accuracy" in learnt.stdout, learnt.stderr
    assert run("info", "w.parquet").returncode == 2


def test_a_zoo_of_ours_reads_the_same_as_plain_parquet(tiny_zoo: Path) -> None:
    foreign, zoo = open_zoo(tiny_zoo, schema=tiny_zoo / "zoo.json"), open_zoo(tiny_zoo)
    assert len(foreign) == len(zoo)
    for split in ("train", "validation", "test"):
        mine, theirs = zoo.split(split), foreign.split(split)
        assert theirs.metadata["model_id"].to_pylist() == mine.metadata["model_id"].to_pylist()
        assert torch.equal(theirs.weights(), mine.weights())


def test_an_index_of_a_published_zoo_is_a_schema(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    schema, runs = read_schema(tmp_path / "index.json")
    assert not runs
    assert schema.size == 2464
    assert [parameter.offset for parameter in schema.parameters][::2] == INDEX["idx_start"]
    assert [schema.block(layer) for layer in range(4)] == [1, 1, 9, 1]
    pq.write_table(rows(np.zeros((2, 2464), np.float32), activation=["tanh"] * 2), tmp_path / "w.parquet")
    foreign = open_zoo(tmp_path / "w.parquet", schema=tmp_path / "index.json")
    with pytest.raises(SpecError, match="needs a layer schema"):
        foreign.module(foreign.models[0], 0)


def test_weights_that_are_not_finite_count_as_diverged(tmp_path: Path, schema_file: Path) -> None:
    flat = np.ones((4, 100), np.float32)
    flat[1, 3] = np.nan
    pq.write_table(rows(flat, model_id=["a", "b", "c", "d"]), tmp_path / "w.parquet")
    assert open_zoo(tmp_path / "w.parquet", schema=schema_file).models == ["a", "c", "d"]
    assert len(open_zoo(tmp_path / "w.parquet", schema=schema_file, include_diverged=True)) == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda table: table.drop_columns(["weights"]), "expected a column named weights"),
        (
            lambda table: table.slice(0, 2).set_column(1, "weights", pa.array([[1.0] * 100, [1.0] * 99])),
            "do not all have",
        ),
        (lambda table: table.slice(0, 2).set_column(1, "weights", pa.array([[1.0] * 100, None])), "do not all have"),
        (lambda table: table.append_column("split", pa.array(["mine"] * len(table))), "the column split holds"),
        (lambda table: table.append_column("epoch", pa.array(["late"] * len(table))), "cannot be used"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, schema_file: Path, change: Any, text: str) -> None:
    table = rows(np.ones((3, 100), np.float32), accuracy=[0.1, 0.2, 0.3])
    pq.write_table(change(table), tmp_path / "w.parquet")
    with pytest.raises(SpecError, match=text):
        open_zoo(tmp_path / "w.parquet", schema=schema_file)


def test_a_file_with_more_rows_than_its_footer_claims_is_refused(tmp_path: Path, schema_file: Path) -> None:
    pq.write_table(rows(np.ones((24, 100), np.float32), accuracy=[0.5] * 24), tmp_path / "w.parquet")
    data = (tmp_path / "w.parquet").read_bytes()
    claim = b"\x16%c\x19"  # the number of rows, coded as its double, between the schema and the row groups
    assert data.count(claim % 48) == 1
    (tmp_path / "w.parquet").write_bytes(data.replace(claim % 48, claim % 16))
    with pytest.raises(DamagedZooError, match="has more than the 8 rows that it claims"):
        open_zoo(tmp_path / "w.parquet", schema=schema_file)


def test_damaged_files_and_schemas_are_named(tmp_path: Path, schema_file: Path) -> None:
    with pytest.raises(ZooNotFoundError, match="holds no Parquet files"):
        open_zoo(tmp_path, schema=schema_file)
    (tmp_path / "w.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    with pytest.raises(DamagedZooError, match=r"w.parquet: cannot be read"):
        open_zoo(tmp_path, schema=schema_file)
    wrong = [{}, [], "x", {**INDEX, "idx_start": [0, 1, 2, 3, 4]}, {**INDEX, "kernel_no": [8]}, {"layers": [{}]}]
    for value in wrong:
        (tmp_path / "bad.json").write_text(json.dumps(value))
        with pytest.raises(SpecError, match=r"bad.json"):
            read_schema(tmp_path / "bad.json")
    assert isinstance(read_schema(schema_file)[0], Schema)
