"""The command line: parse, call the library, print. Data goes to stdout, everything else to stderr.

Commands import what they need when they run, so that ``zootools --help`` does not wait for torch.
"""

import gc
import itertools
import logging
import select
import sys
import traceback
from typing import Any, NoReturn

import click
from click.exceptions import Exit, NoArgsIsHelpError

from zootools import __version__
from zootools.cli import (
    bench,
    build,
    cache,
    geometry,
    hub,
    importing,
    look,
    models,
    read,
    represent,
    reproduce,
    sampling,
    specs,
)
from zootools.cli.shared import Group, note_interrupts, was_interrupted
from zootools.errors import InterruptedBuildError, StorageError, ZooError, redact
from zootools.text import printable, say, tame_libraries


class _Group(Group):
    """Turns errors of the library into a message and an exit code; prints tracebacks only with --debug."""

    def main(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Run a command. Errors of click are printed by `say` too, because they contain the user's words."""
        settings["standalone_mode"] = False
        note_interrupts()
        try:
            code = super().main(*arguments, **settings)
        except click.ClickException as error:
            _show_usage(error)
            code = error.exit_code
        except click.Abort:
            code = InterruptedBuildError.exit_code
        gc.freeze()  # The last collection would look at the objects of all libraries, for a tenth of a second.
        sys.exit(code if isinstance(code, int) else 0)

    def headings(self) -> dict[str, list[click.Command]]:
        """Return `GROUPS`."""
        return GROUPS

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand of a context; exits with the code of its error."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.Abort, Exit):
            raise
        except KeyboardInterrupt:
            _fail_as_interrupted()
        except Exception as error:
            if was_interrupted() and not isinstance(error, ZooError):
                _fail_as_interrupted()
            if isinstance(error, BrokenPipeError) and _reader_has_ended():
                # The reader of our output (head, less) has ended, which is not an error.
                sys.stdout = None
                sys.exit(0)
            if context.params.get("debug"):
                trace = redact(traceback.format_exc()).split("\n")
                say(*(f"  {line}" for line in trace), err=True, limit=None)
            _fail(*_refusal(error))


def _fail_as_interrupted() -> NoReturn:
    interrupted = InterruptedBuildError("interrupted; the same command resumes")
    _fail(str(interrupted), interrupted.exit_code)


def _refusal(error: Exception) -> tuple[str, int]:
    """Return the message of an error, and the exit code."""
    if isinstance(error, ZooError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return printable(f"{error.filename or 'input/output'}: {error.strerror or error}"), StorageError.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory for this command", StorageError.exit_code
    shown = printable(f"{type(error).__name__}: {error}")
    return f"internal error in zootools, please report it with the output of `zootools --debug` ({shown})", 1


def _show_usage(error: click.ClickException) -> None:
    """Print an error of click, and the usage of the command."""
    if isinstance(error, NoArgsIsHelpError):
        say(*error.format_message().split("\n"), err=True)
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        say(*error.ctx.get_usage().split("\n"), f"Try '{error.ctx.command_path} --help' for help.", "", err=True)
    say(f"Error: {redact(error.format_message())}", err=True)


def _reader_has_ended() -> bool:
    """Return whether stdout or stderr is a pipe without a reader."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in outputs.poll(0))


def _fail(message: str, code: int) -> NoReturn:
    """Print a message whose values are printable already, and exit; its line breaks are those of `ZooError`."""
    say(*f"zootools: {redact(message)}".split("\n"), err=True)
    sys.exit(code)


class _Notices(logging.Handler):
    """Prints log records of the library, such as the hub that a zoo comes from or a retry, to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(f"zootools: {redact(record.getMessage())}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="zootools")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Build, publish and learn from model zoos: populations of neural networks with every checkpoint kept."""
    tame_libraries()
    log = logging.getLogger("zootools")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Notices())


GROUPS: dict[str, list[click.Command]] = {
    "Build": [build.build, specs.specs, specs.new, specs.schema, build.check, build.doctor, importing.import_command],
    "Read": [read.info, read.status, models.models, models.show, read.diff, read.verify, read.repair, models.export],
    "Share": [hub.publish, hub.pull, hub.hub, cache.cache],
    "Learn": [
        *(represent.represent, geometry.align, geometry.compare, sampling.sample),
        *(bench.tasks, bench.bench, reproduce.reproduce),
    ],
    "Look": [look.plot, look.view],
}
"""All commands, under the headings of ``zootools --help``."""

for command in itertools.chain(*GROUPS.values()):
    main.add_command(command)
