"""The place of every imported checkpoint in its zoo: ids and splits of the models, their epochs, stacks and rows."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.errors import SpecError
from zootools.importers.importer import LeftOut
from zootools.spec import MAX_CHECKPOINTS, MAX_MODELS
from zootools.spec.model_configs import unit_hash
from zootools.spec.zoo_spec import Split
from zootools.storage.imported import MAX_TEXT
from zootools.storage.manifest import MAX_STACK_MODELS
from zootools.storage.records import Stop
from zootools.storage.tables import SPLITS

Ints = npt.NDArray[np.int64]

USUAL_STACK = 256
"""Models of a stack, unless there would be more than `MANY_FILES` shards or a shard would be too large."""
MANY_FILES = 9000
SHARD_BYTES, LARGEST_SHARD = 128 << 20, 512 << 20
"""Bytes of a shard: usually at most, and if there are many."""
LAST_EPOCH = 100_000
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Layout:
    """The checkpoints that are imported, ordered by stack, epoch and row, and the models."""

    taken: Ints
    """The rows of the population, ``[checkpoints]``: row ``taken[i]`` is checkpoint i of the zoo."""
    model: Ints
    """The number of the model of each checkpoint, ``[checkpoints]``."""
    epoch: Ints
    stack: Ints
    row: Ints
    ids: list[str]
    """The id of every model by its number, also of those without a checkpoint."""
    names: list[str]
    """The name of every model in the population."""
    splits: list[str]
    """The split of every checkpoint."""
    stack_of: Ints
    """The stack of every model, ``[models]``."""
    histories: list[list[int]]
    """The distinct lists of epochs, in the order of their first model."""
    history_of: Ints
    """The number of the history of every model, ``[models]``."""
    stopped: dict[str, Stop]
    """The models of which a checkpoint is not finite, by id."""
    left_out: list[LeftOut]


def laid_out(
    models: pa.ChunkedArray, epochs: Ints, splits: pa.ChunkedArray | None, finite: npt.NDArray[np.bool_], size: int
) -> Layout:
    """Place the checkpoints of a population, given in any order.

    Args:
        models: the name of the model of each row, strings.
        epochs: the epoch of each row.
        splits: the published split of each row, null where there is none; None if no row has one.
        finite: whether the weights of each row are finite.
        size: number of parameters of a model.

    Raises SpecError for two checkpoints of one model and epoch, epochs and names that a zoo cannot store, and a
    population without a checkpoint or beyond the limits of a zoo.
    """
    encoded = models.combine_chunks().dictionary_encode()
    names, numbers = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    _check(names, numbers, epochs)
    ids = [
        name if _ID.fullmatch(name) else hashlib.sha256(f"import:{name}".encode()).hexdigest()[:16] for name in names
    ]
    if len(set(ids)) < len(ids):
        raise SpecError(f"two of the {len(ids):,} models have the same id; rename one of them")
    first_bad = np.full(len(names), LAST_EPOCH + 1, np.int64)
    np.minimum.at(first_bad, numbers[~finite], epochs[~finite])
    kept = np.flatnonzero(epochs < first_bad[numbers])
    if not len(kept):
        raise SpecError(f"none of the {len(epochs):,} checkpoints can be imported: no weights are finite")
    left_out = [
        LeftOut(
            f"{names[numbers[row]]} epoch {epochs[row]}",
            "has weights that are not finite"
            if not finite[row]
            else "follows a checkpoint with weights that are not finite",
        )
        for row in np.flatnonzero(epochs >= first_bad[numbers]).tolist()
    ]
    stop = {ids[m]: Stop(int(first_bad[m]), "a weight is not finite") for m in np.flatnonzero(first_bad <= LAST_EPOCH)}
    stack_of = np.arange(len(names)) // _stack_size(numbers[kept], epochs[kept], size)
    kept = kept[np.lexsort((numbers[kept], epochs[kept], stack_of[numbers[kept]]))]
    model, epoch = numbers[kept], epochs[kept]
    stack = stack_of[model]
    begins = np.flatnonzero(np.diff(stack, prepend=-1) | np.diff(epoch, prepend=-1))
    row = np.arange(len(kept)) - np.repeat(begins, np.diff(begins, append=len(kept)))
    histories, history_of = _histories(model, epoch, len(names))
    return Layout(
        kept,
        model,
        epoch,
        stack,
        row,
        ids,
        names,
        _splits(splits, kept, model, ids),
        stack_of,
        histories,
        history_of,
        stop,
        left_out,
    )


def _check(names: Sequence[str | None], numbers: Ints, epochs: Ints) -> None:
    if not len(names):
        raise SpecError("the population has no checkpoints")
    if None in names or "" in names:
        raise SpecError("a checkpoint has no name of a model")
    if long := [name for name in names if len((name or "").encode()) > MAX_TEXT]:
        raise SpecError(f"the name of a model has more than {MAX_TEXT} bytes: {long[0]!r:.80}")
    if len(names) > MAX_MODELS or len(numbers) > MAX_CHECKPOINTS:
        raise SpecError(
            f"{len(names):,} models with {len(numbers):,} checkpoints; a zoo has at most {MAX_MODELS:,} and "
            f"{MAX_CHECKPOINTS:,}"
        )
    low, high = int(epochs.min()), int(epochs.max())
    if low < 0 or high > LAST_EPOCH:
        odd = low if low < 0 else high
        raise SpecError(
            f"model {names[numbers[np.argmax(epochs == odd)]]!r}: epoch {odd}; expected 0 to {LAST_EPOCH:,}"
        )
    key = numbers * (LAST_EPOCH + 1) + epochs
    order = np.argsort(key, kind="stable")
    twice = np.flatnonzero(np.diff(key[order]) == 0)
    if len(twice):
        row = int(order[twice[0]])
        raise SpecError(
            f"model {names[numbers[row]]!r} has two checkpoints of epoch {epochs[row]} (rows {row} and "
            f"{int(order[twice[0] + 1])} of the population, {len(twice):,} such pairs)"
        )


def _stack_size(numbers: Ints, epochs: Ints, size: int) -> int:
    """Return the number of models of a stack, which decides the number and size of the shards."""

    def shards(models: int) -> int:
        return len(np.unique(numbers // models * (LAST_EPOCH + 1) + epochs))

    models = max(1, min(USUAL_STACK, SHARD_BYTES // (4 * size)))
    largest = max(models, min(MAX_STACK_MODELS, LARGEST_SHARD // (4 * size)))
    while models < largest and shards(models) > MANY_FILES:
        models = min(2 * models, largest)
    return models


def _histories(model: Ints, epoch: Ints, count: int) -> tuple[list[list[int]], Ints]:
    """Return the distinct lists of epochs of the models, and the number of that of each model."""
    order = np.lexsort((epoch, model))
    ends = np.cumsum(np.bincount(model, minlength=count))
    known: dict[bytes, int] = {}
    numbers = np.empty(count, np.int64)
    lists: list[list[int]] = []
    start = 0
    for number, end in enumerate(ends.tolist()):
        epochs = epoch[order[start:end]]
        start = end
        found = known.setdefault(epochs.tobytes(), len(lists))
        if found == len(lists):
            lists.append(epochs.tolist())
        numbers[number] = found
    return lists, numbers


def _splits(given: pa.ChunkedArray | None, kept: Ints, model: Ints, ids: Sequence[str]) -> list[str]:
    """Return the split of every checkpoint: the published one, or else that of a hash of the model's id."""
    hashed = list(map(split_of, ids))
    splits = [hashed[number] for number in model.tolist()]
    if given is None:
        return splits
    published = given.take(pa.array(kept))
    if not pc.all(pc.is_in(published.drop_null(), pa.array(SPLITS))).as_py() and len(published.drop_null()):
        odd = next(value for value in published.to_pylist() if value not in (None, *SPLITS))
        raise SpecError(f"split: found {odd!r:.80}; expected {', '.join(SPLITS)}")
    return [own or other for own, other in zip(published.to_pylist(), splits, strict=True)]


def split_of(model_id: str) -> str:
    """Return the split that zootools gives to a model without a published one: 70, 15 and 15 percent, by its id."""
    shares, position = Split(), unit_hash("split", model_id)
    if position < shares.train:
        return "train"
    return "validation" if position < shares.train + shares.validation else "test"
