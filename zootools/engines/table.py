"""The engines that a build can name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zootools.choices import check_word

if TYPE_CHECKING:
    from zootools.engines.engine import Engine


def _local(address: str | None) -> "Engine":
    from zootools.engines.local import LocalEngine

    return LocalEngine(address)


def _ray(address: str | None) -> "Engine":
    from zootools.engines.ray import RayEngine

    return RayEngine(address)


ENGINES: dict[str, Callable[[str | None], "Engine"]] = {"local": _local, "ray": _ray}
"""The engines by name. Each is imported when it is asked for: the command line's help needs only the names."""


def open_engine(name: str, address: str | None = None) -> "Engine":
    """Return the engine of a name.

    Args:
        name: a key of `ENGINES`.
        address: of the cluster that it uses.

    Raises SpecError for an unknown name, with the nearest one; ClusterError for an address that the engine does not
    use, and where a package that it needs is not installed.
    """
    return ENGINES[check_word("engine", name, tuple(ENGINES))](address)
