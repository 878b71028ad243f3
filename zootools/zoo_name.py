"""Names of published zoos: ``org/name`` or ``org/name@revision``."""

import re
from dataclasses import dataclass

from zootools.errors import SpecError

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"({_WORD})/({_WORD})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


@dataclass(frozen=True)
class ZooName:
    """The name of a zoo on a hub: ``org/name``, and the branch, tag or commit if one is named."""

    org: str
    name: str
    revision: str | None = None

    @property
    def repo_id(self) -> str:
        """``org/name``."""
        return f"{self.org}/{self.name}"

    def __str__(self) -> str:
        return self.repo_id + (f"@{self.revision}" if self.revision else "")


def parse_name(text: str, revision: str | None = None) -> ZooName | None:
    """Read ``org/name`` or ``org/name@revision``; None for anything else.

    Raises SpecError where two revisions are given.
    """
    match = _NAME.fullmatch(text)
    if match is None or ".." in text or "--" in text or text.endswith(".git"):
        return None
    if revision is not None and match[3] is not None:
        raise SpecError(f"{text}: names a revision, and another one ({revision}) is given too")
    if revision is not None and parse_name(f"org/name@{revision}") is None:
        raise SpecError(f"revision: found {revision!r}; expected a branch, a tag or a commit")
    return ZooName(match[1], match[2], revision or match[3])


class Address(str):
    """The path, name or URL of a zoo, with the hub and the revision that were given beside it (``--hub``)."""

    hub: str | None = None
    revision: str | None = None
