"""The folder of encoders and results: its default name, and whether it can be used."""

import hashlib
from pathlib import Path

from zootools.errors import StorageError
from zootools.filesystem.files import free_space
from zootools.hashing import canonical_json
from zootools.memory import gigabytes
from zootools.zoo import Zoo

FOLDER = "representations"
"""The folder that has all default folders."""
DIGITS = 8
"""Hexadecimal digits of hashes in names of folders."""
TABLES = 16 << 20
"""Bytes that must be free for the tables of results."""


def default_out(zoo: Zoo, recipe: str) -> Path:
    """Return the default folder of the encoders for a zoo and a recipe: ``representations/<zoo>/<recipe>``.

    A zoo from a hub has its organisation and its commit in the name, one from an object store a hash of its URL, and
    some of the checkpoints of a zoo a hash of what they are: none of them has the folder of another.
    """
    name, place = Path(zoo.name).name, zoo.place
    if place is not None and place.repository is not None:
        name = place.repository.replace("/", "--") + (f"@{place.commit[:DIGITS]}" if place.commit else "")
    elif place is not None and place.fetches:
        name += f"-{_short_hash(place.name)}"
    if zoo.is_part or set(zoo.metadata["status"].unique().to_pylist()) - {"ok"}:
        rows = [zoo.metadata[column].to_pylist() for column in ("model_id", "epoch")]
        name += f"-part-{_short_hash(canonical_json(rows))}"
    return Path(FOLDER) / name / Path(recipe).stem


def check_writable(out: Path, needed: int = TABLES) -> None:
    """Raise StorageError unless a folder can be written to, or created, and its disk has ``needed`` bytes free."""
    _, free = free_space(out)
    if needed > free:
        raise StorageError(
            f"{out}: encoders and results need about {gigabytes(needed)}, but only {gigabytes(free)} are free on this "
            "disk; use another --out"
        )


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
