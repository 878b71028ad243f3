"""The errors that zootools raises, one class per exit code, and the wording of "did you mean"."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zootools.text import MOST_LINES, printable

MOST_CHOICES = 50
"""Maximal number of allowed values in a message."""


class ZooError(Exception):
    """An error that the user can correct; the message contains the place, the value found, and the value expected.

    Every argument is one line of the message. A line break inside an argument comes from untrusted text, and is shown
    as an escape (`zootools.text.printable`).
    """

    exit_code = 2
    """The exit code of the command line."""

    def __str__(self) -> str:
        lines = [printable(line) for line in self.args[:MOST_LINES]]
        left = len(self.args) - MOST_LINES
        return "\n".join([*lines, f"  ... and {left:,} more"] if left > 0 else lines)


class SpecError(ZooError):
    """A specification or an argument is invalid."""


class ZooNotFoundError(ZooError):
    """No zoo, model or checkpoint has the given name."""


class HubError(ZooError):
    """The Hub refused a request; the message contains the remedy."""


class ClusterError(ZooError):
    """Ray is not installed, no cluster answers at the given address, or none of its machines can run the build."""


class DamagedZooError(ZooError):
    """Stored data differs from its manifest, or is not from the place that it claims.

    Args:
        reason: what is wrong.
        details: further lines of the message.
        path: the file that is wrong; the message begins with it.
    """

    exit_code = 3

    def __init__(self, reason: str, *details: str, path: Path | str | None = None) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}", *details)
        self.reason, self.path = reason, path


class StorageError(ZooError):
    """The disk, the network or a download failed; committed data is kept."""

    exit_code = 74


class WorkerError(StorageError):
    """A worker could not start, failed, or died repeatedly; committed data is kept."""


class BusyError(ZooError):
    """Another process is working in this folder."""

    exit_code = 75


class InterruptedBuildError(ZooError):
    """The command was interrupted; the same command resumes it."""

    exit_code = 130


_SYNONYMS = {"gpu": "cuda"}
"""Words whose intended choice is not the most similar one."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is most similar to ``word``, or None if none is similar."""
    known = sorted(choices)[:10_000]
    close = difflib.get_close_matches(_SYNONYMS.get(word, word)[:200], known, n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (allowed: ...)"`` for an unknown ``word``, to append to a message."""
    known = sorted(choices)
    near = nearest(word, known)
    more = f", ... ({len(known) - MOST_CHOICES:,} more)" if len(known) > MOST_CHOICES else ""
    allowed = ", ".join(known[:MOST_CHOICES]) + more
    return f"; did you mean {near!r}? (allowed: {allowed})" if near else f"; allowed: {allowed}"


def differences(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    second: str = "here",
    *,
    show: Callable[[Any], str] = repr,
    missing: object = None,
) -> list[str]:
    """Return ``"key: a there, b here"`` for every key whose values differ, in the order of the keys.

    Args:
        there: the recorded values, or those of another machine.
        here: the values to compare with.
        second: the word for ``here`` in the result.
        show: formats a value.
        missing: the value shown for a key that only the other mapping has.
    """
    return [
        f"{key}: {show(there.get(key, missing))} there, {show(here.get(key, missing))} {second}"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def nearest_path(path: Path) -> str:
    """Return ``"; did you mean 'x'?"`` with the existing path most similar to a missing one, or an empty string."""
    path = path.absolute()
    if os.path.islink(path):  # noqa: PTH114 (Path raises OSError for a name that is too long)
        return f"; it is a link to {str(path.readlink())!r}, where nothing is"
    there = next(parent for parent in path.parents if os.path.isdir(parent))  # noqa: PTH112
    try:
        names = sorted(entry.name for entry in there.iterdir())[:10_000]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.relative_to(there).parts[0][:255], names, n=1)
    shown = there.relative_to(Path.cwd()) if there.is_relative_to(Path.cwd()) else there
    return f"; did you mean {str(shown / near[0])!r}?" if near else ""


def redact(text: str) -> str:
    """Return ``text`` with all access tokens of the Hub, and the secrets of an object store, masked.

    No message should contain one; this protects against secrets that a user put into a wrong place.
    """
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, "***")
    return re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", text)
