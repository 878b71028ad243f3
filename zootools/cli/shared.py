"""Options, output formats and signal handlers that several commands share."""

import functools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

from zootools.cli.completion import complete_specs, complete_zoos
from zootools.cli.output import show_table
from zootools.engines.table import ENGINES
from zootools.errors import did_you_mean
from zootools.filesystem.files import file_above, home_expanded
from zootools.text import say
from zootools.zoo_name import Address


class Group(click.Group):
    """Lists its commands with the whole first sentence of their help, under headings."""

    def headings(self) -> dict[str, list[click.Command]]:
        """Return the commands by the heading that they are listed under."""
        return {"Commands": [self.commands[name] for name in sorted(self.commands)]}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands; the sentences of all headings begin in the same column."""
        longest = max(len(name) for name in self.commands)
        for heading, commands in self.headings().items():
            rows = [(command.name or "", command.get_short_help_str(limit=1000)) for command in commands]
            with formatter.section(heading):
                formatter.write_dl(rows, col_spacing=2 + longest - max(len(name) for name, _ in rows))


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


def _hush(context: click.Context, option: click.Parameter, quiet: bool) -> bool:
    if quiet:
        logging.getLogger("zootools").setLevel(logging.WARNING)
    return quiet


QUIET = click.option(
    "-q", "--quiet", is_flag=True, callback=_hush, help="Print results and errors only: no progress, no notes."
)
"""For every command that prints progress; it receives ``quiet``, and also the notes of the library are left out."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
DATA = click.option(
    "--data",
    type=PathType(),
    help="The folder of image files and downloads; else $ZOOTOOLS_DATA, else the user's cache.",
)
SPEC = click.argument("spec", shell_complete=complete_specs)
"""A YAML file, or the name of a bundled specification."""

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


def located(names: Sequence[str], others: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator of commands that adds --hub and --revision to arguments or options which name zoos.

    The parameters ``names`` and ``others`` (texts, or tuples of them) are passed on with what the options say
    (`zootools.zoo_name.Address`), so the command gives them to `open_zoo` or `locate` as they are. The revision is that
    of ``names``; of the others it is written after the name, as ORG/NAME@REVISION.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*arguments: Any, hub: str | None, revision: str | None, **values: Any) -> None:
            for name in (*names, *others):
                chosen = revision if name in names else None
                value = values[name]
                if isinstance(value, tuple):
                    values[name] = tuple(_address(zoo, hub, chosen) for zoo in value)
                elif value is not None:
                    values[name] = _address(value, hub, chosen)
            command(*arguments, **values)

        return HUB(REVISION(run))

    return decorate


def _address(zoo: str, hub: str | None, revision: str | None) -> Address:
    address = Address(zoo)
    address.hub, address.revision = hub, revision
    return address


def ZOO(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument ZOO with --hub and --revision: a folder, a name on a hub, or the URL of an object store."""
    return click.argument("zoo", shell_complete=complete_zoos)(located(["zoo"])(command))


def print_value(value: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a value as one line of JSON, or readably by ``show``."""
    if as_json:
        say(json.dumps(value), limit=None)
    else:
        show(value)


def show_accuracy(summary: dict[str, list[float]]) -> None:
    """Print minimum, quartiles and maximum by epoch (`zootools.storage.tables.accuracy_summary`)."""
    say("test accuracy by epoch")
    rows = [[int(epoch), *values] for epoch, values in summary.items()]
    show_table(["epoch", "minimum", "quartile", "median", "quartile", "maximum"], rows, indent=2)


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def without_pandas() -> None:
    """Keep pyarrow from importing pandas in this process, which takes a third of the time of a command that reads.

    pyarrow tries it once, to recognise values of pandas, of which commands have none; other modules can still import
    pandas.
    """
    if "pandas" not in sys.modules:
        import pyarrow as pa

        finder = _WithoutPandas()
        sys.meta_path.insert(0, finder)
        try:
            pa.scalar(0)
        finally:
            sys.meta_path.remove(finder)


_interrupted = threading.Event()


def note_interrupts() -> None:
    """Remember Ctrl-C from now on: a library that it reaches may raise an error of its own instead (pydantic does)."""
    _interrupted.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or another's
        signal.signal(signal.SIGINT, _note)
        sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)


def was_interrupted() -> bool:
    """Return whether Ctrl-C was pressed since `note_interrupts`."""
    return _interrupted.is_set()


def _note(number: int, frame: object) -> NoReturn:
    _interrupted.set()
    raise KeyboardInterrupt


def _interrupt_again(hook: Callable[[Any], Any], discarded: Any) -> None:
    """Press Ctrl-C again if a library discarded it, as pydantic does while it compiles a validator."""
    if isinstance(discarded.exc_value, KeyboardInterrupt):
        # Later, since an exception that is raised here would be discarded too.
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        hook(discarded)


def interruptible() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C; a second signal ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    _interrupted.set()
    raise KeyboardInterrupt
