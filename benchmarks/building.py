"""Print the processor seconds of each phase of `zootools build`, and of the whole command.

    python benchmarks/building.py mnist_seed --models 64 --epochs 2

The zoo is built with `--profile` in a temporary folder. The phases of the workers (their start, training, evaluation,
storage) are summed over the workers. The whole is what the system has counted for the command itself, without the
workers, plus the phases of the workers: its difference to the sum of the phases is the end of the process.

The last lines say how long the whole zoo of the specification would take on all cores of this machine: training grows
with models and epochs, evaluation with models and checkpoints. The rate of a float32 product of two 2048 x 2048
matrices, measured before and after the build on one core, says how fast the machine is, and whether it was idle.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from zootools.bundled import find_spec
from zootools.spec import load_spec
from zootools.spec.model_configs import expand

IN_WORKERS = ("workers", "training", "evaluation", "storage")


@click.command()
@click.argument("spec", default="mnist_seed")
@click.option("--models", default=64, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--set", "overrides", multiple=True, help="As for zootools build, such as images.train=10000.")
@click.option("--workers", default=1, show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the image files; else $ZOOTOOLS_DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(
    spec: str,
    models: int,
    epochs: int,
    overrides: tuple[str, ...],
    workers: int,
    backend: str,
    data: Path | None,
    as_json: bool,
) -> None:
    """Build a zoo, and print the processor seconds of each phase as a table."""
    command = [sys.executable, "-m", "zootools", "build", spec, "--profile", "--json", "--quiet"]
    command += ["--models", str(models), "--epochs", str(epochs), "--workers", str(workers), "--backend", backend]
    command += [word for override in overrides for word in ("--set", override)]
    command += ["--data", str(data)] * (data is not None)
    peaks = [product_rate()]
    with TemporaryDirectory() as folder:
        done = subprocess.run([*command, "-o", f"{folder}/zoo"], stdout=subprocess.PIPE, check=True, text=True)
    result, used = json.loads(done.stdout), resource.getrusage(resource.RUSAGE_CHILDREN)
    peaks.append(product_rate())
    phases: dict[str, float] = result["processor_seconds"]
    whole = used.ru_utime + used.ru_stime + sum(phases.get(name, 0.0) for name in IN_WORKERS)
    hours = projected_hours(spec, list(overrides), models, epochs, phases)
    if as_json:
        values = {"phases": phases, "processor_seconds": whole, "seconds": result["seconds"], "hours": hours}
        click.echo(json.dumps(values | {"product_flops": peaks}))
        return
    total = sum(phases.values())
    click.echo(f"{models} models, {epochs} epochs, {workers} worker(s): {result['seconds']:.0f} s\n")
    click.echo("| phase | processor seconds | share |\n|---|---|---|")
    for name, seconds in [*phases.items(), ("all phases", total), ("the whole command", whole)]:
        click.echo(f"| {name} | {seconds:.1f} | {seconds / total:.1%} |")
    parts = ", ".join(f"{name} {value:.2f}" for name, value in hours.items())
    rates = " and ".join(f"{peak / 1e9:.0f}" for peak in peaks)
    click.echo(f"\nThe whole zoo on {os.cpu_count()} cores: {sum(hours.values()):.2f} h ({parts})")
    click.echo(f"Product of 2048 x 2048 matrices before and after: {rates} GFLOP/s of a core")


def projected_hours(
    spec: str, overrides: list[str], models: int, epochs: int, phases: dict[str, float]
) -> dict[str, float]:
    """Return the hours of training and evaluation of the whole zoo on all cores, from those of a slice."""
    full = load_spec(find_spec(spec), overrides)
    kept = full.training.kept_epochs
    share = {
        "training": epochs / full.training.epochs,
        "evaluation": sum(epoch <= epochs for epoch in kept) / len(kept),
    }
    scale = len(expand(full)) / models / (os.cpu_count() or 1) / 3600
    return {name: phases.get(name, 0.0) / part * scale for name, part in share.items()}


def product_rate() -> float:
    """Return the best float32 FLOP/s of a 2048-cubed matrix product on one core."""
    torch.set_num_threads(1)
    a, b = torch.randn(2, 2048, 2048)
    best, begun = 0.0, time.process_time()
    while time.process_time() - begun < 1:
        start = time.process_time()
        a @ b
        best = max(best, 2 * 2048**3 / (time.process_time() - start))
    return best


if __name__ == "__main__":
    main()
