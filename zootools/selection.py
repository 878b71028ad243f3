"""Choosing checkpoints by a rule: the last or the best one of each model, and models by the beginnings of their ids."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.arrow_types import is_number
from zootools.errors import SpecError, ZooNotFoundError, did_you_mean, nearest
from zootools.spec import Hyperparameters

Epoch = int | Literal["last", "best"]
"""An epoch of a model: its number, the last one that is stored, or the best one (`best_metric`)."""

NUMBERS = ("seed", "epoch", "stack", "row", *Hyperparameters.model_fields)
"""Columns of numbers that are no scores."""
MOST_CANDIDATES = 8
"""Maximal number of model ids in the message for an ambiguous one."""


def full_id(models: Sequence[str], text: str) -> str | None:
    """Return the model with this id, or the only one whose id begins with ``text``; None if there is none.

    Raises ZooNotFoundError, with the candidates, if several ids begin with it.
    """
    if not text or text in (known := set(models)):
        return text or None
    found = sorted(model for model in known if model.startswith(text))
    if len(found) > 1:
        more = f", ... ({len(found) - MOST_CANDIDATES:,} more)" if len(found) > MOST_CANDIDATES else ""
        raise ZooNotFoundError(
            f"model {text!r}: {len(found):,} ids begin like this: {', '.join(found[:MOST_CANDIDATES])}{more}"
        )
    return found[0] if found else None


def unknown_model(models: Sequence[str], text: str) -> str:
    """Return the message for an id that no model has: the number of models, and the most similar id."""
    near = nearest(text, models[:1000])
    return f"no model {text!r} among {len(models)}" + (f"; did you mean {near!r}?" if near else "")


def metrics(table: pa.Table) -> list[str]:
    """Return the columns by which checkpoints can be compared: numbers, and the F scores."""
    return [field.name for field in table.schema if is_number(field.type) and field.name not in NUMBERS] + (
        ["test_f1"] if "test_f1" in table.column_names else []
    )


def lower_is_better(metric: str) -> bool:
    """Whether small values of a column are the good ones: of losses and errors, and of the generalization gap."""
    return metric == "generalization_gap" or any(word in metric.lower() for word in ("loss", "error"))


def best_metric(table: pa.Table) -> str:
    """Return the metric of the epoch "best": the validation accuracy, or the test accuracy without a validation set.

    Raises SpecError if checkpoints have neither.
    """
    for name in ("validation_accuracy", "test_accuracy"):
        if name in table.column_names and table[name].null_count < len(table):
            return name
    raise SpecError(
        "epoch: found 'best', but there is neither validation_accuracy nor test_accuracy; expected a number"
    )


def check_metric(table: pa.Table, metric: str) -> str:
    """Return the name of a metric. Raises SpecError, with the nearest one, if the table has no such column."""
    if metric not in (known := metrics(table)):
        raise SpecError(f"metric: found {metric!r:.80}{did_you_mean(metric, known)}")
    return metric


def goodness(table: pa.Table, metric: str) -> npt.NDArray[np.float64]:
    """Return float64 ``[rows]``, larger for better checkpoints, NaN for those without a value.

    Losses and errors count negative, the generalization gap as its negative magnitude, F scores as their mean over the
    classes, all other metrics as they are.
    """
    column = table[check_metric(table, metric)]
    if metric == "test_f1":
        known = ([score for score in scores or () if score is not None] for scores in column.to_pylist())
        return np.array([np.mean(scores) if scores else np.nan for scores in known], np.float64)
    values = column.cast(pa.float64(), safe=False).to_numpy()
    if metric == "generalization_gap":
        values = np.abs(values)
    return -values if lower_is_better(metric) else values


def last_rows(table: pa.Table) -> pa.Table:
    """Return the row of the last epoch of each model, in the order of the table."""
    return _one_per_model(table, table["epoch"].to_numpy())


def best_rows(table: pa.Table, metric: str) -> pa.Table:
    """Return the row with the best value of a metric of each model, in the order of the table.

    Of equal values the earliest epoch is taken. Models without any value have no row.
    """
    return _one_per_model(table, goodness(table, metric))


def best_row(table: pa.Table, metric: str) -> pa.Table:
    """Return the one row with the best value of a metric: of equal values the earliest epoch, then the smallest id.

    Raises SpecError if no row has a value.
    """
    values = goodness(table, metric)
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        raise SpecError(f"metric: no checkpoint has a value of {metric}")
    tied = table.take(known[values[known] == values[known].max()])
    return tied.sort_by([("epoch", "ascending"), ("model_id", "ascending")]).slice(0, 1)


def rows_at(table: pa.Table, epoch: Epoch) -> pa.Table:
    """Return the rows of one epoch, at most one per model. Raises SpecError for an unknown word."""
    if epoch == "last":
        return last_rows(table)
    if epoch == "best":
        return best_rows(table, best_metric(table))
    if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer):
        raise SpecError(f"epoch: found {epoch!r:.80}; expected a number, 'last' or 'best'")
    return table.filter(pc.equal(table["epoch"], int(epoch)))


def _one_per_model(table: pa.Table, values: npt.NDArray[np.generic]) -> pa.Table:
    """Return the row with the largest value of each model; of equal values that of the earliest epoch."""
    codes = table["model_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    known = np.flatnonzero(values == values)  # NaN is not equal to itself; epochs are integers
    # Sorted by model, then value, then from the last epoch to the first: the last row of each model is the one.
    order = known[np.lexsort((-table["epoch"].to_numpy()[known].astype(np.int64), values[known], codes[known]))]
    is_last = np.append(codes[order][1:] != codes[order][:-1], True) if len(order) else np.empty(0, bool)
    return table.take(np.sort(order[is_last]))
