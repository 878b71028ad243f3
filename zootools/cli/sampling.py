"""The command that draws new networks from those of a zoo, by the package `representation`."""

from pathlib import Path
from typing import Any

import click

from zootools.choices import SAMPLING_METHODS
from zootools.cli.completion import complete_encoders, complete_zoos
from zootools.cli.output import show_table
from zootools.cli.shared import DATA, JSON, QUIET, PathType, Word, interruptible, located, print_value
from zootools.errors import SpecError
from zootools.text import say

SHOWN_EPOCHS = (0, 1, 5, 10, 25, 50)
"""Epochs of the training of samples that are printed, as far as there are any; `--json` has all."""


@click.command()
@located(["zoo"])
@click.argument("encoder", required=False, shell_complete=complete_encoders)
@click.option("--from", "zoo", required=True, metavar="ZOO", shell_complete=complete_zoos, help="The zoo.")
@click.option("-o", "--out", required=True, metavar="ZOO", type=PathType(new=True), help="The folder of the new zoo.")
@click.option("--count", type=click.IntRange(min=2), default=100, show_default=True, help="Networks to draw.")
@click.option("--method", type=Word(SAMPLING_METHODS), default="kde", show_default=True, help="How they are drawn.")
@click.option(
    "--bandwidth",
    metavar="NUMBER|auto",
    default="0.002",
    show_default=True,
    help="Standard deviation of the kernels; auto is that of the highest held-out likelihood.",
)
@click.option(
    "--best",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    default=0.3,
    show_default=True,
    help="Share of the checkpoints, the most accurate ones, to draw from.",
)
@click.option("--where", metavar="EXPR", help="A condition on these checkpoints; by default 'epoch > 0'.")
@click.option("--align", is_flag=True, help="Bring these networks into one alignment first.")
@click.option(
    "--epochs", type=click.IntRange(min=0), default=0, show_default=True, help="Epochs to train the samples for."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of all draws.")
@DATA
@QUIET
@JSON
def sample(
    encoder: str | None,
    zoo: str,
    out: Path,
    count: int,
    method: str,
    bandwidth: str,
    best: float,
    where: str | None,
    align: bool,
    epochs: int,
    seed: int,
    data: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw new networks from those of a zoo, audit them, and write them as a zoo; the same command again resumes.

    A density over the representations of the zoo's best networks by ENCODER, or without ENCODER over their weights, is
    drawn from and decoded. Epoch 0 of the new zoo has the networks as they were drawn; --epochs trains them on, like
    the networks of the zoo.

    The audit says how near the samples are to the networks that the density was fitted to, beside networks that are
    copies, averages or new. It is part of the new zoo.

    \b
    Examples:
      zootools sample encoders/mnist --from zoos/mnist --where 'epoch >= 21' --count 200 --epochs 25 -o zoos/new
      zootools sample --from zoos/mnist --align --method flow -o zoos/new
    """
    from representation.sampling.sample import sample_zoo
    from zootools.open import open_zoo

    interruptible()
    sampled = sample_zoo(
        open_zoo(zoo),
        out,
        encoder,
        count=count,
        method=method,
        bandwidth=_width(bandwidth),
        best=best,
        where=where,
        align=align,
        epochs=epochs,
        seed=seed,
        data=data,
        quiet=quiet,
    )
    print_value(sampled.to_json(), as_json, _show)


def _width(text: str) -> float | None:
    """Return the number of a text, or None for ``auto``."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise SpecError(f"--bandwidth: found {text!r:.80}; expected a number above 0, or auto") from None


def _show(value: dict[str, Any]) -> None:
    say(f"{value['zoo']}: {value['settings']['count']} networks sampled from {value['parent']}", "", "audit")
    show_audit(value["audit"])
    say(value["verdict"], "", "test accuracy, mean and standard deviation, by epochs of training")
    curves = [value["accuracy"], *value["audit"]["curves"]]
    reached = max(curves[0]["epochs"])
    shown = sorted({epoch for epoch in SHOWN_EPOCHS if epoch <= reached} | {reached})
    rows = [[curve["networks"], curve["count"], *(_score(curve, epoch) for epoch in shown)] for curve in curves]
    show_table(["networks", "count", *(str(epoch) for epoch in shown)], rows, indent=2)


def show_audit(audit: dict[str, Any]) -> None:
    """Print the table of an audit (`zootools.storage.audit.Audit`), given as plain values."""
    rows = audit["rows"]
    names = {name: name.replace("_", " ") for name in rows[0]}
    show_table(list(names.values()), [[row[name] for name in names] for row in rows], indent=2)


def _score(curve: dict[str, Any], epoch: int) -> str:
    if epoch not in curve["epochs"]:
        return ""
    place = curve["epochs"].index(epoch)
    return f"{curve['mean'][place]:.3f} ± {curve['std'][place]:.3f}"
