"""A zoo in the listing of a hub."""

import re
from dataclasses import dataclass

_MODELS = re.compile(r"model zoo\W{0,6}([0-9]{1,9}) neural networks", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A zoo in a listing."""

    name: str
    description: str
    """That of the zoo; on the Hub the beginning of the card, in one line."""
    commit: str
    models: int | None = None
    """The number of models that the zoo should have; None where the listing does not contain it."""
    bytes: int | None = None
    """The size of all files, in bytes; None where the listing does not contain it."""
    date: str | None = None
    """The day of the last publication, in UTC, such as ``2026-11-26``; None where the listing does not contain it."""


def models_in(text: str) -> int | None:
    """Return the number of models in the text of a card (CARD_TEMPLATE.md); None where it was cut off before."""
    match = _MODELS.search(text)
    return int(match[1]) if match else None
