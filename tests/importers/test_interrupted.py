"""Imports that are killed, interrupted or damaged, and imported zoos that are changed afterwards."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from populations import IMAGES, SCHEMA, Checkpoint, write_schema

from zootools import import_zoo, open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.storage.manifest import Manifest
from zootools.verify import faults, repair

Import = Callable[..., Manifest]
SEED = int(os.environ.get("ZOOTOOLS_FAULT_SEED", time.time_ns() % 10**6))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A Parquet file that is imported in several blocks, and takes a second or so."""
    draws, rows = np.random.default_rng(1), 60_000
    flat = draws.standard_normal((rows, SCHEMA.size)).astype(np.float32)
    weights = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), SCHEMA.size)
    ids = pa.array([f"m{row // 4}" for row in range(rows)])
    columns = {"model_id": ids, "epoch": pa.array([row % 4 for row in range(rows)]), "weights": weights}
    pq.write_table(pa.table(columns), tmp_path / "table.parquet", row_group_size=7000)
    return tmp_path / "table.parquet"


@pytest.mark.slow
def test_an_import_that_is_killed_at_random_moments_resumes_to_the_same_bytes(table: Path, tmp_path: Path) -> None:
    print(f"ZOOTOOLS_FAULT_SEED={SEED}")
    draws, schema, out = random.Random(SEED), write_schema(tmp_path / "schema.json"), tmp_path / "zoo"
    whole = import_zoo("parquet", table, tmp_path / "whole", model_schema=SCHEMA, quiet=True, name="zoo")
    words = ["import", "parquet", str(table), "-o", str(out), "--schema", str(schema), "--name", "zoo", "--json"]
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "zootools", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begun = time.monotonic()
        while process.poll() is None and not (out / ".work" / "import").exists() and time.monotonic() - begun < 120:
            time.sleep(0.02)
        time.sleep(draws.random() * 2)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if not (out / "zoo.json").exists():
            with pytest.raises(ZooNotFoundError, match="holds an import that is not finished"):
                open_zoo(out)
    print(f"{kills} of 6 imports were killed")
    manifest = import_zoo("parquet", table, out, model_schema=SCHEMA, quiet=True, name="zoo")
    assert manifest.files == whole.files
    assert list(faults(out)) == []
    assert not (out / ".work").exists()


def test_an_interrupted_import_keeps_its_blocks_and_resumes(table: Path, tmp_path: Path) -> None:
    """The second call does not read the weights again that the first one has stored: they are no longer there."""
    from zootools.importers import importing

    out = tmp_path / "zoo"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "zootools", "import", "parquet", str(table), "-o", str(out), "--json"),
            *("--schema", str(write_schema(tmp_path / "schema.json"))),
        ]
    )
    while process.poll() is None and not list((out / ".work" / "import").glob("block-*.arrow")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait() == 0:
        pytest.skip("the import was faster than the signal")
    assert process.returncode == 130
    kept = {path.name: path.stat().st_mtime_ns for path in (out / ".work" / "import").glob("block-*")}
    assert kept
    assert importing.import_zoo("parquet", table, out, model_schema=tmp_path / "schema.json", quiet=True)
    assert list(faults(out)) == []


def test_a_population_that_changed_is_imported_anew(import_files: Import, files: Path, tmp_path: Path) -> None:
    """Blocks of other files are of no use, and are not mixed with new ones."""
    before = import_files()
    (tmp_path / "zoo").rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "zoo")
    (files / "seed0" / "epoch0.safetensors").write_bytes((files / "seed1" / "epoch0.safetensors").read_bytes())
    with pytest.raises(SpecError, match="holds another zoo"):
        import_files()
    shutil.rmtree(tmp_path / "zoo")
    after = import_files()
    assert after.imported is not None
    assert before.imported is not None
    assert after.imported.source.sha256 != before.imported.source.sha256


def test_a_damaged_table_is_derived_again_and_a_damaged_shard_is_not(import_files: Import, tmp_path: Path) -> None:
    manifest, zoo = import_files(), tmp_path / "zoo"
    before = {name: (zoo / name).read_bytes() for name in [*manifest.files, "zoo.json", "README.md"]}
    for name in ("metadata/train-00000-of-00001.parquet", "README.md"):
        (zoo / name).write_bytes(b"x" + before[name][1:])
    assert {fault.name for fault in repair(zoo)} == {"metadata/train-00000-of-00001.parquet", "README.md"}
    assert {name: (zoo / name).read_bytes() for name in before} == before
    shard = "checkpoints/stack-00000/epoch-0001.safetensors"
    (zoo / shard).write_bytes(before[shard][:-1] + bytes([before[shard][-1] ^ 1]))
    with pytest.raises(DamagedZooError, match="no build can make a zoo again that was imported"):
        repair(zoo)
    assert (zoo / "zoo.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["imported"]["histories"].append([1, 2]), "is that of no model"),
        (lambda value: value["imported"]["histories"][0].pop(), "counts.checkpoints"),
        (lambda value: value["imported"]["columns"].pop(0), "source_model is missing"),
        (lambda value: value["imported"]["columns"].pop(1), "found the columns"),
        (lambda value: value.pop("imported"), "spec.yaml is missing"),
        (lambda value: value["stacks"][0].update(epoch=2), "stacks.0.epoch"),
        (lambda value: value["stacks"][0]["models"].reverse(), "model_id|not those of the shards"),
        (lambda value: value["imported"].update(description="other"), "card"),
    ],
)
def test_a_changed_record_is_found_although_its_hash_fits(
    import_files: Import, tmp_path: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    import re

    from zootools.hashing import pretty_json
    from zootools.storage.hashed_json import add_hash

    import_files()
    path = tmp_path / "zoo" / "zoo.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(pretty_json(add_hash(value)))
    found = "\n".join(map(str, faults(tmp_path / "zoo")))
    assert re.search(message, found), found


def test_the_command_line_tells_what_it_did(
    files: Path, scores: Path, tmp_path: Path, checkpoints: list[Checkpoint]
) -> None:
    schema = write_schema(tmp_path / "schema.json")
    words = [
        *("import", "state-dicts", str(files), "-o", str(tmp_path / "zoo"), "--schema", str(schema)),
        *("--path-pattern", "seed{seed:int}/epoch{epoch:int}.*", "--properties", str(scores)),
    ]
    refused = CliRunner().invoke(main, [*words, "--split", "nfn"])
    assert refused.exit_code == 2
    assert not (tmp_path / "zoo").exists()
    done = CliRunner().invoke(main, [*words, "--set", "activation=tanh", "--json"])
    value = json.loads(done.stdout)
    assert (done.exit_code, value["checkpoints"], value["expected"]) == (0, 24, 6)
    assert value["check"]["not_checked"]
    info = json.loads(CliRunner().invoke(main, ["info", str(tmp_path / "zoo"), "--json"]).stdout)
    assert info["imported"]["imported_from"] == "state-dicts"
    assert info["imported"]["source_files"] == 25
    assert list(info["test_accuracy"]) == ["0", "1", "2", "3"]
    unknown = CliRunner().invoke(main, ["import", "state-dict", str(files), "-o", str(tmp_path / "other")])
    assert unknown.exit_code == 2
    assert "did you mean 'state-dicts'" in unknown.stderr


def test_an_imported_zoo_is_published_pulled_and_loaded(import_files: Import, scores: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    from zootools.hub.publish import publish
    from zootools.hub.pull import pull

    manifest = import_files(properties=scores, images=IMAGES)
    publish(tmp_path / "zoo", "org/others", hub=tmp_path / "hub")
    pull("org/others", tmp_path / "copy", hub=tmp_path / "hub")
    assert list(faults(tmp_path / "copy", repository="org/others")) == []
    loaded = load_dataset(str(tmp_path / "copy"), "metadata", cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {
        name: count for name, count in manifest.splits.by_name().items() if count
    }
    with pytest.raises(SpecError, match="has no specification"):
        _ = open_zoo(tmp_path / "copy").spec
