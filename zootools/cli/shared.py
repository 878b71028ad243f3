"""Options, output formats and signal handlers that several commands share."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from zootools.engines.table import ENGINES
from zootools.errors import did_you_mean
from zootools.filesystem.files import file_above, home_expanded
from zootools.text import say


class Word(click.Choice[str]):
    """One of several words; the error for an unknown word contains the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word. Fails like every type of click."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"found {value!r}{did_you_mean(str(value), self.choices)}", param, ctx)


class PathType(click.Path):
    """A path on the command line: not empty; ``~`` is the home folder, also in ``--out=~/zoo``.

    Args:
        dir_okay: accept folders.
        new: the command creates the path, so it must not be below a file.
    """

    def __init__(self, dir_okay: bool = True, new: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)
        self.new = new

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path. Fails like every type of click."""
        text = os.fspath(value)
        if not text.strip():
            self.fail(f"found an empty path ({text!r})", param, ctx)
        path = home_expanded(text)
        if self.new and (blocking := file_above(path)) is not None:
            self.fail(f"{text}: {blocking} is not a folder", param, ctx)
        return super().convert(path, param, ctx)


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
DATA = click.option(
    "--data",
    type=PathType(),
    help="The folder of image files and downloads; else $ZOOTOOLS_DATA, else the user's cache.",
)
ZOO = click.argument("zoo")
"""A folder, a name on a hub (ORG/NAME or ORG/NAME@REVISION), or the URL of an object store."""

HUB = click.option(
    "--hub",
    metavar="DIR|URL",
    help="A folder that serves as the hub, or another Hub; else $ZOOTOOLS_HUB, else the Hub.",
)
SCHEMA = click.option(
    "--schema",
    type=PathType(dir_okay=False),
    help="A layer schema or index (JSON), to read other Parquet files with a weights column.",
)
ENGINE = click.option(
    "--engine",
    type=Word(tuple(ENGINES)),
    default="local",
    show_default=True,
    help="Train on this machine, or on a Ray cluster.",
)
ADDRESS = click.option(
    "--address", metavar="HOST:PORT|auto", help="The Ray cluster to join; else $RAY_ADDRESS, else one on this machine."
)
REVISION = click.option("--revision", help="A branch, tag or commit.")


def print_value(value: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a value as one line of JSON, or readably by ``show``."""
    if as_json:
        say(json.dumps(value), limit=None)
    else:
        show(value)


def show_pairs(value: dict[str, Any]) -> None:
    """Print one line per key."""
    for key, item in value.items():
        text = f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) and key != "seed" else item
        say(f"{key.replace('_', ' '):<22} {text}")


def show_accuracy(summary: dict[str, list[float]]) -> None:
    """Print minimum, quartiles and maximum by epoch (`zootools.storage.tables.accuracy_summary`)."""
    say("test accuracy   minimum  quartile    median  quartile   maximum")
    for epoch, values in summary.items():
        say(f"  epoch {epoch:>6} " + " ".join(f"{value:9.4f}" for value in values))


def interruptible() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C; a second signal ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
