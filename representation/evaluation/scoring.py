"""Scoring: how well a linear probe predicts each property from the features of a method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from representation.dataset import ZooDataset
from representation.encoders.encoder import Encoder
from representation.evaluation.baselines import UnfitError
from representation.evaluation.probes import accuracy, fit_ridge, fit_softmax_adam, fit_softmax_lbfgs, kendall_tau, r2
from representation.evaluation.results import Score
from representation.recipes import Augmentation, Recipe
from representation.targets import Target
from representation.training.augmentation import Augmenter

PROBES = ("paper", "standardised")
MAX_SOLVE = 20_000
"""Limit of min(rows, features) for a ridge regression, which would take hours above it."""


@dataclass(frozen=True)
class Method:
    """A function from weights to features, fitted to the training split of the zoo."""

    name: str
    embed: Callable[[Tensor], Tensor]
    seed: int = 0
    fitted_on: int | None = None
    """Number of training checkpoints that the method was fitted on; None if it needs no fit."""
    reconstruction: Callable[[Tensor], float] | None = None
    """Function from weights to the R2 of their reconstruction, for a method with a decoder."""


def reconstruction_r2(encoder: Encoder, weights: Tensor, recipe: Recipe) -> float:
    """Return the R2 of reconstructed weights over the whole vector, "Rec" in the paper's tables.

    As in the paper, each network is permuted at random if the recipe permutes, without erasing and noise; the error is
    compared with the error of the mean of each weight over these networks.
    """
    settings = Augmentation(permute=recipe.augmentation.permute, erase_probability=0.0)
    views = Augmenter(encoder.schema, settings).views(weights, torch.Generator().manual_seed(0), copies=1).clean
    error = (views - encoder.reconstruct(views)).square().sum(dtype=torch.float64)
    return float(1 - error / (views - views.mean(dim=0)).square().sum(dtype=torch.float64))


def validation_scores(home: ZooDataset, targets: list[str], encoder: Encoder, name: str) -> list[Score]:
    """Return the scores of the paper's probe on the validation split.

    There are none when the features are not finite.
    """
    run = Scorer(home, [], targets, {}, probes=("paper",))
    run.score(Method(name, encoder.embed, fitted_on=len(home.splits["train"])))
    return [score for score in run.scores if score.split == "validation"]


# --- the scores -----------------------------------------------------------------------------------------------


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

    def score(self, method: Method) -> None:
        """Fit probes of every target to a method's features, and score them on every split of every zoo."""
        places = [
            (zoo.name, split, part)
            for zoo in (self.home, *self.others)
            for split, part in zoo.splits.items()
            if len(part)
        ]
        try:
            features = [method.embed(part.weights) for _, _, part in places]
        except UnfitError as error:
            self.excluded[method.name] = str(error)
            return
        if not all(values.isfinite().all() for values in features):
            self.excluded[method.name] = "its features are not finite"
            return
        if min(features[0].shape) > MAX_SOLVE:
            self.excluded[method.name] = f"{len(features[0])} checkpoints x {features[0].shape[1]} features: too large"
            return
        score = partial(Score, method=method.name, seed=method.seed, fitted_on=method.fitted_on)
        at_home = dict(zip((split for split, part in self.home.splits.items() if len(part)), features, strict=False))
        for probe in self.probes:
            for names in self._groups():
                alphas, predict = self._fit(probe, names, at_home, method.seed)
                for (zoo, split, part), values in zip(places, features, strict=True):
                    place = partial(score, evaluated_on=zoo, split=split, probe=probe)
                    predicted = predict(values)
                    for index, name in enumerate(names):
                        if not predicted[:, index].isfinite().all():
                            self.excluded[f"{method.name}, {probe} probe of {name}"] = "its numbers overflow"
                        elif name in part.targets:
                            target, more = part.targets[name], {"target": name, "alpha": alphas[index]}
                            known = int(target.known.sum())
                            for metric, value in _values(target, predicted[:, index], rank=split == "test"):
                                self.scores.append(place(metric=metric, value=value, rows=known, **more))
        if method.reconstruction is not None:
            for zoo, split, part in places:
                value = method.reconstruction(part.weights)
                place = partial(score, evaluated_on=zoo, split=split, target="reconstruction", metric="r2")
                self.scores.append(place(value=value, rows=len(part)))

    def _groups(self) -> list[list[str]]:
        """Group the targets that can be fitted together: of one kind, and known in the same rows."""
        groups: dict[Any, list[str]] = {}
        for name in self.targets:
            targets = [part.targets[name] for part in self.home.splits.values()]
            key = (bool(targets[0].classes), *(target.known.numpy().tobytes() for target in targets))
            groups.setdefault(key, []).append(name)
        return list(groups.values())

    def _fit(
        self, probe: str, names: list[str], features: Mapping[str, Tensor], seed: int
    ) -> tuple[Sequence[float | None], Callable[[Tensor], Tensor]]:
        """Fit one probe of some targets; return the penalties, and a function from features to ``[rows, targets]``."""

        def sample(split: str) -> tuple[Tensor, Tensor]:
            targets = [self.home.splits[split].targets[name] for name in names]
            known, values = targets[0].known, torch.stack([target.values for target in targets], dim=1)
            here = features.get(split, features["train"][:0])
            return (here, values) if known.all() else (here[known], values[known])

        train, validation = sample("train"), sample("validation")
        classes = [len(self.home.splits["train"].targets[name].classes) for name in names]
        if not classes[0]:
            ridge = fit_ridge(train, validation, standardise=probe == "standardised")
            return ridge.alphas, ridge
        labelled = [(values, labels.long()) for values, labels in (train, validation)]
        if probe == "paper":
            softmax = fit_softmax_adam(*labelled[0], classes, seed=seed)
        else:
            softmax = fit_softmax_lbfgs(labelled[0], labelled[1], classes)
        # A layer whose weights overflowed, as on features of 1e30, predicts no class.
        failed = ~softmax.weights.unflatten(1, (len(names), -1)).isfinite().all(dim=2).all(dim=0)

        def predict(rows: Tensor) -> Tensor:
            return softmax.classes(rows, len(names)).double().masked_fill(failed, torch.nan)

        return softmax.alphas or [None] * len(names), predict


def _values(target: Target, predicted: Tensor, rank: bool) -> Iterator[tuple[str, float]]:
    """Yield each metric of the predictions ``[rows]`` in the rows where the target is known, and its value."""
    truth, predicted = target.values[target.known], predicted[target.known]
    if target.classes:
        yield "accuracy", accuracy(truth, predicted)
        return
    yield "r2", r2(truth, predicted)
    if rank:
        yield "kendall_tau", kendall_tau(truth, predicted)
