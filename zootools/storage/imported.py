"""The record of an import: where the models of a zoo come from that zootools did not train.

A zoo has a specification (spec.yaml), or this record in its manifest (zoo.json, key ``imported``). Both say the name of
the zoo and decide the columns of its metadata; a record cannot say how the models can be made again.

The networks that a command computes from those of another zoo (`zootools align`) have such a record too. Its kind is
the command, its options are the settings, its source is zoo.json of the other zoo, and `Imported.parent` names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import FailFast, Field, TypeAdapter, model_validator

from zootools.errors import DamagedZooError
from zootools.spec import DatasetImages, FolderImages, Name, TetrisImages, ZooSpec
from zootools.spec.sections import DEFERRED, Section
from zootools.spec.stored_spec import UnknownImages
from zootools.spec.zoo_spec import Training
from zootools.storage.audit import Audit
from zootools.storage.hashed_json import validate
from zootools.storage.verified_files import FileInfo

ColumnKind = Literal["bool", "int64", "float64", "string", "list"]
"""The type of a property; a list is one of float64, with at most as many elements as the network has outputs."""

COLUMN_TYPES: dict[ColumnKind, pa.DataType] = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "list": pa.list_(pa.float64()),
}
"""The Arrow type of each kind of column."""

OWN_COLUMNS = ("model_id", "epoch", "split", "status", "stack", "row", "weights")
"""Columns of every zoo; no property can have one of these names."""
SOURCE_MODEL = "source_model"
"""The column with the name that a model has in the population that was imported."""

SAMPLED = "sample"
"""The kind of a zoo whose networks were drawn from a density (`zootools sample`)."""

MAX_COLUMNS = 90
MAX_TEXT = 400
"""Bytes that a text can have as a property."""
MAX_LISTED = 1000
"""Files of a population that are listed one by one; of more only the digest over all is stored."""

COLUMN_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
ColumnName = Annotated[str, Field(pattern=COLUMN_NAME)]
_Sentence = Annotated[str, Field(max_length=2000)]
_Count = Annotated[int, Field(ge=0, le=10**12)]

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_VALUES: dict[ColumnKind, TypeAdapter[Any]] = {
    "bool": TypeAdapter(Annotated[list[Annotated[bool, Field(strict=True)] | None], FailFast()], config=DEFERRED),
    "int64": TypeAdapter(
        Annotated[list[Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | None], FailFast()], config=DEFERRED
    ),
    "float64": TypeAdapter(Annotated[list[_Number | None], FailFast()], config=DEFERRED),
    "string": TypeAdapter(Annotated[list[Annotated[str, Field(strict=True)] | None], FailFast()], config=DEFERRED),
    "list": TypeAdapter(Annotated[list[list[_Number] | None], FailFast()], config=DEFERRED),
}
"""The values of a column in the header of a shard; None where a value is not known."""


class SourceFiles(Section):
    """The files that were imported."""

    count: _Count
    size: _Count
    """Bytes of all files."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """sha256 over one line ``sha256 size name`` for each file, sorted by name."""
    files: Annotated[dict[Annotated[str, Field(max_length=1000)], FileInfo], Field(max_length=MAX_LISTED)] = Field(
        default_factory=dict
    )
    """Every file by its name below the folder that was imported; empty if there are more than `MAX_LISTED`."""


class LeftOutCount(Section):
    """What was not imported for one reason."""

    why: Annotated[str, Field(max_length=500)]
    count: _Count
    examples: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=3)]
    """The first of them."""


class CheckReport(Section):
    """The result of evaluating a sample of the imported checkpoints on their images (`zootools.importers.check`)."""

    not_checked: _Sentence = ""
    """Why nothing was evaluated; empty if the figures below are there."""
    checkpoints: _Count = 0
    """Size of the sample."""
    images: Annotated[str, Field(max_length=200)] = ""
    """The images that it was evaluated on: ``10,000 test images of mnist``."""
    column: Annotated[str, Field(max_length=100)] = ""
    """The recorded property that was compared; empty if none is recorded."""
    largest_difference: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest difference between a recorded and a measured accuracy."""
    mean_difference: Annotated[float, Field(ge=0, le=1)] | None = None
    permutation_difference: Annotated[float, Field(ge=0)] | None = None
    """Largest difference of a logit after hidden units were permuted, relative to the largest logit."""


class Column(Section):
    """A property of the checkpoints."""

    name: ColumnName
    kind: ColumnKind


class Parent(Section):
    """The zoo that the networks of another one were computed from."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """That of its content, which its zoo.json contains (`zootools.storage.manifest.Manifest.sha256`)."""
    training: Training | None = None
    """How the networks of the zoo were trained; None if that is not known."""


class Imported(Section):
    """Where the models of an imported zoo come from, and which columns their metadata has."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
    """The importer (`zootools.importers.table.IMPORTERS`), or the command that computed the models from a parent."""
    parent: Parent | None = None
    """The zoo whose networks these were computed from; None for a population of another tool."""
    name: Name
    description: Annotated[str, Field(max_length=10_000)] = ""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")] = "unknown"
    images: TetrisImages | DatasetImages | FolderImages | UnknownImages | None = None
    """The images that the models were trained on, if they are known."""
    runs: bool = True
    """Whether the layer schema is enough to run a network; that of an index is not."""
    columns: Annotated[list[Column], FailFast(), Field(max_length=MAX_COLUMNS)]
    """The properties of a checkpoint, in order."""
    histories: Annotated[
        list[Annotated[list[Annotated[int, Field(ge=0, le=100_000)]], FailFast()]],
        FailFast(),
        Field(min_length=1, max_length=100_000),
    ]
    """The distinct lists of epochs of which models have checkpoints; `Stack.histories` has that of each model."""
    source: SourceFiles
    options: Annotated[dict[str, Annotated[str, Field(max_length=1000)]], Field(max_length=50)] = Field(
        default_factory=dict
    )
    """The options of the import as texts; of a file only its name."""
    left_out: Annotated[list[LeftOutCount], Field(max_length=200)] = Field(default_factory=list)
    notes: Annotated[list[_Sentence], Field(max_length=100)] = Field(default_factory=list)
    check: CheckReport
    audit: Audit | None = None
    """How near sampled networks are to those that they were drawn from; None for all other zoos."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == SAMPLED) != (self.audit is not None):
            raise ValueError(f"audit: {'is missing' if self.audit is None else 'of networks that were not sampled'}")
        names = [column.name for column in self.columns]
        if taken := sorted(set(names) & set(OWN_COLUMNS)):
            raise ValueError(f"columns: {taken[0]} is a column of every zoo")
        if SOURCE_MODEL not in names:
            raise ValueError(f"columns: {SOURCE_MODEL} is missing")
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"columns: names must differ in more than case, found {sorted(names)!s:.200}")
        for history in self.histories:
            if history != sorted(set(history)):
                raise ValueError("histories: expected increasing epochs, each once")
        if len(set(map(tuple, self.histories))) < len(self.histories):
            raise ValueError("histories: duplicate list of epochs")
        return self

    @property
    def metadata_schema(self) -> pa.Schema:
        """The columns of a checkpoint's metadata, in order and with their types."""
        return pa.schema(
            [
                ("model_id", pa.string()),
                ("epoch", pa.int32()),
                ("split", pa.string()),
                ("status", pa.string()),
                *((column.name, COLUMN_TYPES[column.kind]) for column in self.columns),
                ("stack", pa.int32()),
                ("row", pa.int32()),
            ]
        )

    @property
    def epochs(self) -> list[int]:
        """The epochs of which any model has a checkpoint, in increasing order."""
        return sorted({epoch for history in self.histories for epoch in history})

    def check_values(self, properties: Mapping[str, list[Any]], path: Path) -> None:
        """Raise DamagedZooError unless a shard has exactly the columns of this record, and values of their types."""
        kinds: dict[str, ColumnKind] = {"split": "string", **{column.name: column.kind for column in self.columns}}
        if properties.keys() != kinds.keys():
            raise DamagedZooError(
                f"metadata: found the columns {sorted(properties)!s:.400}, expected {sorted(kinds)}", path=path
            )
        for name, values in properties.items():
            validate(_VALUES[kinds[name]], values, path, f"metadata.properties.{name}")


Origin = ZooSpec | Imported
"""What says how a zoo came about: its specification, or the record of its import."""
