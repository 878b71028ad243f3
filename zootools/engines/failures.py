"""Errors on their way from a worker to the builder: a ZooError, and the worker's traceback for --debug."""

import traceback

from zootools.errors import StorageError, WorkerError, ZooError

Stopped = tuple[ZooError, str]
"""The error that the builder raises, and the traceback of the worker."""


class RemoteTraceback(Exception):
    """The traceback of a worker, as the ``__cause__`` of the error that the builder raises."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


def stopped_by(error: Exception, doing: str) -> Stopped:
    """Return what a worker sends to the builder about an error that would come again on a retry.

    Args:
        error: a ZooError is sent as it is, an OSError as StorageError, any other one as WorkerError.
        doing: the beginning of the message, such as ``stack 3 cannot be trained``.
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
    """Raise the error that a worker has sent."""
    error, trace = stopped
    raise error from RemoteTraceback(trace)
