"""What the Ray engine costs beside the local one: the same zoo by both, on the same cores of this machine.

    python benchmarks/engines.py --data /path/to/torchvision/data --seconds 300

A slice of MNIST-SEED (64 models in four stacks) is trained by `zootools build`, first for one epoch to find out for how
many epochs the local engine takes the given seconds, then by both engines, as a user would start them. Time is that of
the clock, so the machine should be quiet. Printed for each engine: until the first checkpoint is stored (Python, images
and, with Ray, the start of its processes), from there to the last one, and the rest (tables, manifest, end of Ray).
Without MNIST's files below --data, scikit-learn's digits stand in for it, and the table says so.
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
        """From the command to its end."""
        return self.start + self.training + self.rest


def measure(out: Path, engine: str, epochs: int, data: Path, images: list[str]) -> Build:
    """Build the slice in a process of its own and watch its folder."""
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
        raise SystemExit(f"the build by {engine} left with {process.returncode}")
    return Build(first - begun, last - first, time.perf_counter() - last)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a zoo but build.json, the one that may differ."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "build.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Where MNIST lies, in torchvision's layout.")
@click.option("--seconds", default=300, show_default=True, help="How long the local engine is to train.")
def main(data: Path | None, seconds: int) -> None:
    """Print the seconds of both engines, and the overhead."""
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
