"""Time and memory of imports of made-up populations: a large Parquet file, and many small pickles.

``python benchmarks/importing.py parquet --rows 270000`` writes the file, imports it in a process of its own, and prints
the seconds, those of all processors together, and the peak of that process' memory; ``pickles --rows 50000`` does the
same for files of torch.save.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from zootools.architectures import Schema, build_schema
from zootools.spec import Cnn

EPOCHS = 9
SCHEMAS = {
    "parquet": build_schema(Cnn(name="cnn_unterthiner"), (1, 28, 28), 10),
    "pickles": build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10),
}
"""4970 and 2464 parameters."""


def write_table(path: Path, schema: Schema, rows: int) -> None:
    """Write a Parquet file of ``rows`` checkpoints, nine of each model."""
    draws, step = np.random.default_rng(0), 5000
    kind = pa.list_(pa.float32(), schema.size)
    columns = pa.schema(
        [("model_id", pa.string()), ("epoch", pa.int32()), ("test_accuracy", pa.float64()), ("weights", kind)]
    )
    with pq.ParquetWriter(path, columns, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, step):
            count = min(step, rows - start)
            flat = draws.standard_normal(count * schema.size, np.float32)
            numbers = np.arange(start, start + count)
            writer.write_table(
                pa.table(
                    {
                        "model_id": [f"net-{number}" for number in (numbers // EPOCHS).tolist()],
                        "epoch": pa.array(numbers % EPOCHS, pa.int32()),
                        "test_accuracy": draws.random(count),
                        "weights": pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.size),
                    }
                )
            )


def write_pickles(folder: Path, schema: Schema, rows: int) -> None:
    """Write ``rows`` files of torch.save, nine of each model."""
    flat = torch.randn(schema.size)
    for number in range(rows):
        path = folder / f"net{number // EPOCHS}" / f"epoch{number % EPOCHS}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {p.name: (flat[p.offset : p.end] + number).view(p.shape).clone() for p in schema.parameters}
        torch.save(state, path)


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SCHEMAS)
    parser.add_argument("--rows", type=int, default=5000)
    chosen = parser.parse_args()
    schema = SCHEMAS[chosen.kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.json").write_text(json.dumps(schema.to_json()))
        words = ["--schema", str(folder / "schema.json"), "-o", str(folder / "zoo")]
        if chosen.kind == "parquet":
            write_table(folder / "table.parquet", schema, chosen.rows)
            words = ["parquet", str(folder / "table.parquet"), *words]
        else:
            write_pickles(folder / "files", schema, chosen.rows)
            words = ["state-dicts", str(folder / "files"), *words, "--path-pattern", "net{net:int}/epoch{epoch:int}.pt"]
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "zootools", "import", *words], check=True)
        seconds = time.monotonic() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6
        size = chosen.rows * schema.size * 4 / 1e9
        what = f"{chosen.kind}: {chosen.rows:,} x {schema.size:,} ({size:.1f} GB)"
        print(f"{what} in {seconds:.0f} s, {busy:.0f} s of processors, {peak:.2f} GB of memory")
        shutil.rmtree(folder / "zoo")


if __name__ == "__main__":
    main()
