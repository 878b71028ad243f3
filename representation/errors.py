"""Errors about a zoo or a training, with the folder that they are about as a field."""

from pathlib import Path

from zootools.errors import SpecError


class PlacedError(SpecError):
    """An invalid input in a folder. The message is ``"<folder>: <reason>"``."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder, self.reason = folder, reason

    def __reduce__(self) -> tuple[type["PlacedError"], tuple[Path, str]]:
        return type(self), (self.folder, self.reason)  # workers send errors to other processes


class LossError(PlacedError):
    """The loss of a training is no longer finite."""
