"""What a learned representation is held against: raw weights, their statistics, PCA, UMAP (section 4.2, "Baselines").

A baseline is fitted on the training weights and maps any weights of the same layer schema to features. It reads
nothing but the flat weights and the schema, so it fits every zoo.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.errors import SpecError

MAX_FIT = 10_000
"""Training checkpoints on which kernel PCA and UMAP are fitted at most: the kernel of 50,000 would take 20 GB."""
LONGEST = 1e18
"""UMAP computes squared distances in float32, which ends at 3.4e38."""
PAPER_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Of the paper's released code, which takes them of the weights only."""
UNTERTHINER_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of Unterthiner et al. (2020), who take them of weights and biases."""


class UnfitError(SpecError):
    """A baseline has no features of these weights; the text says why."""


class Baseline(ABC):
    """One way to make features of weights without learning a network."""

    name: ClassVar[str]
    seeded: ClassVar[bool] = False
    """Whether its features depend on a seed."""
    fitted_on: int | None = None
    """Training checkpoints that it was fitted on; None where there is nothing to fit."""

    @abstractmethod
    def fit(self, weights: Tensor, schema: Schema) -> None:
        """Fit to training weights, float32 ``[rows, parameters]``. Raises UnfitError where that cannot be."""

    @abstractmethod
    def embed(self, weights: Tensor) -> Tensor:
        """Return the features of weights ``[rows, parameters]``, ``[rows, features]``. Raises UnfitError as `fit`."""


class RawWeights(Baseline):
    """W: the weights as they are."""

    name = "W"

    def fit(self, weights: Tensor, schema: Schema) -> None:
        """Nothing to fit."""

    def embed(self, weights: Tensor) -> Tensor:
        return weights


class Statistics(Baseline):
    """s(W): mean, variance and five quantiles of every layer."""

    quantiles: ClassVar[Sequence[float]]
    biases: ClassVar[bool]

    def fit(self, weights: Tensor, schema: Schema) -> None:
        """Nothing to fit but which parts of the flat vector to take."""
        self._parts = [(p.offset, p.end) for p in schema.parameters if self.biases or not p.name.endswith(".bias")]

    def embed(self, weights: Tensor) -> Tensor:
        """Return float64 ``[rows, 7 * parts]``: part by part mean, variance (divided by the count), quantiles."""
        return torch.cat([layer_statistics(weights[:, a:b], self.quantiles) for a, b in self._parts], dim=1)


class PaperStatistics(Statistics):
    """As the paper's released code: weights only, quantiles 1, 25, 50, 75, 99 %."""

    name, quantiles, biases = "s(W)", PAPER_QUANTILES, False


class UnterthinerStatistics(Statistics):
    """As Unterthiner et al.: weights and biases, each by itself, with minimum and maximum."""

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
    """A scikit-learn transformer, or one that behaves so."""

    def __init__(self, components: int, seed: int = 0) -> None:
        self.components, self.seed = components, seed
        self._model: Any = None

    @abstractmethod
    def _make(self, components: int) -> Any:
        """Return the transformer, not yet fitted."""

    def _rows(self, weights: Tensor) -> Tensor:
        """Return the training rows that it is fitted on."""
        return weights

    def fit(self, weights: Tensor, schema: Schema) -> None:
        self.fit_rows(weights)

    def fit_rows(self, weights: Tensor) -> None:
        """Fit to any rows ``[rows, features]``, of weights or not."""
        rows = self._rows(weights)
        self.fitted_on, self._parameters = rows.shape
        # One less than the rows: that many directions have any variance.
        with _as_unfit():
            self._model = self._make(max(1, min(self.components, len(rows) - 1, rows.shape[1])))
            self._model.fit(rows.double().numpy())

    def embed(self, weights: Tensor) -> Tensor:
        # In blocks, which bounds the memory: kernel PCA needs ten thousand numbers for each row.
        return torch.cat([self._transform(rows) for rows in weights.split(4_000)])

    def _solver(self) -> str:
        """Return scikit-learn's exact solver of PCA that is fast for these rows: `covariance_eigh` for few weights."""
        assert self.fitted_on is not None
        return "covariance_eigh" if self.fitted_on >= self._parameters else "full"

    def _transform(self, weights: Tensor) -> Tensor:
        with _as_unfit():
            return torch.from_numpy(self._model.transform(weights.double().numpy()))


class LinearPca(_Fitted):
    """PCA of all training weights."""

    name = "PCA-linear"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import PCA

        return PCA(components, svd_solver=self._solver())


class CosinePca(_Fitted):
    """Kernel PCA with the cosine kernel: exactly PCA of the weights scaled to length 1, so no kernel is needed."""

    name = "PCA-cosine"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer

        return make_pipeline(Normalizer(), PCA(components, svd_solver=self._solver()))


class _Sampled(_Fitted):
    """Fitted on a sample of the training rows, drawn by the seed."""

    seeded = True

    def _rows(self, weights: Tensor) -> Tensor:
        chosen = np.random.default_rng(self.seed).permutation(len(weights))[:MAX_FIT]
        return weights[np.sort(chosen)]


class RbfPca(_Sampled):
    """Kernel PCA with the RBF kernel, gamma 1 / parameters."""

    name = "PCA-rbf"

    def _make(self, components: int) -> Any:
        from sklearn.decomposition import KernelPCA

        return KernelPCA(
            components, kernel="rbf", eigen_solver="randomized", random_state=self.seed, copy_X=False, n_jobs=1
        )


class Umap(_Sampled):
    """UMAP with the paper's settings: 25 neighbours, minimal distance 0.001. Needs the extra ``plots``."""

    name = "UMAP"
    neighbours: ClassVar[int] = 25

    def _make(self, components: int) -> Any:
        from umap import UMAP

        assert self.fitted_on is not None
        # 200 epochs are UMAP's own default above 10,000 rows, the size of the paper's samples.
        return UMAP(
            self.neighbours,
            min(components, self.fitted_on - 2),  # its start is a spectral embedding, which has no more dimensions
            min_dist=0.001,
            n_epochs=200,
            random_state=self.seed,
            n_jobs=1,
        )

    def fit_rows(self, weights: Tensor) -> None:
        longest = float(weights.double().norm(dim=1).max())
        if longest > LONGEST:
            raise UnfitError(f"rows of length up to {longest:.2g}, whose squared distances overflow its float32")
        with _threads_kept():
            super().fit_rows(weights)

    def embed(self, weights: Tensor) -> Tensor:
        with _threads_kept():
            return self._transform(weights)  # at once: new rows are placed together

    @classmethod
    def missing(cls, rows: int) -> str:
        """Return why it cannot be fitted on so many training checkpoints here; an empty string when it can."""
        if find_spec("umap") is None:
            return "umap-learn is not installed (pip install 'zootools[plots]')"
        return "" if rows > cls.neighbours else f"its {cls.neighbours} neighbours need more than {rows} checkpoints"


@contextmanager
def _as_unfit() -> Iterator[None]:
    """Turn what scikit-learn, umap and what they are made of raise about odd weights into UnfitError.

    They name no classes of their errors, and no list of them would be complete; what is no fault of the weights (no
    memory, an interruption) stays what it is.
    """
    try:
        yield
    except (MemoryError, UnfitError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnfitError(f"it fails on these weights ({text:.200})") from error


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Keep the number of threads of torch, which UMAP's compiler sets to that of all cores: it decides last bits."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def flatten(features: Tensor, umap: bool = True) -> tuple[Tensor, str]:
    """Return features ``[rows, anything]`` as points in the plane, float64 ``[rows, 2]``, and what made them.

    ``UMAP`` with the paper's settings where it is wanted and can be fitted, else ``PCA``, whose points are all at the
    origin where the rows have no directions. Some networks explode and stay finite: rows more than ten times as long as
    the median would be all that either shows. UMAP sees them in their direction, ten times as long as the median; PCA
    takes its directions from the others. Rows that are not finite, as what an encoder may make of such a network, get
    NaN.
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
            ways.insert(0, (Umap(2), near, near))
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
    """Return the baselines that can be computed here, not yet fitted.

    Args:
        components: the dimension of PCA and UMAP, normally that of the learned representation.
        rows: the training checkpoints that they will be fitted on.
        seed: decides the sample, and the start, of kernel PCA and UMAP.
    """
    return [
        RawWeights(),
        *(kind(components, seed) for kind in (LinearPca, CosinePca, RbfPca)),
        *([] if Umap.missing(rows) else [Umap(components, seed)]),
        PaperStatistics(),
        UnterthinerStatistics(),
    ]
