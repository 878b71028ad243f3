"""What an import needs of a format: the protocol of importers, and what passes between them and the writer.

A new format is a class with the members of `Importer` in a file of its own, and a row of
`zootools.importers.table.IMPORTERS`; `zootools.testing` has the tests that it must pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict, Field

from zootools.architectures import Schema
from zootools.spec import Images, Name
from zootools.spec.sections import Section

BLOCK_BYTES = 64 << 20
"""Bytes of weights that a block should have at most; the memory of an import is a few times this."""
MAX_BLOCK_ROWS = 1 << 16

Constant = bool | int | float | str
"""The value of a property that all checkpoints share."""


class ImportOptions(Section):
    """What a user says about a population beside its path. An importer names the fields that it uses."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Name | None = None
    """Name of the zoo; by default that of its folder."""
    description: Annotated[str, Field(max_length=10_000)] | None = None
    """A sentence or two for the card; by default that of the importer."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")] | None = None
    """Licence of the population, as the Hub spells it; by default `unknown`."""
    images: Images | None = None
    """The images that the models were trained on, with their normalisation; by default those that the format says."""
    constants: dict[str, Constant] = Field(default_factory=dict)
    """Properties that all checkpoints share, by name, such as `activation`; they add to those of the population."""
    model_schema: Path | Schema | None = None
    """The layer schema, or a JSON file with it (`zootools.hub.foreign.read_schema`)."""
    architecture: str | None = None
    """Or: the name of an architecture of zootools, built for the shape and classes of `images`."""
    properties: Path | None = None
    """A table (CSV, Parquet or JSON lines) with a row for each file, joined by a column with its path."""
    path_pattern: str | None = None
    """Pattern of the paths, whose fields become properties: ``{split}/{label:int}/run{seed:int}/ep{epoch:int}.pt``."""
    split: str | None = None
    """Name of a published division of the population that is used instead of a hash of the ids."""


@dataclass(frozen=True)
class Facts:
    """What an importer knows of a population before any weights are read."""

    name: str
    """A name for the zoo, if the user gives none; characters that a name cannot have are replaced."""
    schema: Schema
    """The layers that all models share."""
    files: Sequence[Path]
    """All files that the import reads. Their sizes and sha256 are recorded, and compared when an import is resumed."""
    root: Path
    """The folder below which the files are named in the record."""
    checkpoints: int
    """Their number, as far as it is known before they are read; for the progress and the space on the disk."""
    description: str = ""
    license: str = "unknown"
    images: Images | None = None
    """The images that the models were trained on, and how they were normalised, where the format says so."""
    runs: bool = True
    """Whether the schema is enough to run a network; that of an index is not."""
    notes: Sequence[str] = ()
    """Sentences for the card, such as ``weights were float64 and are rounded to float32``."""


class LeftOut(NamedTuple):
    """A file, a row or a column that is not imported. Equal reasons are counted together in the record."""

    what: str
    """Name of the file or column, or number of the row."""
    why: str
    """The reason, without what differs between two of its kind: ``is truncated``."""


@dataclass(frozen=True)
class Block:
    """Some checkpoints of a population, in any order."""

    weights: npt.NDArray[np.float32]
    """float32 ``[rows, parameters]`` in the order of `Schema.parameters`. Rows that are not finite are left out by the
    writer, which counts them and marks their models as diverged."""
    table: pa.Table
    """The properties of the same rows. ``model`` (string: the name of the model in the population, from which its id
    is made) and ``epoch`` (whole number) are required, ``split`` is optional (train, validation or test). Every other
    column becomes one of the zoo: numbers, truth values, texts, lists of numbers; null where a value is not known."""
    left_out: Sequence[LeftOut] = field(default=())
    """What was not imported between the last block and this one."""
    notes: Sequence[str] = ()
    """Sentences for the card that only the reading tells, such as ``the weights were float64``; equal ones are one."""


class Population(Protocol):
    """An opened population."""

    @property
    def facts(self) -> Facts:
        """What is known of it before any weights are read."""

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield its checkpoints in blocks of at most `BLOCK_BYTES` and `MAX_BLOCK_ROWS` (`rows_per_block`).

        The sequence of blocks is the same in every call, so that an interrupted import resumes with block number
        ``start``; the weights of the blocks before it are not read again. Whatever is left out after the last
        checkpoint is in a last block without rows.

        Raises DamagedZooError for files that cannot be read, SpecError where they contradict the schema.
        """


class Importer(Protocol):
    """A format of populations; `zootools.importers.table.IMPORTERS` has a row for each."""

    options: ClassVar[frozenset[str]]
    """The fields of `ImportOptions`, beyond name, description, license, images and constants, that it uses; an option
    that an importer does not use is refused before it is called."""

    def open(self, path: Path, options: ImportOptions) -> Population:
        """Find out what is at a path; tables of properties may be read, weights are not.

        Raises ZooNotFoundError where no such population is there, DamagedZooError for files that cannot be read,
        SpecError where the options do not fit.
        """


def rows_per_block(schema: Schema) -> int:
    """Return the number of checkpoints in a full block."""
    return max(1, min(MAX_BLOCK_ROWS, BLOCK_BYTES // (4 * schema.size)))
