"""The valid values of arguments that the command line and the functions behind it share."""

from collections.abc import Sequence
from operator import index

from zootools.errors import SpecError, did_you_mean

DEVICES = ("auto", "cpu", "cuda")
MAX_WORKERS = 1024
ALIGNMENTS = ("weights", "activations", "straight-through")
"""The methods of alignment (`representation.align_zoo`)."""
EXPORTS = ("index-dict", "numpy", "state-dicts")
"""The formats of whole zoos (`zootools.importers.export`)."""

STAGES = ("zoos", "encoders", "report")
"""The stages of a reproduction (`representation.reproduction`)."""

SAMPLING_METHODS = ("kde", "kde-joint", "subsample", "bootstrap", "gaussian", "flow")
"""The ways to draw networks (`representation.sampling.density.METHODS`)."""

TABLES = ("csv", "json", "parquet")
"""The formats of a table of models (`zootools.listing`)."""


def check_word(name: str, value: object, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``. Raises SpecError with the nearest choice."""
    if not isinstance(value, str):
        raise SpecError(f"{name}: expected one of {', '.join(choices)}, found {value!r:.200}")
    if value not in choices:
        raise SpecError(f"{name}: found {value!r:.200}{did_you_mean(value[:200], choices)}")
    return value


def check_workers(value: object) -> int | None:
    """Return the number of workers, or None for the default. Raises SpecError unless it is from 1 to `MAX_WORKERS`."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        workers = index(value)  # type: ignore[arg-type]
    except TypeError:
        workers = 0
    if not 1 <= workers <= MAX_WORKERS:
        raise SpecError(f"workers: expected a whole number from 1 to {MAX_WORKERS}, found {value!r:.200}")
    return workers
