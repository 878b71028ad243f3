"""The command line: parse, call the library, print. Data goes to stdout, everything else to stderr.

Commands import what they need when they run, so that ``zootools --help`` does not wait for torch.
"""

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from zootools import __version__
from zootools.errors import DamagedZooError, InterruptedBuildError, ZooError

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Where image files lie and are downloaded to; else $ZOOTOOLS_DATA, else the user's cache.",
)
ZOO = click.argument("zoo", type=click.Path(path_type=Path))


class _Group(click.Group):
    """Turns refusals of the library into one line and an exit code; tracebacks only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ZooError as error:
            if context.params.get("debug"):
                traceback.print_exc()
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            interrupted = InterruptedBuildError("interrupted; the same command goes on where this one stopped")
            _fail(str(interrupted), interrupted.exit_code)
        except BrokenPipeError:
            # The reader of our output (head, less) has left: nothing is wrong, and nobody listens.
            sys.stdout = None
            sys.exit(0)
        except OSError as error:
            if context.params.get("debug"):
                traceback.print_exc()
            _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 74)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"zootools: {message}", err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="zootools")
@click.option("--debug", is_flag=True, help="Show the traceback of a refusal.")
def main(debug: bool) -> None:
    """Build, publish and learn from model zoos: populations of neural networks with every checkpoint kept."""


def _print(value: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        click.echo(json.dumps(value))
    else:
        show(value)


def _show_pairs(value: dict[str, Any]) -> None:
    for key, item in value.items():
        text = f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) and key != "seed" else item
        click.echo(f"{key.replace('_', ' '):<22} {text}")


# --- building ----------------------------------------------------------------------------------------


@main.command()
@click.argument("spec")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The zoo's folder; default zoos/<name>.")
@click.option("--models", type=click.IntRange(min=1), help="Train only so many models, spread over the grid.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train for so many epochs.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the specification.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(min=1, max=1024), help="Processes on the CPU; default one per core.")
@DATA
@click.option("--allow-fingerprint-change", is_flag=True, help="Resume although device or versions have changed.")
@click.option("--dry-run", is_flag=True, help="Print models, checkpoints, bytes and time; write nothing.")
@JSON
def build(
    spec: str,
    out: Path | None,
    models: int | None,
    epochs: int | None,
    overrides: tuple[str, ...],
    device: str,
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
    """
    from zootools.builder import build as build_zoo
    from zootools.builder import estimate
    from zootools.bundled import find_spec
    from zootools.spec import load_spec

    changes = [f"models={models}"] * (models is not None) + [f"training.epochs={epochs}"] * (epochs is not None)
    zoo_spec = load_spec(find_spec(spec), [*overrides, *changes])
    out = out or Path("zoos") / zoo_spec.name
    if dry_run:
        from dataclasses import asdict

        from zootools.probe import seconds_per_model_sample

        plan: dict[str, Any] = {"name": zoo_spec.name, **asdict(estimate(zoo_spec, data))}
        rate = seconds_per_model_sample(zoo_spec, data, workers)
        plan["estimated_seconds"] = round(rate * plan["model_samples"], 1)
        _print(plan, as_json, _show_pairs)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    manifest = build_zoo(
        zoo_spec,
        out,
        device=device,
        workers=workers,
        data=data,
        allow_fingerprint_change=allow_fingerprint_change,
        quiet=as_json,
    )
    result = {"zoo": str(out), **manifest["counts"], "test_accuracy": manifest["test_accuracy"]}

    def show(result: dict[str, Any]) -> None:
        click.echo(
            f"{out}: {result['expected']} models = {result['ok']} ok + {result['diverged']} diverged + "
            f"{result['failed']} failed + {result['missing']} missing; {result['checkpoints']:,} checkpoints"
        )
        _show_accuracy(result["test_accuracy"])

    _print(result, as_json, show)


def _interrupt(number: int, frame: object) -> NoReturn:
    # A second signal ends the process at once.
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def _show_accuracy(summary: dict[str, list[float]]) -> None:
    click.echo("test accuracy   minimum  quartile    median  quartile   maximum")
    for epoch, values in summary.items():
        click.echo(f"  epoch {epoch:>6} " + " ".join(f"{value:9.4f}" for value in values))


@main.command()
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
            click.echo(f"{name:<18} {row['models']:>6} x {row['architecture']:<16} {row['description']}")

    _print(table, as_json, show)


@main.command()
@click.argument("spec")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the specification.")
@DATA
@JSON
def check(spec: str, overrides: tuple[str, ...], data: Path | None, as_json: bool) -> None:
    """Validate a specification, and say what it makes."""
    from zootools.builder import zoo_schema
    from zootools.bundled import find_spec
    from zootools.population import expand
    from zootools.spec import load_spec

    zoo_spec = load_spec(find_spec(spec), overrides)
    schema = zoo_schema(zoo_spec, data)
    value = {
        "name": zoo_spec.name,
        "configurations": zoo_spec.configuration_count,
        "models": len(expand(zoo_spec)),
        "checkpoints_per_model": len(zoo_spec.training.kept_epochs),
        "parameters": schema.size,
        "layers": [layer.name for layer in schema.layers],
    }
    _print(value, as_json, _show_pairs)


@main.command()
@DATA
@JSON
def doctor(data: Path | None, as_json: bool) -> None:
    """Say whether this machine is fit, in lines to paste into an issue."""
    from zootools.doctor import examine

    findings = examine(data)

    def show(findings: dict[str, Any]) -> None:
        _show_pairs(findings["machine"])
        for problem in findings["problems"]:
            click.echo(f"PROBLEM: {problem}")
        if not findings["problems"]:
            click.echo("fit to build zoos")

    _print(findings, as_json, show)
    if findings["problems"]:
        sys.exit(2)


# --- reading -----------------------------------------------------------------------------------------


@main.command()
@ZOO
@JSON
def info(zoo: Path, as_json: bool) -> None:
    """Say what a zoo holds."""
    from zootools.tables import accuracy_summary
    from zootools.zoo import open_zoo

    opened = open_zoo(zoo, include_diverged=True)
    axes = {**opened.spec.grid.axes, **(opened.spec.sample.axes if opened.spec.sample else {})}
    value = {
        "name": opened.spec.name,
        "finished": opened.finished,
        **opened.counts,
        "checkpoints": len(opened),
        "parameters": opened.schema.size,
        "architecture": opened.schema.name,
        "images": opened.spec.images.name,
        "axes": {name: str(axis) if not isinstance(axis, tuple) else list(axis) for name, axis in axes.items()},
        "test_accuracy": accuracy_summary(opened.metadata),
    }

    def show(value: dict[str, Any]) -> None:
        _show_pairs({key: item for key, item in value.items() if key not in ("axes", "test_accuracy")})
        _show_pairs({f"axis {name}": axis for name, axis in value["axes"].items()})
        if value["test_accuracy"]:
            _show_accuracy(value["test_accuracy"])

    _print(value, as_json, show)


@main.command()
@ZOO
@JSON
def status(zoo: Path, as_json: bool) -> None:
    """Say how a build stands; works while it runs and afterwards."""
    from zootools.builder import status as build_status

    _print(build_status(zoo), as_json, _show_pairs)


@main.command()
@ZOO
@click.argument("model_id")
@JSON
def show(zoo: Path, model_id: str, as_json: bool) -> None:
    """Show one model over its epochs."""
    import pyarrow.compute as pc

    from zootools.errors import ZooNotFoundError, did_you_mean
    from zootools.zoo import open_zoo

    opened = open_zoo(zoo, include_diverged=True)
    rows = opened.where(pc.field("model_id") == model_id).metadata.to_pylist()
    if not rows:
        near = did_you_mean(model_id, opened.models).partition(" (allowed")[0]
        raise ZooNotFoundError(f"{zoo}: no model {model_id!r}" + (near if near.startswith("; did") else ""))
    changing = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "generalization_gap")
    fixed = {key: rows[0][key] for key in rows[0] if key not in (*changing, "test_f1", "row", "stack")}
    value = {
        **fixed,
        "stopped": opened.stopped.get(model_id),
        "epochs": [{k: row[k] for k in changing} for row in rows],
    }

    def show_rows(value: dict[str, Any]) -> None:
        _show_pairs({key: item for key, item in value.items() if key != "epochs" and item is not None})
        click.echo(" ".join(f"{name:>18}" for name in changing))
        for row in value["epochs"]:
            click.echo(" ".join(f"{row[name]:>18.6g}" for name in changing))

    _print(value, as_json, show_rows)


@main.command()
@ZOO
@click.option("--model", "model_id", required=True, help="The model's id.")
@click.option("--epoch", required=True, type=click.IntRange(min=0), help="The epoch; 0 is the initialisation.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file.")
def export(zoo: Path, model_id: str, epoch: int, output: Path) -> None:
    """Write one checkpoint as a safetensors file, parameters by name."""
    from safetensors.torch import save

    from zootools.files import write_durably
    from zootools.zoo import open_zoo

    state = open_zoo(zoo, include_diverged=True).state_dict(model_id, epoch)
    write_durably(output, save(state, {"zootools": json.dumps({"epoch": epoch, "model_id": model_id})}))
    click.echo(f"{output}: {sum(tensor.numel() for tensor in state.values()):,} parameters")


@main.command()
@ZOO
@JSON
def verify(zoo: Path, as_json: bool) -> None:
    """Check every file of a zoo against its manifest; exit code 3 when something is wrong."""
    from zootools.manifest import faults

    found = list(faults(zoo))
    _print({"zoo": str(zoo), "faults": found}, as_json, lambda value: None)
    if found:
        raise DamagedZooError(f"{zoo}: {len(found)} faults\n  " + "\n  ".join(found))
    if not as_json:
        click.echo(f"{zoo}: every file is as it was written")
