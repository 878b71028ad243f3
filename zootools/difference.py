"""The difference of two zoos: specification, models, values of common checkpoints, files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zootools.arrow_types import is_number
from zootools.errors import SpecError
from zootools.listing import PLACES
from zootools.open import open_zoo
from zootools.spec.sections import flat
from zootools.zoo import Zoo

Checkpoints = dict[tuple[str, int], int]
"""Row of each checkpoint in the metadata, by model id and epoch."""


@dataclass(frozen=True)
class KeyDifference:
    """A key of the specifications with two values, as JSON; None where a specification lacks it."""

    key: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class ColumnDifference:
    """A column of the metadata whose values differ in common checkpoints."""

    column: str
    checkpoints: int
    """The number of common checkpoints with two values."""
    largest: float | None
    """The largest difference of two numbers; None for other values."""


@dataclass(frozen=True)
class Matching:
    """The names of both zoos: how many are in both, and which ones in one only."""

    both: int
    only_first: list[str]
    only_second: list[str]

    @property
    def equal(self) -> bool:
        """Whether both zoos have the same names."""
        return not self.only_first and not self.only_second


@dataclass(frozen=True)
class ZooDifference:
    """What is different in two zoos (`diff`)."""

    specification: list[KeyDifference]
    """The keys that differ, with dots between their parts."""
    models: Matching
    """By model id."""
    checkpoints: Matching
    """Those of the models in both, by ``MODEL-epoch-E``."""
    columns: list[ColumnDifference]
    """The columns of the metadata that differ in common checkpoints, ordered by name."""
    columns_in_one: list[str]
    """The columns that only one zoo has."""
    files: Matching
    """By name. Files whose name is in both are in `changed` if their digests differ."""
    changed: list[str]
    """The files that have the same name, and other bytes."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs: not one key, model, checkpoint, value or byte."""
        found = (self.specification, self.columns, self.columns_in_one, self.changed)
        return not any(found) and self.models.equal and self.checkpoints.equal and self.files.equal

    def to_json(self) -> dict[str, Any]:
        """Return all differences by name, as ``zootools diff --json`` prints them."""
        keys = [
            {"key": key.key}
            | {
                side: json.loads(text)
                for side, text in (("first", key.first), ("second", key.second))
                if text is not None
            }
            for key in self.specification
        ]
        return {"equal": self.equal, **asdict(self), "specification": keys}


def diff(first: str | Path | Zoo, second: str | Path | Zoo, *, hub: str | Path | None = None) -> ZooDifference:
    """Compare two zoos: folders, finished or not, names on a hub, URLs; or zoos that are open.

    Files are compared by the sha256 in manifests and records, so no weights are read or fetched; `zootools verify`
    compares files with these. README.md, build.json and zoo.json, which the manifest does not list, are not compared.
    Of zoos that are open, the models and checkpoints that were chosen are compared, and all files.

    Raises what `zootools.open.open_zoo` raises.
    """
    one, two = (
        zoo if isinstance(zoo, Zoo) else open_zoo(zoo, hub=hub, include_diverged=True) for zoo in (first, second)
    )
    here, there = _checkpoints(one), _checkpoints(two)
    models = _matching(one.models, two.models)
    single = {*models.only_first, *models.only_second}
    common = [checkpoint for checkpoint in here if checkpoint in there]
    rows = [np.array([found[checkpoint] for checkpoint in common], np.int64) for found in (here, there)]
    names, others = (set(zoo.metadata.column_names) - {"model_id", "epoch", *PLACES} for zoo in (one, two))
    columns = [
        _column_difference(name, one.metadata[name].take(rows[0]), two.metadata[name].take(rows[1]))
        for name in sorted(names & others)
    ]
    files = one.files.files, two.files.files
    return ZooDifference(
        specification=list(_key_differences(_origin(one), _origin(two))),
        models=models,
        checkpoints=_matching(*(map(_name, (key for key in found if key[0] not in single)) for found in (here, there))),
        columns=[column for column in columns if column.checkpoints],
        columns_in_one=sorted(names ^ others),
        files=_matching(*files),
        changed=sorted(name for name in files[0].keys() & files[1].keys() if files[0][name] != files[1][name]),
    )


def _checkpoints(zoo: Zoo) -> Checkpoints:
    """Return the row of each checkpoint. Raises SpecError for a zoo whose files have no digests."""
    if not zoo.files.files:
        raise SpecError(f"{zoo.name}: is a Parquet file without digests; `zootools import parquet` makes a zoo of it")
    keys = zip(zoo.metadata["model_id"].to_pylist(), zoo.metadata["epoch"].to_pylist(), strict=True)
    return {key: row for row, key in enumerate(keys)}


def _name(checkpoint: tuple[str, int]) -> str:
    model, epoch = checkpoint
    return f"{model}-epoch-{epoch}"


def _matching(first: Iterable[str], second: Iterable[str]) -> Matching:
    one, two = set(first), set(second)
    return Matching(len(one & two), sorted(one - two), sorted(two - one))


def _origin(zoo: Zoo) -> dict[str, str]:
    """Return the specification of a zoo, or the record of its import, by key with dots; values as JSON."""
    if zoo.stored_spec is not None:
        values = zoo.stored_spec.dump()
    else:
        values = zoo.imported.model_dump(mode="json") if zoo.imported is not None else {}
    return {key: json.dumps(value, sort_keys=True) for key, value in flat(values).items()}


def _key_differences(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[KeyDifference]:
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            yield KeyDifference(key, first.get(key), second.get(key))


def _column_difference(name: str, first: pa.ChunkedArray, second: pa.ChunkedArray) -> ColumnDifference:
    """Compare two columns row by row; two unknown values are equal, and so are two NaN."""
    if is_number(first.type) and is_number(second.type):
        one, two = (column.cast(pa.float64(), safe=False).to_numpy() for column in (first, second))
        differs = ~((one == two) | (np.isnan(one) & np.isnan(two)))
        gaps = np.abs(one - two)[differs]
        gaps = gaps[np.isfinite(gaps)]
        return ColumnDifference(name, int(differs.sum()), float(gaps.max()) if len(gaps) else None)
    pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
    return ColumnDifference(name, sum(one != two for one, two in pairs), None)
