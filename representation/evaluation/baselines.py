"""Baselines: raw weights, their statistics, PCA and UMAP (paper, section 4.2, "Baselines").

A baseline is fitted to the training weights and maps any weights of the same layer schema to features. It reads only
the flat weights and the schema, so it can be used with every zoo.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from representation.dataset import sample_rows
from representation.networks import Networks, in_memory, in_parts
from zootools.architectures import Schema
from zootools.errors import SpecError

MAX_FIT = 2_000
"""Most training checkpoints for kernel PCA and UMAP. With 10,000 kernel PCA has the same scores on TETRIS-SEED
(docs/log.md), and takes five times as long for each checkpoint that it maps."""
MAX_PLANE = 4_000
"""Most rows that UMAP is fitted to for a picture."""
MAX_PLACED = 5_000
"""Most checkpoints of a split that UMAP places; it takes a millisecond for each."""
LONGEST = 1e18
"""Longest row for UMAP: it searches for the scale of the distances in 64 doublings."""
PAPER_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Quantiles of the paper's released code, which uses the weights only."""
UNTERTHINER_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Quantiles of Unterthiner et al. (2020), for weights and biases."""


class UnfitError(SpecError):
    """A baseline cannot be computed for these weights; the message is the reason."""


class Baseline(ABC):
    """A function from weights to features that needs no trained network."""

    name: ClassVar[str]
    seeded: ClassVar[bool] = False
    """Whether the features depend on a seed."""
    fitted_on: int | None = None
    """Number of training checkpoints that it was fitted on; None if it needs no fit."""
    scored_on: ClassVar[int | None] = None
    """Most checkpoints of a split that are embedded for the scores; None for all."""

    @abstractmethod
    def fit(self, weights: Networks, schema: Schema) -> None:
        """Fit to training weights, float32 ``[rows, parameters]``. Raises UnfitError if it cannot be fitted."""

    @abstractmethod
    def embed(self, weights: Networks) -> Networks:
        """Return features ``[rows, features]`` of weights ``[rows, parameters]``. Raises UnfitError as `fit` does."""


class RawWeights(Baseline):
    """W: the weights themselves."""

    name = "W"

    def fit(self, weights: Networks, schema: Schema) -> None:
        """Nothing to fit."""

    def embed(self, weights: Networks) -> Networks:
        return weights


class Statistics(Baseline):
    """s(W): mean, variance and five quantiles of every layer."""

    quantiles: ClassVar[Sequence[float]]
    biases: ClassVar[bool]

    def fit(self, weights: Networks, schema: Schema) -> None:
        """Choose the parts of the flat vector; nothing is fitted."""
        self._parts = [(p.offset, p.end) for p in schema.parameters if self.biases or not p.name.endswith(".bias")]

    def embed(self, weights: Networks) -> Tensor:
        """Return float64 ``[rows, 7 * parts]``: part by part mean, variance (divided by the count), quantiles."""
        each = 2 + len(self.quantiles)
        # One block for all: a result kept beside each part's large blocks would leave holes in the heap.
        features = torch.empty(len(weights), each * len(self._parts), dtype=torch.float64)
        begin = 0
        for rows in in_parts(weights):
            for number, (a, b) in enumerate(self._parts):
                into = features[begin : begin + len(rows), each * number : each * (number + 1)]
                into.copy_(layer_statistics(rows[:, a:b], self.quantiles))
            begin += len(rows)
        return features


class PaperStatistics(Statistics):
    """Statistics as in the paper's released code: weights only, quantiles 1, 25, 50, 75, 99 %."""

    name, quantiles, biases = "s(W)", PAPER_QUANTILES, False


class UnterthinerStatistics(Statistics):
    """Statistics as in Unterthiner et al.: of weights and of biases, with minimum and maximum."""

    name, quantiles, biases = "s(W) Unterthiner", UNTERTHINER_QUANTILES, True


def layer_statistics(values: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return mean, variance and quantiles (linearly interpolated) of each row, float64 ``[rows, 2 + quantiles]``."""
    ordered = values.double().sort(dim=1).values
    position = torch.tensor(quantiles, dtype=torch.float64) * (values.shape[1] - 1)
    below = position.long()
    above = (below + 1).clamp_max(values.shape[1] - 1)
    between = torch.lerp(ordered[:, below], ordered[:, above], position - below)
    return torch.cat([ordered.mean(1, keepdim=True), ordered.var(1, correction=0, keepdim=True), between], dim=1)


class _Fitted(Baseline):
    """A scikit-learn transformer, or one with the same interface."""

    def __init__(self, components: int, seed: int = 0) -> None:
        self.components, self.seed = components, seed
        self._model: Any = None

    @abstractmethod
    def _make(self, components: int) -> Any:
        """Return the transformer, not fitted."""

    def _rows(self, weights: Networks) -> Tensor:
        """Return the training rows to fit to."""
        return in_memory(weights)

    def fit(self, weights: Networks, schema: Schema) -> None:
        self.fit_rows(weights)

    def fit_rows(self, weights: Networks) -> None:
        """Fit to rows ``[rows, features]``, which need not be weights."""
        rows = self._rows(weights)
        self.fitted_on, self._parameters = rows.shape
        # n rows have variance in n - 1 directions at most.
        with _as_unfit():
            self._model = self._make(max(1, min(self.components, len(rows) - 1, rows.shape[1])))
            self._model.fit(self._given(rows))

    def embed(self, weights: Networks) -> Tensor:
        # In blocks to bound the memory: kernel PCA and UMAP need thousands of numbers per row.
        return torch.cat([self._transform(rows) for rows in weights.split(4_000)])

    def _solver(self) -> str:
        """Return the name of the fastest exact solver of scikit-learn's PCA for the shape of the rows."""
        assert self.fitted_on is not None
        return "covariance_eigh" if self.fitted_on >= self._parameters else "full"

    def _transform(self, weights: Tensor) -> Tensor:
        with _as_unfit():
            return torch.from_numpy(self._model.transform(self._given(weights)))

    def _given(self, weights: Tensor) -> npt.NDArray[np.float64]:
        """Return what the transformer gets for rows."""
        return weights.double().numpy()


class LinearPca(_Fitted):
    """PCA of the training weights."""

    name = "PCA-linear"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import PCA

        return PCA(components, svd_solver=self._solver())


class CosinePca(_Fitted):
    """Kernel PCA with the cosine kernel, computed as PCA of the weights scaled to length 1, which is the same."""

    name = "PCA-cosine"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer

        return make_pipeline(Normalizer(), PCA(components, svd_solver=self._solver()))


class _Sampled(_Fitted):
    """Fitted to a sample of the training rows that depends on the seed."""

    seeded = True

    def __init__(self, components: int, seed: int = 0, most: int | None = None) -> None:
        """``most`` is the largest number of rows to fit to, `MAX_FIT` by default."""
        super().__init__(components, seed)
        self.most = most or MAX_FIT

    def _rows(self, weights: Networks) -> Tensor:
        return weights[sample_rows(len(weights), self.most, self.seed)]


class RbfPca(_Sampled):
    """Kernel PCA with the RBF kernel, gamma 1 / parameters."""

    name = "PCA-rbf"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import KernelPCA

        return KernelPCA(
            components, kernel="rbf", eigen_solver="randomized", random_state=self.seed, copy_X=False, n_jobs=1
        )


class Umap(_Sampled):
    """UMAP with the paper's settings: 25 neighbours, minimal distance 0.001. Needs the extra ``plots``.

    It gets the distances between rows: for as few rows as here it would compute all of them too, each by a call of a
    Python function.
    """

    name, scored_on = "UMAP", MAX_PLACED
    neighbours: ClassVar[int] = 25

    def _make(self, components: int) -> Any:
        from umap import UMAP

        _keep_machine_code()
        assert self.fitted_on is not None
        return UMAP(
            self.neighbours,
            min(components, self.fitted_on - 2),  # most dimensions of the spectral embedding that UMAP starts from
            metric="precomputed",
            min_dist=0.001,
            n_epochs=200,  # UMAP's own default above 10,000 rows, the size of the paper's samples
            random_state=self.seed,
            n_jobs=1,
        )

    def fit_rows(self, weights: Networks) -> None:
        longest = max(float(rows.double().norm(dim=1).max()) for rows in in_parts(weights))
        if longest > LONGEST:
            raise UnfitError(f"rows of length up to {longest:.2g}; it scales distances up to {LONGEST:.0e}")
        self._sample = self._rows(weights).double()
        with _as_distances():
            super().fit_rows(weights)

    def _given(self, weights: Tensor) -> npt.NDArray[np.float64]:
        rows = weights.double()
        distances = torch.cdist(rows, self._sample)
        if rows.shape == self._sample.shape and torch.equal(rows, self._sample):
            distances.fill_diagonal_(0)  # which cdist's rounding need not give
        return distances.numpy()

    def embed(self, weights: Networks) -> Tensor:
        with _as_distances():
            return super().embed(weights)

    @classmethod
    def missing(cls, rows: int) -> str:
        """Return why UMAP cannot be fitted to ``rows`` training checkpoints here; an empty string if it can."""
        if find_spec("umap") is None:
            return "umap-learn is not installed (pip install 'zootools[plots]')"
        return "" if rows > cls.neighbours else f"its {cls.neighbours} neighbours need more than {rows} checkpoints"


@cache
def _keep_machine_code() -> None:
    """Make numba store the machine code of UMAP, beside UMAP's source or in the user's cache.

    Every process would compile it again, for 20 seconds. The function that is compiled for two signatures is left out:
    if two processes store one each at the same time, numba's index may name the wrong one.
    """
    from numba.core.registry import CPUDispatcher
    from umap import layouts, umap_, utils

    for function in (*vars(layouts).values(), *vars(umap_).values(), *vars(utils).values()):
        if (
            isinstance(function, CPUDispatcher)
            and function is not umap_.compute_membership_strengths
            and not function.stats.cache_path
        ):
            with suppress(RuntimeError):  # numba can write to none of these folders
                function.enable_caching()


@contextmanager
def _as_unfit() -> Iterator[None]:
    """Turn errors of scikit-learn and umap, and of the packages below them, into UnfitError.

    They document no classes of errors for extreme weights, so every Exception except MemoryError is converted.
    """
    try:
        yield
    except (MemoryError, UnfitError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnfitError(f"it fails on these weights ({text:.200})") from error


@contextmanager
def _as_distances() -> Iterator[None]:
    """Silence what UMAP says about distances and about separate clusters, and restore torch's number of threads.

    UMAP's compiler sets that to the number of cores, and it decides last bits.
    """
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precomputed metric")
            warnings.filterwarnings("ignore", message="Graph is not fully connected")
            yield
    finally:
        torch.set_num_threads(threads)


def flatten(features: Tensor, umap: bool = True) -> tuple[Tensor, str]:
    """Project features ``[rows, features]`` to the plane; return points, float64 ``[rows, 2]``, and the method's name.

    The method is ``UMAP`` with the paper's settings if ``umap`` is set and it can be fitted, else ``PCA``. Networks
    that explode and stay finite would hide all others, so rows more than ten times as long as the median are treated
    specially: UMAP gets them shortened to that length, PCA is fitted without them. If the rows do not vary, all points
    are at the origin. Rows that are not finite get NaN.
    """
    finite = features.isfinite().all(dim=1)
    rows = features[finite].double()
    points, name = torch.full((len(features), 2), torch.nan, dtype=torch.float64), LinearPca.name
    if len(rows):
        length = rows.norm(dim=1, keepdim=True)
        longest = 10 * length.median()
        ordinary = length <= longest
        near = torch.where(ordinary, rows, rows * (longest / length))
        ways: list[tuple[_Fitted, Tensor, Tensor]] = [(LinearPca(2), rows[ordinary[:, 0]], rows)]
        if umap and not Umap.missing(len(rows)):
            ways.insert(0, (Umap(2, most=MAX_PLANE), near, near))
        placed = torch.zeros(len(rows), 1, dtype=torch.float64)
        for method, fitted, shown in ways:
            with suppress(UnfitError):
                method.fit_rows(fitted)
                found = method.embed(shown).double()
                if found.isfinite().all():
                    placed, name = found, method.name
                    break
        points[finite] = torch.nn.functional.pad(placed, (0, 2 - placed.shape[1]))
    return points, name.removesuffix("-linear")


def baselines(components: int, rows: int, seed: int = 0) -> list[Baseline]:
    """Return the baselines that can be computed here, not fitted.

    Args:
        components: the dimension of PCA and UMAP, usually that of the learned representation.
        rows: number of training checkpoints to fit to.
        seed: of the sample and the start of kernel PCA and UMAP.
    """
    return [
        RawWeights(),
        *(kind(components, seed) for kind in (LinearPca, CosinePca, RbfPca)),
        *([] if Umap.missing(rows) else [Umap(components, seed)]),
        PaperStatistics(),
        UnterthinerStatistics(),
    ]
