"""Measure publishing and loading a zoo by name, over loopback and with the real clients.

    python benchmarks/hub.py --tetris zoos/tetris_seed

For TETRIS-SEED (a finished folder, 76,000 checkpoints of 100 parameters) and for a synthetic zoo of 26,000
checkpoints of 2464 parameters (random walks): seconds, requests, bytes, files and commits of a publication; cold and
warm loads by `open_zoo` and by `datasets.load_dataset`, each in a separate process, timed after its imports; the time
of `weights()` relative to copying the same bytes from mapped files.
The server is the tests' (`tests/servers/hub_server.py`), another process on the same machine.
"""

import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from zootools import open_zoo
from zootools.building.planning import plan_stacks, zoo_schema
from zootools.bundled import find_spec
from zootools.hashing import sha256_file
from zootools.spec import load_spec
from zootools.spec.model_configs import expand
from zootools.storage.build_state import ZooFolder
from zootools.storage.finish import finish_zoo
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import ShardInfo, shard_bytes, shard_name
from zootools.storage.verified_files import FileInfo

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "tests" / "servers" / "hub_server.py"

LOADS = {
    "open_zoo, weights": "zoo = open_zoo(NAME); result = zoo.weights()",
    "open_zoo, metadata": "result = open_zoo(NAME).metadata",
    "load_dataset, checkpoints": "parts = load_dataset(NAME).values()\n"
    "result = [part.with_format('numpy')[:]['weights'] for part in parts]",
    "load_dataset, metadata": "result = load_dataset(NAME, 'metadata')",
}

SCRIPT = """
import sys, time
import torch
from datasets import load_dataset
from zootools import open_zoo
import zootools.hub.remote
NAME = sys.argv[1]
begun = time.perf_counter()
{load}
print(time.perf_counter() - begun)
"""


def synthetic_zoo(out: Path) -> None:
    """Write a zoo like that of mnist_seed (1000 models, 26 checkpoints each), with synthetic weights."""
    spec = load_spec(find_spec("mnist_seed"), ["images.name=digits", "images.train=1000", "images.size=28"])
    schema, models = zoo_schema(spec), expand(spec)
    stacks = plan_stacks(models, schema, len(spec.training.kept_epochs))
    zoo, plan, random = ZooFolder(out), Plan(spec, schema, "0" * 64, stacks), np.random.default_rng(0)
    zoo.write_plan(plan)
    columns = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    for stack, ids in enumerate(stacks):
        record = StackRecord(fingerprint={"made": "benchmarks/hub.py"}, epoch=spec.training.epochs, done=True)
        weights = random.normal(0, 0.1, (len(ids), schema.size)).astype(np.float32)
        for epoch in spec.training.kept_epochs:
            properties: dict[str, list[Any]] = {name: random.random(len(ids)).tolist() for name in columns}
            gaps = zip(properties["train_accuracy"], properties["test_accuracy"], strict=True)
            properties["generalization_gap"] = [train - test for train, test in gaps]
            properties["test_f1"] = random.random((len(ids), schema.classes)).tolist()
            path = out / shard_name(stack, epoch)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shard_bytes(schema, weights, ShardInfo(epoch, ids, properties)))
            record.shards[shard_name(stack, epoch)] = FileInfo(path.stat().st_size, sha256_file(path))
            weights += random.normal(0, 0.01, weights.shape).astype(np.float32)
        zoo.write_record(stack, record)
    finish_zoo(zoo, plan)
    zoo.remove_work()


@contextmanager
def running_server() -> Iterator[str]:
    """Run the tests' server and yield its URL."""
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the environment of a client."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    token = "hf_" + "t0ken" * 6 + "abcd"
    return {**os.environ, **quiet, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": token}


def traffic(url: str) -> dict[str, int]:
    """Return the server's traffic since the last call."""
    with urllib.request.urlopen(f"{url}/log") as answer:
        log = json.loads(answer.read())
    return {
        "requests": len(log),
        "received": sum(entry["received"] for entry in log),
        "sent": sum(entry["sent"] for entry in log),
        "commits": sum("/commit/" in entry["path"] for entry in log),
    }


def publication(zoo: Path, url: str, home: Path) -> dict[str, Any]:
    """Publish a zoo with the command, as a user does."""
    words = [sys.executable, "-m", "zootools", "publish", str(zoo), "bench/zoo", "--json"]
    begun = time.perf_counter()
    done = subprocess.run(words, env=environment(url, home), stdout=subprocess.PIPE, check=True, text=True)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, **json.loads(done.stdout), **traffic(url)}


def load(what: str, url: str, home: Path) -> dict[str, Any]:
    """Run one of `LOADS` in a separate process."""
    words = [sys.executable, "-c", SCRIPT.format(load=LOADS[what]), "bench/zoo"]
    done = subprocess.run(
        words, env=environment(url, home), stdout=subprocess.PIPE, check=True, text=True, cwd=home.parent
    )
    return {"seconds": float(done.stdout.split()[-1]), **traffic(url)}


def mapped_copy(zoo: Path, total: int) -> torch.Tensor:
    """Copy all bytes of the weights from mapped shards into one preallocated tensor, in the order of the files."""
    target = torch.empty(total, dtype=torch.uint8)
    position = 0
    for path in sorted(zoo.glob("checkpoints/*/*.safetensors")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            start = 8 + int.from_bytes(mapped[:8], "little")
            source = np.frombuffer(mapped, np.uint8, offset=start)
            target.numpy()[position : position + len(source)] = source
            position += len(source)
            del source
    assert position == total
    return target


def median_seconds(call: Callable[[], Any], times: int = 5) -> float:
    """Return the median duration of a call; its result is freed before the next call."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def measure(name: str, zoo: Path, scratch: Path) -> dict[str, Any]:
    """Measure everything for one zoo folder."""
    scratch.mkdir(exist_ok=True)
    opened = open_zoo(zoo, include_diverged=True)
    weights = len(opened) * opened.schema.size * 4
    stored = sum(path.stat().st_size for path in zoo.rglob("*") if path.is_file())
    result: dict[str, Any] = {"zoo": name, "checkpoints": len(opened), "parameters": opened.schema.size}
    result |= {"bytes_of_weights": weights, "bytes_stored": stored}
    first = time.perf_counter()
    opened.weights()
    result["weights_first_call_s"] = time.perf_counter() - first
    result["weights_s"] = median_seconds(opened.weights)
    result["mapped_copy_s"] = median_seconds(lambda: mapped_copy(zoo, weights))
    with running_server() as url:
        click.echo(f"{name}: publish", err=True)
        result["publish"] = publication(zoo, url, scratch / "publisher")
        result["publish again"] = publication(zoo, url, scratch / "publisher")
        for number, what in enumerate(LOADS):
            for state in ("cold", "warm"):
                click.echo(f"{name}: {what}, {state}", err=True)
                result[f"{what}, {state}"] = load(what, url, scratch / f"home-{number}")
    return result


def show(result: dict[str, Any]) -> None:
    """Print the measurements of one zoo as Markdown."""
    weights = result["bytes_of_weights"]
    click.echo(
        f"\n{result['zoo']}: {result['checkpoints']:,} checkpoints x {result['parameters']:,} parameters, weights "
        f"{weights / 1e6:.1f} MB, folder {result['bytes_stored'] / 1e6:.1f} MB in {result['publish']['files']} files\n"
    )
    click.echo("| | seconds | requests | MB sent | / weights | commits |\n|---|--:|--:|--:|--:|--:|")
    for key, row in result.items():
        if isinstance(row, dict):
            moved = row["received"] if key.startswith("publish") else row["sent"]
            cells = [f"{row['seconds']:.2f}", row["requests"], f"{moved / 1e6:.2f}", f"{moved / weights:.1%}"]
            click.echo(f"| {key} | {' | '.join(map(str, cells))} | {row['commits']} |")
    ratio = result["weights_s"] / result["mapped_copy_s"]
    click.echo(
        f"\none tensor from mapped shards: weights() {result['weights_s']:.3f} s (first call, which hashes: "
        f"{result['weights_first_call_s']:.3f} s), plain copy {result['mapped_copy_s']:.3f} s, ratio {ratio:.2f}"
    )


@click.command()
@click.option("--tetris", type=click.Path(path_type=Path, exists=True), help="A finished TETRIS-SEED.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(tetris: Path | None, as_json: bool) -> None:
    """Print the costs of publishing and loading."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        synthetic_zoo(scratch / "made")
        zoos = {"TETRIS-SEED": tetris} if tetris else {}
        results = []
        for title, zoo in {**zoos, "synthetic": scratch / "made"}.items():
            results.append(measure(title, zoo, scratch / title))
            if not as_json:
                show(results[-1])
    if as_json:
        click.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
