"""Measure the import of a Small CNN Zoo with made-up weights, and the export of the zoo: seconds, and the memory.

    python benchmarks/imports.py --rows 270000 --folder /path/with/space

The files have the layout of the published ones: nine steps of every network of 4970 parameters, and a table with all of
their columns. A published zoo has 270,000 rows, 5.4 GB; an import needs three times that on the disk, and the script
once more. Each command runs in a process of its own, whose largest resident memory is printed.
"""

import csv
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from zootools.architectures import build_schema
from zootools.importers.tensorflow_layout import layout_of, write_layout
from zootools.spec import Cnn

STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
CHUNK = 9000
"""Rows that are made at a time."""
SCORES = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")


def write_zoo(folder: Path, rows: int) -> None:
    """Write the three files of a zoo, at random."""
    folder.mkdir()
    schema = build_schema(Cnn(name="cnn_unterthiner"), (1, 32, 32), 10)
    (folder / "layout.csv").write_bytes(write_layout(layout_of(schema)))
    draws = np.random.default_rng(0)
    shape = (rows, schema.size)
    with (folder / "weights.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, rows, CHUNK):
            file.write(draws.standard_normal((min(CHUNK, rows - start), schema.size), np.float32).data)
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="", compresslevel=1) as text:
        writer = csv.writer(text)
        settings = {"activation": "relu", "b_init": "zeros", "dataset": "cifar10", "dnn_architecture": "cnn"}
        settings |= {"epochs": "86", "optimizer": "adam", "random_seed": "42", "w_init": "he_normal"}
        drawn = ("dropout", "init_std", "l2reg", "learning_rate", "train_fraction")
        writer.writerow([f"config.{name}" for name in (*settings, *drawn)] + ["modeldir", "step", *SCORES])
        for model in range(rows // len(STEPS)):
            values = draws.random(len(drawn)).tolist()
            for step in STEPS:
                writer.writerow([*settings.values(), *values, f"/zoo/{model}", step, *draws.random(4).tolist()])


def run(*words: object) -> tuple[float, float]:
    """Run zootools; return seconds and GB of resident memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "zootools", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(code)}")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024 / 1e9


@click.command()
@click.option(
    "--rows", type=click.IntRange(min=9), default=20_000, show_default=True, help="Rows; cut to whole models."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are made; else the temporary folder.")
def main(rows: int, folder: Path | None) -> None:
    """Print a line for each command."""
    rows -= rows % len(STEPS)
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        begun = time.perf_counter()
        write_zoo(place / "made", rows)
        size = sum(path.stat().st_size for path in (place / "made").iterdir())
        print(f"made {rows:,} rows, {size / 1e9:.2f} GB, in {time.perf_counter() - begun:.0f} s", flush=True)
        for name, words in (
            ("import small-cnn-zoo", ("import", "small-cnn-zoo", place / "made", "--out", place / "zoo", "--check", 0)),
            ("export --format numpy", ("export", place / "zoo", "--format", "numpy", "-o", place / "exported")),
        ):
            seconds, memory = run(*words)
            print(f"{name:<22} {seconds:7.1f} s {memory:6.2f} GB", flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
