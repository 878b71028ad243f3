"""What stops a worker, as it travels to the builder: a ZooError, and the traceback for --debug."""

import traceback

from zootools.errors import StorageError, WorkerError, ZooError

Stopped = tuple[ZooError, str]
"""What is raised in the builder, and the traceback in the worker."""


class RemoteTraceback(Exception):
    """Where in a worker an error was raised; the cause of the error in the builder."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


def stopped_by(error: Exception, doing: str) -> Stopped:
    """Return what the builder is told of an error that a worker met; trying again would not help.

    Args:
        error: what the worker met.
        doing: what it could not do, such as ``stack 3 cannot be trained``.
    """
    trace = traceback.format_exc()
    if isinstance(error, ZooError):
        return error, trace
    if isinstance(error, OSError):
        return StorageError(f"{doing}: {error}"), trace
    reason = " ".join(str(error).split())[:300]
    text = f"{doing}: {type(error).__name__}{f': {reason}' if reason else ''}"
    if isinstance(error, MemoryError) or "allocate" in reason or "out of memory" in reason:
        text += "; fewer --workers take less memory"
    return WorkerError(f"{text} (`zootools --debug build` shows where)"), trace


def raise_stopped(stopped: Stopped) -> None:
    """Raise in the builder what a worker was stopped by."""
    error, trace = stopped
    raise error from RemoteTraceback(trace)
