"""What a verification finds."""

from dataclasses import dataclass

UNLISTED = "is not in the manifest"
"""The fault of a file that is not part of the zoo."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a zoo: the file's name inside the folder, and what is wrong with it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def is_ignored(name: str) -> bool:
    """Whether readers ignore a file in a zoo's folder that its manifest does not name.

    They ignore hidden files and folders at the top, except the one file whose contents `datasets` prefers to the card.
    """
    return name.startswith(".") and name.lower() != ".huggingface.yaml"
