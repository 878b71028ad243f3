"""Measure the throughput of `zootools verify`: hashing alone, and with all comparisons.

    python benchmarks/verify.py [--gigabytes 1]

Writes a zoo of random weights of about this size, without training, and verifies it. Prints the gigabytes of all its
files, the throughput of hashing with one thread and with all, then that of the whole verification (shards, tables,
card) with its peak memory. About half of the bytes are in the shards, the other half, compressed, in the tables.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zootools.architectures import build_schema
from zootools.spec import parse_spec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.build_state import ZooFolder
from zootools.storage.finish import finish_zoo
from zootools.storage.manifest import read_manifest
from zootools.storage.records import Plan, StackRecord
from zootools.storage.shards import ShardInfo, shard_bytes, shard_name
from zootools.storage.verified_files import VerifiedFiles
from zootools.verify import faults, file_faults

MODELS = 256
BYTES = 2 * 4 * 2464
"""Bytes of one checkpoint, in shards and tables."""


def main() -> None:
    """Make a zoo, and verify it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_zoo(Path(folder), max(1, round(arguments.gigabytes * 1e9 / BYTES / MODELS)))
        files = read_manifest(Path(folder)).files
        size = sum(info.size for info in files.values())
        print(f"{size / 1e9:.2f} GB in {len(files)} files")
        for threads in (1, os.cpu_count() or 1):
            with measured(f"hashing, {threads} thread(s)", size):
                assert not list(file_faults(VerifiedFiles(Path(folder), files), threads=threads))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with measured(f"everything, {os.cpu_count()} thread(s)", size):
            assert not list(faults(Path(folder)))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"memory: {before / 1e3:.0f} MB before, {after / 1e3:.0f} MB at most (mapped files included)")


@contextmanager
def measured(what: str, size: int) -> Iterator[None]:
    """Print the throughput of a block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {size / wall / 1e9:.2f} GB/s of wall time, {size / cpu / 1e9:.2f} GB/s of processor time and core")


def make_zoo(folder: Path, epochs: int) -> None:
    """Write a zoo of `MODELS` models in one stack, with random weights and scores."""
    spec = parse_spec(
        {
            "name": "random",
            "images": {"name": "mnist", "train": 100, "test": 100},
            "architecture": {"name": "cnn_small"},
            "grid": {"activation": ["tanh"], "init": ["uniform"], "optimizer": ["adam"], "lr": [1e-3]},
            "seeds": {"range": [1, MODELS]},
            "training": {"epochs": epochs, "batch_size": 10},
        },
        "benchmark",
    )
    schema = build_schema(spec.architecture, (1, 28, 28), 10)
    zoo, plan = ZooFolder(folder), Plan(spec, schema, "0" * 64, [[model.model_id for model in expand(spec)]])
    record = StackRecord(fingerprint={}, epoch=epochs, done=True)
    random = np.random.default_rng(0)
    for epoch in spec.training.kept_epochs:
        weights = (0.1 * random.standard_normal((MODELS, schema.size))).astype(np.float32)
        name = shard_name(0, epoch)
        record.shards[name] = zoo.write(name, shard_bytes(schema, weights, scores(plan.models(), epoch)))
    finish_zoo(zoo, plan, [record])


def scores(models: dict[str, ModelConfig], epoch: int) -> ShardInfo:
    """Return scores that are possible, for one epoch of these models."""
    columns = {
        f"{images}_{score}": [0.5] * len(models) for images in ("train", "test") for score in ("loss", "accuracy")
    }
    columns |= {"generalization_gap": [0.0] * len(models), "test_f1": [[0.5] * 10] * len(models)}
    return ShardInfo(epoch, list(models), columns)


if __name__ == "__main__":
    main()
