"""The names of architectures that users have added, without the code behind them.

A specification may name an architecture that `zootools.register_architecture` has added in this process, or that an
installed package offers as an entry point of the group `GROUP`. Here only the names are looked up: reading a
specification or a zoo, which may be a stranger's, imports nothing.
"""

import re
from importlib.metadata import EntryPoint, entry_points

WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""The form of registered names."""

GROUP = "zootools.architectures"
"""The group of entry points of packages that add architectures."""

REGISTERED: set[str] = set()
"""The names that `zootools.register_architecture` has added in this process."""

HOW_TO_REGISTER = (
    "an architecture of your own is registered by zootools.register_architecture in the script that builds, or for the "
    f"command line by a package with an entry point of the group {GROUP}"
)


def is_registered(name: object) -> bool:
    """Whether a name is that of an architecture that a user has added."""
    return isinstance(name, str) and (name in REGISTERED or bool(entry_points_of(name)))


def entry_points_of(name: str) -> list[EntryPoint]:
    """Return the entry points of installed packages that offer an architecture of this name."""
    return list(entry_points(group=GROUP, name=name))
