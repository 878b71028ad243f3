"""Populations that zootools did not publish: Parquet with a weights column, and a schema from the user."""

import datetime
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hub_server import Blob, HubServer, Repo
from hypothesis import given, settings
from hypothesis import strategies as st

from zootools import open_zoo
from zootools.architectures import Schema, build_schema
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError, ZooError, ZooNotFoundError
from zootools.hub import foreign_memory
from zootools.hub.foreign import ForeignZoo, read_schema
from zootools.spec import Mlp
from zootools.storage.manifest import Counts

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


@pytest.mark.slow
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


def test_models_are_counted_by_whether_their_weights_are_finite(tmp_path: Path) -> None:
    flat = np.ones((4, TWO.size), np.float32)
    flat[2, 0] = math.nan
    pq.write_table(rows(flat, model_id=["a", "a", "b", "b"], epoch=[0, 1, 0, 1]), tmp_path / "w.parquet")
    counts = open_zoo(tmp_path / "w.parquet", schema=TWO).counts
    assert counts == Counts(expected=2, ok=1, diverged=1, failed=0, missing=0, checkpoints=4)


def test_a_hub_folder_is_the_only_place_that_is_searched(tmp_path: Path) -> None:
    with pytest.raises(ZooNotFoundError, match="this hub folder has no group/w"):
        open_zoo("group/w", hub=tmp_path, schema=TWO)


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


# --- every type of Arrow ------------------------------------------------------------------------------

TWO = build_schema(Mlp(name="mlp", hidden=(1,), bias=False), (1, 1, 1), 2)
"""Three parameters: enough for what is not about weights."""


def weights_of(count: int, kind: pa.DataType | None = None) -> pa.Array:
    """Weights for `TWO`, all different."""
    values = np.arange(3.0 * count).reshape(count, 3).tolist()
    return pa.array(values, kind or pa.list_(pa.float32()))


def opened(folder: Path, *tables: pa.Table | dict[str, Any], **options: Any) -> ForeignZoo:
    """Write tables, with weights where they have none, as files of a folder, and open it."""
    for number, columns in enumerate(tables):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        if "weights" not in table.column_names:
            table = table.append_column("weights", weights_of(len(table)))
        pq.write_table(table, folder / f"{number}.parquet", **options)
    zoo = open_zoo(folder, schema=TWO, include_diverged=True)
    assert isinstance(zoo, ForeignZoo)
    return zoo


DAY = datetime.date(2020, 2, 29)
BIG = (1 << 53) + 1
READ: dict[str, tuple[pa.Array, list[Any], pa.DataType]] = {
    "bool": (pa.array([True, None, False]), [True, None, False], pa.bool_()),
    "int8": (pa.array([1, None, -3], pa.int8()), [1, None, -3], pa.int64()),
    "int64": (pa.array([BIG, -(1 << 63), (1 << 63) - 1]), [BIG, -(1 << 63), (1 << 63) - 1], pa.int64()),
    "uint64": (pa.array([1, None, 2], pa.uint64()), [1, None, 2], pa.int64()),
    "uint64, large": (pa.array([1, None, 2**64 - 1], pa.uint64()), [1, None, 2**64 - 1], pa.uint64()),
    "float16": (pa.array([1.5, None, math.inf], pa.float16()), [1.5, None, math.inf], pa.float32()),
    "float32": (pa.array([1.5, None, 2], pa.float32()), [1.5, None, 2], pa.float32()),
    "float64": (pa.array([0.1, None, 1e300]), [0.1, None, 1e300], pa.float64()),
    "decimal": (pa.array([Decimal("0.25"), None, Decimal("9.10")]), [0.25, None, 9.1], pa.float64()),
    "decimal256": (pa.array([Decimal("1.5")] * 3, pa.decimal256(50, 2)), [1.5] * 3, pa.float64()),
    "decimal, whole": (pa.array([Decimal(BIG)] * 3, pa.decimal128(38, 0)), [BIG] * 3, pa.int64()),
    "string": (pa.array(["a", None, "\u00e9"]), ["a", None, "\u00e9"], pa.string()),
    "large_string": (pa.array(["a", None, ""], pa.large_string()), ["a", None, ""], pa.string()),
    "string_view": (pa.array(["a", None, "b"], pa.string_view()), ["a", None, "b"], pa.string()),
    "category": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"], pa.string()),
    "category of numbers": (pa.array([7, 5, 7]).dictionary_encode(), [7, 5, 7], pa.int64()),
    "a.b": (pa.array([1, 2, 3]), [1, 2, 3], pa.int64()),
    "a": (pa.array([4, 5, 6]), [4, 5, 6], pa.int64()),
    "list": (pa.array([[1], [2, 3], None]), [[1.0], [2.0, 3.0], None], pa.list_(pa.float64())),
    "list of two": (pa.array([[0.5, 0.25]] * 3, pa.list_(pa.float32(), 2)), [[0.5, 0.25]] * 3, pa.list_(pa.float64())),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "1", None])), ["{}", "1", None], pa.string()),
}
LEFT_OUT: dict[str, tuple[pa.Array, str]] = {
    "null": (pa.nulls(3), "no row has a value"),
    "binary": (pa.array([b"1", b"2", None]), "binary (binary)"),
    "binary_view": (pa.array([b"1", b"2", None], pa.binary_view()), "binary (binary_view)"),
    "binary16": (pa.array([b"1" * 16] * 3, pa.binary(16)), "binary (fixed_size_binary[16])"),
    "uuid": (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"1" * 16] * 3, pa.binary(16))), "binary"),
    "date": (pa.array([DAY] * 3), "a date, time or duration (date32[day])"),
    "timestamp": (pa.array([1, 2, 3], pa.timestamp("us", "UTC")), "a date, time or duration (timestamp[us, tz=UTC])"),
    "time": (pa.array([1, 2, 3], pa.time64("us")), "a date, time or duration (time64[us])"),
    "duration": (pa.array([1, 2, 3], pa.duration("s")), "a date, time or duration (duration[s])"),
    "struct": (pa.array([{"x": 1, "y": [2.0]}] * 3), "nested (struct<x: int64, y: list<element: double>>)"),
    "list of texts": (pa.array([["a"], ["b", "c"], None]), "nested (list<element: string>)"),
    "list with a gap": (pa.array([[1.0], [2.0, None], None]), "a list in which a number is missing"),
    "long list": (pa.array([[1.0] * 7, [2.0], None]), "lists of more than 2 numbers, one for each output"),
    "map": (pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64())), "nested (map<string, int64"),
    "decimal beyond 64 bits": (pa.array([Decimal(2**70)] * 3, pa.decimal128(38, 0)), "does not fit into int64"),
    "long text": (pa.array(["x" * 10_001, "y", "z"]), "a text of 10001 bytes"),
    "status": (pa.array(["mine"] * 3), "a zoo has a computed column of this name"),
}


def test_every_type_is_read_exactly_or_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {name: array for name, (array, *_) in (READ | LEFT_OUT).items()}
    with caplog.at_level(logging.WARNING):
        zoo = opened(tmp_path, columns)
    for name, (_, values, kind) in READ.items():
        assert (name, zoo.metadata[name].type) == (name, kind)
        assert (name, zoo.metadata[name].to_pylist()) == (name, values)
    assert zoo.left_out.keys() == LEFT_OUT.keys()
    for name, (_, reason) in LEFT_OUT.items():
        assert reason in zoo.left_out[name]
        assert repr(name) in caplog.text
    assert zoo.metadata["status"].to_pylist() == ["ok"] * 3


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int8(), pa.string()), pa.string_view(), pa.large_string()])
def test_the_columns_that_are_used_may_be_categories_and_views(tmp_path: Path, kind: pa.DataType) -> None:
    texts = {"model_id": ["m", "n", "m"], "split": ["train", "validation", "test"], "activation": ["tanh"] * 3}
    texts |= {"epoch": ["1", "1", "2"]}
    zoo = opened(tmp_path, {name: pa.array(values).cast(kind) for name, values in texts.items()})
    assert zoo.metadata["epoch"].to_pylist() == [1, 1, 2]
    for name in ("model_id", "split", "activation"):
        assert zoo.metadata[name].to_pylist() == texts[name]
    assert zoo.left_out == {}
    assert zoo.module("m", 2)(torch.zeros(1, 1, 1, 1)).shape == (1, 2)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"epoch": [5, None, 5]}, r"0\.parquet: the column epoch has no value \(null\) in row 1"),
        ({"epoch": pa.array([5.0, 5.0, None])}, "the column epoch has no value .* row 2"),
        ({"epoch": pa.nulls(3)}, "the column epoch has no value .* row 0"),
        ({"model_id": ["a", "b", None]}, "the column model_id has no value .* row 2"),
        ({"split": pa.array(["train", None, "test"]).dictionary_encode()}, "the column split has no value .* row 1"),
        ({"split": ["train", "test", "tset"]}, "the column split holds 'tset' in row 2; expected train, validation"),
        ({"split": [1, 2, 3]}, "the column split holds int64 values"),
        ({"epoch": [1, 2, 1 << 40]}, "found 1099511627776 in row 2; expected a whole number from 0 to 2147483647"),
        ({"epoch": [1.0, 2.5, 3.5]}, "found 2.5 in row 1"),
        ({"epoch": [1, -1, 3]}, "holds -1 in row 1"),
        ({"epoch": [True, False, True]}, "the column epoch holds truth values"),
        ({"epoch": pa.array([1, 2, 3], pa.timestamp("s"))}, "the column epoch cannot be used: a date"),
        ({"epoch": [[1], [2], [3]]}, "the column epoch cannot be used: nested"),
        ({"model_id": [b"a", b"b", b"c"]}, "the column model_id cannot be used: binary"),
        ({"model_id": [1.5, 2.0, 3.0]}, "found 1.5 in row 0; expected a text or a whole number"),
        ({"weights": [1.0, 2.0, 3.0]}, "the column weights is double; expected lists of floats"),
        ({"weights": [[1, 2, 3]] * 3}, "expected lists of floats"),
        ({"weights": [[1.0] * 3, [1.0] * 3, [1.0] * 2]}, "do not all have 3 values.* found 2 in row 2"),
        ({"weights": [[1.0] * 3, [1.0] * 3, [1.0] * 4]}, "do not all have 3 values.* found 10 in 3 rows"),
        ({"weights": [[1.0] * 3, None, [1.0] * 3]}, "do not all have 3 values.* found none in row 1"),
        ({"weights": pa.array([[1.0] * 2] * 3, pa.list_(pa.float32(), 2))}, "have 2 values, the schema has 3"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(tmp_path: Path, columns: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        opened(tmp_path, columns)


@pytest.mark.parametrize(
    ("name", "refused"), [("x", ""), ("epoch", "epoch cannot be used"), ("weights", "occurs twice")]
)
def test_a_name_that_occurs_twice_is_never_a_choice_of_one(tmp_path: Path, name: str, refused: str) -> None:
    arrays = (
        [weights_of(2), weights_of(2)] if name == "weights" else [pa.array([1, 2]), pa.array([3, 4]), weights_of(2)]
    )
    table = pa.Table.from_arrays(arrays, [name, name, "weights"][: len(arrays)])
    if refused:
        with pytest.raises(SpecError, match=refused):
            opened(tmp_path, table)
    else:
        assert opened(tmp_path, table).left_out == {"x": "occurs twice"}


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float16()),
        pa.list_(pa.float64()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float32()),
        pa.list_view(pa.float32()),
    ],
)
def test_weights_of_every_kind_of_list_and_float_become_float32(tmp_path: Path, kind: pa.DataType) -> None:
    zoo = opened(tmp_path, {"weights": weights_of(4, kind)})
    assert torch.equal(zoo.weights(), torch.arange(12.0).reshape(4, 3))


def test_missing_weights_and_those_beyond_float32_count_as_not_finite(tmp_path: Path) -> None:
    values = [[1.0, None, 2.0], [1.0, math.nan, 2.0], [1e300, 0.0, 0.0], [1.0, 2.0, 3.0]]
    zoo = opened(tmp_path, {"weights": pa.array(values)})
    assert zoo.metadata["status"].to_pylist() == ["diverged"] * 3 + ["ok"]
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [3]), weights_of(4, pa.list_(pa.float32(), 3))
    )
    assert opened(tmp_path, {"weights": tensor}).weights().tolist()[1] == [3.0, 4.0, 5.0]


# --- several files, and files without rows ------------------------------------------------------------


def test_files_without_rows_are_refused_alone_and_skipped_beside_others(tmp_path: Path) -> None:
    full = {"x": pa.array([1, 2]), "split": pa.array(["train", "test"])}
    with pytest.raises(SpecError, match="its 1 Parquet files have no rows"):
        opened(tmp_path, pa.table({**full, "weights": weights_of(2)}).slice(0, 0))
    table = pa.table({**full, "weights": weights_of(2)})
    assert opened(tmp_path, table.slice(0, 0), full).metadata["split"].to_pylist() == ["train", "test"]
    with pq.ParquetWriter(tmp_path / "0.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(0, 0)):
            writer.write_table(part)
    assert len(open_zoo(tmp_path / "0.parquet", schema=TWO)) == 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([1], pa.int8()), pa.array([BIG]), [1, BIG]),
        (pa.array([1]), pa.array([0.5]), [1.0, 0.5]),
        (pa.array([0.1], pa.float32()), pa.array([0.1]), [float(np.float32(0.1)), 0.1]),
        (pa.array(["a"]), pa.array(["a"]).dictionary_encode(), ["a", "a"]),
        (pa.nulls(1), pa.array([True]), [None, True]),
        (pa.array([1]), pa.array([2**64 - 1], pa.uint64()), [1, 2**64 - 1]),
        (pa.array([BIG]), pa.array([0.5]), "found 9007199254740993 in row 0; expected what fits into double"),
        (pa.array([-1]), pa.array([2**64 - 1], pa.uint64()), "found -1 in row 0; expected what fits into uint64"),
        (pa.array([1]), pa.array(["a"]), r"1\.parquet: the column 'x' holds string values, and int64 values in .*0\."),
        (pa.array([1]), pa.array([True]), "the column 'x' holds bool values"),
        (pa.array([1]), None, r"1\.parquet: has no column 'x', which .*0\.parquet has"),
    ],
)
def test_columns_of_several_files_in_any_order_become_one_without_loss(
    tmp_path: Path, first: pa.Array, second: pa.Array | None, expected: list[Any] | str
) -> None:
    tables = {"y": pa.array(["k"]), "x": first}, {"weights": weights_of(1), "x": second, "y": pa.array(["l"])}
    tables = tables[0], {name: column for name, column in tables[1].items() if column is not None}
    if isinstance(expected, str):
        with pytest.raises(SpecError, match=expected):
            opened(tmp_path, *tables)
    else:
        metadata = opened(tmp_path, *tables).metadata
        assert (metadata["x"].to_pylist(), metadata["y"].to_pylist()) == (expected, ["k", "l"])


# --- which files --------------------------------------------------------------------------------------


def test_hidden_files_are_skipped_as_datasets_does(tmp_path: Path, server: HubServer) -> None:
    from datasets.data_files import DataFilesList

    table = pa.table({"weights": weights_of(1)})
    names = ["a.parquet", "_b.parquet", "_c/d.parquet", "e.parquet/f.parquet", ".g.parquet", ".cache/h.parquet"]
    names += ["__pycache__/i.parquet", "__j.parquet", "k/.l/m.parquet", "n.txt"]
    (tmp_path / "p").mkdir()
    for name in names:
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    theirs = DataFilesList.from_patterns(["**/*.parquet"], base_path=str(tmp_path / "p"))
    expected = {Path(file).relative_to(tmp_path / "p").as_posix() for file in theirs if Path(file).is_file()}
    assert expected == {"a.parquet", "_b.parquet", "_c/d.parquet", "e.parquet/f.parquet", "__j.parquet"}
    assert len(open_zoo(tmp_path / "p", schema=TWO)) == len(expected)
    assert len(open_zoo(tmp_path / "p" / ".cache", schema=TWO)) == 1  # asked for by its name

    blob = Blob((tmp_path / "p" / "a.parquet").read_bytes(), True)
    server.repos["stranger/w"] = Repo(private=False)
    server.repos["stranger/w"].add("main", {"data/a.parquet": blob, ".cache/a.parquet": blob})
    assert len(open_zoo("stranger/w", hub=server.url, schema=TWO)) == 1


WAITING = """
import sys
from zootools import open_zoo
from zootools.errors import ZooError
for source, schema in (sys.argv[1:3], sys.argv[3:5], sys.argv[5:7], sys.argv[7:9]):
    try:
        open_zoo(source, schema=schema)
    except ZooError as error:
        print(error)
"""


@pytest.mark.slow
def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path: Path, schema_file: Path) -> None:
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "x.parquet")
    os.mkfifo(tmp_path / "schema")
    pq.write_table(rows(np.ones((2, 100), np.float32)), tmp_path / "good.parquet")
    pairs = [(tmp_path / "p", schema_file), (tmp_path / "p" / "x.parquet", schema_file)]
    pairs += [(tmp_path / "good.parquet", tmp_path / "schema"), (Path("/dev/zero"), schema_file)]
    words = [sys.executable, "-c", WAITING, *(str(path) for pair in pairs for path in pair)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert [line.split(": cannot be read")[0] for line in run.stdout.splitlines()] == [
        str(tmp_path / "p" / "x.parquet"),
        str(tmp_path / "p" / "x.parquet"),
        str(tmp_path / "schema"),
        "/dev/zero",
    ]
    assert run.stderr == ""


def test_links_to_files_are_read_and_broken_ones_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The Hub's cache consists of links to files."""
    (tmp_path / "p").mkdir()
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"weights": weights_of(1)}), tmp_path / "other" / "blob.parquet")
    (tmp_path / "p" / "x.parquet").symlink_to("../other/blob.parquet")
    (tmp_path / "p" / "folder").symlink_to("../other")
    assert len(open_zoo(tmp_path / "p", schema=TWO)) == 1
    assert "folder: is a link to a folder, which is not followed" in caplog.text
    for target, reason in (("nothing", "No such file"), ("y.parquet", "is a link")):
        (tmp_path / "p" / "y.parquet").symlink_to(target)
        with pytest.raises(DamagedZooError, match=rf"y\.parquet: cannot be read \(.*{reason}"):
            open_zoo(tmp_path / "p", schema=TWO)
        (tmp_path / "p" / "y.parquet").unlink()
    with pytest.raises(ZooNotFoundError, match="there is no such"):
        open_zoo(tmp_path / "p" / "z.parquet", schema=TWO)


def test_info_says_what_was_left_out(tmp_path: Path, schema_file: Path) -> None:
    table = rows(np.ones((2, 100), np.float32), when=[DAY, DAY], x=[1, 2])
    pq.write_table(table, tmp_path / "w.parquet")
    pq.write_table(table.drop_columns("weights"), tmp_path / "more.parquet")
    words = ["info", str(tmp_path), "--schema", str(schema_file)]
    shown = CliRunner().invoke(main, words)
    assert "left out: when: a date, time or duration (date32[day])" in shown.stdout
    assert "left out: 'when'" in shown.stderr
    assert "not read, because they have no column weights: more.parquet" in shown.stderr
    value = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert value["left_out"] == {"when": "a date, time or duration (date32[day])"}


def test_an_activation_or_dropout_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    ids = {"model_id": ["a", "b", "c"]}
    zoo = opened(tmp_path, {**ids, "activation": ["tanh", None, "tanhh"], "dropout": ["much", "0", "0"]})
    for model, text in (("a", "dropout: found 'much'"), ("b", "activation: found None"), ("c", "did you mean 'tanh'")):
        with pytest.raises(SpecError, match=text):
            zoo.module(model, 0)


# --- memory -------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from zootools import open_zoo
from zootools.architectures import build_schema
from zootools.errors import ZooError
from zootools.spec import Mlp
from zootools.storage.manifest import Counts
TWO = build_schema(Mlp(name="mlp", hidden=(1,), bias=False), (1, 1, 1), 2)
open_zoo(sys.argv[1], schema=TWO)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for path in sys.argv[2:]:
    try:
        zoo = open_zoo(path, schema=TWO)
        print("accepted", len(zoo), zoo.left_out)
    except ZooError as error:
        print("refused", error)
"""


@pytest.mark.slow
def test_small_files_that_unpack_to_gigabytes_are_refused_within_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"weights": weights_of(2)}), tmp_path / "good.parquet")
    count = 28_000
    weights = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(3 * count, np.float32)), 3)
    zeros = pa.array(np.zeros(count, np.int32))
    delta = {"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY"}}
    bombs: list[tuple[str, pa.Table, dict[str, Any]]] = [
        ("long", pa.table({"s": pa.DictionaryArray.from_arrays(zeros, ["x" * (1 << 20)]), "weights": weights}), {}),
        ("many", pa.table({"s": pa.DictionaryArray.from_arrays(zeros, ["x" * 10_000]), "weights": weights}), {}),
        ("prefixes", pa.table({"s": pa.array(["x" * 9_900] * count), "weights": weights}), delta),
    ]
    for name, table, options in bombs:
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd", **options)
        assert (tmp_path / f"{name}.parquet").stat().st_size < 100_000
    paths = [str(tmp_path / f"{name}.parquet") for name in ("good", "long", "many", "prefixes")]
    words = [sys.executable, "-c", LIMITED, *paths]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300)
    long, many, prefixes = run.stdout.splitlines()
    assert long == f"accepted {count} {{'s': 'a text of 1048576 bytes; a property has 10000 at most'}}", run.stderr
    for line in (many, prefixes):
        assert line.startswith("refused"), run.stdout
        assert "is the most that files of" in line


def test_weights_that_only_repeat_themselves_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(600_000, np.float32)), 3)
    assert len(opened(tmp_path, {"weights": same}, compression="zstd")) == 200_000
    monkeypatch.setattr(foreign_memory, "SMALL_FILE", 1 << 20)
    monkeypatch.setattr(foreign_memory, "MAX_REPEATS", 10)
    with pytest.raises(DamagedZooError, match="is the most that files of"):
        opened(tmp_path, {"weights": same}, compression="zstd")


# --- any file -----------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=16)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
DECIMALS = st.decimals(-999, 999, places=2)
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any], type | None]] = [
    (pa.bool_(), st.booleans(), bool),
    (pa.int16(), st.integers(-(1 << 15), (1 << 15) - 1), int),
    (pa.int64(), INT64, int),
    (pa.uint64(), st.integers(0, (1 << 64) - 1), int),
    (pa.float16(), FINITE, float),
    (pa.float32(), FINITE, float),
    (pa.float64(), st.floats(allow_nan=False), float),
    (pa.decimal128(5, 2), DECIMALS, float),
    (pa.string(), TEXT, str),
    (pa.large_string(), TEXT, str),
    (pa.string_view(), TEXT, str),
    (pa.dictionary(pa.int32(), pa.string()), TEXT, str),
    (pa.null(), st.none(), None),
    (pa.binary(), st.binary(max_size=3), None),
    (pa.date32(), st.dates(), None),
    (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=2), list),
    (pa.list_(pa.string()), st.lists(TEXT, max_size=2), None),
    (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": INT64}), None),
]
"""Arrow's type, values of it, and as what they are read; None for what is left out."""
NAMES = st.sampled_from(["x", "y", "x.y", "list", "epoch", "model_id", "split", "row", "weights.list", "\u2028\x1b[1m"])


@st.composite
def populations(draw: st.DrawFn) -> tuple[pa.Table, list[tuple[str, type | None]]]:
    """A table with weights, and name and reading of its other columns."""
    count = draw(st.integers(0, 12))
    columns: list[tuple[str, pa.Array, type | None]] = []
    for name in draw(st.lists(NAMES, max_size=5)):
        kind, values, read_as = draw(st.sampled_from(KINDS))
        nulls = draw(st.booleans())
        drawn = draw(st.lists(st.none() | values if nulls else values, min_size=count, max_size=count))
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        columns.append((name, pa.array(drawn, plain).cast(kind) if plain != kind else pa.array(drawn, kind), read_as))
    place = draw(st.integers(0, len(columns)))
    columns.insert(place, ("weights", weights_of(count), None))
    table = pa.Table.from_arrays([array for _, array, _ in columns], [name for name, *_ in columns])
    return table, [(name, read_as) for name, _, read_as in columns if name != "weights"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(populations(), st.sampled_from([{}, {"row_group_size": 3}, {"data_page_version": "2.0"}]))
def test_any_table_is_read_as_pyarrow_reads_it_or_refused(
    population: tuple[pa.Table, list[tuple[str, type | None]]], options: dict[str, Any]
) -> None:
    table, columns = population
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.parquet")
        pq.write_table(table, path, **options)
        used = any(name in ("epoch", "model_id", "split") for name, _ in columns)
        try:
            zoo = open_zoo(path, schema=TWO, include_diverged=True)
        except ZooError:
            if len(table) and not used:
                raise
            return
    assert zoo.weights().tolist() == table["weights"].to_pylist()
    for name, read_as in columns:
        if name in ("epoch", "model_id", "split", "row"):
            continue
        alone = [other for other, _ in columns].count(name) == 1
        if not alone or read_as is None:
            assert name in zoo.left_out
            continue
        there = table[name].to_pylist()
        expected = [None if value is None else read_as(value) for value in there]
        assert zoo.metadata[name].to_pylist() == expected, table[name].type
