"""Scoring: how well a linear probe predicts each property from the features of a method."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from representation.dataset import ZooDataset, ZooSplit
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import Baseline, UnfitError
from representation.evaluation.probes import Regression, accuracy, fit_softmax_adam, fit_softmax_lbfgs, kendall_tau, r2
from representation.evaluation.results import Score
from representation.networks import Networks, in_parts, select
from representation.recipes import Augmentation, Recipe
from representation.targets import Target
from representation.training.augmentation import Augmenter
from representation.training.linear_code import LinearCode
from representation.training.reconstruction import reconstruction_r2
from zootools.architectures import Schema
from zootools.hashing import canonical_json

PROBES = ("paper", "standardised")
LINEAR_CODE = "linear code"
"""Name of the method that reconstructs by the best linear code."""
MAX_SOLVE = 20_000
"""Limit of min(rows, features) for a ridge regression, which would take hours above it."""
MAX_ADAM = 10_000
"""Most training checkpoints for the paper's softmax layer with batches of 10: each takes five steps of Adam."""
MAX_REBUILT = 5_000
"""Most networks of the train split that are reconstructed."""


@dataclass(frozen=True)
class Method:
    """A function from weights to features, fitted to the training split of the zoo, or only a reconstruction."""

    name: str
    embed: Callable[[Networks], Networks] | None
    """None for a method without features."""
    seed: int = 0
    fitted_on: int | None = None
    """Number of training checkpoints that the method was fitted on; None if it needs no fit."""
    reconstruction: Callable[[Tensor], float] | None = None
    """Function from weights to the R2 of their reconstruction, for a method with a decoder."""
    scored_on: int | None = None
    """Most checkpoints of a split that are embedded and scored; None for all."""
    seconds: float = 0.0
    """Processor seconds that it took to fit the method."""
    features: Mapping[str, Tensor] | None = None
    """Features ``[rows, d]`` of the splits of the zoo itself, of a method that is not a function of weights."""

    @property
    def has_features(self) -> bool:
        """Whether probes can be fitted to the method."""
        return self.embed is not None or self.features is not None

    def features_of(self, split: str, networks: Networks) -> Networks:
        """Return the features ``[rows, d]`` of the networks ``[rows, parameters]`` of a split."""
        if self.features is not None:
            return self.features[split]
        assert self.embed is not None
        return self.embed(networks)

    @classmethod
    def fitted(cls, baseline: Baseline, weights: Networks, schema: Schema, seed: int = 0) -> "Method":
        """Fit a baseline to training weights ``[rows, parameters]``. Raises UnfitError if that cannot be done."""
        begun = time.process_time()
        baseline.fit(weights, schema)
        seconds = time.process_time() - begun
        return cls(baseline.name, baseline.embed, seed, baseline.fitted_on, None, baseline.scored_on, seconds)

    @classmethod
    def of_encoder(
        cls, encoder: Encoder, recipe: Recipe, seed: int = 0, fitted_on: int | None = None, seconds: float = 0.0
    ) -> "Method":
        """Return an encoder that was trained by a recipe as a method that is named after its loss."""

        def rebuilt(networks: Tensor) -> float:
            return reconstruction_r2(permuted_views(encoder.schema, networks, recipe), encoder.reconstruct)

        reconstruction = rebuilt if recipe.loss.reconstructs else None
        return cls(recipe.loss.kind, encoder.embed, seed, fitted_on, reconstruction, seconds=seconds)

    @classmethod
    def of_linear_code(
        cls, code: LinearCode, schema: Schema, recipe: Recipe, fitted_on: int, seconds: float = 0.0
    ) -> "Method":
        """Return the best linear code of permuted networks as a method that only reconstructs: the bound of others."""

        def rebuilt(networks: Tensor) -> float:
            return code.r2(permuted_views(schema, networks, recipe))

        return cls(LINEAR_CODE, None, 0, fitted_on, rebuilt, seconds=seconds)


def permuted_views(schema: Schema, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return the networks ``[n, N]`` that reconstructions are scored on: permuted if the recipe permutes.

    As in the paper they have neither erased weights nor noise. They are the same in every call.
    """
    settings = Augmentation(permute=recipe.augmentation.permute, erase_probability=0.0)
    return Augmenter(schema, settings).views(weights, torch.Generator().manual_seed(0), copies=1).clean


def validation_scores(home: ZooDataset, targets: list[str], encoder: Encoder, name: str) -> list[Score]:
    """Return the scores of the paper's probe on the validation split.

    There are none when the features are not finite.
    """
    run = Scorer(home, [], targets, {}, probes=("paper",))
    run.score(Method(name, encoder.embed, fitted_on=len(home.splits["train"])))
    return [score for score in run.scores if score.split == "validation"]


# --- the scores -----------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """Processor seconds of one method."""

    fit: float
    embed: float = 0.0
    probe: float = 0.0
    """Fitting and scoring the probes, and reconstruction."""


@dataclass
class Scorer:
    """Scores methods one after the other, and collects the scores."""

    home: ZooDataset
    others: list[ZooDataset]
    targets: list[str]
    excluded: dict[str, str]
    """Targets and methods without scores, and why. `score` adds methods."""
    probes: Sequence[str] = PROBES
    scores: list[Score] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Remarks on how the scores were computed."""
        train = self.home.splits["train"]
        if len(train) <= MAX_ADAM or not any(train.targets[name].classes for name in self.targets):
            return []
        larger = _larger_batches(len(train))
        text = f"batches of {10 * larger} at {larger} times the learning rate instead of batches of 10"
        return [f"{self.home.name}: the paper's softmax layers are trained in {text}"]

    @cached_property
    def digest(self) -> str:
        """Hash of everything that decides the scores of a method that is given: data, names, targets and probes."""
        about = [self.targets, list(self.probes), [[zoo.name, zoo.digest] for zoo in (self.home, *self.others)]]
        digest = hashlib.sha256(canonical_json(about).encode())
        for _, _, part in self._parts():
            for name in self.targets:
                if name in part.targets:
                    digest.update(canonical_json([name, part.targets[name].classes]).encode())
                    digest.update(part.targets[name].values.contiguous().numpy().data)
        return digest.hexdigest()

    def score(self, method: Method) -> Seconds:
        """Fit probes of every target to a method's features, and score them on every split of every zoo.

        Return the processor seconds that it took.
        """
        times = [time.process_time()]
        if method.has_features:
            places = [_Place(zoo, split, part) for zoo, split, part in self._parts(method.scored_on)]
            problem = _embed(places, method)
            times.append(time.process_time())
            if problem:
                self.excluded[method.name] = problem
                return Seconds(method.seconds, times[1] - times[0])
            self._score_probes(method, places)
        if method.reconstruction is not None:
            self._score_reconstruction(method, method.reconstruction)
        times.append(time.process_time())
        embedding = times[1] - times[0] if method.has_features else 0.0
        return Seconds(method.seconds, embedding, times[-1] - times[0] - embedding)

    def _parts(self, most: int | None = None) -> Iterator[tuple[ZooDataset, str, ZooSplit]]:
        """Yield the splits that have rows, those of the home zoo first, cut to ``most`` rows."""
        for zoo in (self.home, *self.others):
            for split, part in zoo.splits.items():
                if len(part):
                    yield zoo, split, part.sample(most)

    def _score_probes(self, method: Method, places: Sequence["_Place"]) -> None:
        score = partial(Score, method=method.name, seed=method.seed, fitted_on=method.fitted_on)
        at_home = {place.split: place for place in places if place.zoo is self.home}
        for names in self._groups(method.name, at_home):
            fits = _Fits(names, at_home, method.seed)
            for probe in self.probes:
                alphas, predict = fits.fit(probe)
                for place in places:
                    about = partial(score, evaluated_on=place.zoo.name, split=place.split, probe=probe)
                    predicted = predict(place.features)
                    for index, name in enumerate(names):
                        if not predicted[:, index].isfinite().all():
                            self.excluded[f"{method.name}, {probe} probe of {name}"] = "its numbers overflow"
                        elif name in place.part.targets:
                            target, more = place.part.targets[name], {"target": name, "alpha": alphas[index]}
                            known = int(target.known.sum())
                            for metric, value in _values(target, predicted[:, index], rank=place.split == "test"):
                                self.scores.append(about(metric=metric, value=value, rows=known, **more))

    def _score_reconstruction(self, method: Method, function: Callable[[Tensor], float]) -> None:
        about = partial(Score, method=method.name, seed=method.seed, fitted_on=method.fitted_on)
        for zoo, split, part in self._parts():
            some = part.sample(MAX_REBUILT if split == "train" else None)
            value, place = function(some.weights), partial(about, evaluated_on=zoo.name, split=split)
            self.scores.append(place(target="reconstruction", metric="r2", value=value, rows=len(some)))

    def _groups(self, method: str, at_home: Mapping[str, "_Place"]) -> list[list[str]]:
        """Group the targets that can be fitted together: of one kind, and known in the same rows."""
        groups: dict[Any, list[str]] = {}
        for name in self.targets:
            targets = [place.part.targets[name] for place in at_home.values()]
            if reason := at_home["train"].part.targets[name].unfit():  # only in a sample of the rows
                self.excluded[f"{method}, probes of {name}"] = f"{reason} in the rows that are scored"
                continue
            key = (bool(targets[0].classes), *(target.known.numpy().tobytes() for target in targets))
            groups.setdefault(key, []).append(name)
        return list(groups.values())


@dataclass
class _Place:
    """Rows to score, and their features."""

    zoo: ZooDataset
    split: str
    part: ZooSplit
    features: Networks = field(default_factory=lambda: torch.empty(0))
    """A tensor, or for raw weights the networks themselves."""


def _embed(places: Sequence[_Place], method: Method) -> str:
    """Compute the features of all places; return why they cannot be scored, or an empty string."""
    try:
        for place in places:
            place.features = method.features_of(place.split, place.part.networks)
    except UnfitError as error:
        return str(error)
    if not all(part.isfinite().all() for place in places for part in in_parts(place.features)):
        return "its features are not finite"
    rows, count = places[0].features.shape
    return f"{rows} checkpoints x {count} features: too large" if min(rows, count) > MAX_SOLVE else ""


class _Fits:
    """The probes of targets that are fitted together, of all kinds."""

    def __init__(self, names: Sequence[str], at_home: Mapping[str, _Place], seed: int) -> None:
        self.seed, self.heads = seed, len(names)
        self.classes = [len(at_home["train"].part.targets[name].classes) for name in names]
        samples = []
        for split in ("train", "validation"):
            place = at_home.get(split)
            targets = [(place or at_home["train"]).part.targets[name] for name in names]
            known, values = targets[0].known, torch.stack([target.values for target in targets], dim=1)
            if place is None:
                known = torch.zeros_like(known)
            features = (place or at_home["train"]).features
            samples.append((features, values) if known.all() else (select(features, known), values[known]))
        self.train, self.validation = samples
        self.regression = Regression(self.train, self.validation) if not self.classes[0] else None

    def fit(self, probe: str) -> tuple[Sequence[float | None], Callable[[Networks], Tensor]]:
        """Fit one kind of probe; return the penalties, and a function from features to ``[rows, targets]``."""
        if self.regression is not None:
            ridge = self.regression.fit(standardise=probe == "standardised")
            return ridge.alphas, ridge
        labelled = [(values, labels.long()) for values, labels in (self.train, self.validation)]
        if probe == "paper":
            larger = _larger_batches(len(self.train[0]))
            softmax = fit_softmax_adam(*labelled[0], self.classes, seed=self.seed, larger=larger)
        else:
            softmax = fit_softmax_lbfgs(labelled[0], labelled[1], self.classes)
        # A layer whose weights overflowed, as on features of 1e30, predicts no class.
        failed = ~softmax.weights.unflatten(1, (self.heads, -1)).isfinite().all(dim=2).all(dim=0)

        def predict(rows: Networks) -> Tensor:
            return softmax.classes(rows, self.heads).double().masked_fill(failed, torch.nan)

        return softmax.alphas or [None] * self.heads, predict


def _larger_batches(checkpoints: int) -> int:
    """Return by which factor batches and learning rate of the paper's softmax layer are larger than the paper's."""
    return math.ceil(checkpoints / MAX_ADAM)


def _values(target: Target, predicted: Tensor, rank: bool) -> Iterator[tuple[str, float]]:
    """Yield each metric of the predictions ``[rows]`` in the rows where the target is known, and its value."""
    truth, predicted = target.values[target.known], predicted[target.known]
    if target.classes:
        yield "accuracy", accuracy(truth, predicted)
        return
    yield "r2", r2(truth, predicted)
    if rank:
        yield "kendall_tau", kendall_tau(truth, predicted)
