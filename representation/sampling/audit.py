"""The audit of sampled networks: are they new, or copies of training networks?

Everything is measured for the samples, and for networks of which it is known what they are: the training networks
themselves, networks of other seeds, training networks with noise, averages of two neighbours, networks from scratch.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from representation.alignment import aligned
from representation.sampling.networks import Floats, Trainer, Weights
from zootools.architectures import Schema
from zootools.rng import stream
from zootools.storage.audit import Audit, AuditRow
from zootools.training.initialise import initial_weights

NOISES = (0.02, 0.04)
"""Standard deviations of the noise, relative to that of each layer's weights over the training networks."""
COMPARED = 100
"""Most networks of each kind; of the samples all."""
CANDIDATES = 4
"""Training networks whose exact distance is computed: the nearest ones by each of two approximations."""

Ints = npt.NDArray[np.int64]


class Nearest(NamedTuple):
    """The nearest training network of each of n networks."""

    place: Ints
    """Its row, ``[n]``."""
    distance: Floats
    """``[n]``"""


class TrainingNetworks(NamedTuple):
    """The training networks."""

    weights: Weights
    """float32 ``[n, parameters]``."""
    models: Ints
    """The number of the model of each, ``[n]``; a model may be there at several epochs."""


class Audited(NamedTuple):
    """The audit, and what it found for each sample."""

    audit: Audit
    accuracy: Floats
    nearest: Nearest
    overlap: Floats
    highest_overlap: Floats


def audit(samples: Weights, training: TrainingNetworks, others: Weights, trainer: Trainer, seed: int) -> Audited:
    """Return the audit of samples.

    Args:
        samples: float32 ``[n, parameters]``.
        training: the networks that the density was fitted to, of at least two models.
        others: networks of the same zoo that were not; may be empty.
        trainer: runs networks on the images of the zoo.
        seed: of the noise, and of the networks from scratch.
    """
    schema = trainer.schema
    some = spread(len(training.weights), COMPARED)
    chosen, own = training.weights[some], training.models[some]
    among = nearest(schema, chosen, training.weights, own, training.models)
    partners = training.weights[among.place]
    twins = aligned(schema, torch.from_numpy(partners), torch.from_numpy(chosen)).numpy()
    kinds: list[tuple[str, Weights, Nearest | None]] = [
        ("samples", samples, None),
        ("training networks", chosen, among),
        ("other networks of the zoo", others[spread(len(others), COMPARED)], None),
        *(
            (f"training networks with noise {size}", _noisy(schema, training, chosen, size, seed), None)
            for size in NOISES
        ),
        ("averages of two neighbours", (chosen + twins) / 2, None),
        ("from scratch", _scratch(trainer, len(chosen), seed), None),
    ]
    images = trainer.images.test
    labels = images.labels.numpy()
    wrong = trainer.predict(training.weights, images) != labels
    rows, found = [], list[Audited]()
    for name, weights, near in kinds:
        if not len(weights):
            continue
        near = near or nearest(schema, weights, training.weights)
        classes = trainer.predict(weights, images)
        accuracy = np.equal(classes, labels).mean(axis=1)
        overlaps = _overlaps(classes != labels, wrong)
        of_nearest = overlaps[np.arange(len(weights)), near.place]
        if name == "training networks":
            overlaps[own[:, None] == training.models[None, :]] = 0
        highest = overlaps.max(axis=1)
        rows.append(_row(name, accuracy, near, of_nearest, highest, _diversity(classes, trainer.schema.classes)))
        if name == "samples":
            found.append(Audited(Audit(images=len(labels), nearer=0, rows=rows), accuracy, near, of_nearest, highest))
    usual = float(np.median(among.distance))
    nearer = float((found[0].nearest.distance < usual).mean())
    return found[0]._replace(audit=Audit(images=len(labels), nearer=nearer, rows=rows))


def nearest(
    schema: Schema, weights: Weights, training: Weights, own: Ints | None = None, models: Ints | None = None
) -> Nearest:
    """Return the training network that is nearest to each network modulo permutation.

    Which ones are near is estimated by two distances, as the networks are and after all were aligned to one of them;
    the `CANDIDATES` nearest by each are then aligned to the network one by one. So the distance is an upper bound, as
    every distance modulo permutation is that is computed in reasonable time.

    Args:
        schema: the layers.
        weights: float32 ``[n, parameters]``.
        training: float32 ``[t, parameters]``.
        own: the numbers of the models of ``weights``, ``[n]``: networks of the same model do not count.
        models: those of ``training``, ``[t]``.
    """
    given, others = torch.from_numpy(weights), torch.from_numpy(training)
    reference = others[0]
    pairs = ((given, others), (aligned(schema, given, reference), aligned(schema, others, reference)))
    candidates = []
    for first, second in pairs:
        rough = torch.cdist(first, second)
        if own is not None and models is not None:
            rough[torch.from_numpy(own[:, None] == models[None, :])] = torch.inf
        candidates.append(rough.topk(min(CANDIDATES, len(training)), largest=False, dim=1))
    best = torch.full((len(given),), torch.inf, dtype=torch.float64)
    place = torch.zeros(len(given), dtype=torch.int64)
    for values, columns in candidates:
        for rough, column in zip(values.T, columns.T, strict=True):
            exact = (aligned(schema, given, others[column]).double() - others[column].double()).norm(dim=1)
            exact = torch.where(rough.isinf(), torch.inf, exact)
            place = torch.where(exact < best, column, place)
            best = torch.minimum(best, exact)
    return Nearest(place.numpy(), best.numpy())


def spread(count: int, most: int) -> Ints:
    """Return at most ``most`` of ``count`` rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.arange(0)


def _noisy(schema: Schema, training: TrainingNetworks, chosen: Weights, size: float, seed: int) -> Weights:
    noisy = chosen.copy()
    draws = stream(seed, "sample", "noise", str(size))
    for parameter in schema.parameters:
        part = slice(parameter.offset, parameter.end)
        spread = training.weights[:, part].std()
        noisy[:, part] += size * spread * draws.standard_normal((len(chosen), parameter.size), np.float32)
    return noisy


def _scratch(trainer: Trainer, count: int, seed: int) -> Weights:
    seeds = stream(seed, "sample", "scratch").integers(2**31, size=count).tolist()
    return np.stack([initial_weights(trainer.schema, trainer.hyperparameters, one) for one in seeds])


def _overlaps(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Floats:
    """Return the intersection over union of all pairs of rows, ``[n, m]``; 1 where both rows are empty."""
    both = first.astype(np.float32) @ second.astype(np.float32).T
    either = first.sum(axis=1)[:, None] + second.sum(axis=1)[None, :] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _diversity(classes: npt.NDArray[np.int16], number: int) -> float:
    """Return the mean share of images on which two networks differ; 0 for one network."""
    count, images = classes.shape
    if count < 2:
        return 0.0
    agree = sum(
        float(np.square((classes == one).sum(axis=0, dtype=np.float64)).sum()) - float((classes == one).sum())
        for one in range(number)
    )
    return max(0.0, 1 - agree / (count * (count - 1) * images))


def _row(name: str, accuracy: Floats, near: Nearest, overlap: Floats, highest: Floats, diversity: float) -> AuditRow:
    return AuditRow(
        networks=name,
        count=len(accuracy),
        accuracy=_rounded(accuracy.mean()),
        accuracy_std=_rounded(accuracy.std()),
        distance=_rounded(np.median(near.distance)),
        closest=_rounded(near.distance.min()),
        overlap=_rounded(overlap.mean()),
        highest_overlap=_rounded(highest.mean()),
        diversity=_rounded(diversity),
    )


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 4)
