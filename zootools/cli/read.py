"""Commands that read a zoo."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.choices import EXPORTS
from zootools.cli.completion import complete_models
from zootools.cli.shared import JSON, SCHEMA, ZOO, PathType, Word, print_value, show_accuracy, show_pairs
from zootools.errors import DamagedZooError
from zootools.text import say

if TYPE_CHECKING:
    from zootools.storage.imported import Imported

BY_EPOCH = (
    "epoch",
    *(f"{images}_{score}" for images in ("train", "validation", "test") for score in ("loss", "accuracy")),
    "generalization_gap",
)
"""Columns of the metadata that change from epoch to epoch."""
CHECKPOINT = "safetensors"
"""The format of one checkpoint; the others are of whole zoos."""


@click.command()
@ZOO
@SCHEMA
@JSON
def info(zoo: str, schema: Path | None, as_json: bool) -> None:
    """Describe the contents of a zoo."""
    from zootools.open import open_zoo
    from zootools.storage.status import status as read_status
    from zootools.storage.tables import accuracy_summary

    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    spec, origin = opened.stored_spec, opened.stored_spec or opened.imported
    if opened.finished:
        counts = opened.counts.model_dump()
    else:
        counts = {key: value for key, value in read_status(opened.folder).to_json().items() if key != "state"}
    axes = {**spec.grid.axes, **(spec.sample.axes if spec.sample else {})} if spec else {}
    value = {
        "name": opened.name,
        "finished": opened.finished,
        **counts,
        "checkpoints": len(opened),
        "parameters": opened.schema.size,
        "architecture": opened.schema.name,
        "images": origin.images.name if origin and origin.images else None,
        "imported": _import_of(opened.imported),
        "axes": {name: str(axis) if not isinstance(axis, tuple) else list(axis) for name, axis in axes.items()},
        "test_accuracy": accuracy_summary(opened.metadata) if origin else {},
        "left_out": opened.left_out,
    }

    def show(value: dict[str, Any]) -> None:
        later = ("axes", "imported", "test_accuracy", "left_out")
        show_pairs({k: v for k, v in value.items() if k not in later and v is not None})
        show_pairs(value["imported"] or {})
        show_pairs({f"axis {name}": axis for name, axis in value["axes"].items()})
        for name, reason in value["left_out"].items():
            show_pairs({"left out": f"{name!r}: {reason}"})
        if value["test_accuracy"]:
            show_accuracy(value["test_accuracy"])

    print_value(value, as_json, show)


def _import_of(imported: "Imported | None") -> dict[str, Any] | None:
    """Return where an imported zoo comes from, for `info`; None for a zoo that was built."""
    if imported is None:
        return None
    check = imported.check
    found = f"{check.checkpoints} checkpoints on {check.images}"
    if check.column:
        found += f", {check.column} within {check.largest_difference:g}"
    return {
        "imported_from": imported.kind,
        "source_files": imported.source.count,
        "source_sha256": imported.source.sha256,
        "not_imported": "; ".join(f"{row.count:,} {row.why}" for row in imported.left_out) or "nothing is left out",
        "checked": f"no: {check.not_checked}" if check.not_checked else found,
    }


@click.command()
@ZOO
@JSON
def status(zoo: str, as_json: bool) -> None:
    """Print the progress of a build, while it runs or afterwards."""
    from zootools.hub.locate import locate
    from zootools.object_store.reader import build_status_of
    from zootools.object_store.urls import folder_of
    from zootools.storage.status import status as build_status

    found = build_status_of(zoo) if folder_of(zoo) is None else build_status(locate(zoo).folder)
    print_value(found.to_json(), as_json, show_pairs)


@click.command()
@ZOO
@click.argument("model_id", shell_complete=complete_models)
@JSON
def show(zoo: str, model_id: str, as_json: bool) -> None:
    """Show one model over its epochs."""
    from zootools.open import open_zoo

    opened = open_zoo(zoo, include_diverged=True)
    rows = opened.model(model_id).metadata.to_pylist()
    changing = [name for name in BY_EPOCH if name in rows[0]]
    fixed = {key: rows[0][key] for key in rows[0] if key not in (*changing, "test_f1", "row", "stack")}
    value = {
        **fixed,
        "stopped": asdict(opened.stopped[model_id]) if model_id in opened.stopped else None,
        "epochs": [{k: row[k] for k in changing} for row in rows],
    }

    def show_rows(value: dict[str, Any]) -> None:
        show_pairs({key: item for key, item in value.items() if key != "epochs" and item is not None})
        say(" ".join(f"{name:>19}" for name in changing))
        for row in value["epochs"]:
            say(" ".join(f"{row[name]:>19.6g}" for name in changing))

    print_value(value, as_json, show_rows)


@click.command()
@ZOO
@click.option("--model", "model_id", shell_complete=complete_models, help="Only this model, by its id.")
@click.option("--epoch", type=click.IntRange(min=0), help="Only this epoch; 0 is the initialisation.")
@click.option(
    "--format",
    "form",
    type=Word((CHECKPOINT, *EXPORTS)),
    default=CHECKPOINT,
    show_default=True,
    help="One checkpoint as a file, or all of them in a new folder, as other tools read them.",
)
@click.option("-o", "--output", required=True, metavar="FILE|DIR", type=PathType(), help="The file, or the folder.")
@SCHEMA
def export(zoo: str, model_id: str | None, epoch: int | None, form: str, output: Path, schema: Path | None) -> None:
    """Write one checkpoint as a safetensors file, parameters by name, or a whole zoo for other tools.

    \b
    safetensors  one checkpoint, of --model at --epoch
    index-dict   index_dict.json, and flat weights in Parquet files
    numpy        weights.npy, metrics.csv.gz, layout.csv: the files of the Small CNN Zoo, in the order of TensorFlow
    state-dicts  a safetensors file for each checkpoint, and a table of their properties

    Diverged models are exported by --format safetensors only. `zootools import` reads every folder back.
    """
    if form == CHECKPOINT:
        _export_checkpoint(zoo, model_id, epoch, output, schema)
        return
    import pyarrow.compute as pc

    from zootools.importers.export import export_zoo
    from zootools.open import open_zoo

    opened = open_zoo(zoo, schema=schema)
    if model_id is not None:
        opened = opened.model(model_id)
    if epoch is not None:
        opened = opened.where(pc.field("epoch") == epoch)
    count = export_zoo(opened, output, form)
    say(f"{output}: {count:,} checkpoints of {opened.schema.size:,} parameters", err=True)


def _export_checkpoint(zoo: str, model_id: str | None, epoch: int | None, output: Path, schema: Path | None) -> None:
    from safetensors.torch import save

    from zootools.filesystem.files import check_output, write_output
    from zootools.open import open_zoo

    if model_id is None or epoch is None:
        missing = "--model" if model_id is None else "--epoch"
        raise click.UsageError(f"--format {CHECKPOINT} writes one checkpoint, and needs {missing}")
    example = f"{model_id}-epoch-{epoch}.safetensors"
    check_output(output, example)
    state = open_zoo(zoo, schema=schema, include_diverged=True).state_dict(model_id, epoch)
    write_output(output, save(state, {"zootools": json.dumps({"epoch": epoch, "model_id": model_id})}), example)
    # On stderr, because the file may be stdout itself (-o /dev/stdout).
    say(f"{output}: {sum(tensor.numel() for tensor in state.values()):,} parameters", err=True)


@click.command()
@ZOO
@JSON
def verify(zoo: str, as_json: bool) -> None:
    """Compare every file of a zoo with its manifest and with the data it is derived from; exit code 3 for any fault.

    Tables are compared with the checkpoints, models and layers with the specification, the card with all of them.
    Hidden files at the top of the folder are ignored. After an interruption, files that were hashed before are not
    hashed again.
    """
    import sys

    from tqdm import tqdm

    from zootools.hub.locate import locate
    from zootools.verify import card_repository, place_faults

    place = locate(zoo)
    quiet = as_json or not sys.stderr.isatty()
    with tqdm(desc="verifying", unit="B", unit_scale=True, disable=quiet) as bar:
        found = [str(fault) for fault in place_faults(place, bar.update)]
    print_value({"zoo": zoo, "faults": found}, as_json, lambda value: None)
    if found:
        raise DamagedZooError(f"{zoo}: {len(found)} faults", *(f"  {fault}" for fault in found))
    if not as_json:
        say(f"{zoo}: no faults")
        if place.repository is None and (named := card_repository(place.folder)):
            say(f"according to its card it was published as {named}")


@click.command()
@ZOO
@JSON
def repair(zoo: str, as_json: bool) -> None:
    """Remove damaged files from a zoo folder; the next build makes them again, with the same bytes."""
    from zootools.errors import SpecError, ZooNotFoundError, nearest_path
    from zootools.filesystem.files import exists
    from zootools.object_store.urls import folder_of
    from zootools.verify import UNLISTED
    from zootools.verify import repair as repair_zoo

    folder = folder_of(zoo)
    if folder is None:
        raise SpecError(f"{zoo}: is the URL of an object store; only folders can be repaired")
    if not exists(folder):
        raise ZooNotFoundError(f"{zoo}: there is no such folder{nearest_path(folder)}")
    found = repair_zoo(folder)
    dropped = [str(fault) for fault in found if fault.what != UNLISTED]
    left = [fault.name for fault in found if fault.what == UNLISTED]

    def show(value: dict[str, Any]) -> None:
        for fault in value["dropped"]:
            say(f"removed {fault}")
        for name in value["left_alone"]:
            say(f"kept: {name}, which does not belong to the zoo")
        say("now build the zoo again with its specification" if value["dropped"] else "nothing to repair")

    print_value({"zoo": zoo, "dropped": dropped, "left_alone": left}, as_json, show)
