"""Representations of one's own beside the baselines: the same probes, splits and intervals as in `represent`.

>>> from representation import compare
>>> zoo = open_zoo("zoos/digits_hyp")
>>> results = compare(zoo, {"mine": encoder, "first layer": zoo.weights()[:, :80]}, baselines=("W", "s(W)"))
>>> print(results.render())
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from representation.dataset import ZooDataset
from representation.evaluation.baselines import Baseline, Umap
from representation.evaluation.baselines import baselines as baselines_for
from representation.evaluation.results import Results
from representation.evaluation.rows import ShownScores
from representation.evaluation.scoring import Method, Scorer
from representation.networks import Networks
from representation.pipeline import ProbeData
from representation.recipes import Recipe, load_recipe
from zootools.errors import SpecError, did_you_mean
from zootools.open import open_zoo
from zootools.zoo import Zoo

MAX_BATCH = 1_024
"""Most networks that a function gets at a time."""

Embedding: TypeAlias = Callable[[Tensor], Any] | Tensor | npt.NDArray[Any]
"""A function from weights, float32 ``[n, parameters]`` on the CPU, to features ``[n, d]``, or a matrix of features."""


def compare(
    zoo: Zoo | str | Path,
    methods: Mapping[str, Embedding | Sequence[Embedding]],
    *,
    baselines: Sequence[str] = ("W", "s(W)"),
    targets: Sequence[str] | None = None,
    transfer_to: Sequence[Zoo | str | Path] = (),
    recipe: str = "default",
    quiet: bool = False,
) -> Results:
    """Fit linear probes of a zoo's properties to features of your own, and score them beside baselines.

    Probes, splits, intervals over seeds and the paper's values are those of `representation.represent`.

    Args:
        zoo: the zoo, its folder, or its name.
        methods: features by the name of their method: a function from weights, float32 ``[n, parameters]`` on the CPU,
            to features ``[n, d]``, such as a module of PyTorch, which is called without gradients on at most
            `MAX_BATCH` networks at a time; or a matrix ``[checkpoints, d]`` with a row for each checkpoint of ``zoo``.
            A list of these has one for each seed.
        baselines: names of baselines (`representation.evaluation.baselines`) to score as well.
        targets: the properties to predict; by default all that can be predicted.
        transfer_to: other zoos of the same layer schema; functions and probes are scored on their test splits too.
        recipe: the recipe whose epochs and largest weight select the checkpoints, and whose length is the number of
            components of PCA and UMAP.
        quiet: print nothing on stderr.

    Raises SpecError for names of methods, baselines or targets that do not exist or are taken, for features of another
    shape or that are not finite, for a matrix together with ``transfer_to``, and for zoos that cannot be probed.
    """
    settings, opened = load_recipe(recipe), _opened(zoo)
    given = [entry for name, values in methods.items() for entry in _entries(name, values, len(opened))]
    if transfer_to and (fixed := [entry.place for entry in given if not callable(entry.value)]):
        raise SpecError(
            f"{fixed[0]}: is a matrix, which has no rows for the zoos of transfer_to; expected a function of weights"
        )
    data = ProbeData.of(opened, [_opened(other) for other in transfer_to], settings)
    _check_names(baselines, methods, [*(baseline.name for baseline in _baselines(settings, data.home)), Umap.name])
    excluded = {name: reason for name, reason in data.excluded.items() if name in baselines}
    scorer = Scorer(data.home, data.others, _chosen(data, targets, excluded), excluded)
    shown = ShownScores(scorer, quiet)
    for seed in range(max([entry.seed + 1 for entry in given], default=1)):
        for entry in given:
            if entry.seed == seed:
                shown.method(entry.method(data.home))
        for baseline in _baselines(settings, data.home, seed):
            if baseline.name in baselines:
                shown.baseline(baseline, seed)
    notes = [*data.notes, *shown.notes, *scorer.notes]
    return Results.of(scorer.scores, data.home.name, Path(recipe).stem, data.home.counts, notes, excluded)


@dataclass(frozen=True)
class _Entry:
    """One function or matrix of a method."""

    name: str
    seed: int
    place: str
    """How messages name it."""
    value: Embedding

    def method(self, home: ZooDataset) -> Method:
        """Return the method to score."""
        if callable(self.value):
            return Method(self.name, self._embed, self.seed)
        matrix = _matrix(self.place, self.value)
        features = {split: matrix[part.places] for split, part in home.splits.items()}
        for split, rows in features.items():
            _check_finite(f"{self.place}, {split} split", rows)
        return Method(self.name, None, self.seed, features=features)

    @torch.no_grad()
    def _embed(self, weights: Networks) -> Tensor:
        assert callable(self.value)
        parts = list[Tensor]()
        for batch in weights.split(MAX_BATCH):
            part = _matrix(self.place, self.value(batch.clone()))
            if len(part) != len(batch) or (parts and part.shape[1] != parts[0].shape[1]):
                width = parts[0].shape[1] if parts else "d"
                shape = f"found features {list(part.shape)} of weights {list(batch.shape)}"
                raise SpecError(f"{self.place}: {shape}; expected [{len(batch)}, {width}]")
            parts.append(part)
        features = torch.cat(parts)
        _check_finite(self.place, features)
        return features


def _entries(name: str, values: Embedding | Sequence[Embedding], rows: int) -> list[_Entry]:
    """Return the entries of a method, one for each seed. Raises SpecError for anything that is none."""
    place = f"methods[{name!r}]"
    if isinstance(values, list | tuple):
        entries = [_Entry(name, seed, f"{place}[{seed}]", value) for seed, value in enumerate(values)]
    else:
        entries = [_Entry(name, 0, place, cast(Embedding, values))]
    if not entries:
        raise SpecError(f"{place}: found an empty list; expected a function or a matrix for each seed")
    for entry in entries:
        if callable(entry.value):
            continue
        if not isinstance(entry.value, Tensor | np.ndarray):
            found = type(entry.value).__name__
            raise SpecError(f"{entry.place}: found {found}; expected a function of weights, or a matrix as an array")
        shape = list(entry.value.shape)
        if len(shape) != 2 or shape[0] != rows:
            raise SpecError(f"{entry.place}: found a matrix {shape}; expected [{rows}, d], a row for each checkpoint")
    return entries


def _matrix(place: str, value: Any) -> Tensor:
    """Return features as a floating-point tensor ``[n, d]`` on the CPU. Raises SpecError for anything else."""
    if not isinstance(value, Tensor | np.ndarray):
        raise SpecError(f"{place}: found {type(value).__name__}; expected a tensor or an array of features [n, d]")
    found = torch.as_tensor(value).detach().cpu()
    if found.dim() != 2 or not found.shape[1] or found.is_complex():
        raise SpecError(f"{place}: found features {list(found.shape)} of {found.dtype}; expected numbers [n, d]")
    return found if found.dtype in (torch.float32, torch.float64) else found.double()


def _check_finite(place: str, features: Tensor) -> None:
    if bad := int((~features.isfinite()).any(dim=1).sum()):
        raise SpecError(f"{place}: {bad} of {len(features)} rows have NaN or infinity; expected finite features")


def _baselines(recipe: Recipe, home: ZooDataset, seed: int = 0) -> list[Baseline]:
    """Return all baselines that can be computed for a zoo, not fitted."""
    return baselines_for(recipe.sized(home.schema.size).encoder.length, len(home.splits["train"]), seed)


def _check_names(baselines: Sequence[str], methods: Iterable[str], known: Sequence[str]) -> None:
    """Raise SpecError for unknown baselines, and for methods with the name of a baseline."""
    if isinstance(baselines, str):
        raise SpecError(f"baselines: found the text {baselines!r}; expected a list of names, such as [{baselines!r}]")
    for name in baselines:
        if name not in known:
            raise SpecError(f"baselines: found {name!r}{did_you_mean(name, known)}")
    for name in methods:
        if name in known:
            raise SpecError(f"methods: {name!r} is the name of a baseline; expected another one")


def _chosen(data: ProbeData, targets: Sequence[str] | None, excluded: dict[str, str]) -> list[str]:
    """Return the targets to predict. Raises SpecError for one that is unknown, or that cannot be predicted.

    Without a choice, those that cannot be predicted are added to ``excluded``.
    """
    unfit = {name: reason for name, reason in data.excluded.items() if name != Umap.name}
    if targets is None:
        excluded.update(unfit)
        return data.targets
    if isinstance(targets, str):
        raise SpecError(f"targets: found the text {targets!r}; expected a list of names, such as [{targets!r}]")
    for name in targets:
        if name in unfit:
            raise SpecError(f"targets: {name} cannot be predicted: {unfit[name]}")
        if name not in data.targets:
            raise SpecError(f"targets: found {name!r}{did_you_mean(name, data.targets)}")
    return list(dict.fromkeys(targets))


def _opened(zoo: Zoo | str | Path) -> Zoo:
    return zoo if isinstance(zoo, Zoo) else open_zoo(zoo)
