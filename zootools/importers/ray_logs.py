"""The logs of a trial of Ray Tune as the ModelZooDataset has them: ``params.json`` and ``result.json``.

Both have the names of their generators (``model::nlin``, ``test_acc``), and are returned with those of zootools.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import open_inside, read_inside
from zootools.importers.importer import LeftOut
from zootools.json_reader import parse_json
from zootools.storage.verified_files import unreadable

Property = bool | int | float | str

MAX_BYTES = 1 << 20
"""Bytes of a params.json, and of a line of a result.json."""

PARAMETERS = {
    "model::nlin": "activation",
    "model::dropout": "dropout",
    "model::init_type": "init",
    "optim::optimizer": "optimizer",
    "optim::lr": "lr",
    "optim::wd": "weight_decay",
    "optim::momentum": "momentum",
    "optim::scheduler": "lr_scheduler",
    "training::batchsize": "batch_size",
    "seed": "seed",
}
"""The keys of params.json that become columns."""
SOURCE = "training::init_checkpoint_path"
"""The key of a sparse twin with the folder of the trial that it was made of."""
WORDS = {"activation": {"leakyrelu": "leaky_relu"}, "optimizer": {"rms_prop": "rmsprop"}}
"""Values for which zootools has another word."""
SCORES = {
    "train_loss": "train_loss",
    "train_acc": "train_accuracy",
    "val_loss": "validation_loss",
    "val_acc": "validation_accuracy",
    "test_loss": "test_loss",
    "test_acc": "test_accuracy",
    "sparsity_ratio": "sparsity_ratio",
}
"""The keys of a line of result.json that become columns."""
NOT_MEASURED = -999
"""What the generators write before the first epoch of training for the scores of that epoch."""


def read_parameters(root: Path, name: str) -> dict[str, Any]:
    """Return the content of a params.json. Raises DamagedZooError."""
    try:
        data = read_inside(root, name, MAX_BYTES)
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=root / name) from error
    value = parse_json(data, root / name)
    if not isinstance(value, dict):
        raise DamagedZooError(f"found {type(value).__name__}; expected an object", path=root / name)
    return value


def properties_of(parameters: dict[str, Any]) -> dict[str, Property]:
    """Return the hyper-parameters of a trial by the name of their column."""
    found: dict[str, Property] = {}
    for key, column in PARAMETERS.items():
        value = parameters.get(key)
        if isinstance(value, Property):
            found[column] = WORDS.get(column, {}).get(value, value) if isinstance(value, str) else value
    if isinstance(path := parameters.get(SOURCE), str):
        # Ray writes paths as the text of a Python object: PosixPath('zoos/MNIST/.../NN_tune_trainable_0b1f2_00001').
        found["twin_of"] = re.sub(r"^\w*Path\('(.*)'\)$", r"\1", path).rstrip("/").rpartition("/")[2]
    return found


def unused_parameters(parameters: dict[str, Any]) -> Iterator[LeftOut]:
    """Yield the keys of a params.json that do not become columns."""
    for key, value in parameters.items():
        if key in PARAMETERS and not isinstance(value, Property | None):
            yield LeftOut(f"params.json: {key}", "is neither a number nor a text")
        elif key not in PARAMETERS and key != SOURCE:
            yield LeftOut(f"params.json: {key}", "is not a property of a model")


@dataclass
class Results:
    """The scores of a trial."""

    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    """By training iteration, then by the name of the column; scores that were not measured are missing."""
    left_out: list[LeftOut] = field(default_factory=list)
    """The lines that were not used."""


def read_results(root: Path, name: str) -> Results:
    """Return the scores in a result.json by their training iteration.

    The position of a line means nothing: files of trials that were restored repeat iterations, of which the last one
    belongs to the checkpoint, and files of generators differ in whether the first line is of iteration 0 or 1. Lines
    that are cut or damaged are left out.
    """
    results, lines = Results(), dict[int, int]()
    try:
        with open_inside(root, name) as file:
            number = 0
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                if len(line) > MAX_BYTES:
                    results.left_out.append(LeftOut(f"{name}: line {number}", "is longer than a line can be"))
                    return results
                found = _scores(line)
                if found is None:
                    if line.strip():
                        results.left_out.append(LeftOut(f"{name}: line {number}", "is not a result in JSON"))
                    continue
                iteration, scores = found
                if iteration in lines:
                    earlier = LeftOut(f"{name}: line {lines[iteration]}", "a later line has the same iteration")
                    results.left_out.append(earlier)
                results.scores[iteration], lines[iteration] = scores, number
    except OSError as error:
        results.left_out.append(LeftOut(name, unreadable(error)))
    return results


def _scores(line: bytes) -> tuple[int, dict[str, float]] | None:
    """Return the iteration and the scores of a line; None if it is not a result."""
    try:
        value = json.loads(line)  # accepts NaN, which Ray writes for the loss of a diverged model
        iteration = value["training_iteration"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if type(iteration) is not int or not 0 <= iteration <= 100_000:
        return None
    scores = {}
    for key, column in SCORES.items():
        score = value.get(key)
        if isinstance(score, int | float) and not isinstance(score, bool) and score != NOT_MEASURED:
            with_range = float(score) if abs(score) < 1e300 else math.nan
            if math.isfinite(with_range):
                scores[column] = with_range
    return iteration, scores
