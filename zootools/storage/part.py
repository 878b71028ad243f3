"""Parts of published zoos: folders with the metadata of a whole zoo, and the weights of some checkpoints.

A part has the manifest, the specification and the metadata of the zoo unchanged, so every file in it is compared with
the hashes that were published. Its file part.json has the choice; readers show the chosen checkpoints alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import FailFast, Field, TypeAdapter

from zootools.errors import SpecError
from zootools.hashing import pretty_json
from zootools.spec.sections import Section
from zootools.storage.hashed_json import add_hash, read_hashed, validate
from zootools.storage.records import Digest

PART = "part.json"
"""The file of a part that names the whole zoo and the chosen checkpoints."""
MAX_EPOCH = 100_000
Epoch = Annotated[int, Field(ge=0, le=MAX_EPOCH)]

_RANGE = re.compile(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", re.ASCII)


@dataclass(frozen=True)
class Selection:
    """Some checkpoints of a zoo; all of them by default."""

    where: str | None = None
    """A condition on metadata columns (`zootools.Zoo.where`)."""
    epochs: tuple[int, ...] | None = None
    """Only checkpoints at these epochs."""
    weights: bool = True
    """Whether the weights are chosen too, and not the metadata only."""

    @property
    def is_everything(self) -> bool:
        """Whether all checkpoints are chosen, with their weights."""
        return self == Selection()

    def __str__(self) -> str:
        chosen = [f"where {self.where}"] if self.where is not None else []
        chosen += [f"epochs {', '.join(map(str, self.epochs))}"] if self.epochs is not None else []
        return "; ".join([*chosen, *(["metadata only"] if not self.weights else [])]) or "everything"


class Part(Section):
    """The content of part.json."""

    zoo: Annotated[str, Field(max_length=1000)]
    """The name or the URL of the whole zoo."""
    commit: Annotated[str, Field(max_length=100)] | None = None
    """The version on its hub."""
    manifest: Digest
    """The sha256 in the zoo.json of the whole zoo."""
    where: Annotated[str, Field(max_length=1000)] | None = None
    epochs: Annotated[list[Epoch], FailFast(), Field(max_length=MAX_EPOCH)] = Field(default_factory=list)
    """Empty where all epochs are chosen."""
    weights: bool = True
    sha256: Digest = "0" * 64

    @property
    def selection(self) -> Selection:
        """The checkpoints that were chosen."""
        return Selection(self.where, tuple(self.epochs) or None, self.weights)

    def to_bytes(self) -> bytes:
        """Return the bytes of part.json."""
        return pretty_json(add_hash(self.model_dump(exclude={"sha256"}, exclude_defaults=True)))


_PART = TypeAdapter(Part)


def read_part(folder: Path) -> Part | None:
    """Return the content of part.json, None for the folder of a whole zoo. Raises DamagedZooError."""
    try:
        value = read_hashed(folder, PART)
    except FileNotFoundError:
        return None
    return validate(_PART, value, folder / PART)


def require_whole(folder: Path, verb: str) -> None:
    """Raise SpecError for a part of a zoo, which cannot be published, grown or repaired (``verb``)."""
    part = read_part(folder)
    if part is not None:
        raise SpecError(
            f"{folder}: is a part of {part.zoo} ({part.selection}), and cannot be {verb}; "
            f"`zootools pull {part.zoo} {folder}` fetches the rest"
        )


def parse_epochs(text: str) -> tuple[int, ...]:
    """Return the epochs of a list of numbers and ranges such as ``0,10,20-25``, in increasing order.

    Raises SpecError with the first entry that is neither.
    """
    found = set[int]()
    for entry in text.split(","):
        match = _RANGE.fullmatch(entry)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high <= MAX_EPOCH:
            raise SpecError(f"epochs: found {entry!r}; expected numbers and ranges, such as 0,10,20-25")
        found |= set(range(low, high + 1))
    return tuple(sorted(found))
