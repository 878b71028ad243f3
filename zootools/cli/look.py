"""Commands that show a zoo as pictures. Statistics and learned representations come from the sister package."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.cli.shared import JSON, SCHEMA, ZOO, interruptible, print_value
from zootools.errors import SpecError

if TYPE_CHECKING:
    from zootools.plots import Portrait

ENCODER = click.option("--encoder", metavar="DIR", help="Show what this encoder makes of the weights too.")


@click.command()
@ZOO
@ENCODER
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A folder for the pictures; default plots/ZOO.")
@SCHEMA
@JSON
def plot(zoo: str, encoder: str | None, out: Path | None, schema: Path | None, as_json: bool) -> None:
    """Draw a zoo: accuracies, losses, weight space, and the paper's figures 4, 7 and 8; as SVG and PNG.

    Weight space is reduced to the plane by UMAP if it is installed, else by PCA; every picture says which.

    \b
    Example:
      zootools plot zoos/digits_hyp -o pictures
      zootools plot zoos/digits_hyp --encoder representations/digits_hyp/default/seed-0
    """
    require("matplotlib", "zootools plot")
    from zootools.plots import Portrait, write_pictures
    from zootools.zoo import open_zoo

    interruptible()
    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    portrait = with_planes(Portrait.of(opened), encoder)
    out = out or Path("plots") / Path(opened.name).name
    files, skipped = write_pictures(portrait, out)

    def show(value: dict[str, Any]) -> None:
        for file in value["files"]:
            click.echo(file)
        for name, reason in value["skipped"].items():
            click.echo(f"no picture {name}: {reason}", err=True)

    print_value({"files": [str(file) for file in files], "skipped": skipped}, as_json, show)


def require(package: str, what: str) -> None:
    """Raise SpecError where a package of the extra ``plots`` is missing."""
    if find_spec(package) is None:
        raise SpecError(f"{what} needs {package}: pip install 'zootools[plots]'")


def with_planes(portrait: "Portrait", encoder: str | None) -> "Portrait":
    """Add the points of weights, of their statistics and, with an encoder, of z."""
    from representation.baselines import PaperStatistics, flatten
    from representation.evaluate import embed

    zoo = portrait.zoo
    weights, statistics = zoo.weights(), PaperStatistics()
    statistics.fit(weights, zoo.schema)
    features = {"W": weights, "s(W)": statistics.embed(weights)}
    if encoder is not None:
        features["z"] = embed(zoo, encoder)
    for label, values in features.items() if len(zoo) else ():
        points, method = flatten(values)
        portrait = portrait.with_plane(label, points.numpy(), method)
    return portrait
