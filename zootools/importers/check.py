"""The proof of an import: a sample of its checkpoints, run on their images, against the accuracies recorded for them.

If they differ, the usual mistakes are tried one by one on the same sample, and the one that explains the recorded
accuracies is named: kernels in the order of another framework, biases before weights, another normalisation of the
images, classes in another order, another activation (`zootools.importers.suspects`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from zootools.architectures import Schema
from zootools.architectures.networks import ACTIVATIONS, stacked_forward
from zootools.errors import SpecError, StorageError
from zootools.images.datasets import ImageData, Subset, load_images
from zootools.images.shapes import has_images
from zootools.importers.evaluation import Sample, Weights, groups, score, tensors
from zootools.importers.importer import Facts
from zootools.importers.suspects import explained
from zootools.rng import stream
from zootools.spec import Images
from zootools.storage.imported import CheckReport

NOT_RUN = CheckReport(not_checked="it was not asked for")
USUAL_SAMPLE = 16
"""Checkpoints that are evaluated by default."""
TOLERANCE = 0.005
"""Difference of two accuracies that the rounding of another machine may make, beside that of one image."""
PERMUTED_TOLERANCE = 1e-3
"""Largest difference of an output after a permutation, relative to the largest output, that rounding may make."""
PERMUTED_IMAGES = 64
RECORDED = ("test_accuracy", "validation_accuracy", "train_accuracy")
"""Properties that can be compared; the first one that is recorded is."""
MOST_SHOWN = 5


@dataclass(frozen=True)
class Check:
    """What the user asks for."""

    count: int | None
    """Number of checkpoints; None for `USUAL_SAMPLE` where the images are at hand, 0 for none."""
    data: Path | None
    """The folder of the image files."""


def images_of(images: Images | None, check: Check) -> tuple[ImageData | None, str]:
    """Return the images of the check, or the reason why there is none.

    Raises SpecError or StorageError if the user has asked for a check that is not possible.
    """
    if check.count == 0:
        return None, "it was not asked for (--check 0)"
    if images is None:
        return None, _unless_asked(check, "the images that the models were trained on are not given (--images)")
    try:
        if check.count is None and not has_images(images, check.data):
            return None, f"the files of {images.name} are not in the folder of the images (--data)"
        return load_images(images, check.data), ""
    except StorageError as error:
        if check.count is not None:
            raise
        return None, f"the images {images.name} cannot be read: {error}"[:1000]


def check_sample(
    metadata: pa.Table,
    weights_of: Callable[[npt.NDArray[np.int64]], Weights],
    facts: Facts,
    images: ImageData,
    check: Check,
    place: str,
) -> CheckReport:
    """Evaluate a sample of the checkpoints of ``metadata``; ``weights_of`` returns the weights of some of its rows.

    Raises SpecError, naming the mistake that explains it if one does, when a measured accuracy is not the recorded one,
    when the networks are not invariant under permutations of their hidden units, or when the images do not fit them.
    """
    schema = facts.schema
    if images.input_shape != schema.input_shape or images.classes != schema.classes:
        raise SpecError(
            f"--images: {' x '.join(map(str, images.input_shape))} pixels and {images.classes} classes, but the layers "
            f"take {' x '.join(map(str, schema.input_shape))} and return {schema.classes}"
        )
    if not facts.runs or "activation" not in metadata.column_names:
        reason = "a network needs a layer schema (not only an index) and a property activation (--set activation=tanh)"
        return CheckReport(not_checked=_unless_asked(check, reason))
    column = next((name for name in RECORDED if name in metadata.column_names), "")
    runnable = pc.is_in(metadata["activation"], pa.array(list(ACTIVATIONS)))
    rows = _chosen(metadata, column, runnable.to_numpy(), check.count or USUAL_SAMPLE)
    if not len(rows):
        found = metadata["activation"][0].as_py()
        reason = f"no activation is known to zootools (found {found!r:.80}; known: {', '.join(ACTIVATIONS)})"
        return CheckReport(not_checked=_unless_asked(check, reason))
    sample = _sample(metadata, rows, weights_of(rows), column)
    part = column.removesuffix("_accuracy") or "test"
    subset: Subset = getattr(images, part)
    report = CheckReport(
        checkpoints=len(sample),
        images=f"{len(subset):,} {part} images of {facts.images.name if facts.images else 'unknown'}",
        column=column,
        permutation_difference=_permutation_difference(schema, sample, subset, place),
    )
    if sample.recorded is None or not len(subset):
        return report.model_copy(update={"column": ""})
    difference = np.abs(score(schema, sample, subset).accuracy - sample.recorded)
    if (difference > TOLERANCE + 1 / len(subset)).any():
        raise _mismatch(schema, sample, subset, facts, report, place)
    return report.model_copy(
        update={
            "largest_difference": round(float(difference.max()), 6),
            "mean_difference": round(float(difference.mean()), 6),
        }
    )


def _unless_asked(check: Check, reason: str) -> str:
    if check.count is not None:
        raise SpecError(f"--check {check.count}: {reason}")
    return reason


def _chosen(metadata: pa.Table, column: str, runnable: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """Return the rows of a sample: half of them the most accurate ones of different models, half spread evenly.

    A network at the level of chance computes as well with a mistake as without one.
    """
    known = runnable if not column else runnable & metadata[column].is_valid().to_numpy()
    rows = np.flatnonzero(known)
    if not len(rows):
        rows = np.flatnonzero(runnable)
    spread = (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))] if len(rows) else rows
    )
    if not column or len(rows) <= count or not known.any():
        return spread
    accuracy = metadata[column].fill_null(0).to_numpy()
    models = np.asarray(metadata["model_id"].combine_chunks().dictionary_encode().indices.to_numpy())
    best = rows[np.argsort(-accuracy[rows], kind="stable")]
    _, first = np.unique(models[best], return_index=True)  # the most accurate checkpoint of each model
    chosen = best[np.sort(first)][: count // 2]
    return np.unique(np.concatenate([chosen, spread[:: max(1, len(spread) // (count - len(chosen)))]]))[:count]


def _sample(metadata: pa.Table, rows: npt.NDArray[np.int64], weights: Weights, column: str) -> Sample:
    taken = metadata.take(pa.array(rows))
    activations = taken["activation"].to_pylist()
    order = sorted(range(len(rows)), key=lambda index: str(activations[index]))
    recorded = None
    if column and not taken[column].null_count:
        recorded = taken[column].to_numpy().astype(np.float64)[order]
    names = [f"model {row['source_model']!r:.200} epoch {row['epoch']}" for row in taken.to_pylist()]
    return Sample(
        weights[order], tuple(activations[index] for index in order), tuple(names[index] for index in order), recorded
    )


def _permutation_difference(schema: Schema, sample: Sample, subset: Subset, place: str) -> float:
    """Return the largest difference of an output after a permutation of all hidden units, relative to the largest."""
    draws = stream(0, "import", "permutations")
    order = schema.permutation_index({layer.name: draws.permutation(layer.outputs) for layer in schema.layers[:-1]})
    images, worst = subset.images[:PERMUTED_IMAGES], 0.0
    with torch.no_grad():
        for group, activation in groups(sample):
            before, after = (
                stacked_forward(schema, tensors(schema, weights), images, activation).double()
                for weights in (sample.weights[group], sample.weights[group][:, order])
            )
            size = before.abs().amax(dim=(1, 2)).clamp_min(1e-30)
            difference = (before - after).abs().amax(dim=(1, 2)) / size
            if not bool(difference.isfinite().all()):
                raise SpecError(f"{place}: outputs of {sample.names[group][0]} are not finite on its images")
            worst = max(worst, float(difference.max()))
    if worst > PERMUTED_TOLERANCE:
        raise SpecError(
            f"{place}: the outputs change by {worst:.2g} of the largest when hidden units are permuted; the layers of "
            "the schema do not follow each other in this way"
        )
    return float(f"{worst:.2g}")


def _mismatch(
    schema: Schema, sample: Sample, subset: Subset, facts: Facts, report: CheckReport, place: str
) -> SpecError:
    """Return the error for accuracies that are not the recorded ones, with the mistakes that explain them."""
    measured, recorded = score(schema, sample, subset).accuracy, sample.recorded
    assert recorded is not None
    wrong = np.flatnonzero(np.abs(measured - recorded) > TOLERANCE + 1 / len(subset))
    worst = wrong[np.argsort(-np.abs(measured - recorded)[wrong], kind="stable")]
    lines = [
        f"  {sample.names[index]}: recorded {recorded[index]:.4f}, measured {measured[index]:.4f}"
        for index in worst[:MOST_SHOWN].tolist()
    ]
    found, tried = explained(schema, sample, subset, facts)
    if found:
        lines += [f"  the recorded accuracies are reached if {what}" for what in found]
    else:
        lines.append("  suspect the order of the kernels, the normalisation, the order of the classes, the activation")
        lines.append(f"  none of these explains the recorded accuracies: {tried}")
    lines.append("  correct the options, or import without the check (--check 0), which the card will say")
    return SpecError(
        f"{place}: {len(wrong)} of {len(sample)} checkpoints do not reach their recorded {report.column} on "
        f"{report.images}",
        *lines,
    )
