"""Measure imports of made-up populations in processes of their own: seconds, processor seconds, and the largest memory.

    python benchmarks/importing.py parquet --rows 270000
    python benchmarks/importing.py pickles --rows 50000
    python benchmarks/importing.py small-cnn-zoo --rows 270000 --folder /path/with/space

``parquet`` is one file of flat weights, ``pickles`` a file of torch.save for each checkpoint. ``small-cnn-zoo`` has the
layout of the published ones, nine steps of every network and a table with all of their columns, and is exported again.
A published Small CNN Zoo has 270,000 rows of 4970 parameters, 5.4 GB; an import needs three times that on the disk, and
the files themselves once more.
"""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from zootools.architectures import Schema, build_schema
from zootools.importers.tensorflow_layout import layout_of, write_layout
from zootools.spec import Cnn

STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
SCORES = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
SCHEMAS = {
    "parquet": build_schema(Cnn(name="cnn_unterthiner"), (1, 28, 28), 10),
    "pickles": build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10),
    "small-cnn-zoo": build_schema(Cnn(name="cnn_unterthiner"), (1, 32, 32), 10),
}
"""4970, 2464 and 4970 parameters."""
CHUNK = 9000
"""Rows that are made at a time: whole models."""


def chunks(rows: int) -> Iterator[range]:
    """Yield the numbers of the rows, some at a time."""
    for start in range(0, rows, CHUNK):
        yield range(start, min(start + CHUNK, rows))


def write_table(folder: Path, schema: Schema, rows: int) -> list[str]:
    """Write a Parquet file of ``rows`` checkpoints; return the words of the import."""
    draws = np.random.default_rng(0)
    weights = pa.list_(pa.float32(), schema.size)
    columns = [("model_id", pa.string()), ("epoch", pa.int32()), ("test_accuracy", pa.float64()), ("weights", weights)]
    with pq.ParquetWriter(
        folder / "table.parquet", pa.schema(columns), compression="none", use_dictionary=False
    ) as writer:
        for numbers in chunks(rows):
            flat = pa.array(draws.standard_normal(len(numbers) * schema.size, np.float32))
            arrays = {
                "model_id": [f"net-{number // len(STEPS)}" for number in numbers],
                "epoch": pa.array([STEPS[number % len(STEPS)] for number in numbers], pa.int32()),
                "test_accuracy": draws.random(len(numbers)),
                "weights": pa.FixedSizeListArray.from_arrays(flat, schema.size),
            }
            writer.write_table(pa.table(arrays))
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return ["parquet", str(folder / "table.parquet"), "--schema", str(folder / "schema.json")]


def write_pickles(folder: Path, schema: Schema, rows: int) -> list[str]:
    """Write ``rows`` files of torch.save; return the words of the import."""
    flat = torch.randn(schema.size)
    for number in range(rows):
        path = folder / "files" / f"net{number // len(STEPS)}" / f"epoch{STEPS[number % len(STEPS)]}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {p.name: (flat[p.offset : p.end] + number).view(p.shape).clone() for p in schema.parameters}
        torch.save(state, path)
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    words = ["state-dicts", str(folder / "files"), "--schema", str(folder / "schema.json")]
    return [*words, "--path-pattern", "net{net:int}/epoch{epoch:int}.pt"]


def write_small_cnn_zoo(folder: Path, schema: Schema, rows: int) -> list[str]:
    """Write the three files of a zoo, at random; return the words of the import."""
    place = folder / "made"
    place.mkdir()
    (place / "layout.csv").write_bytes(write_layout(layout_of(schema)))
    draws = np.random.default_rng(0)
    with (place / "weights.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, schema.size)}
        np.lib.format.write_array_header_1_0(file, header)
        for numbers in chunks(rows):
            file.write(draws.standard_normal((len(numbers), schema.size), np.float32).data)
    with gzip.open(place / "metrics.csv.gz", "wt", newline="", compresslevel=1) as text:
        writer = csv.writer(text)
        settings = {"activation": "relu", "b_init": "zeros", "dataset": "cifar10", "dnn_architecture": "cnn"}
        settings |= {"epochs": "86", "optimizer": "adam", "random_seed": "42", "w_init": "he_normal"}
        drawn = ("dropout", "init_std", "l2reg", "learning_rate", "train_fraction")
        writer.writerow([f"config.{name}" for name in (*settings, *drawn)] + ["modeldir", "step", *SCORES])
        for model in range(rows // len(STEPS)):
            values = draws.random(len(drawn)).tolist()
            for step in STEPS:
                writer.writerow([*settings.values(), *values, f"/zoo/{model}", step, *draws.random(4).tolist()])
    return ["small-cnn-zoo", str(place), "--check", "0"]


WRITERS = {"parquet": write_table, "pickles": write_pickles, "small-cnn-zoo": write_small_cnn_zoo}


def run(what: str, *words: object) -> None:
    """Run zootools, and print its seconds, those of all processors together, and its resident memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "zootools", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(code)}")
    seconds, busy = time.perf_counter() - begun, usage.ru_utime + usage.ru_stime
    print(f"{what}: {seconds:.0f} s, {busy:.0f} s of processors, {usage.ru_maxrss * 1024 / 1e9:.2f} GB", flush=True)


@click.command()
@click.argument("kind", type=click.Choice(list(WRITERS)))
@click.option("--rows", type=click.IntRange(min=9), default=5000, show_default=True, help="Cut to whole models.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are made; else the temporary folder.")
def main(kind: str, rows: int, folder: Path | None) -> None:
    """Print a line for each command."""
    rows -= rows % len(STEPS)
    schema = SCHEMAS[kind]
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        words = WRITERS[kind](place, schema, rows)
        print(f"{rows:,} x {schema.size:,}, {rows * schema.size * 4 / 1e9:.2f} GB", flush=True)
        run(f"import {kind}", "import", *words, "-o", place / "zoo")
        if kind == "small-cnn-zoo":
            run("export --format numpy", "export", place / "zoo", "--format", "numpy", "-o", place / "exported")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
