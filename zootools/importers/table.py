"""The kinds of populations that can be imported."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zootools.choices import check_word

if TYPE_CHECKING:
    from zootools.importers.importer import Importer


def _ray_zoo() -> "Importer":
    from zootools.importers.ray_zoo import RayZoo

    return RayZoo()


def _small_cnn_zoo() -> "Importer":
    from zootools.importers.small_cnn_zoo import SmallCnnZoo

    return SmallCnnZoo()


def _state_dicts() -> "Importer":
    from zootools.importers.state_dicts import StateDicts

    return StateDicts()


def _parquet() -> "Importer":
    from zootools.importers.parquet import Parquet

    return Parquet()


IMPORTERS: dict[str, Callable[[], "Importer"]] = {
    "ray-zoo": _ray_zoo,
    "small-cnn-zoo": _small_cnn_zoo,
    "state-dicts": _state_dicts,
    "parquet": _parquet,
}
"""The importers by kind. Each is imported when it is asked for: the command line's help needs only the names."""


def open_importer(kind: str) -> "Importer":
    """Return the importer of a kind. Raises SpecError for an unknown one, with the nearest name."""
    return IMPORTERS[check_word("kind", kind, tuple(IMPORTERS))]()
