"""Commands that build a zoo, and those that prepare a build."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.choices import DEVICES, MAX_WORKERS
from zootools.cli.output import in_words, show_pairs, show_table
from zootools.cli.shared import (
    ADDRESS,
    DATA,
    ENGINE,
    JSON,
    QUIET,
    SPEC,
    Word,
    interruptible,
    print_value,
    show_accuracy,
)
from zootools.phases import Phases, processor_seconds
from zootools.progress import duration
from zootools.text import say
from zootools.training.table import BACKENDS

if TYPE_CHECKING:
    from zootools.building.resuming import Present
    from zootools.spec import ZooSpec


OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the specification."
)
OUT = click.option("-o", "--out", metavar="DIR|URL", help="A folder, or s3://BUCKET/PREFIX; default zoos/<name>.")
HOW_TO_TRAIN = (
    click.option(
        "--device",
        type=Word(DEVICES),
        default="auto",
        show_default=True,
        help="The device to train on; auto is CUDA if there is one and the CPU is not faster.",
    ),
    click.option(
        "--backend",
        type=Word(tuple(BACKENDS)),
        default="auto",
        show_default=True,
        help="The trainer: a kernel compiled for the networks, or PyTorch.",
    ),
    ENGINE,
    ADDRESS,
    click.option(
        "--workers", type=click.IntRange(min=1, max=MAX_WORKERS), help="Processes on the CPU; default one per core."
    ),
    DATA,
    click.option(
        "--keep-state", is_flag=True, help="Keep the optimizer state, so that a later build can train more epochs."
    ),
    click.option("--allow-fingerprint-change", is_flag=True, help="Resume although device or versions have changed."),
)
"""The fields of `zootools.building.options.BuildOptions` as options, without ``quiet`` and ``phases``."""


def how_to_train(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options `HOW_TO_TRAIN` to a command, which takes them as keyword arguments."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(HOW_TO_TRAIN), command)


@click.command()
@SPEC
@OUT
@click.option("--models", type=click.IntRange(min=1), help="Train only this number of models, spread over the grid.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train for this number of epochs.")
@OVERRIDES
@how_to_train
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run the checks of a build; print models, checkpoints, bytes and time; write nothing.",
)
@click.option("--profile", is_flag=True, help="Also print the processor seconds of each phase of the build.")
@QUIET
@JSON
def build(
    spec: str,
    out: str | None,
    models: int | None,
    epochs: int | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    profile: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the zoo of a specification; the same command again resumes.

    SPEC is a YAML file, or the name of a bundled one (see `zootools specs`).

    \b
    Examples:
      zootools build tetris_seed
      zootools build mnist_seed --models 16 --epochs 3 --set training.batch_size=10
      zootools build mnist_hyp --engine ray --address auto
    """
    from zootools.building.builder import build as build_zoo
    from zootools.bundled import find_spec
    from zootools.spec import load_spec

    changes = [f"models={models}"] * (models is not None) + [f"training.epochs={epochs}"] * (epochs is not None)
    zoo_spec = load_spec(find_spec(spec), [*overrides, *changes])
    out = out or f"zoos/{zoo_spec.name}"
    if dry_run:
        print_value(_plan(zoo_spec, out, options), as_json, _show_plan)
        return
    interruptible()
    phases, begun = Phases({"start": processor_seconds()}), time.monotonic()
    manifest = build_zoo(zoo_spec, out, **options, quiet=quiet, phases=phases)
    result = {"zoo": str(out), **manifest.counts.model_dump(), "test_accuracy": manifest.test_accuracy}
    if profile:
        result["seconds"] = round(time.monotonic() - begun, 3)
        result["processor_seconds"] = {name: round(seconds, 3) for name, seconds in phases.seconds.items()}
    print_value(result, as_json, _show_result)


def _plan(spec: "ZooSpec", out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the size of a build and an estimate of its time, after the checks that it makes before the training."""
    from dataclasses import asdict

    from zootools.building.builder import preview
    from zootools.building.throughput import seconds_per_model_sample

    checked = preview(spec, out, **options)
    plan: dict[str, Any] = {"name": spec.name, **_folder(out, checked.present)}
    plan |= {"images_present": checked.images, **asdict(checked.size)}
    whole = checked.size.models * spec.training.epochs
    left = checked.present.model_epochs if checked.present else whole
    where = (options["data"], options["workers"], options["backend"], options["device"])
    rate = seconds_per_model_sample(spec, *where) if left else 0.0
    return plan | {"estimated_seconds": round(rate * checked.size.model_samples * left / whole, 1)}


def _folder(out: str, present: "Present | None") -> dict[str, Any]:
    """Return the folder of a build, and how many of its models are there; nobody has looked into an object store."""
    if present is None:
        return {"folder": out}
    return {"folder": out, "there": present.there, "to_train": present.to_train}


def _show_plan(plan: dict[str, Any]) -> None:
    """Print a plan, or the result of ``check``, with the numbers of models in one line with the folder."""
    shown = {key: value for key, value in plan.items() if key not in ("there", "to_train", "images_present")}
    if "there" in plan:
        shown["folder"] = f"{plan['folder']}: {plan['there']:,} there, {plan['to_train']:,} to train"
    if "images_present" in plan:
        shown["images"] = "on this machine" if plan["images_present"] else "missing; the build downloads them"
    show_pairs(shown)


def _show_result(result: dict[str, Any]) -> None:
    say(
        f"{result['zoo']}: {result['expected']} models = {result['ok']} ok + {result['diverged']} diverged + "
        f"{result['failed']} failed + {result['missing']} missing; {result['checkpoints']:,} checkpoints"
    )
    show_accuracy(result["test_accuracy"])
    if "processor_seconds" in result:
        phases = result["processor_seconds"]
        total = sum(phases.values())
        say(f"{total:.1f} processor seconds in {duration(result['seconds'])}:")
        rows = [[name, f"{seconds:.1f}", f"{seconds / total:.0%}"] for name, seconds in phases.items()]
        show_table(["phase", "processor s", "share"], rows, indent=2)


@click.command()
@SPEC
@OUT
@OVERRIDES
@DATA
@JSON
def check(spec: str, out: str | None, overrides: tuple[str, ...], data: Path | None, as_json: bool) -> None:
    """Validate a specification against its images and the folder of its zoo; print the number of models and parameters.

    What `zootools build` would refuse, this refuses in the same words. `zootools build --dry-run` also checks this
    machine, and estimates the time.

    \b
    Examples:
      zootools check mine.yaml
      zootools check mnist_seed --set training.epochs=10
    """
    from zootools.building.resuming import check_build
    from zootools.bundled import find_spec
    from zootools.spec import load_spec
    from zootools.spec.model_configs import count_models

    zoo_spec = load_spec(find_spec(spec), overrides)
    out = out or f"zoos/{zoo_spec.name}"
    checked = check_build(zoo_spec, out, data)
    value = {
        "name": zoo_spec.name,
        **_folder(out, checked.present),
        "images_present": checked.images,
        "configurations": zoo_spec.configuration_count,
        "models": count_models(zoo_spec),
        "checkpoints_per_model": len(zoo_spec.training.kept_epochs),
        "parameters": checked.schema.size,
        "layers": [layer.name for layer in checked.schema.layers],
    }
    print_value(value, as_json, _show_plan)


@click.command()
@DATA
@JSON
def doctor(data: Path | None, as_json: bool) -> None:
    """Check whether this machine can build zoos, and print its properties for an issue.

    Opens the image files in the data folder, counts their images, and names those that are damaged. Exit code 2 if
    there is a problem.

    \b
    Examples:
      zootools doctor
      zootools doctor --data images
    """
    from dataclasses import asdict

    from zootools.doctor import examine

    findings = asdict(examine(data))

    def show(findings: dict[str, Any]) -> None:
        machine = dict(findings["machine"])
        images, incomplete = machine.pop("images"), machine.pop("incomplete_images")
        show_pairs(machine | {f"images of {name}": in_words(counts) for name, counts in images.items()})
        for name, missing in incomplete.items():
            say(f"images of {name} are incomplete, and are downloaded when needed; missing: {', '.join(missing)}")
        for problem in findings["problems"]:
            say(f"PROBLEM: {problem}")
        if not findings["problems"]:
            say("this machine can build zoos")

    print_value(findings, as_json, show)
    if findings["problems"]:
        sys.exit(2)
