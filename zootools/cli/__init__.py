"""The command line: parse, call the library, print. Data goes to stdout, everything else to stderr.

Commands import what they need when they run, so that ``zootools --help`` does not wait for torch.
"""

import logging
import select
import sys
import traceback
from typing import Any, NoReturn

import click

from zootools import __version__
from zootools.cli import build, hub, look, read, represent, reproduce
from zootools.errors import InterruptedBuildError, ZooError, redact


class _Group(click.Group):
    """Turns refusals of the library into one line and an exit code; tracebacks only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ZooError as error:
            if context.params.get("debug"):
                click.echo(redact(traceback.format_exc()), err=True)
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            interrupted = InterruptedBuildError("interrupted; the same command goes on where this one stopped")
            _fail(str(interrupted), interrupted.exit_code)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_listens():
                # The reader of our output (head, less) has left: nothing is wrong.
                sys.stdout = None
                sys.exit(0)
            if context.params.get("debug"):
                click.echo(redact(traceback.format_exc()), err=True)
            _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 74)


def _nobody_listens() -> bool:
    """Whether what we print goes into a pipe whose reader has left."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in outputs.poll(0))


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"zootools: {redact(message)}", err=True)
    sys.exit(code)


class _Notices(logging.Handler):
    """Prints what the library notes (which hub a zoo comes from, a retry) on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"zootools: {redact(record.getMessage())}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="zootools")
@click.option("--debug", is_flag=True, help="Show the traceback of a refusal.")
def main(debug: bool) -> None:
    """Build, publish and learn from model zoos: populations of neural networks with every checkpoint kept."""
    log = logging.getLogger("zootools")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Notices())


for command in (
    build.build,
    build.specs,
    build.check,
    build.doctor,
    read.info,
    read.status,
    read.show,
    read.export,
    read.verify,
    read.repair,
    hub.publish,
    hub.pull,
    hub.hub,
    represent.represent,
    look.plot,
    look.view,
    reproduce.reproduce,
):
    main.add_command(command)
