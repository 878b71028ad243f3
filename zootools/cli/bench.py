"""Commands of the benchmark: its tasks, and running methods on them, by the package `representation`."""

import json
from pathlib import Path
from typing import Any

import click

from zootools.cli.completion import complete_zoos
from zootools.cli.output import show_table
from zootools.cli.shared import ADDRESS, ENGINE, JSON, QUIET, PathType, interruptible, located, print_value
from zootools.text import say


@click.command()
@located(["source"], ["scored_on"])
@click.argument("name", required=False)
@click.option("--from", "source", metavar="ZOO", shell_complete=complete_zoos, help="Make a task from this zoo.")
@click.option("--target", metavar="COLUMN", help="The property that the new task predicts.")
@click.option("--metric", help="kendall_tau (default) or r2 of a number, accuracy of a class.")
@click.option(
    "--every", type=click.IntRange(min=1), help="Take every N-th epoch, from the N-th on; by default all but 0."
)
@click.option("--where", metavar="CONDITION", help="Take checkpoints that fulfil this condition.")
@click.option("--scored-on", metavar="ZOO", shell_complete=complete_zoos, help="Score on the test split of this zoo.")
@click.option("--like", metavar="TASK", help="Take everything but the population from this task.")
@click.option("-o", "--out", type=PathType(dir_okay=False, new=True), help="Write the new task to this file.")
@JSON
def tasks(
    name: str | None,
    source: str | None,
    target: str | None,
    metric: str | None,
    every: int | None,
    where: str | None,
    scored_on: str | None,
    like: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """List the tasks of the benchmark, print one, or make one from a zoo.

    A task pins a population by the hash of its checkpoints. With --from, the statistics of the population are computed:
    the distribution of the labels, and the score of a predictor without a mistake. NAME is then the name of the new
    task.

    \b
    Examples:
      zootools tasks
      zootools tasks tetris_seed_accuracy
      zootools tasks --from zoos/digits_seed --target generalization_gap --every 5 -o gap.yaml
      zootools tasks --from zoos/tetris_seed --like tetris_seed_accuracy -o mine.yaml
    """
    from representation.benchmark.tasks import load_task, task_text, write_task

    if source is None:
        if name is None:
            _list(as_json)
        elif as_json:
            say(json.dumps(load_task(name).dump()), limit=None)
        else:
            say(*task_text(load_task(name)).splitlines(), limit=None)
        return
    from representation.benchmark.making import like as task_like
    from representation.benchmark.making import make_task
    from representation.recipes import Epochs
    from zootools.open import open_zoo

    zoo, other = open_zoo(source), None if scored_on is None else open_zoo(scored_on)
    if like is not None:
        if target or metric or every or where or name:
            raise click.UsageError("--like takes everything from that task; leave out the other options")
        task = task_like(load_task(like), zoo, other)
    elif target is None:
        raise click.UsageError("missing option --target: the property to predict; or --like: a task to take it from")
    else:
        epochs = None if every is None else Epochs(first=every, every=every)
        task = make_task(zoo, target, name=name, metric=metric, epochs=epochs, where=where, scored_on=other)
    if out is not None:
        write_task(task, out)
        say(f"{out}: written; next: zootools bench {out} --zoo {source}")
    elif as_json:
        say(json.dumps(task.dump()), limit=None)
    else:
        say(*task_text(task).splitlines(), limit=None)


def _list(as_json: bool) -> None:
    from representation.benchmark.tasks import bundled_tasks, load_task

    table: dict[str, Any] = {}
    for name in bundled_tasks():
        task = load_task(name)
        table[name] = {
            "target": task.target,
            "metric": task.metric,
            "ceiling": task.ceiling,
            "majority": task.statistics.majority,
            "networks": task.statistics.splits["test"].checkpoints,
            "models": task.zoo.models,
        }

    def show(table: dict[str, Any]) -> None:
        show_table(["name", *next(iter(table.values()))], [[name, *row.values()] for name, row in table.items()])

    print_value(table, as_json, show)


@click.command()
@located([], ["zoos"])
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--method", "methods", multiple=True, metavar="METHOD", help="A method; by default all of them.")
@click.option("--zoo", "zoos", multiple=True, metavar="ZOO", shell_complete=complete_zoos, help="A zoo of the tasks.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of a method that depends on a seed."
)
@click.option("-o", "--out", type=PathType(new=True), default=Path("bench"), show_default=True, help="Rows and tables.")
@click.option(
    "--compare",
    multiple=True,
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Show the result rows of this Parquet or JSON file beside ours.",
)
@ENGINE
@ADDRESS
@QUIET
@JSON
def bench(
    tasks: tuple[str, ...],
    methods: tuple[str, ...],
    zoos: tuple[str, ...],
    seeds: int,
    out: Path,
    compare: tuple[Path, ...],
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run methods of weight-space learning on tasks of the benchmark.

    TASK is the name of a bundled task (`zootools tasks`), or a task file. Its zoos are found by their names among those
    of --zoo, then in the folder zoos.

    Every task, method and seed is one row, with its cost and the versions that computed it. The same command again
    computes only what is missing. OUT has all rows as results.parquet, and tables as table.md and table.html.

    \b
    Examples:
      zootools bench tetris_seed_accuracy --method W --method 's(W)'
      zootools bench tetris_seed_accuracy tetris_seed_gap --zoo zoos/tetris_seed --seeds 5
      zootools bench mine.yaml --compare theirs.parquet
    """
    from representation import bench as run_bench

    interruptible()
    results = run_bench(
        tasks, methods, zoos, seeds=seeds, out=out, compare=compare, engine=engine, address=address, quiet=quiet
    )
    print_value(
        results.to_json(), as_json, lambda value: say(*results.markdown().split("\n"), *results.notes, limit=None)
    )
