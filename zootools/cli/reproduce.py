"""The command that reproduces the paper's tables and figures, by the package `representation`."""

from dataclasses import asdict
from pathlib import Path

import click

from zootools.choices import STAGES
from zootools.cli.completion import complete_figures
from zootools.cli.shared import DATA, JSON, QUIET, PathType, Word, interruptible, print_value
from zootools.text import say


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="WHAT...", shell_complete=complete_figures)
@click.option(
    "--scale",
    default="smoke",
    show_default=True,
    help="smoke: minutes; cpu: hours of two cores; paper: days; full: as in the paper.",
)
@click.option("-o", "--out", type=PathType(new=True), help="The folder; default reproduction/SCALE.")
@click.option("--seeds", type=click.IntRange(min=1), help="Encoders for each cell; default 1, of the scale paper 3.")
@click.option(
    "--only",
    type=Word(STAGES),
    help="Build the zoos; train and score encoders on zoos that are built; or write the report of what there is.",
)
@click.option("--workers", type=click.IntRange(min=1, max=1024), help="Processes; default one per core.")
@DATA
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print zoos, encoders and the estimated time of what is missing; write nothing.",
)
@QUIET
@JSON
def reproduce(
    what: tuple[str, ...],
    scale: str,
    out: Path | None,
    seeds: int | None,
    only: str | None,
    workers: int | None,
    data: Path | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Reproduce tables and figures of the paper: build the zoos, train the encoders, write a report.

    WHAT is all, or names such as table1, table12 and figure8. The folder receives reproduction.html, .md and .parquet,
    with our value beside the paper's in each cell, or the reason why it is missing. The same command again resumes.

    \b
    Examples:
      zootools reproduce table1 table3
      zootools reproduce all --scale cpu --data images
      zootools reproduce all --scale paper --only zoos
      zootools reproduce all --scale full --dry-run
    """
    from representation.reproduction.items import find_items
    from representation.reproduction.scales import find_scale

    settings = find_scale(scale)
    items = [settings.part_of(item) for item in find_items(what)]
    if dry_run:
        from representation.reproduction.estimate import plan, show_plan
        from representation.reproduction.work import Workspace

        planned = plan(items, Workspace.at(out, settings), seeds or settings.seeds, workers, data, only)
        print_value(asdict(planned), as_json, lambda _: say(*show_plan(planned).split("\n")))
        return
    from representation.reproduction.report import summary
    from representation.reproduction.run import reproduce as reproduce_items

    interruptible()
    state = reproduce_items(what, scale, out, data=data, seeds=seeds, workers=workers, only=only, quiet=quiet)
    found = summary(state)

    def show(_: object) -> None:
        say(f"{found.cells} cells, {found.cells - found.without} with a value of ours")
        for reason, count in found.reasons.items():
            say(f"{count:>5} without: {reason}")
        for file in found.files:
            say(file)

    print_value(asdict(found), as_json, show)
