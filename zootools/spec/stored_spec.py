"""Reading the specification of a zoo that another version of zootools has built."""

from contextlib import suppress
from typing import Annotated, Any, Self, get_args

from pydantic import ConfigDict, Field, model_validator

from zootools.errors import SpecError
from zootools.spec.images import DatasetImages, FolderImages, Images, StoredImages, TetrisImages
from zootools.spec.population import Activation, Draw, Grid, Init, Optimizer, axis_field
from zootools.spec.sections import Section, parse_section
from zootools.spec.yaml_reader import Key
from zootools.spec.zoo_spec import Architecture, Cnn, Mlp, ZooSpec

Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""The pattern of registered names."""
_REGISTERED = {"activation": Activation, "init": Init, "optimizer": Optimizer}


def _names(union: Any) -> set[str]:
    """Return the values of ``name`` that select a section of a union."""
    return {
        name for section in get_args(get_args(union)[0]) for name in get_args(section.model_fields["name"].annotation)
    }


class UnknownImages(StoredImages):
    """Images of a data set that this version does not know."""

    model_config = ConfigDict(extra="allow")

    name: Word

    @model_validator(mode="after")
    def _unknown(self) -> Self:
        if self.name in _names(Images):
            raise ValueError(f"{self.name} is known")
        return self


class UnknownArchitecture(Section):
    """An architecture that this version does not know; zoo.json has its layers."""

    model_config = ConfigDict(extra="allow")

    name: Word

    @model_validator(mode="after")
    def _unknown(self) -> Self:
        if self.name in _names(Architecture):
            raise ValueError(f"{self.name} is known")
        return self


class StoredGrid(Grid):
    """A grid with values that this version does not know."""

    activation: tuple[Word, ...] | None = axis_field()  # type: ignore[assignment]
    init: tuple[Word, ...] | None = axis_field()  # type: ignore[assignment]
    optimizer: tuple[Word, ...] | None = axis_field()  # type: ignore[assignment]


class StoredSpec(ZooSpec):
    """The specification of a zoo of another version of zootools, with names that this version does not know.

    The zoo can be read: its layers are in zoo.json, its columns follow from the keys. It cannot be built upon.
    """

    images: TetrisImages | DatasetImages | FolderImages | UnknownImages  # type: ignore[assignment]
    architecture: Mlp | Cnn | UnknownArchitecture  # type: ignore[assignment]
    grid: StoredGrid

    @property
    def unknown_names(self) -> list[str]:
        """The unknown names, such as ``architecture 'resnet'``."""
        found = [f"images {self.images.name!r}"] if self.images.name not in _names(Images) else []
        if self.architecture.name not in _names(Architecture):
            found.append(f"architecture {self.architecture.name!r}")
        for axis, known in _REGISTERED.items():
            draw: Draw | None = getattr(self.sample, axis, None)
            values = getattr(self.grid, axis) or (draw and draw.choice) or ()
            found += [f"{axis} {value!r}" for value in values if value not in get_args(known)]
        return found


def parse_stored_spec(values: dict[str, Any], source: str, places: dict[Key, str] | None = None) -> ZooSpec:
    """Validate the specification of a zoo that is only read: it may have `ZooSpec.unknown_names`.

    ``places`` gives the line of each key. Raises SpecError as `zootools.spec.load_spec` does.
    """
    try:
        return parse_section(ZooSpec, values, source, places)
    except SpecError:
        with suppress(SpecError):
            return parse_section(StoredSpec, values, source, places)
        raise
