"""Packages that are installed only with an extra of zootools."""

from importlib import import_module
from typing import Any

from zootools.errors import SpecError


def optional(package: str, what: str, extra: str) -> Any:
    """Import a package that ``what`` needs and that the ``extra`` of zootools installs.

    Raises SpecError if it is missing, or, with the reason, if it is installed but cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name
        reason = "" if missing else f" ({error})"
        raise SpecError(f"{what} needs {name}{reason}: pip install 'zootools[{extra}]'") from error
