"""The hub that a command means, and the names that it requires."""

import os
import re
from pathlib import Path

from zootools.errors import SpecError
from zootools.filesystem.files import home_expanded
from zootools.object_store.urls import folder_of
from zootools.zoo_name import ZooName, parse_name

ENVIRONMENT = "ZOOTOOLS_HUB"


def require_name(text: str, revision: str | None = None) -> ZooName:
    """Like `parse_name`, with a SpecError for what is not a name, and for the address of a data set on the Hub."""
    name = parse_name(text, revision)
    if name is None:
        folder_of(text)
        raise SpecError(f"{text!r} is no name of a zoo on a hub; expected ORG/NAME, such as my-group/tetris_seed")
    return name


def hub_setting(hub: str | Path | None) -> str | Path | None:
    """Return the hub that is meant: a URL, a folder, or None for the Hub.

    That is ``hub`` if given, else $ZOOTOOLS_HUB. A hub folder need not exist yet.
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
