"""The command that imports populations of other tools."""

from pathlib import Path
from typing import Any

import click

from zootools.cli.completion import complete_specs
from zootools.cli.shared import DATA, JSON, QUIET, PathType, Word, interruptible, print_value, show_accuracy
from zootools.importers.table import IMPORTERS
from zootools.text import say


@click.command("import")
@click.argument("kind", type=Word(tuple(IMPORTERS)))
@click.argument("path", type=PathType())
@click.option("-o", "--out", required=True, metavar="DIR", type=PathType(new=True), help="The folder of the zoo.")
@click.option("--schema", type=PathType(dir_okay=False), help="The layer schema, a zoo.json, or an index (JSON).")
@click.option("--architecture", metavar="NAME", help="Or: a network of zootools, such as cnn_small; needs --images.")
@click.option(
    "--images",
    metavar="SPEC",
    shell_complete=complete_specs,
    help="A specification (file or bundled name) whose images the models were trained on.",
)
@click.option(
    "--properties", type=PathType(dir_okay=False), help="A table (CSV, Parquet, JSON lines) with a row for each file."
)
@click.option(
    "--path-pattern", metavar="PATTERN", help="The properties in a path, such as '{label:int}/epoch{epoch:int}.pt'."
)
@click.option("--split", metavar="NAME", help="Use this published division instead of a hash of the ids.")
@click.option(
    "--set", "constants", multiple=True, metavar="NAME=VALUE", help="A property of all models, such as activation=tanh."
)
@click.option("--name", metavar="NAME", help="The name of the zoo; else that of its source.")
@click.option("--description", metavar="TEXT", help="A sentence for the card.")
@click.option("--license", metavar="NAME", help="The licence, as the Hub spells it.")
@click.option(
    "--check",
    type=click.IntRange(min=0),
    metavar="N",
    help="Evaluate N checkpoints on their images; 0 for none. Default 16 if the image files are there.",
)
@DATA
@QUIET
@JSON
def import_command(
    kind: str,
    path: Path,
    out: Path,
    schema: Path | None,
    images: str | None,
    constants: tuple[str, ...],
    check: int | None,
    data: Path | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Import a population of another tool as a zoo; the same command again resumes.

    A sample of the networks is run on their images, and must reach the accuracies that are recorded for them. What was
    imported from where, and what was left out, is on the card and in zoo.json.

    \b
    Examples:
      zootools import state-dicts runs -o zoos/mine --schema schema.json --path-pattern 'seed{seed:int}/{epoch:int}.pt'
      zootools import parquet table.parquet -o zoos/mine --schema schema.json
    """
    from zootools.bundled import find_spec
    from zootools.importers.importing import import_zoo
    from zootools.importers.options import parse_constants
    from zootools.spec import load_spec

    interruptible()
    manifest = import_zoo(
        kind,
        path,
        out,
        check=check,
        data=data,
        quiet=quiet,
        model_schema=schema,
        images=load_spec(find_spec(images)).images if images is not None else None,
        constants=parse_constants(constants) if constants else None,
        **options,
    )
    imported = manifest.imported
    assert imported is not None
    value = {
        "zoo": str(out),
        "kind": kind,
        **manifest.counts.model_dump(),
        "left_out": [row.model_dump() for row in imported.left_out],
        "notes": imported.notes,
        "check": imported.check.model_dump(),
        "test_accuracy": manifest.test_accuracy,
    }
    print_value(value, as_json, _show)


def _show(value: dict[str, Any]) -> None:
    say(
        f"{value['zoo']}: {value['checkpoints']:,} checkpoints of {value['expected']:,} models, "
        f"{value['diverged']} of them diverged"
    )
    for row in value["left_out"]:
        say(f"left out: {row['count']:,} {row['why']} ({', '.join(row['examples'])})")
    for note in value["notes"]:
        say(f"note: {note}")
    check = value["check"]
    if check["not_checked"]:
        say(f"not checked on images: {check['not_checked']}")
    elif check["column"]:
        say(
            f"checked: {check['checkpoints']} checkpoints on {check['images']}; {check['column']} differs from the "
            f"recorded one by {check['largest_difference']:g} at most, {check['mean_difference']:g} on average; "
            f"permuting hidden units changes outputs by {check['permutation_difference']:g}"
        )
    else:
        say(
            f"checked: {check['checkpoints']} checkpoints on {check['images']}; no accuracy is recorded; permuting "
            f"hidden units changes outputs by {check['permutation_difference']:g}"
        )
    if value["test_accuracy"]:
        show_accuracy(value["test_accuracy"])
