"""Commands that draw a zoo. Statistics and learned representations are computed by the package `representation`."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.cli.completion import complete_encoders
from zootools.cli.shared import JSON, QUIET, SCHEMA, ZOO, PathType, interruptible, print_value
from zootools.errors import SpecError
from zootools.extras import optional
from zootools.text import say

if TYPE_CHECKING:
    from torch import Tensor

    from zootools.zoo import Zoo

ENCODER = click.option(
    "--encoder",
    metavar="DIR",
    shell_complete=complete_encoders,
    help="Also show the representation that this encoder computes.",
)


@click.command()
@ZOO
@ENCODER
@click.option("--only", multiple=True, metavar="NAME", help="Only this picture; may be repeated. See below.")
@click.option("--colour", metavar="COLUMN", help="Colour all points by this column of the metadata.")
@click.option("-o", "--out", type=PathType(new=True), help="A folder for the pictures; default plots/ZOO.")
@SCHEMA
@QUIET
@JSON
def plot(
    zoo: str,
    encoder: str | None,
    only: tuple[str, ...],
    colour: str | None,
    out: Path | None,
    schema: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw a zoo: accuracies, losses, F scores, weight space, and the paper's figures 4, 7 and 8; as SVG and PNG.

    Weight space is reduced to two dimensions by UMAP if it is installed, else by PCA; every picture names the method.
    The pictures are accuracy, mean-weight, gap, losses, classes (the F score of each class, by its name), weights,
    statistics, representation (with --encoder), figure-4, figure-7 and figure-8.

    \b
    Examples:
      zootools plot zoos/digits_hyp -o pictures
      zootools plot zoos/digits_hyp --only accuracy --only weights --colour lr
      zootools plot zoos/digits_hyp --encoder representations/digits_hyp/default/seed-0
    """
    optional("matplotlib", "zootools plot", "plots")
    from representation.evaluation.baselines import flatten
    from zootools.open import open_zoo
    from zootools.percent import PercentProgress
    from zootools.plots import Portrait, write_pictures
    from zootools.plots.writing import PICTURES, planes_of

    interruptible()
    names = only or tuple(name for name in PICTURES if encoder is not None or name != "representation")
    planes = planes_of(names)
    if "representation" in names and encoder is None:
        raise SpecError("--only representation needs --encoder DIR")
    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    out = out or default_folder(opened.name)
    with PercentProgress(1 + len(planes) + len(names), "drawing", quiet) as progress:
        portrait = Portrait.of(opened)
        portrait = portrait if colour is None else portrait.coloured_by(colour)
        progress.tick()
        for label, features in representations(portrait.zoo, encoder, planes):
            points, method = flatten(features)
            portrait = portrait.with_plane(label, points.numpy(), method)
            progress.tick()
        files, skipped = write_pictures(portrait, out, names, progress.tick)

    def show(value: dict[str, Any]) -> None:
        for file in value["files"]:
            say(file)
        for name, reason in value["skipped"].items():
            say(f"no picture {name}: {reason}", err=True)

    print_value({"files": [str(file) for file in files], "skipped": skipped}, as_json, show)


@click.command()
@ZOO
@ENCODER
@click.option("--umap", is_flag=True, help="Use UMAP instead of PCA; takes minutes for many checkpoints.")
@click.option("-o", "--out", type=PathType(new=True), help="The file; default plots/ZOO/view.html.")
@click.option("--add", is_flag=True, help="Add the page to the zoo: the card links it, publish uploads it.")
@click.option("--open/--no-open", "opens", default=True, help="Open the page in the browser; the default.")
@SCHEMA
@QUIET
@JSON
def view(
    zoo: str,
    encoder: str | None,
    umap: bool,
    out: Path | None,
    add: bool,
    opens: bool,
    schema: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make an interactive page of a zoo: one HTML file that needs neither a network nor other files.

    Points are checkpoints; a click on one, or on one of the best models in the table beside them, shows its model: the
    path over the epochs, the settings and the curves.

    \b
    Examples:
      zootools view zoos/digits_hyp
      zootools view zoos/digits_hyp --encoder representations/digits_hyp/default/seed-0 -o page.html
      zootools view zoos/digits_hyp --add --no-open
    """
    optional("plotly", "zootools view", "plots")
    if umap:
        optional("umap", "zootools view --umap", "plots")
    if add and (out is not None or schema is not None):
        raise SpecError("--add puts the page into a zoo of zootools; it cannot be combined with --out or --schema")
    from representation.evaluation.baselines import flatten
    from zootools.filesystem.files import check_output, write_output
    from zootools.open import open_zoo
    from zootools.percent import PercentProgress
    from zootools.plots.page import MAX_PAGE_POINTS, page
    from zootools.plots.portrait import Portrait
    from zootools.storage.finish import add_page
    from zootools.storage.manifest import PAGE

    interruptible()
    if out is not None:
        check_output(out, PAGE)
    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    with PercentProgress(4 + (encoder is not None), "drawing", quiet) as progress:
        portrait = Portrait.of(opened, MAX_PAGE_POINTS, whole_models=True)
        progress.tick()
        for label, features in representations(portrait.zoo, encoder):
            points, method = flatten(features, umap)
            portrait = portrait.with_plane(label, points.numpy(), method)
            progress.tick()
        made = page(portrait)
        progress.tick()
    if add:
        add_page(opened.folder, made)
        out = opened.folder / PAGE
    else:
        out = out or default_folder(opened.name) / PAGE
        write_output(out, made, PAGE)
    value = {"file": str(out), "bytes": len(made), "checkpoints": len(portrait.zoo)}
    print_value(value, as_json, lambda value: say(value["file"]))
    if opens and out.is_file():  # not a pipe or a device
        click.launch(out.absolute().as_uri())


def default_folder(name: str) -> Path:
    """Return the default folder of a zoo's pictures."""
    return Path("plots") / Path(name).name


def representations(
    zoo: "Zoo", encoder: str | None, wanted: Collection[str] = ("W", "s(W)", "z")
) -> Iterator[tuple[str, "Tensor"]]:
    """Yield those of W, s(W) and, with an encoder, z that are wanted, each with its features.

    The features are float32 ``[checkpoints, features]``.
    """
    from representation.evaluation.baselines import PaperStatistics
    from representation.pipeline import embed

    if not len(zoo) or not wanted:
        return
    weights, statistics = zoo.weights(), PaperStatistics()
    if "W" in wanted:
        yield "W", weights
    if "s(W)" in wanted:
        statistics.fit(weights, zoo.schema)
        yield "s(W)", statistics.embed(weights)
    if encoder is not None and "z" in wanted:
        yield "z", embed(zoo, encoder)
