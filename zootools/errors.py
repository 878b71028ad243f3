"""Every refusal of zootools: one class per exit code, and the wording of "did you mean"."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zootools.text import MOST_LINES, printable

MOST_CHOICES = 50
"""Allowed values that a message lists."""


class ZooError(Exception):
    """A refusal that a user can act on: what was found, where, and what was expected.

    ``exit_code`` is what the command line leaves with. Every argument is one line of the message: a line break inside
    an argument comes from what somebody else wrote, and is shown as an escape (`zootools.text.printable`).
    """

    exit_code = 2

    def __str__(self) -> str:
        lines = [printable(line) for line in self.args[:MOST_LINES]]
        left = len(self.args) - MOST_LINES
        return "\n".join([*lines, f"  ... and {left:,} more"] if left > 0 else lines)


class SpecError(ZooError):
    """A zoo specification, or an argument, is wrong."""


class ZooNotFoundError(ZooError):
    """There is no zoo (or model, or checkpoint) under the given name."""


class HubError(ZooError):
    """The Hub refuses; the message says what to do about it."""


class ClusterError(ZooError):
    """There is no Ray, no cluster at the given address, or no machine in it that is fit for the build."""


class DamagedZooError(ZooError):
    """Stored data is not what its manifest promises, or does not come from where it should."""

    exit_code = 3


class StorageError(ZooError):
    """The disk, the network or a download failed; what was committed before is still there."""

    exit_code = 74


class WorkerError(StorageError):
    """A worker cannot start, failed, or died again and again; what was committed is kept."""


class BusyError(ZooError):
    """Another process is at work in this folder."""

    exit_code = 75


class InterruptedBuildError(ZooError):
    """The build was stopped from outside; the same command resumes it."""

    exit_code = 130


_SYNONYMS = {"gpu": "cuda"}
"""Words for which the one that is spelled most alike is not the one that is meant."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (allowed: ...)"`` for an unknown ``word``, to end a sentence with."""
    known = sorted(choices)
    close = difflib.get_close_matches(_SYNONYMS.get(word, word)[:200], known[:10_000], n=1, cutoff=0.5)
    more = f", ... ({len(known) - MOST_CHOICES:,} more)" if len(known) > MOST_CHOICES else ""
    allowed = ", ".join(known[:MOST_CHOICES]) + more
    return f"; did you mean {close[0]!r}? (allowed: {allowed})" if close else f"; allowed: {allowed}"


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
        there: what is recorded, or belongs to another machine.
        here: what it is compared with.
        second: the word for ``here``.
        show: returns a value as text.
        missing: shown for the value of a key that only the other mapping has.
    """
    return [
        f"{key}: {show(there.get(key, missing))} there, {show(here.get(key, missing))} {second}"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def nearest_path(path: Path) -> str:
    """Return what helps with a path where nothing is: ``"; did you mean 'x'?"`` with the most similar one, or ""."""
    path = path.absolute()
    if os.path.islink(path):  # noqa: PTH114 (also of a name longer than any can be)
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
    """Return ``text`` with every access token of the Hub, and the secrets of an object store, blotted out.

    None should ever get into a message; this is the second line, for one that was put where it does not belong.
    """
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, "***")
    return re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", text)
