"""The bundled files: zoo specifications and the card template.

In a checkout they are at the top level, where people look for them; in a wheel they are inside the package
(pyproject.toml copies them there).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from zootools.errors import SpecError, did_you_mean, nearest_path
from zootools.filesystem.files import home_expanded

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE / "_bundled" if (_PACKAGE / "_bundled").is_dir() else _PACKAGE.parent

CARD_TEMPLATE = _ROOT / "CARD_TEMPLATE.md"
"""The template of the cards of zoos (Jinja)."""


def bundled_specs() -> dict[str, Path]:
    """Return the bundled specifications by name, in alphabetical order."""
    return {path.stem: path for path in sorted((_ROOT / "zoo_specs").glob("*.yaml"))}


def bundled_spec(name: str) -> Path:
    """Return the path of a bundled specification. Raises SpecError with the nearest name."""
    if name not in (bundled := bundled_specs()):
        raise SpecError(f"{name}: no bundled specification{did_you_mean(name, bundled)}")
    return bundled[name]


def find_spec(name_or_path: str) -> Path:
    """Return the path of a specification, given as a path or as the name of a bundled one.

    Raises SpecError with the nearest bundled specification if neither exists.
    """
    return find_bundled(name_or_path, bundled_specs(), "specification")


def find_bundled(name_or_path: str, bundled: Mapping[str, Path], what: str) -> Path:
    """Return the path if it is a file, else the bundled file of that name.

    Raises SpecError if neither exists; ``what`` is the kind of file in its message.
    """
    if not name_or_path.strip():
        raise SpecError(f"found an empty name ({name_or_path!r}); expected a {what} file, or a bundled {what}")
    path = home_expanded(name_or_path)
    if os.path.isfile(path):  # noqa: PTH113 (Path raises OSError for a name that is too long)
        return path
    if name_or_path in bundled:
        return bundled[name_or_path]
    if os.path.exists(path):  # noqa: PTH110
        found = "folder" if path.is_dir() else "device, pipe or socket"
        raise SpecError(f"{name_or_path}: is a {found}; expected a {what} file (*.yaml)")
    near = nearest_path(path) if len(path.parts) > 1 or path.suffix else ""
    raise SpecError(f"{name_or_path}: no such file or bundled {what}{near or did_you_mean(path.stem, bundled)}")
