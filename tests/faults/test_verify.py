"""Zoos that were changed together with their hashes: `verify` compares every file with what it is derived from.

The author of a zoo can write zoo.json with hashes that fit any files. So hashes prove nothing against the author; the
contents must follow from each other.
"""

import base64
import io
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from crash import lane
from golden import DATA
from hostile import copy_zoo, replace_file, rewrite_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zootools import open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError
from zootools.hub.locate import locate
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.storage.tables import split_files
from zootools.verify import faults, place_faults

ZOO = DATA / "golden_mlp"
DATA_TABLE = "data/train-00000-of-00001.parquet"
METADATA = "metadata/train-00000-of-00001.parquet"
OTHER_METADATA = "metadata/validation-00000-of-00001.parquet"
SHARD = "checkpoints/stack-00000/epoch-0001.safetensors"

Change = Callable[[Path], None]


def named(zoo: Path) -> dict[str, str]:
    """Return what `verify` says of each file."""
    return {fault.name: fault.what for fault in faults(zoo)}


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def change_table(name: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> Change:
    """Return the replacement of a table by a changed one, with its hash."""
    return lambda zoo: replace_file(zoo, name, parquet(change(pq.read_table(zoo / name)), **options))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def zero_weights(table: pa.Table) -> pa.Table:
    return with_column(table, "weights", np.zeros((len(table), table.schema.field("weights").type.list_size)).tolist())


def swap_rows(table: pa.Table) -> pa.Table:
    return table.take(pa.array([1, 0, *range(2, len(table))]))


def negative_zeros(table: pa.Table) -> pa.Table:
    """Change the sign of zeros, which compare equal."""
    values = np.array(table["weight_decay"].to_pylist())
    assert (values == 0).any()
    return with_column(table, "weight_decay", np.where(values == 0, -values, values))


def swap_between_splits(zoo: Path) -> None:
    one, two = (pq.read_table(zoo / name) for name in (METADATA, OTHER_METADATA))
    replace_file(zoo, METADATA, parquet(pa.concat_tables([two.slice(0, 1), one.slice(1)])))
    replace_file(zoo, OTHER_METADATA, parquet(pa.concat_tables([one.slice(0, 1), two.slice(1)])))


def lie_in_statistics(zoo: Path) -> None:
    """Change the footer to say that no row has the last epoch: ``load_dataset(filters=...)`` would skip such rows."""
    data = (zoo / DATA_TABLE).read_bytes()
    # Of the thrift fields with 4 bytes those of the largest value, of which there are an old and a new one.
    lie = re.sub(rb"([\x18\x28]\x04)\x03\0\0\0", lambda match: match[1] + b"\2\0\0\0", data)
    assert lie != data
    replace_file(zoo, DATA_TABLE, lie)


def note_other_types(zoo: Path) -> None:
    """Give the Arrow schema in a footer another type than the columns have; pyarrow believes it."""
    one = pq.read_metadata(zoo / DATA_TABLE).metadata[b"ARROW:schema"]
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(one)))
    other = schema.set(schema.get_field_index("status"), pa.field("status", pa.large_string()))
    two = base64.b64encode(other.serialize().to_pybytes())
    data = (zoo / DATA_TABLE).read_bytes()
    assert len(one) == len(two)
    assert one in data
    replace_file(zoo, DATA_TABLE, data.replace(one, two))


def unlist(name: str) -> Change:
    def change(zoo: Path) -> None:
        (zoo / name).unlink()
        rewrite_manifest(zoo, lambda manifest: manifest["files"].pop(name))

    return change


def set_field(*path: str | int, value: Any) -> Change:
    """Return the change of one value in zoo.json."""

    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return lambda zoo: rewrite_manifest(zoo, change)


# --- shards --------------------------------------------------------------------------------------------


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and values of a shard."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def change_header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Return a change of a shard's header, the values being the same."""

    def apply(zoo: Path) -> None:
        header, body = parts((zoo / SHARD).read_bytes())
        change(header)
        replace_file(zoo, SHARD, joined(header, body))

    return apply


def put_before(text: bytes) -> Change:
    """Return the insertion of an entry at the beginning of a shard's header."""

    def apply(zoo: Path) -> None:
        data = (zoo / SHARD).read_bytes()
        length = int.from_bytes(data[:8], "little")
        replace_file(zoo, SHARD, joined(text + data[9 : 8 + length], data[8 + length :]))

    return apply


def change_body(change: Callable[[bytes], bytes]) -> Change:
    def apply(zoo: Path) -> None:
        header, body = parts((zoo / SHARD).read_bytes())
        replace_file(zoo, SHARD, joined(header, change(body)))

    return apply


def change_info(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Return a change of what a shard says of its rows."""

    def apply(header: dict[str, Any]) -> None:
        info = json.loads(header["__metadata__"]["zootools"])
        change(info)
        header["__metadata__"]["zootools"] = json.dumps(info, sort_keys=True, separators=(",", ":"))

    return change_header(apply)


def offsets(*span: int) -> Change:
    return change_header(lambda header: header["fc1.bias"].update(data_offsets=list(span)))


LAYOUT: list[tuple[str, Change, str]] = [
    ("overlapping", offsets(128, 256), "its tensors lie at"),
    ("negative offsets", offsets(-128, 0), "its tensors lie at"),
    ("offsets of 2^64", offsets(2**64, 2**64 + 128), "its tensors lie at"),
    ("no bytes", offsets(0, 0), "its tensors lie at"),
    ("another type", change_header(lambda h: h["fc1.bias"].update(dtype="I32")), "expected F32"),
    (
        "another shape",
        change_header(lambda h: h["fc1.weight"].update(shape=[8, 16, 4])),
        "expected F32 [models, 4, 16]",
    ),
    ("a tensor more", put_before(b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'), "expected the tensors"),
    ("a tensor twice", put_before(b'{"fc1.bias":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},'), "duplicate key"),
    ("no JSON before the info", put_before(b"?"), "Expecting value"),
    ("bytes behind the end", change_body(lambda body: body + b"tail"), "expected one behind the other up to the end"),
    ("a byte less", change_body(lambda body: body[:-1]), "expected one behind the other up to the end"),
    ("a row more", change_body(lambda body: body + body[:352]), "expected one behind the other up to the end"),
    ("NaN", change_body(lambda body: b"\x00\x00\xc0\x7f" + body[4:]), "not finite"),
    ("infinity", change_body(lambda body: body[:-4] + b"\x00\x00\x80\x7f"), "not finite"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in LAYOUT], ids=[case[0] for case in LAYOUT])
def test_tensors_that_no_builder_writes_are_named_and_never_loaded(tmp_path: Path, change: Change, words: str) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    change(zoo)
    found = named(zoo)
    assert list(found) == [SHARD]
    assert words in found[SHARD]
    with pytest.raises(DamagedZooError, match=r"epoch-0001\.safetensors"):
        open_zoo(zoo, include_diverged=True).weights()
    if "finite" not in words:
        with pytest.raises(DamagedZooError, match=r"epoch-0001\.safetensors"):
            open_zoo(zoo, include_diverged=True, verify=False).weights()


INFO: list[tuple[str, Change]] = [
    ("another epoch", change_info(lambda info: info.update(epoch=2))),
    ("an infinite epoch", change_info(lambda info: info.update(epoch=float("inf")))),
    ("an unknown model", change_info(lambda info: info["model_ids"].__setitem__(0, "0" * 16))),
    ("models of numbers", change_info(lambda info: info.update(model_ids=[1] * 8))),
    ("a model less", change_info(lambda info: info["model_ids"].pop())),
    ("text for a loss", change_info(lambda info: info["properties"].update(test_loss=["high"] * 8))),
    ("a loss of 400 digits", change_info(lambda info: info["properties"].update(test_loss=[10**400] * 8))),
    ("an accuracy of 2", change_info(lambda info: info["properties"].update(test_accuracy=[2.0] * 8))),
    ("F scores of three classes", change_info(lambda info: info["properties"].update(test_f1=[[0.5] * 3] * 8))),
    ("another gap", change_info(lambda info: info["properties"].update(generalization_gap=[0.5] * 8))),
    ("a learning rate", change_info(lambda info: info["properties"].update(lr=[0.5] * 8))),
    ("a score less", change_info(lambda info: info["properties"].pop("test_f1"))),
    ("a lone surrogate", change_info(lambda info: info["properties"].update({"\ud800": [0.5] * 8}))),
    ("properties of a list", change_info(lambda info: info.update(properties=[]))),
    ("no canonical JSON", change_header(lambda h: h["__metadata__"].update(zootools='{"epoch": 1}'))),
    ("no metadata", change_header(lambda h: h.pop("__metadata__"))),
    ("metadata of a list", change_header(lambda h: h.update(__metadata__=[1]))),
    ("deep metadata", change_header(lambda h: h["__metadata__"].update(zootools="[" * 100_000))),
]  # fmt: skip


@pytest.mark.parametrize("change", [case[1] for case in INFO], ids=[case[0] for case in INFO])
def test_what_a_shard_cannot_say_of_its_rows_is_named(tmp_path: Path, change: Change) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    change(zoo)
    assert list(named(zoo)) == [SHARD]


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The path of a shard, and an opened zoo that holds its rows only, and believes it."""
    zoo = copy_zoo(ZOO, tmp_path_factory.mktemp("one") / "zoo")
    rows = (pc.field("stack") == 0) & (pc.field("epoch") == 1)
    return zoo / SHARD, open_zoo(zoo, include_diverged=True, verify=False, where=rows)


@settings(max_examples=lane(300, 100_000), deadline=None, derandomize=True)
@given(data=st.data())
def test_a_shard_that_is_read_is_one_to_every_parser(one_shard: tuple[Path, Any], data: Any) -> None:
    """Most of a header is not parsed when weights are read. Nothing may pass that a strict parser would refuse."""
    from safetensors.numpy import load

    path, opened = one_shard
    good = (ZOO / SHARD).read_bytes()
    length = int.from_bytes(good[:8], "little")
    places = st.one_of(st.integers(0, length), st.integers(0, 40), st.integers(length - 400, length))
    header = bytearray(good[8 : 8 + length])
    pieces = [b'"', b"\\", b'\\"', b"}", b'"},', b" ", b"\n", b"{", b"0", b"\xc3\xa9", header[-200:], header[:40]]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(places)
        end = start + data.draw(st.sampled_from([0, 0, 1, 2, 8]))
        header[start:end] = data.draw(st.sampled_from([b"", *pieces]))
    bad = joined(bytes(header), good[8 + length :])
    path.write_bytes(bad)
    try:
        weights = opened.weights()
    except DamagedZooError:
        return
    assert weights.isfinite().all()
    assert {name: tensor.tobytes() for name, tensor in load(bad).items()} == {
        name: tensor.tobytes() for name, tensor in load(good).items()
    }
    entries = json.loads(bytes(header), object_pairs_hook=list)
    assert [name for name, _ in entries] == ["__metadata__", "fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]


# --- tables --------------------------------------------------------------------------------------------


def of_data(change: Callable[[pa.Table], pa.Table], **options: Any) -> tuple[Change, str]:
    return change_table(DATA_TABLE, change, **options), DATA_TABLE


def of_metadata(change: Callable[[pa.Table], pa.Table]) -> tuple[Change, str]:
    return change_table(METADATA, change), METADATA


def in_place(name: str, data: bytes) -> tuple[Change, str]:
    return lambda zoo: replace_file(zoo, name, data), name


TABLES: list[tuple[str, tuple[Change, str], str]] = [
    ("zeroed weights", of_data(zero_weights), "the column weights is not what"),
    ("other column", of_data(lambda t: t.rename_columns([*t.column_names[:-1], "w"])), "its columns are not those"),
    ("no weights", of_data(lambda t: t.drop_columns(["weights"])), "its columns are not those"),
    ("a column more", of_data(lambda t: t.append_column("x", t["epoch"])), "its columns are not those"),
    ("another order of columns", of_data(lambda t: t.select(t.column_names[::-1])), "its columns are not those"),
    ("a row less", of_data(lambda t: t.slice(1)), "13 rows"),
    ("no rows", of_data(lambda t: t.slice(0, 0)), "0 rows"),
    ("swapped rows", of_data(swap_rows), "the column model_id is not what"),
    ("swapped rows of metadata", of_metadata(swap_rows), "not ordered by stack, epoch and row"),
    ("rows of another split", (swap_between_splits, METADATA), "rows of another split"),
    ("negative zeros", of_data(negative_zeros), "the column weight_decay is not what"),
    ("negative zeros of metadata", of_metadata(negative_zeros), "the column weight_decay is not what"),
    ("other row groups", of_data(lambda t: t, row_group_size=5), "3 row groups"),
    ("notes of others", of_data(lambda t: t.replace_schema_metadata({"huggingface": "{}"})), "footer has metadata"),
    ("other types in the notes", (note_other_types, DATA_TABLE), "its columns are not those"),
    ("statistics that lie", (lie_in_statistics, DATA_TABLE), "the statistics of the column epoch"),
    ("a long string", of_data(lambda t: with_column(t, "status", ["x" * 1000] * len(t))), "longer than"),
    ("a bomb", of_data(lambda t: with_column(t, "status", ["x" * (4 << 20)] * len(t))), "unpacks to"),
    ("no Parquet", in_place(DATA_TABLE, b"no table at all"), "is not a Parquet file"),
    ("an empty file", in_place(DATA_TABLE, b""), "is not a Parquet file"),
    ("a footer alone", in_place(DATA_TABLE, b"PAR1" + bytes(8) + b"\1\0\0\0PAR1"), "cannot be read"),
    ("a table less", (unlist(DATA_TABLE), DATA_TABLE), "is missing: the split train has 14 checkpoints"),
    ("metadata less", (unlist(METADATA), METADATA), "is missing: the split train has 14 checkpoints"),
    ("a table more", in_place("data/train-00001-of-00002.parquet", b"x"), "is not a file of a zoo"),
    ("a table elsewhere", in_place("more/x.parquet", b"x"), "is not a file of a zoo"),
]


@pytest.mark.parametrize(("case", "words"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_a_table_that_is_not_what_the_shards_make_is_named(
    tmp_path: Path, case: tuple[Change, str], words: str
) -> None:
    change, name = case
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    change(zoo)
    found = named(zoo)
    assert words in found.pop(name)
    assert set(found) <= {OTHER_METADATA}
    with pytest.raises(DamagedZooError, match=Path(name).name.replace(".", r"\.")):
        publish(zoo, "group/bad", hub=tmp_path / "hub")
    assert not (tmp_path / "hub" / "group").exists()


@pytest.mark.parametrize("size", [1, 88, 10_853, 3_000_000, 10_000_000])
@pytest.mark.parametrize("count", [0, 1, 12, 13, 5000])
def test_the_rows_of_a_split_decide_its_tables(size: int, count: int) -> None:
    """Every row is in exactly one table with weights, in order."""
    from zootools.architectures import Layer, Schema

    schema = Schema("x", (size, 1, 1), (Layer("fc1", "linear", size, 1, bias=False, activation=False),))
    files = split_files(schema, "test", count)
    assert bool(files) == bool(count)
    data = [rows for name, rows in files.items() if name.startswith("data/")]
    assert [row for rows in data for row in rows] == list(range(count))
    assert all(4 * size * len(rows) <= 500 << 20 for rows in data)


# --- zoo.json, the card, and other files --------------------------------------------------------------

FIELDS: list[tuple[str, Change]] = [
    ("name", set_field("name", value="other")),
    ("schema: layer fc1", set_field("schema", "layers", 0, "activation", value=False)),
    ("schema: layer fc1", set_field("schema", "layers", 0, "dropout", value=False)),
    ("schema: layer fc2", set_field("schema", "layers", 1, "activation", value=True)),
    ("schema: layer fc3", set_field("schema", "layers", 0, "name", value="fc3")),
    ("schema: found", set_field("schema", "name", value="mlq")),
    ("schema: found", set_field("schema", "input_shape", value=[4, 2, 2])),
    ("test_accuracy", set_field("test_accuracy", "3", value=[0.9] * 5)),
    ("test_accuracy", set_field("test_accuracy", "3", 2, value=0.2752)),
    ("test_accuracy", set_field("test_accuracy", value={})),
    ("test_accuracy", set_field("test_accuracy", "7", value=[0.5] * 5)),
    ("stacks.0.epoch", set_field("stacks", 0, "epoch", value=4)),
    ("stacks.0.resumed", set_field("stacks", 0, "resumed", value=[{"epoch": 9, "fingerprint": 0}])),
    ("fingerprints", lambda zoo: rewrite_manifest(zoo, lambda m: m["fingerprints"].append({}))),
    ("fingerprints", lambda zoo: rewrite_manifest(zoo, lambda m: m["fingerprints"].append(m["fingerprints"][0]))),
    ("files: README.md", lambda zoo: replace_file(zoo, "README.md", b"---\n")),
    ("readme.md", lambda zoo: replace_file(zoo, "readme.md", b"# another card\n")),
    ("'README.MD' and 'README.md'", lambda zoo: replace_file(zoo, "README.MD/x.md", b"")),
    ("Spec.html", lambda zoo: (replace_file(zoo, "spec.html", b""), replace_file(zoo, "Spec.html", b""))),
]  # fmt: skip


@pytest.mark.parametrize(("field", "change"), FIELDS)
def test_a_field_that_follows_from_the_rest_is_computed_again(tmp_path: Path, field: str, change: Change) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # a case-insensitive file system would make some of these one file
        change(zoo)
    found = [fault for fault in map(str, faults(zoo)) if field in fault]
    assert found
    assert found[0].startswith("zoo.json: ")


def test_a_switched_off_activation_is_never_run(tmp_path: Path) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    set_field("schema", "layers", 0, "activation", value=False)(zoo)
    with pytest.raises(DamagedZooError, match="layer fc1"):
        open_zoo(zoo)


def test_files_that_other_readers_would_take_for_a_part_of_the_zoo_are_named(tmp_path: Path) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    strangers = [
        "readme.md",
        ".huggingface.yaml",
        "data/.train-9.parquet",
        "data/train-9.parquet",
        "dataset_infos.json",
    ]
    for name in [*strangers, ".gitattributes", ".cache/huggingface/x.lock", ".git/config", ".x/data.parquet"]:
        (zoo / name).parent.mkdir(parents=True, exist_ok=True)
        (zoo / name).write_text("configs: []")
    assert sorted(named(zoo)) == sorted(strangers)


def test_a_card_names_the_repository_that_it_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOTOOLS_HUB", str(tmp_path / "hub"))
    publish(ZOO, "group/mlp")
    assert list(place_faults(locate("group/mlp"))) == []
    pull("group/mlp", tmp_path / "mine")
    said = CliRunner().invoke(main, ["verify", str(tmp_path / "mine")]).output
    assert "no faults" in said
    assert "published as group/mlp" in said
    card = locate("group/mlp").folder / "README.md"
    card.write_text(card.read_text().replace("group/mlp", "other/name"))
    assert [fault.name for fault in place_faults(locate("group/mlp"))] == ["README.md"]
    with pytest.raises(DamagedZooError, match=r"is not the card of group/mlp"):
        pull("group/mlp", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    said = CliRunner().invoke(main, ["verify", str(card.parent)]).output
    assert "published as other/name" in said


def test_a_description_that_names_another_zoo_is_no_fault(tmp_path: Path) -> None:
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    spec = (zoo / "spec.yaml").read_text() + 'description: as open_zoo("some/other") is\n'
    replace_file(zoo, "spec.yaml", spec.encode())
    assert named(zoo) == {}


@pytest.mark.parametrize(
    "change",
    [unlist(DATA_TABLE), unlist(METADATA), set_field("test_accuracy", value={}), change_table(METADATA, swap_rows)],
)
def test_pull_copies_nothing_of_what_readers_refuse(tmp_path: Path, change: Change) -> None:
    publish(ZOO, "group/mlp", hub=tmp_path / "hub")
    version = (tmp_path / "hub" / "group" / "mlp").resolve()
    change(version)
    with pytest.raises(DamagedZooError):
        pull("group/mlp", tmp_path / "copy", hub=tmp_path / "hub")
    assert not (tmp_path / "copy").exists()


# --- any of it -----------------------------------------------------------------------------------------


def read(zoo: Path) -> dict[str, Any]:
    """Return all that `open_zoo` and `load_dataset` return of a zoo, floats to the last bit."""
    opened = open_zoo(zoo, include_diverged=True)
    tables = {}
    for name in sorted(path.relative_to(zoo).as_posix() for path in zoo.glob("*/*.parquet")):
        table = pq.read_table(zoo / name)
        tables[name] = [
            (column, str(table[column].type), repr(table[column].to_pylist())) for column in table.column_names
        ]
    return {
        "schema": opened.schema,
        "spec": opened.spec,
        "counts": opened.counts,
        "stopped": {model: stop.epoch for model, stop in opened.stopped.items()},
        "metadata": repr(opened.metadata.to_pydict()),
        "weights": opened.weights().numpy().tobytes(),
        "tables": tables,
    }


def other_value(data: Any, value: Any) -> Any:
    """Draw a value of the same kind, perhaps hardly different."""
    if isinstance(value, list):
        where = data.draw(st.integers(0, len(value) - 1))
        return [other_value(data, item) if at == where else item for at, item in enumerate(value)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return data.draw(st.sampled_from([value + 1, value - 1, -value, 0, 2**31 - 1]))
    if isinstance(value, float):
        return data.draw(st.sampled_from([float(np.float32(value * 1.001)), -value, 0.0, 0.5, 1e30, value + 2e-4]))
    return data.draw(st.sampled_from([value[::-1], value[:-1], value + "x", "", "ok", "train"]))


def mutate_cell(zoo: Path, data: Any) -> str:
    name = data.draw(st.sampled_from([DATA_TABLE, METADATA, OTHER_METADATA, "data/test-00000-of-00001.parquet"]))
    table = pq.read_table(zoo / name)
    column = data.draw(st.sampled_from(table.column_names))
    values = table[column].to_pylist()
    row = data.draw(st.integers(0, len(values) - 1))
    values[row] = other_value(data, values[row])
    replace_file(zoo, name, parquet(with_column(table, column, values)))
    return name


def mutate_column(zoo: Path, data: Any) -> str:
    name = data.draw(st.sampled_from([DATA_TABLE, METADATA]))
    table = pq.read_table(zoo / name)
    column = data.draw(st.sampled_from([c for c in table.column_names if not pa.types.is_nested(table[c].type)]))
    at, values = table.column_names.index(column), table[column]
    other = {
        pa.string(): pa.large_string(),
        pa.int64(): pa.float64(),
        pa.int32(): pa.int64(),
        pa.float64(): pa.float32(),
    }
    match data.draw(st.sampled_from(["cast", "drop", "rename", "twice", "last"])):
        case "cast":
            table = table.set_column(at, column, values.cast(other[values.type], safe=False))
        case "drop":
            table = table.remove_column(at)
        case "rename":
            table = table.rename_columns([c + "_" if c == column else c for c in table.column_names])
        case "twice":
            table = table.append_column(column, values)
        case _:
            table = table.remove_column(at).append_column(column, values)
    replace_file(zoo, name, parquet(table))
    return name


def mutate_rows(zoo: Path, data: Any) -> str:
    name = data.draw(st.sampled_from([DATA_TABLE, METADATA]))
    table = pq.read_table(zoo / name)
    rows = data.draw(
        st.one_of(st.permutations(range(len(table))), st.lists(st.integers(0, len(table) - 1), max_size=len(table) + 1))
    )
    replace_file(zoo, name, parquet(table.take(pa.array(rows, pa.int64()))))
    return name


def mutate_set(zoo: Path, data: Any) -> str:
    tables = sorted(path.relative_to(zoo).as_posix() for path in zoo.glob("*/*.parquet"))
    name = data.draw(st.sampled_from(tables))
    if data.draw(st.booleans()):
        unlist(name)(zoo)
        return name
    new = data.draw(st.sampled_from([name.replace("00000-of", "00001-of"), name.replace(".p", ".p.p"), "x/" + name]))
    replace_file(zoo, new, (zoo / name).read_bytes())
    return new


def mutate_tensor(zoo: Path, data: Any) -> str:
    header, body = parts((zoo / SHARD).read_bytes())
    tensor = header[data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
    match data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "values", "size"])):
        case "dtype":
            tensor["dtype"] = data.draw(st.sampled_from(["F16", "BF16", "I32", "F64", "f32", None, 4]))
        case "shape" | "data_offsets" as key:
            where = data.draw(st.integers(0, len(tensor[key]) - 1))
            tensor[key][where] = data.draw(st.sampled_from([0, -1, 1, 2**63, 2**64, 0.5, tensor[key][where] + 4]))
        case "values":
            at = 4 * data.draw(st.integers(0, len(body) // 4 - 1))
            value = struct.pack("<f", data.draw(st.floats(width=32)))
            body = body[:at] + value + body[at + 4 :]
        case _:
            body = data.draw(st.sampled_from([body[:-1], body[:-352], body + b"\0", body + body[:352], b""]))
    replace_file(zoo, SHARD, joined(header, body))
    return SHARD


def mutate_info(zoo: Path, data: Any) -> str:
    def change(info: dict[str, Any]) -> None:
        row = data.draw(st.integers(0, 7))
        name = data.draw(st.sampled_from(["epoch", "model_ids", *info["properties"]]))
        if name == "epoch":
            info["epoch"] = other_value(data, info["epoch"])
            return
        values = info["model_ids"] if name == "model_ids" else info["properties"][name]
        values[row] = other_value(data, values[row])

    change_info(change)(zoo)
    return SHARD


def mutate_manifest(zoo: Path, data: Any) -> str:
    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        while True:
            keys = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
            keys = [key for key in keys if key != "sha256" or inner is not manifest]
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(inner[key], dict | list) and inner[key]):
                break
            inner = inner[key]
        if data.draw(st.integers(0, 4)):
            inner[key] = 1 if isinstance(inner[key], dict | list) else other_value(data, inner[key])
        else:
            del inner[key]

    rewrite_manifest(zoo, change)
    return "zoo.json"


MUTATIONS = [mutate_cell, mutate_column, mutate_rows, mutate_set, mutate_tensor, mutate_info, mutate_manifest]


@pytest.mark.parametrize("mutate", MUTATIONS)
@settings(
    max_examples=lane(12, 1500),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_verify_calls_intact_reads_as_before(
    tmp_path: Path, mutate: Callable[[Path, Any], str], data: Any
) -> None:
    """Every hash is right. Then a fault names what was changed, or nothing that anybody reads has changed."""
    zoo = copy_zoo(ZOO, tmp_path / "zoo")
    name = mutate(zoo, data)
    found = named(zoo)
    if not found:
        assert read(zoo) == read(ZOO)
    elif name != "zoo.json":  # a value of a shard that is possible contradicts the tables
        tables = {key for key in found if key.endswith(".parquet")}
        assert name in found or (name == SHARD and (tables or "zoo.json" in found))
    shutil.rmtree(zoo)
