"""Files that an attacker would put into a zoo: repositories with code in them, malformed shards and tables."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile import SHARD, TABLE, copy_zoo, replace_file

CANARY = "canary-was-executed"


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.canary}",))


def hostile_repositories(zoo: Path, folder: Path) -> list[Path]:
    """Make 30 hostile copies of a zoo below ``folder``; each tries to have ``folder``/CANARY created."""
    canary = folder / CANARY
    bomb = pickle.dumps(Bomb(canary))
    numpy_bomb = io.BytesIO()
    np.save(numpy_bomb, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", bomb)
    script = f"import os; os.system('touch {canary}')\n".encode()
    config = json.dumps({"_target_": "os.system", "auto_map": {"AutoModel": "run.Model"}, "command": str(canary)})
    shard = (zoo / SHARD).read_bytes()
    extension = _parquet_with_extension_type()
    made: list[Path] = []

    def repository() -> Path:
        made.append(copy_zoo(zoo, folder / f"zoo-{len(made):02d}"))
        return made[-1]

    for data in (bomb, numpy_bomb.getvalue(), archive.getvalue(), script, config.encode(), extension):
        for name in (SHARD, TABLE, "spec.yaml"):
            replace_file(repository(), name, data)
    for name in ("weights.pt", "model.bin", "data/weights.npy", "run.py", "conftest.py"):
        replace_file(repository(), name, bomb if not name.endswith(".py") else script)
    replace_file(repository(), "config.json", config.encode())
    replace_file(repository(), SHARD, shard + archive.getvalue())  # a polyglot: a zip file reads its end
    replace_file(repository(), SHARD, archive.getvalue() + shard)
    spec = (zoo / "spec.yaml").read_text()
    for line in ("!!python/object/apply:os.system [x]", "_target_: os.system", "auto_map: {a: b}"):
        replace_file(repository(), "spec.yaml", f"{spec}{line}\n".encode())
    hidden = repository()
    (hidden / "unlisted.pkl").write_bytes(bomb)
    (hidden / "sitecustomize.py").write_bytes(script)
    return made


def _parquet_with_extension_type() -> bytes:
    field = pa.field("model_id", pa.string(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type"})
    sink = io.BytesIO()
    pq.write_table(pa.table([pa.array(["x"])], pa.schema([field])), sink)
    return sink.getvalue()


def safetensors(header: dict[str, Any] | str, data: bytes = b"", length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _f32(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def hostile_shards(good: bytes) -> dict[str, bytes]:
    """Shards of 12 models of an mlp without biases: fc1 [5, 16], fc2 [4, 5]."""
    n = 12
    one, two = n * 80 * 4, n * 20 * 4
    length = int.from_bytes(good[:8], "little")
    header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
    fc1, fc2 = _f32([n, 5, 16], 0, one), _f32([n, 4, 5], one, one + two)
    meta = {"__metadata__": header["__metadata__"]}
    nan, inf = bytearray(body), bytearray(body)
    nan[0:4], inf[4:8] = struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))

    def made(change: dict[str, Any], data: bytes = body) -> bytes:
        tensors = {"fc1.weight": fc1, "fc2.weight": fc2} | change
        return safetensors(meta | {k: v for k, v in tensors.items() if v is not None}, data)

    return {
        "empty": b"",
        "seven bytes": b"1234567",
        "header longer than the file": safetensors("{}", length=1 << 20),
        "header of 2^63 bytes": safetensors("{}", length=2**63),
        "header of 89 MB": safetensors("{" + " " * (89 << 20) + "}"),
        "1.5 million empty tensors": safetensors({f"t{i}": _f32([0], 0, 0) for i in range(1_500_000)}),
        "not UTF-8": safetensors("{}").replace(b"{}", b"\xff\xfe"),
        "not JSON": safetensors("{]"),
        "a list": safetensors("[]"),
        "nested 100,000 deep": safetensors("[" * 100_000),
        "no tensors": safetensors(meta),
        "a tensor missing": made({"fc2.weight": None}, body[:one]),
        "a tensor more": made({"fc3.weight": _f32([n, 1], one + two, one + two + n * 4)}, body + bytes(n * 4)),
        "another name": made({"fc2.weight": None, "../../fc2": fc2}),
        "overlap": made({"fc2.weight": _f32([n, 4, 5], 0, two)}),
        "gap": made({"fc2.weight": _f32([n, 4, 5], one + 8, one + two + 8)}, body + bytes(8)),
        "tail": made({}, body + b"tail"),
        "beyond the end": made({"fc2.weight": _f32([n, 4, 5], one, one + two + 4)}),
        "negative offset": made({"fc1.weight": _f32([n, 5, 16], -1, one)}),
        "end before begin": made({"fc1.weight": _f32([n, 5, 16], one, 0)}),
        "overflow of the shape": made({"fc1.weight": _f32([2**40, 2**40, 16], 0, one)}),
        "negative shape": made({"fc1.weight": _f32([-n, 5, 16], 0, one)}),
        "huge shape without elements": made({"fc1.weight": _f32([2**60, 0], 0, 0)}, body[one:]),
        "transposed": made({"fc1.weight": _f32([n, 16, 5], 0, one)}),
        "flat": made({"fc1.weight": _f32([n * 80], 0, one)}),
        "other rows in each": made({"fc1.weight": _f32([n - 1, 5, 16], 0, one - 320)}),
        "fewer models": safetensors(
            meta | {"fc1.weight": _f32([1, 5, 16], 0, 320), "fc2.weight": _f32([1, 4, 5], 320, 400)}, bytes(400)
        ),
        "no models": safetensors(meta | {"fc1.weight": _f32([0, 5, 16], 0, 0), "fc2.weight": _f32([0, 4, 5], 0, 0)}),
        "I32 for F32": made({"fc1.weight": _f32([n, 5, 16], 0, one, "I32")}),
        "unknown dtype": made({"fc1.weight": _f32([n, 5, 16], 0, one, "F33")}),
        "F16": made({"fc1.weight": _f32([n, 5, 32], 0, one, "F16")}),
        "dtype a number": made({"fc1.weight": {**fc1, "dtype": 32}}),
        "shape a word": made({"fc1.weight": {**fc1, "shape": "all"}}),
        "offsets of one": made({"fc1.weight": {**fc1, "data_offsets": [0]}}),
        "BF16": made({"fc1.weight": _f32([n, 5, 32], 0, one, "BF16")}),
        "NaN": safetensors(header, bytes(nan)),
        "infinity": safetensors(header, bytes(inf)),
        "no metadata": safetensors({"fc1.weight": fc1, "fc2.weight": fc2}, body),
        "metadata a list": safetensors({"__metadata__": [1], "fc1.weight": fc1, "fc2.weight": fc2}, body),
        "a key twice": safetensors(
            '{"fc1.weight":' + json.dumps(fc1) + ',"fc1.weight":' + json.dumps(fc1) + ',"fc2.weight":'
            + json.dumps(fc2) + "}",
            body,
        ),
    }  # fmt: skip


def hostile_tables(good: bytes) -> dict[str, bytes]:
    """Tables in the place of a split's metadata."""
    table = pq.read_table(io.BytesIO(good))

    def written(table: pa.Table, **options: Any) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        return sink.getvalue()

    def column(name: str, values: list[Any], kind: pa.DataType | None = None) -> bytes:
        index = table.column_names.index(name)
        kind = kind or table.schema.field(name).type
        return written(table.set_column(index, pa.field(name, kind), [pa.array(values, kind)]))

    rows = len(table)
    # The first column's histogram of definition levels gets one entry instead of two; a part of pyarrow that is asked
    # for this column ends the process.
    histogram = re.sub(b"\x19\x06\x19\x26\x00(.)", lambda m: b"\x19\x16\x00\x19\x16" + m[1], good, count=1, flags=re.S)
    assert histogram != good
    long = "x" * (1 << 20)
    many = pa.table({name: table[name].take(pa.array([0] * 3_000_000)) for name in table.column_names})
    deep = pa.array([[0.5] * 5_000_000] + [[0.5] * 4] * (rows - 1), pa.list_(pa.float64()))
    bad_text = written(table).replace(b"train", b"tr\xffin")
    return {
        "no columns": written(pa.table({})),
        "other columns": written(table.rename_columns([f"c{i}" for i in range(table.num_columns)])),
        "a column less": written(table.drop_columns(["test_loss"])),
        "a column more": written(table.append_column("extra", [pa.array([1] * rows)])),
        "other order": written(table.select(table.column_names[::-1])),
        "float32 for float64": column("test_loss", [0.5] * rows, pa.float32()),
        "a struct": column("seed", [{"a": 1}] * rows, pa.struct([("a", pa.int64())])),
        "nested lists": column("test_f1", [[[0.5]]] * rows, pa.list_(pa.list_(pa.float64()))),
        "no rows": written(table.slice(0, 0)),
        "a row less": written(table.slice(1)),
        "a row twice": written(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])),
        "three million rows": written(many),
        "a dictionary bomb": column("activation", [long] * rows),
        "a bomb of one list": column("test_f1", deep.to_pylist()),
        "a NaN": column("test_loss", [float("nan")] + [0.5] * (rows - 1)),
        "an infinity": column("train_loss", [float("inf")] + [0.5] * (rows - 1)),
        "an accuracy of 2": column("test_accuracy", [2.0] + [0.5] * (rows - 1)),
        "an accuracy below 0": column("train_accuracy", [-0.1] + [0.5] * (rows - 1)),
        "an F score of 7": column("test_f1", [[7.0] * 4] + [[0.5] * 4] * (rows - 1)),
        "three F scores": column("test_f1", [[0.5] * 3] * rows),
        "a missing value": column("test_loss", [None] + [0.5] * (rows - 1)),
        "an unknown model": column("model_id", ["0" * 16] * rows),
        "another epoch": column("epoch", [1] * rows),
        "a stack that is not there": column("stack", [7] * rows),
        "a row that is not there": column("row", [999] * rows),
        "a negative row": column("row", [-1] * rows),
        "another split": column("split", ["test"] * rows),
        "another status": column("status", ["diverged"] * rows),
        "another seed": column("seed", [9] * rows),
        "bad UTF-8": bad_text,
        "delta encoding": written(table, use_dictionary=False, column_encoding={"split": "DELTA_BYTE_ARRAY"}),
        "Arrow IPC": _ipc(table),
        "CSV": b"model_id,seed\na,1\n",
        "a histogram against the schema": histogram,
        "truncated": good[:-100],
        "a footer of 4 GB": good[:-8] + b"\xff\xff\xff\xff" + good[-4:],
    }


def _ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
