"""Parquet files of others as zoos: the same values as the reading without an import, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from populations import SCHEMA, write_schema

from zootools import import_zoo, open_zoo
from zootools.errors import SpecError
from zootools.verify import faults


def population(rows: int, kind: Any = np.float32) -> pa.Table:
    """Made-up checkpoints of models with three epochs each, in no order, with properties of several kinds."""
    draws = np.random.default_rng(3)
    order = draws.permutation(rows)
    flat = draws.standard_normal((rows, SCHEMA.size)).astype(kind)
    return pa.table(
        {
            "model_id": [f"net {number // 3}" for number in order],
            "epoch": pa.array(order % 3, pa.int16()),
            "activation": pa.array(["tanh"] * rows).dictionary_encode(),
            "lr": pa.array(draws.random(rows), pa.float32()),
            "label": pa.array([None if number % 5 == 0 else number % 7 for number in order.tolist()]),
            "good": pa.array((order % 2 == 0).tolist()),
            "when": pa.array([0] * rows, pa.timestamp("s")),
            "weights": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), SCHEMA.size),
        }
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_an_import_has_the_values_of_the_reading_without_one(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "files").mkdir()
    table = population(300, kind)
    pq.write_table(table.slice(0, 200), tmp_path / "files" / "a.parquet", row_group_size=64)
    pq.write_table(table.slice(200), tmp_path / "files" / "b.parquet")
    manifest = import_zoo("parquet", tmp_path / "files", tmp_path / "zoo", model_schema=SCHEMA, quiet=True)
    assert list(faults(tmp_path / "zoo")) == []
    ours, theirs = open_zoo(tmp_path / "zoo"), open_zoo(tmp_path / "files", schema=SCHEMA)
    keys = [("source_model", "ascending"), ("epoch", "ascending")]
    found = ours.metadata.append_column("at", pa.array(range(len(ours)))).sort_by(keys)
    expected = theirs.metadata.rename_columns({"model_id": "source_model"})
    expected = expected.append_column("at", pa.array(range(len(theirs)))).sort_by(keys)
    for name in ("source_model", "epoch", "activation", "lr", "label", "good"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    assert np.array_equal(ours.weights().numpy()[found["at"]], theirs.weights().numpy()[expected["at"]])
    assert manifest.imported is not None
    assert [row.why[:12] for row in manifest.imported.left_out] == ["a date, time"]
    assert bool(manifest.imported.notes) == (kind != np.float32)


def test_a_schema_is_needed_and_must_fit(tmp_path: Path) -> None:
    pq.write_table(population(10), tmp_path / "table.parquet")
    with pytest.raises(SpecError, match="expected one of --schema FILE"):
        import_zoo("parquet", tmp_path / "table.parquet", tmp_path / "zoo", quiet=True)
    value = {**SCHEMA.to_json(), "layers": SCHEMA.to_json()["layers"][:3]}
    (tmp_path / "short.json").write_text(json.dumps(value))
    with pytest.raises(SpecError, match="have 570 values, the schema has 460 parameters"):
        import_zoo("parquet", tmp_path / "table.parquet", tmp_path / "zoo", model_schema=tmp_path / "short.json")
    assert not (tmp_path / "zoo").exists()


def test_two_rows_of_one_checkpoint_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    table = population(30)
    pq.write_table(pa.concat_tables([table, table.slice(7, 1)]), tmp_path / "table.parquet")
    with pytest.raises(SpecError, match=r"has two checkpoints of epoch \d \(rows 7 and 30 of the population, 1 such"):
        import_zoo("parquet", tmp_path / "table.parquet", tmp_path / "zoo", model_schema=SCHEMA, quiet=True)
    assert not (tmp_path / "zoo").exists()


def test_rows_without_ids_are_models_of_their_own(tmp_path: Path) -> None:
    table = population(30).select(["lr", "weights"])
    pq.write_table(table, tmp_path / "test.parquet")
    manifest = import_zoo("parquet", tmp_path / "test.parquet", tmp_path / "zoo", model_schema=SCHEMA, quiet=True)
    assert (manifest.counts.expected, manifest.splits.test) == (30, 30)
    rows = open_zoo(tmp_path / "zoo").where(pc.field("source_model") == "row-00000007").metadata
    assert rows["lr"].to_pylist() == table["lr"].slice(7, 1).to_pylist()


@pytest.mark.slow
def test_a_population_larger_than_the_memory_is_imported(tmp_path: Path) -> None:
    """500 MB of weights in one row group, by a process that may have 400 MB beyond what its imports take."""
    rows = 500_000_000 // (4 * SCHEMA.size)
    pq.write_table(population(rows).select(["model_id", "epoch", "weights"]), tmp_path / "table.parquet")
    schema = write_schema(tmp_path / "schema.json")
    code = (
        "import resource, sys; from zootools.importers.importing import import_zoo; import zootools.importers.parquet; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "import_zoo('parquet', sys.argv[1], sys.argv[2], model_schema=sys.argv[3], quiet=True); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "table.parquet"), str(tmp_path / "zoo"), str(schema)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    print(f"{int(run.stdout) / 1000:.0f} MB for {rows * SCHEMA.size * 4 / 1e6:.0f} MB of weights")
    assert int(run.stdout) < 400_000
