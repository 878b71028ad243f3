"""Commands for specifications: the bundled ones, new ones, and the JSON schema for editors."""

import json
from pathlib import Path
from typing import Any

import click

from zootools.cli.completion import complete_spec_names
from zootools.cli.output import show_table
from zootools.cli.shared import DATA, JSON, print_value
from zootools.text import say


@click.command()
@click.argument("name", required=False, shell_complete=complete_spec_names)
@JSON
def specs(name: str | None, as_json: bool) -> None:
    """List the bundled specifications, or print the YAML text of one.

    \b
    Examples:
      zootools specs
      zootools specs digits_seed > mine.yaml
    """
    if name is None:
        _list(as_json)
        return
    from zootools.bundled import bundled_spec
    from zootools.spec import load_spec

    path = bundled_spec(name)
    if as_json:
        say(json.dumps(load_spec(path).dump()), limit=None)
    else:
        say(*path.read_text(encoding="utf-8").splitlines(), limit=None)


def _list(as_json: bool) -> None:
    from zootools.bundled import bundled_specs
    from zootools.spec import load_spec

    found = {name: load_spec(path) for name, path in bundled_specs().items()}
    table = {
        name: {"models": spec.model_count, "architecture": spec.architecture.name, "description": spec.description}
        for name, spec in found.items()
    }

    def show(table: dict[str, Any]) -> None:
        show_table(["name", *next(iter(table.values()))], [[name, *row.values()] for name, row in table.items()])

    print_value(table, as_json, show)


@click.command()
@click.argument("name")
@click.option(
    "--images",
    default="digits",
    show_default=True,
    metavar="SET|FOLDER",
    help="A known image set, such as mnist, or the name of a folder of pictures in the data folder.",
)
@DATA
def new(name: str, images: str, data: Path | None) -> None:
    """Write NAME.yaml, a commented specification to start from; an existing file is never overwritten.

    \b
    Examples:
      zootools new mine --images fashion_mnist
      zootools new flowers --images flowers --data pictures
    """
    from zootools.starter import write_starter

    path = write_starter(name, images, data)
    say(f"{path}: written; next: zootools check {path}")


@click.command()
def schema() -> None:
    """Print the JSON schema of specifications, with which editors complete and check them.

    \b
    Examples:
      zootools schema > zoo.schema.json
    """
    from zootools.spec.json_schema import specification_schema

    say(*json.dumps(specification_schema(), indent=2).splitlines(), limit=None)
