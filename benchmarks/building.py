"""Print the processor seconds of each phase of `zootools build`, and of the whole command.

    python benchmarks/building.py mnist_seed --models 64 --epochs 2

The zoo is built with `--profile` in a temporary folder. The phases of the workers (their start, training, evaluation,
storage) are summed over the workers. The whole is what the system has counted for the command itself, without the
workers, plus the phases of the workers: its difference to the sum of the phases is the end of the process.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

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
    with TemporaryDirectory() as folder:
        done = subprocess.run([*command, "-o", f"{folder}/zoo"], stdout=subprocess.PIPE, check=True, text=True)
    result, used = json.loads(done.stdout), resource.getrusage(resource.RUSAGE_CHILDREN)
    phases: dict[str, float] = result["processor_seconds"]
    whole = used.ru_utime + used.ru_stime + sum(phases.get(name, 0.0) for name in IN_WORKERS)
    if as_json:
        click.echo(json.dumps({"phases": phases, "processor_seconds": whole, "seconds": result["seconds"]}))
        return
    total = sum(phases.values())
    click.echo(f"{models} models, {epochs} epochs, {workers} worker(s): {result['seconds']:.0f} s\n")
    click.echo("| phase | processor seconds | share |\n|---|---|---|")
    for name, seconds in [*phases.items(), ("all phases", total), ("the whole command", whole)]:
        click.echo(f"| {name} | {seconds:.1f} | {seconds / total:.1%} |")


if __name__ == "__main__":
    main()
