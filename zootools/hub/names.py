"""The hub that a command uses, and the names of zoos that it requires."""

import os
import re
from pathlib import Path

from zootools.errors import SpecError
from zootools.filesystem.files import home_expanded
from zootools.object_store.urls import folder_of
from zootools.zoo_name import ZooName, parse_name

ENVIRONMENT = "ZOOTOOLS_HUB"
"""The environment variable that names a hub folder, or the URL of another Hub."""


def require_name(text: str, revision: str | None = None) -> ZooName:
    """Like `parse_name`, but raise SpecError for what is not a name, such as the URL of a data set on the Hub."""
    name = parse_name(text, revision)
    if name is None:
        folder_of(text)  # which has a better message for URLs
        raise SpecError(f"{text!r} is not the name of a zoo on a hub; expected ORG/NAME, such as my-group/tetris_seed")
    return name


def hub_setting(hub: str | Path | None) -> str | Path | None:
    """Return the hub to use: the URL of another Hub, a hub folder, or None for the Hub.

    That is ``hub`` if given, else $ZOOTOOLS_HUB. A hub folder need not exist yet. Raises SpecError for any other value.
    """
    value = str(hub) if hub is not None else os.environ.get(ENVIRONMENT, "")
    if not value and hub is None:
        return None
    if not value.strip():
        raise SpecError(f"found an empty name ({value!r}) for the hub; expected a folder or a URL")
    if match := re.fullmatch(r"https?://(.*)", value):
        if not re.fullmatch(r"[\w.-]+(:[0-9]+)?(/.*)?|\[[0-9a-fA-F:]+\](:[0-9]+)?(/.*)?", match[1], re.ASCII):
            raise SpecError(f"{value}: expected a URL such as https://HOST, for the hub")
        return value.rstrip("/")
    if "://" in value:
        raise SpecError(f"{value}: expected a folder, or a URL that begins with https://, for the hub")
    return home_expanded(value).absolute()
