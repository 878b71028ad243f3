"""The data of the pictures of a zoo: its metadata, and a sample of its checkpoints with their points."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools import arrow_types
from zootools.errors import DamagedZooError, SpecError, did_you_mean
from zootools.plots.limits import Array
from zootools.selection import last_rows
from zootools.storage.imported import SOURCE_MODEL
from zootools.zoo import Zoo

MAX_POINTS = 5_000
"""Maximal number of checkpoints shown as points: more hide each other, and UMAP takes minutes for them."""
MAX_CLASSES = 100
"""Maximal number of classes whose F scores are drawn."""
COLOURED_BY = ("activation", "init", "epoch", "test_accuracy")
"""The properties that the paper colours weight space by."""
_NO_PROPERTY = ("model_id", SOURCE_MODEL, "configuration_id", "seed", "split", "status", "stack", "row")


@dataclass(frozen=True)
class Plane:
    """The points of the sampled checkpoints in two dimensions."""

    points: Array
    """float64 ``[sample, 2]``; NaN for a checkpoint without a place."""
    method: str
    """The method that computed the points: UMAP, PCA, ..."""


@dataclass(frozen=True)
class Portrait:
    """The data of a zoo's pictures; makes no figure itself."""

    name: str
    metadata: pa.Table
    """All checkpoints of the zoo, including those of diverged models."""
    shown: pa.Table
    """The checkpoints that statistics are computed from: without the diverged models, unless all models diverged."""
    zoo: Zoo
    """The sample of `shown` that is drawn as points; all its checkpoints have finite weights."""
    mean_weights: Array
    """The mean over all weights of each sampled checkpoint, float64 ``[sample]``."""
    planes: Mapping[str, Plane] = field(default_factory=dict)
    """The points of the sampled checkpoints, by the representation they are computed from: ``W``, ``s(W)``, ``z``."""

    colour: str | None = None
    """The column that all points are coloured by; None for the properties that the paper uses."""

    @classmethod
    def of(cls, zoo: Zoo, limit: int = MAX_POINTS, whole_models: bool = False) -> "Portrait":
        """Draw the sample of a zoo, always the same one, and read its weights once.

        Args:
            zoo: should have been opened with ``include_diverged=True``.
            limit: maximal number of checkpoints in the sample.
            whole_models: sample models with all their checkpoints, instead of checkpoints.

        Raises SpecError for a zoo without checkpoints.
        """
        if not len(zoo):
            raise SpecError(f"{zoo.name}: has no checkpoints to draw")
        good = zoo.where(pc.field("status") == "ok")
        kept = good if len(good) else zoo
        rows = _rows_of_models(kept.metadata, limit) if whole_models else _rows(len(kept), limit)
        sample = replace(kept, metadata=kept.metadata.take(rows))
        weights = sample.weights()
        finite = weights.isfinite().all(dim=1).numpy()
        sample = replace(sample, metadata=sample.metadata.filter(pa.array(finite)))
        means = weights.double().mean(dim=1).numpy()[finite]
        return cls(zoo.name, zoo.metadata, kept.metadata, sample, means)

    def with_plane(self, label: str, points: npt.ArrayLike, method: str) -> "Portrait":
        """Return a portrait with the points ``[sample, 2]`` of an additional representation."""
        return replace(self, planes={**self.planes, label: Plane(np.asarray(points, np.float64), method)})

    def coloured_by(self, column: str) -> "Portrait":
        """Return a portrait whose points are coloured by a column of numbers or labels.

        Raises SpecError for a column that the zoo does not have, or which has neither.
        """
        table = self.zoo.metadata
        known = [name for name in table.column_names if is_number(table[name]) or is_text(table[name])]
        if column not in known:
            raise SpecError(f"colour: found {column!r}{did_you_mean(column, known)}")
        return replace(self, colour=column)

    @cached_property
    def diverged(self) -> int:
        """Number of models that diverged."""
        bad = self.metadata.filter(pc.not_equal(self.metadata["status"], "ok"))
        return len(pc.unique(bad["model_id"]))

    @cached_property
    def all_diverged(self) -> bool:
        """Whether all models diverged."""
        return not pc.any(pc.equal(self.metadata["status"], "ok")).as_py()

    @cached_property
    def sampling(self) -> str:
        """The caption of a picture with points: the size of the sample."""
        drawn, there = len(self.zoo), self.shown.num_rows
        said = f"all {there:,} checkpoints" if drawn == there else f"sample of {drawn:,} of {there:,} checkpoints"
        return said + self.diverged_note

    @cached_property
    def everything(self) -> str:
        """The caption of a picture of all checkpoints."""
        return f"all {self.shown.num_rows:,} checkpoints{self.diverged_note}"

    @cached_property
    def diverged_note(self) -> str:
        """The end of a caption: the number of models that diverged, and whether they are drawn."""
        if self.all_diverged:
            return f"; all {self.diverged:,} models diverged"
        return f"; without {self.diverged:,} diverged models" if self.diverged else ""

    def lacks(self, *columns: str) -> str:
        """Return the reason why a picture of these columns cannot be drawn; an empty string if it can."""
        for name in columns:
            if name not in self.shown.column_names:
                return f"there is no property {name}"
            if not np.isfinite(numbers(self.shown[name])).any():
                return f"{name} is never a finite number"
        return ""

    @cached_property
    def class_scores(self) -> tuple[Array, tuple[str, ...]]:
        """The F scores of the last checkpoint of each model, float64 ``[models, classes]``, and the names of classes.

        Classes without names have their numbers.
        """
        scores = np.array(last_rows(self.shown)["test_f1"].to_pylist(), np.float64)
        return scores, self.zoo.class_names or tuple(map(str, range(scores.shape[1])))

    @cached_property
    def lacks_classes(self) -> str:
        """The reason why the F scores of the classes cannot be drawn; an empty string if they can."""
        if self.zoo.stored_spec is None:
            return "only zoos that zootools has built have an F score for every class"
        classes = self.zoo.schema.classes
        return f"more than {MAX_CLASSES} classes" if classes > MAX_CLASSES else ""

    @cached_property
    def properties(self) -> list[str]:
        """The properties to colour points by: those of the paper that vary, else the first four that vary."""
        if self.colour is not None:
            return [self.colour]
        varying = [name for name in self.zoo.metadata.column_names if _varies(self.zoo.metadata[name])]
        return [name for name in COLOURED_BY if name in varying] or [n for n in varying if n not in _NO_PROPERTY][:4]


def _rows(there: int, limit: int) -> npt.NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(there)[:limit])


def _rows_of_models(table: pa.Table, limit: int) -> npt.NDArray[np.int64]:
    """Return the rows of whole models, model by model; if the first has more than ``limit``, every n-th of its rows."""
    model = table["model_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((table["epoch"].to_numpy(), model))
    sizes = np.bincount(model)
    drawn = np.random.default_rng(0).permutation(len(sizes))
    chosen = drawn[np.cumsum(sizes[drawn]) <= limit]
    if not len(chosen):
        rows = order[model[order] == drawn[0]]
        return rows[:: -(-len(rows) // limit)]
    return order[np.isin(model[order], chosen)]


def is_number(column: pa.ChunkedArray) -> bool:
    """Return whether a column of metadata contains numbers."""
    return arrow_types.is_number(column.type)


def is_text(column: pa.ChunkedArray) -> bool:
    """Return whether a column of metadata contains labels: strings or booleans."""
    kind = column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind))


def numbers(column: pa.ChunkedArray) -> Array:
    """Return a column as float64 ``[rows]``, with NaN for missing values; all NaN if it is not numeric."""
    if not is_number(column):
        return np.full(len(column), np.nan)
    # An integer beyond 2^53 becomes the nearest float64: enough for a position on an axis, not for its digits.
    return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def is_whole(column: pa.ChunkedArray) -> bool:
    """Return whether a column of metadata contains integers."""
    return bool(pa.types.is_integer(column.type))


def labels(column: pa.ChunkedArray) -> list[str]:
    """Return a column as strings, ``unknown`` for missing values. Raises DamagedZooError if they are not UTF-8."""
    try:
        return [str(value) if value is not None else "unknown" for value in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise DamagedZooError(f"the metadata contains text that is not UTF-8 ({error})") from error


def _varies(column: pa.ChunkedArray) -> bool:
    if is_whole(column):
        bounds = pc.min_max(column).as_py()
        return bounds["min"] != bounds["max"]
    if is_number(column):
        values = numbers(column)
        values = values[np.isfinite(values)]
        return bool(len(values) and values.min() < values.max())
    return is_text(column) and len(pc.unique(column)) > 1
