"""Measure the costs of a very large zoo: a simulated run through the real driver, workers, journal, store and readers.

    python benchmarks/scale.py [--models 100000] [--epochs 4] [--out DIR]

Only the training is simulated, by a backend whose trainer draws random weights and scores. All other steps are those
of `zootools build`: the specification is expanded, stacks are planned, worker processes commit every epoch durably, the
tables are derived, and `open_zoo` and `verify` read the zoo. Each step runs in a separate process. Printed are its
time, its peak memory, and the part of that memory that was used before the step began (mostly by PyTorch). Processor
seconds do not include those of the worker processes.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from zootools import open_zoo
from zootools.architectures import Schema
from zootools.building.builder import build
from zootools.building.planning import plan_stacks, zoo_schema
from zootools.images.datasets import ImageData
from zootools.spec import Training, ZooSpec, parse_spec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.hashed_json import MAX_BYTES
from zootools.training.evaluation import Scores
from zootools.training.stacked import TorchBackend
from zootools.verify import faults

CLASSES = 4


class SyntheticTrainer:
    """Draws random weights and scores; has a state of the size of Adam's, like a real trainer."""

    def __init__(self, schema: Schema, models: Sequence[ModelConfig]) -> None:
        self.group = SimpleNamespace(models=list(models))
        self.count, self.epoch = len(models), 0
        self._random = np.random.default_rng(models[0].seed)
        self.weights = torch.from_numpy(self._random.standard_normal((self.count, schema.size), np.float32))

    def train_epoch(self, epoch: int, tick: Callable[[float], None]) -> None:
        """Move the weights a little."""
        step = self._random.standard_normal(tuple(self.weights.shape), np.float32)
        self.weights = self.weights + 0.01 * torch.from_numpy(step)
        tick(1.0)

    def evaluate(self) -> dict[str, Scores]:
        """Return scores that are all different."""

        def scores() -> Scores:
            loss, accuracy = self._random.random(self.count), self._random.integers(0, 2001, self.count) / 2000
            return Scores(loss, accuracy, self._random.random((self.count, CLASSES)))

        return {"train": scores(), "test": scores()}

    def save(self) -> dict[str, Tensor]:
        """Return a state of the size of Adam's."""
        return {"weights": self.weights, "first_moment": self.weights, "second_moment": self.weights}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Restore the state that `save` returned."""
        self.weights = saved["weights"]


@dataclass(frozen=True)
class SyntheticBackend(TorchBackend):
    """Trains nothing."""

    def fingerprint(self) -> dict[str, object]:
        """Return a fingerprint that marks these weights as synthetic."""
        return {"backend": "synthetic"}

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> list[Any]:
        """Return one trainer for the whole stack."""
        return [SyntheticTrainer(schema, models)]


def specification(models: int, epochs: int) -> ZooSpec:
    """Return a zoo of networks of 100 parameters: TETRIS-SEED with more seeds."""
    values = {
        "name": "scale",
        "images": {"name": "tetris", "train": 100, "test": 100, "noise_train": 0.2, "noise_test": 0.8},
        "architecture": {"name": "mlp", "hidden": [5], "bias": False},
        "grid": {"activation": ["tanh"], "init": ["uniform"], "optimizer": ["adam"], "lr": [1e-3]},
        "seeds": {"range": [1, models]},
        "training": {"epochs": epochs, "batch_size": 4},
    }
    return parse_spec(values, "benchmarks/scale.py")


def measure_expand(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Expand the specification into models, and plan their stacks."""
    models = expand(spec)
    stacks = plan_stacks(models, zoo_schema(spec), len(spec.training.kept_epochs))
    return {"models": len(models), "stacks": len(stacks)}


def measure_build(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Build the zoo; the time after all stacks are trained is reported separately."""
    begun = time.perf_counter()
    manifest = build(spec, out, backend=SyntheticBackend("cpu", "simulated"), quiet=True)
    seconds = time.perf_counter() - begun
    (session,) = json.loads((out / "build.json").read_bytes())["sessions"]
    rows = manifest.counts.checkpoints
    return {
        "rows": rows,
        "until trained, s": session["seconds"],
        "rows/s until trained": round(rows / session["seconds"]),
        "finish, s": round(seconds - session["seconds"], 1),
    }


def measure_open(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Open the zoo, which reads its metadata."""
    return {"rows": len(open_zoo(out))}


def measure_weights(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Open the zoo, and read all weights as one tensor."""
    return {"megabytes": round(open_zoo(out).weights().nbytes / 1e6)}


def measure_verify(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Verify the zoo: hashes, and all derived data."""
    sizes: list[int] = []
    found = list(faults(out, sizes.append))
    assert not found, found[:3]
    return {"megabytes": round(sum(sizes) / 1e6)}


def measure_again(spec: ZooSpec, out: Path) -> dict[str, Any]:
    """Build the zoo again, when it is finished already."""
    return {"rows": build(spec, out, backend=SyntheticBackend("cpu", "simulated"), quiet=True).counts.ok}


PHASES = {name: globals()[f"measure_{name}"] for name in ("expand", "build", "again", "open", "weights", "verify")}


@click.command()
@click.option("--models", default=100_000, show_default=True)
@click.option("--epochs", default=4, show_default=True, help="Epochs; each model has one checkpoint more.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the zoo, which is kept.")
@click.option("--phase", type=click.Choice(list(PHASES)), hidden=True)
def main(models: int, epochs: int, out: Path | None, phase: str | None) -> None:
    """Run every phase in a separate process, and print its costs."""
    if phase is not None:
        assert out is not None
        spec, imported = specification(models, epochs), _peak()
        begun, processor = time.perf_counter(), time.process_time()
        result = PHASES[phase](spec, out)
        seconds, processor = time.perf_counter() - begun, time.process_time() - processor
        costs = {"seconds": round(seconds, 2), "processor seconds": round(processor, 2), "peak, MB": _peak()}
        print(json.dumps({**costs, "of it imports, MB": imported, **result}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch) / "zoo"
        for name in PHASES:
            words = [sys.executable, __file__, "--phase", name, "--models", str(models), "--epochs", str(epochs)]
            environment = {**os.environ, "XDG_CACHE_HOME": scratch, "OMP_NUM_THREADS": "1"}
            output = subprocess.run(
                [*words, "--out", str(folder)], check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            print(
                f"{name:<8} " + ", ".join(f"{key} {value:,}" for key, value in json.loads(output).items()), flush=True
            )
        _print_files(folder)


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _print_files(folder: Path) -> None:
    sizes: dict[str, list[int]] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            sizes.setdefault(path.relative_to(folder).parts[0], []).append(path.stat().st_size)
    for name, found in sorted(sizes.items()):
        print(f"{name:<16} {len(found):>7,} files {sum(found):>16,} bytes")
    manifest = sizes["zoo.json"][0]
    print(f"zoo.json has {manifest / MAX_BYTES:.1%} of the bytes that a manifest may have")
    print(f"largest shard {max(path.stat().st_size for path in folder.glob('checkpoints/*/*')):,} bytes")
    print(f"free on this disk: {shutil.disk_usage(folder).free:,} bytes")


if __name__ == "__main__":
    main()
