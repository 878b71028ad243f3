"""The command that learns and probes representations, by the package `representation`."""

from pathlib import Path

import click

from zootools.cli.completion import complete_recipes, complete_zoos
from zootools.cli.shared import ADDRESS, ENGINE, JSON, SCHEMA, PathType, interruptible, print_value
from zootools.text import say


@click.command()
@click.option("--zoo", required=True, shell_complete=complete_zoos, help="The zoo: a folder, or a name on a hub.")
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    shell_complete=complete_recipes,
    help="A bundled recipe, or a recipe file.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe.")
@click.option("-o", "--out", type=PathType(new=True), help="Encoders and results; default representations/ZOO/RECIPE.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Encoders to train.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train each encoder for this number of epochs.")
@click.option(
    "--transfer-to",
    multiple=True,
    metavar="ZOO",
    shell_complete=complete_zoos,
    help="Also score on another zoo with the same layers.",
)
@click.option("--baselines-only", is_flag=True, help="Train no encoder: weights, statistics, PCA, UMAP.")
@ENGINE
@ADDRESS
@click.option(
    "--search",
    type=PathType(dir_okay=False),
    metavar="SPACE",
    help="First search for the best recipe in the space of this YAML file, on Ray.",
)
@click.option("--track", metavar="NAME", help="Log the training to this trackio project.")
@SCHEMA
@JSON
def represent(
    zoo: str,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    seeds: int,
    epochs: int | None,
    transfer_to: tuple[str, ...],
    baselines_only: bool,
    engine: str,
    address: str | None,
    search: Path | None,
    track: str | None,
    schema: Path | None,
    as_json: bool,
) -> None:
    """Learn a representation of a zoo's weights, and measure how well a linear probe predicts each property.

    Prints the scores of the probes beside those of the baselines, and of the paper where it has them, and writes them
    as a Parquet table. The same command again reuses trained encoders.

    \b
    Example:
      zootools represent --zoo zoos/tetris_seed
      zootools represent --zoo zoos/digits_hyp --recipe smoke --set loss.kind=ED --seeds 3
      zootools represent --zoo zoos/mnist_hyp --transfer-to zoos/fashion_hyp --baselines-only
      zootools represent --zoo zoos/mnist_seed --search space.yaml --engine ray --seeds 5
    """
    from representation import represent as represent_zoo
    from zootools.open import open_zoo

    interruptible()
    results = represent_zoo(
        open_zoo(zoo, schema=schema),
        recipe,
        out,
        overrides=overrides,
        seeds=seeds,
        transfer_to=transfer_to,
        baselines_only=baselines_only,
        epochs=epochs,
        search=search,
        engine=engine,
        address=address,
        track=track,
        quiet=as_json,
    )
    print_value(results.to_json(), as_json, lambda value: say(*results.render().split("\n")))
