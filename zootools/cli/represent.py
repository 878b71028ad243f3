"""The command that learns and probes representations, by the package `representation`."""

from pathlib import Path

import click

from zootools.cli.completion import complete_encoders, complete_recipes, complete_zoos
from zootools.cli.shared import ADDRESS, ENGINE, JSON, QUIET, SCHEMA, PathType, interruptible, located, print_value
from zootools.text import say


@click.command()
@located(["zoo", "named_zoo"], ["transfer_to"])
@click.argument("zoo", required=False, shell_complete=complete_zoos)
@click.option(
    "--zoo", "named_zoo", metavar="ZOO", shell_complete=complete_zoos, help="The zoo, instead of the argument."
)
@click.option(
    "--recipe",
    shell_complete=complete_recipes,
    help="A bundled recipe, or a recipe file; by default the recipe of the encoder in --encoder, else 'default'.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe.")
@click.option(
    "-o", "--out", type=PathType(new=True), help="Encoders and results; by default representations/ZOO/RECIPE."
)
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
@click.option(
    "--encoder",
    metavar="FOLDER|NAME",
    shell_complete=complete_encoders,
    help="Train nothing, and score this encoder: its folder, or ORG/NAME[@REVISION] on the Hub.",
)
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
@QUIET
@JSON
def represent(
    zoo: str | None,
    named_zoo: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    seeds: int,
    epochs: int | None,
    transfer_to: tuple[str, ...],
    baselines_only: bool,
    encoder: str | None,
    engine: str,
    address: str | None,
    search: Path | None,
    track: str | None,
    schema: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Learn a representation of a zoo's weights, and measure how well a linear probe predicts each property.

    ZOO is a folder, a name on a hub, or the URL of an object store.

    Prints the scores of the probes beside those of the baselines, and of the paper where it has them, and writes them
    as a Parquet table. The same command again reuses trained encoders, and the scores of the baselines, which are
    kept in the user's cache.

    \b
    Examples:
      zootools represent zoos/tetris_seed
      zootools represent zoos/digits_hyp --recipe smoke --set loss.kind=ED --seeds 3
      zootools represent zoos/digits_hyp --encoder encoders/digits_seed
      zootools represent zoos/mnist_hyp --transfer-to zoos/fashion_hyp --baselines-only
      zootools represent zoos/mnist_seed --search space.yaml --engine ray --seeds 5
    """
    if zoo is not None and named_zoo is not None:
        raise click.UsageError(f"found two zoos: {zoo!r}, and {named_zoo!r} after --zoo; give one of them")
    if (zoo := zoo if zoo is not None else named_zoo) is None:
        raise click.UsageError("missing argument ZOO: the zoo to represent, such as zoos/tetris_seed")
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
        encoder=encoder,
        epochs=epochs,
        search=search,
        engine=engine,
        address=address,
        track=track,
        quiet=quiet,
    )
    print_value(results.to_json(), as_json, lambda value: say(*results.render().split("\n")))
