"""Write all pictures of a zoo as files; an unchanged zoo gives the same bytes."""

import io
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zootools.errors import SpecError, ZooError, did_you_mean
from zootools.filesystem.files import write_output
from zootools.plots import figures
from zootools.plots.portrait import Portrait
from zootools.plots.style import styled

_FILES = {"W": "weights", "s(W)": "statistics", "z": "representation"}
PICTURES = {
    "accuracy": (),
    "mean-weight": (),
    "gap": (),
    "losses": (),
    "classes": (),
    "weights": ("W",),
    "statistics": ("s(W)",),
    "representation": ("z",),
    "figure-4": ("W",),
    "figure-7": ("W",),
    "figure-8": ("W", "s(W)", "z"),
}
"""All pictures by name, and the planes of a portrait that each shows."""


def pictures(portrait: Portrait) -> Iterator[tuple[str, Callable[[], Figure], str]]:
    """Yield the name of every picture, the function that draws it, and why it cannot be drawn (empty if it can)."""
    lacks = portrait.lacks
    yield "accuracy", lambda: figures.accuracy(portrait), lacks("test_accuracy")
    yield "mean-weight", lambda: figures.mean_weight(portrait), lacks("test_accuracy")
    yield "gap", lambda: figures.gap(portrait), lacks("generalization_gap", "test_accuracy")
    no_loss = all(map(lacks, figures.LOSSES))
    yield "losses", lambda: figures.losses(portrait), "there is no property with a loss" if no_loss else ""
    yield "classes", lambda: figures.class_scores(portrait), portrait.lacks_classes
    flat = "" if portrait.properties else "no property varies"
    for label in portrait.planes:
        yield _FILES.get(label, label), lambda label=label: figures.embedding(portrait, label), flat  # type: ignore[misc]
    no_init = "" if portrait.colour or "init" in portrait.properties else "the initialisation does not vary"
    if "W" in portrait.planes:
        yield "figure-4", lambda: figures.figure_4([portrait]), no_init
        yield "figure-7", lambda: figures.figure_7([portrait]), lacks("test_accuracy")
    if portrait.planes:
        yield "figure-8", lambda: figures.figure_8(portrait), flat


def planes_of(names: Collection[str]) -> set[str]:
    """Return the planes that pictures show. Raises SpecError for a name that no picture has."""
    for name in names:
        if name not in PICTURES:
            raise SpecError(f"picture: found {name!r}{did_you_mean(name, PICTURES)}")
    return {label for name in names for label in PICTURES[name]}


def write_pictures(
    portrait: Portrait,
    folder: Path,
    only: Collection[str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Path], dict[str, str]]:
    """Write pictures of a zoo as SVG and PNG; return the files, and the reasons why others could not be drawn.

    Args:
        portrait: the zoo, with the planes that the pictures show.
        folder: where the files are written.
        only: names of `PICTURES`; by default all, and those of planes with other labels.
        tick: called after every picture.
    """
    files, skipped = [], {}
    for name, draw, reason in pictures(portrait):
        if only is not None and name not in only:
            continue
        tick()
        if reason:
            skipped[name] = reason
            continue
        try:
            figure = draw()
            made = {ending: image_bytes(figure, ending) for ending in ("svg", "png")}
        except (MemoryError, ZooError):
            raise
        except Exception as error:
            # For instance, matplotlib computes ticks that overflow for values near the maximum of float64.
            skipped[name] = f"matplotlib fails on these values ({type(error).__name__}: {error!s:.100})"
            continue
        for ending, data in made.items():
            files.append(folder / f"{name}.{ending}")
            write_output(files[-1], data, files[-1].name)
    return files, skipped


def image_bytes(figure: Figure, ending: str) -> bytes:
    """Return the bytes of a picture as ``svg`` or ``png``, without date and version."""
    nothing = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[ending]
    buffer = io.BytesIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script that the font lacks
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format=ending, metadata=nothing)
    return buffer.getvalue()
