"""Commands on networks as points of a space: one order of their neurons, distances and lines between them."""

from pathlib import Path
from typing import Any

import click

from zootools.choices import ALIGNMENTS
from zootools.cli.completion import complete_models
from zootools.cli.output import show_pairs, show_table
from zootools.cli.shared import DATA, JSON, QUIET, ZOO, PathType, Word, interruptible, print_value
from zootools.text import say


@click.command()
@ZOO
@click.option(
    "--to",
    default="medoid",
    show_default=True,
    metavar="MODEL|medoid",
    help="The reference: a model, by its id or the beginning of it, or the one nearest to all others.",
)
@click.option(
    "--method",
    type=Word(ALIGNMENTS),
    default="weights",
    show_default=True,
    help="Compare weights; activations on images; or lower the loss of the mean with the reference (slow).",
)
@click.option("-o", "--out", required=True, metavar="ZOO", type=PathType(new=True), help="The folder of the copies.")
@DATA
@QUIET
@JSON
def align(zoo: str, to: str, method: str, out: Path, data: Path | None, quiet: bool, as_json: bool) -> None:
    """Write a zoo of the same networks with their hidden neurons in one order.

    Permuting hidden neurons does not change what a network computes. The order is the one in which the last checkpoint
    of a model is as near as possible to that of the reference, found by linear assignment (Git Re-Basin); all
    checkpoints of the model get it. The methods activations and straight-through run the networks on the zoo's images.

    The copies are a zoo like any other, whose card and zoo.json name the zoo that they were computed from.

    \b
    Examples:
      zootools align zoos/digits_seed -o zoos/digits_seed_aligned
      zootools align zoos/digits_seed --to 0fc2 --method activations -o zoos/digits_seed_aligned --json
    """
    from representation.align_zoo import align_zoo
    from zootools.open import open_zoo

    interruptible()
    done = align_zoo(open_zoo(zoo), out, to=to, method=method, data=data, quiet=quiet)

    def show(value: dict[str, Any]) -> None:
        show_pairs(value)

    print_value(done.to_json(), as_json, show)


@click.command()
@ZOO
@click.argument("first", metavar="[A]", required=False, shell_complete=complete_models)
@click.argument("second", metavar="[B]", required=False, shell_complete=complete_models)
@click.option("--pairs", type=click.IntRange(min=1), help="Instead of A and B: a number of pairs, drawn at random.")
@click.option("--plot", type=PathType(dir_okay=False), metavar="FILE", help="Draw the lines of A and B: .svg or .png.")
@DATA
@JSON
def compare(
    zoo: str,
    first: str | None,
    second: str | None,
    pairs: int | None,
    plot: Path | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Compare two networks of a zoo: distance, agreement, and the loss and accuracy between them.

    A and B are models, by an id or the beginning of it, at their last epoch, or MODEL@EPOCH. The barrier of the line
    between them is measured as they are (plain), after B was aligned to A, and with the activations of this line
    rescaled (REPAIR). Averages of the weights, greedy soups and the ensemble of the networks are evaluated beside them.

    With --pairs, the distribution over pairs that are drawn at random, and what is merged from all their networks.

    \b
    Examples:
      zootools compare zoos/digits_seed 0fc2 9a41
      zootools compare zoos/digits_seed 0fc2@5 0fc2@25 --plot line.svg
      zootools compare zoos/digits_seed --pairs 20 --json
    """
    from zootools.open import open_zoo

    if pairs is None and (first is None or second is None):
        raise click.UsageError("expected two networks, A and B, or --pairs N")
    if pairs is not None and (first is not None or plot is not None):
        raise click.UsageError("--pairs draws pairs of its own, so it takes neither networks nor --plot")
    from representation.compare_networks import compare_pairs, compare_two

    interruptible()
    opened = open_zoo(zoo)
    if pairs is not None:
        print_value(compare_pairs(opened, pairs, data).to_json(), as_json, _show_pairs)
        return
    assert first is not None
    assert second is not None
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise click.UsageError(f"--plot: found {plot.name!r}; expected a file that ends in .svg or .png")
    found = compare_two(opened, first, second, data)
    if plot is not None:
        from zootools.filesystem.files import write_output
        from zootools.plots.lines import draw_lines
        from zootools.plots.writing import image_bytes

        lines = {line.name: (line.accuracy, line.loss) for line in found.pair.lines}
        write_output(plot, image_bytes(draw_lines(found.first, found.second, lines), plot.suffix[1:]), plot.name)
        say(str(plot), err=True)
    print_value(found.to_json(), as_json, _show_two)


def _show_two(value: dict[str, Any]) -> None:
    show_pairs({key: item for key, item in value.items() if key not in ("lines", "merged")})
    say("line from the first to the second network: test accuracy")
    points = len(value["lines"][0]["accuracy"])
    heads = ["", *(f"{number / (points - 1):.1f}" for number in range(points)), "barrier", "of the loss"]
    show_table(
        heads,
        (
            [line["name"], *(round(x, 4) for x in line["accuracy"]), round(line["barrier"], 4), line["loss_barrier"]]
            for line in value["lines"]
        ),
    )
    _show_merged(value["merged"])


def _show_pairs(value: dict[str, Any]) -> None:
    show_pairs({key: item for key, item in value.items() if key not in ("quantiles", "merged")})
    heads = ["", "minimum", "quartile", "median", "quartile", "maximum"]
    show_table(heads, ([name.replace("_", " "), *numbers] for name, numbers in value["quantiles"].items()))
    _show_merged(value["merged"])


def _show_merged(rows: list[dict[str, Any]]) -> None:
    say("on the test images")
    show_table(
        ["", "networks", "accuracy", "loss"], ([r["name"], r["networks"], r["accuracy"], r["loss"]] for r in rows)
    )
