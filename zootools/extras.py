"""Packages that come with an extra of zootools only."""

from importlib import import_module
from typing import Any

from zootools.errors import SpecError


def optional(package: str, what: str, extra: str) -> Any:
    """Return a package that ``what`` needs, and an ``extra`` of zootools brings. Raises SpecError where it is missing.

    One that is there and cannot be imported, because something that it needs is missing or of another version, is named
    with its reason.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name
        reason = "" if missing else f" ({error})"
        raise SpecError(f"{what} needs {name}{reason}: pip install 'zootools[{extra}]'") from error
