"""Commands that make a zoo, and those that prepare for it."""

import sys
from pathlib import Path
from typing import Any

import click

from zootools.choices import BACKENDS, DEVICES, MAX_WORKERS
from zootools.cli.shared import (
    ADDRESS,
    DATA,
    ENGINE,
    JSON,
    Word,
    interruptible,
    print_value,
    show_accuracy,
    show_pairs,
)
from zootools.text import say


@click.command()
@click.argument("spec")
@click.option("-o", "--out", metavar="DIR|URL", help="A folder, or s3://BUCKET/PREFIX; default zoos/<name>.")
@click.option("--models", type=click.IntRange(min=1), help="Train only so many models, spread over the grid.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train for so many epochs.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the specification.")
@click.option(
    "--device",
    type=Word(DEVICES),
    default="auto",
    show_default=True,
    help="What to train on; auto is CUDA where there is one.",
)
@click.option(
    "--backend",
    type=Word(BACKENDS),
    default="auto",
    show_default=True,
    help="What computes: compiled SIMD lanes, or PyTorch.",
)
@ENGINE
@ADDRESS
@click.option(
    "--workers", type=click.IntRange(min=1, max=MAX_WORKERS), help="Processes on the CPU; default one per core."
)
@DATA
@click.option("--allow-fingerprint-change", is_flag=True, help="Resume although device or versions have changed.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check all that a build checks before it trains; print models, checkpoints, bytes and time; write nothing.",
)
@JSON
def build(
    spec: str,
    out: str | None,
    models: int | None,
    epochs: int | None,
    overrides: tuple[str, ...],
    device: str,
    backend: str,
    engine: str,
    address: str | None,
    workers: int | None,
    data: Path | None,
    allow_fingerprint_change: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train the zoo of a specification; the same command again resumes.

    SPEC is a YAML file, or the name of a bundled one (see `zootools specs`).

    \b
    Example:
      zootools build tetris_seed
      zootools build mnist_seed --models 16 --epochs 3 --set training.batch_size=10
      zootools build mnist_hyp --engine ray --address auto
    """
    from zootools.building.builder import build as build_zoo
    from zootools.building.builder import preview
    from zootools.bundled import find_spec
    from zootools.spec import load_spec

    changes = [f"models={models}"] * (models is not None) + [f"training.epochs={epochs}"] * (epochs is not None)
    zoo_spec = load_spec(find_spec(spec), [*overrides, *changes])
    out = out or f"zoos/{zoo_spec.name}"
    options: dict[str, Any] = {
        "device": device,
        "backend": backend,
        "engine": engine,
        "address": address,
        "workers": workers,
        "data": data,
        "allow_fingerprint_change": allow_fingerprint_change,
    }
    if dry_run:
        from dataclasses import asdict

        from zootools.building.throughput import seconds_per_model_sample

        plan: dict[str, Any] = {"name": zoo_spec.name, **asdict(preview(zoo_spec, out, **options))}
        rate = seconds_per_model_sample(zoo_spec, data, workers, backend)
        plan["estimated_seconds"] = round(rate * plan["model_samples"], 1)
        print_value(plan, as_json, show_pairs)
        return
    interruptible()
    manifest = build_zoo(zoo_spec, out, **options, quiet=as_json)
    result = {"zoo": str(out), **manifest.counts.model_dump(), "test_accuracy": manifest.test_accuracy}

    def show(result: dict[str, Any]) -> None:
        say(
            f"{out}: {result['expected']} models = {result['ok']} ok + {result['diverged']} diverged + "
            f"{result['failed']} failed + {result['missing']} missing; {result['checkpoints']:,} checkpoints"
        )
        show_accuracy(result["test_accuracy"])

    print_value(result, as_json, show)


@click.command()
@JSON
def specs(as_json: bool) -> None:
    """List the bundled specifications."""
    from zootools.bundled import bundled_specs
    from zootools.spec import load_spec

    found = {name: load_spec(path) for name, path in bundled_specs().items()}
    table = {
        name: {"models": spec.model_count, "architecture": spec.architecture.name, "description": spec.description}
        for name, spec in found.items()
    }

    def show(table: dict[str, Any]) -> None:
        for name, row in table.items():
            say(f"{name:<18} {row['models']:>6} x {row['architecture']:<16} {row['description']}")

    print_value(table, as_json, show)


@click.command()
@click.argument("spec")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the specification.")
@DATA
@JSON
def check(spec: str, overrides: tuple[str, ...], data: Path | None, as_json: bool) -> None:
    """Validate a specification, and say what it makes.

    `zootools build --dry-run` also checks the folder, the images that are at hand, and this machine.
    """
    from zootools.building.planning import check_spec
    from zootools.bundled import find_spec
    from zootools.spec import load_spec
    from zootools.spec.model_configs import count_models

    zoo_spec = load_spec(find_spec(spec), overrides)
    schema = check_spec(zoo_spec, data)
    value = {
        "name": zoo_spec.name,
        "configurations": zoo_spec.configuration_count,
        "models": count_models(zoo_spec),
        "checkpoints_per_model": len(zoo_spec.training.kept_epochs),
        "parameters": schema.size,
        "layers": [layer.name for layer in schema.layers],
    }
    print_value(value, as_json, show_pairs)


@click.command()
@DATA
@JSON
def doctor(data: Path | None, as_json: bool) -> None:
    """Say whether this machine is fit, in lines to paste into an issue."""
    from zootools.doctor import examine

    findings = examine(data)

    def show(findings: dict[str, Any]) -> None:
        show_pairs(findings["machine"])
        for problem in findings["problems"]:
            say(f"PROBLEM: {problem}")
        if not findings["problems"]:
            say("fit to build zoos")

    print_value(findings, as_json, show)
    if findings["problems"]:
        sys.exit(2)
