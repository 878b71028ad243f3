"""Commands on networks as points of a space: one order of their neurons, distances and lines between them."""

from pathlib import Path
from typing import Any

import click

from zootools.cli.output import show_pairs
from zootools.cli.shared import DATA, JSON, QUIET, ZOO, PathType, interruptible, print_value


@click.command()
@ZOO
@click.option(
    "--to",
    default="medoid",
    show_default=True,
    metavar="MODEL|medoid",
    help="The reference: a model, by its id or the beginning of it, or the one nearest to all others.",
)
@click.option("--method", default="weights", show_default=True, metavar="weights", help="What is compared.")
@click.option("-o", "--out", required=True, metavar="ZOO", type=PathType(new=True), help="The folder of the copies.")
@DATA
@QUIET
@JSON
def align(zoo: str, to: str, method: str, out: Path, data: Path | None, quiet: bool, as_json: bool) -> None:
    """Write a zoo of the same networks with their hidden neurons in one order.

    Permuting hidden neurons does not change what a network computes. The order is the one in which the last checkpoint
    of a model is as near as possible to that of the reference, found by linear assignment (Git Re-Basin); all
    checkpoints of the model get it.

    The copies are a zoo like any other, whose card and zoo.json name the zoo that they were computed from.

    \b
    Examples:
      zootools align zoos/digits_seed -o zoos/digits_seed_aligned
      zootools align zoos/digits_seed --to 0fc2 -o zoos/digits_seed_aligned --json
    """
    from representation.align_zoo import align_zoo
    from zootools.open import open_zoo

    interruptible()
    done = align_zoo(open_zoo(zoo), out, to=to, method=method, data=data, quiet=quiet)

    def show(value: dict[str, Any]) -> None:
        show_pairs(value)

    print_value(done.to_json(), as_json, show)
