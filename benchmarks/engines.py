"""Measure the overhead of the Ray engine: the same zoo built by Ray and by the local engine, on the same cores.

    python benchmarks/engines.py --data /path/to/torchvision/data --seconds 300

`zootools build` trains a slice of MNIST-SEED (64 models in four stacks), first for one epoch, to choose the number of
epochs that takes the local engine the given seconds, then with both engines. Times are wall times: run it on an idle
machine. For each engine it prints the time to the first stored checkpoint (Python, images and, with Ray, the start of
its processes), from there to the last one, and the rest (tables, manifest, end of Ray). Without MNIST's files below
--data it uses scikit-learn's digits, and the table says so.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from zootools.paths import data_folder

MODELS = 64


@dataclass(frozen=True)
class Build:
    """Seconds of one build, by its phases."""

    start: float
    training: float
    rest: float

    @property
    def whole(self) -> float:
        """Seconds from the start of the command to its end."""
        return self.start + self.training + self.rest


def measure(out: Path, engine: str, epochs: int, data: Path, images: list[str]) -> Build:
    """Build the slice in a separate process and watch its folder."""
    words = [sys.executable, "-m", "zootools", "build", "mnist_seed", "--out", str(out), "--data", str(data)]
    words += ["--models", str(MODELS), "--epochs", str(epochs), "--engine", engine, "--json", *images]
    stacks = MODELS // 16
    begun = time.perf_counter()
    process = subprocess.Popen([*words, "--workers", str(os.cpu_count())], stdout=subprocess.DEVNULL)
    first = last = begun
    while process.poll() is None:
        now = time.perf_counter()
        if first == begun and any(out.glob("checkpoints/*/epoch-0000.safetensors")):
            first = now
        if last == begun and len(list(out.glob(f"checkpoints/*/epoch-{epochs:04d}.safetensors"))) == stacks:
            last = now
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the build with engine {engine} exited with {process.returncode}")
    return Build(first - begun, last - first, time.perf_counter() - last)


def contents(out: Path) -> dict[str, bytes]:
    """Return every file of a zoo except build.json, which may differ."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "build.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="The data folder with MNIST, in torchvision's layout.")
@click.option("--seconds", default=300, show_default=True, help="Training time of the local engine.")
def main(data: Path | None, seconds: int) -> None:
    """Print the seconds of both engines, and the overhead of Ray."""
    data, images, name = data_folder(data), list[str](), "MNIST"
    if not (data / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        name, images = "digits at 28x28", ["--set", "images.name=digits", "--set", "images.train=1000"]
        images += ["--set", "images.size=28"]
    with tempfile.TemporaryDirectory() as folder:
        trial = measure(Path(folder) / "trial", "local", 1, data, images)
        epochs = math.ceil(1.05 * seconds / trial.training)
        print(f"{name}: {MODELS} models, {epochs} epochs, {os.cpu_count()} cores", flush=True)
        print("engine   start  training   rest    whole, in seconds", flush=True)
        builds = {}
        for engine in ("local", "ray"):
            build = builds[engine] = measure(Path(folder) / engine, engine, epochs, data, images)
            print(
                f"{engine:<7} {build.start:6.1f} {build.training:9.1f} {build.rest:6.1f} {build.whole:8.1f}", flush=True
            )
        local, ray = builds["local"], builds["ray"]
        print(
            f"overhead of Ray: {ray.whole / local.whole - 1:.1%} of the whole, {ray.training / local.training - 1:.1%} "
            f"of the training, {ray.start - local.start:.1f} seconds at the start"
        )
        same = contents(Path(folder) / "local") == contents(Path(folder) / "ray")
        print("equal bytes" if same else "THE BYTES DIFFER")


if __name__ == "__main__":
    main()
