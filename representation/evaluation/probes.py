"""Linear probes: how well a linear map predicts a property from features (paper, section 3, "Downstream Tasks").

Two kinds, both fitted on the training split, with their penalty chosen on the validation split:

- *paper*: as in the paper's code. Ridge regression on unscaled features, where the offset is one more feature of
  ones and penalised like the others; a softmax layer trained by Adam with batches of 10.
- *standardised*: features with mean 0 and variance 1, an offset that is not penalised, and a softmax layer fitted by
  L-BFGS. The result does not depend on the scale of the features.

Features are float32 or float64 ``[rows, features]`` on any device, or weights in the files of a zoo; everything fitted
is float64, except the layer that Adam trains.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from representation.networks import Networks, in_memory, select

ALPHAS = (*(factor * 10.0**power for power in range(-5, 3) for factor in (1, 3)), 1e3)
"""Ridge penalties to choose from, {1, 3} x 10^k from 1e-5 to 1e3."""
SOFTMAX_ALPHAS = (1e3, 1e2, 1e1, 1e0)
"""Penalties to choose from for the standardised softmax layer, from strong to weak: each fit starts at the last."""
ITERATIONS = 200
"""Most steps of L-BFGS for each penalty."""
CHUNK = 1 << 23
"""Elements of a matrix that are converted to float64 at a time."""


@dataclass(frozen=True)
class LinearMap:
    """A fitted affine map.

    Attributes:
        weights: float64 ``[features, outputs]``.
        offset: float64 ``[outputs]``.
        alphas: the chosen penalty of each target; empty if there was no choice.
    """

    weights: Tensor
    offset: Tensor
    alphas: tuple[float, ...] = ()

    def __call__(self, features: Networks) -> Tensor:
        """Map features ``[rows, features]`` to float64 ``[rows, outputs]``."""
        return torch.cat([chunk.double() @ self.weights + self.offset for chunk in _chunks(features)])

    def classes(self, features: Networks, heads: int) -> Tensor:
        """Return the most likely class of each of ``heads`` softmax layers, int64 ``[rows, heads]``."""
        return rearrange(self(features), "rows (heads classes) -> rows heads classes", heads=heads).argmax(dim=2)


# --- regression -----------------------------------------------------------------------------------------------


def fit_ridge(
    train: tuple[Networks, Tensor],
    validation: tuple[Networks, Tensor],
    *,
    standardise: bool = False,
    alphas: Sequence[float] = ALPHAS,
) -> LinearMap:
    """Fit ridge regressions of many targets on the same rows; see `Regression`."""
    return Regression(train, validation).fit(standardise, alphas)


class Regression:
    """Ridge regressions of many targets on the same rows.

    One Gram matrix of the centred features serves both kinds of probe, and one eigendecomposition per kind all targets
    and all penalties. The penalty is chosen for each target by its R2 on the validation rows, or on the training rows
    where there are none.
    """

    def __init__(self, train: tuple[Networks, Tensor], validation: tuple[Networks, Tensor]) -> None:
        """Args are features ``[rows, features]`` and finite targets ``[rows, targets]``.

        ``validation`` may have no rows.
        """
        self.features, self.targets = train[0], train[1].double()
        judge, truth = validation if len(validation[0]) else train
        self.judge = judge, truth.double()
        self.mean, self.deviation = moments(self.features)
        self.centre = self.targets.mean(dim=0)

    def fit(self, standardise: bool = False, alphas: Sequence[float] = ALPHAS) -> LinearMap:
        """Fit all targets.

        Args:
            standardise: scale the features and do not penalise the offset; if False, fit as the paper's code.
            alphas: the penalties to choose from.
        """
        count, device = self.features.shape[1], self.features.device
        if standardise:
            mean, scale, centre = self.mean, self.deviation, self.centre
        else:
            mean, scale, centre = torch.zeros_like(self.mean), torch.ones_like(self.mean), 0 * self.centre

        def design(chunk: Tensor) -> Tensor:
            columns = (chunk.double() - mean) / scale
            return columns if standardise else torch.cat([columns, columns.new_ones(len(chunk), 1)], dim=1)

        if len(self.features) < count + (not standardise):
            # Fewer rows than features: the same coefficients from the rows' Gram matrix.
            rows = design(in_memory(self.features))
            eigenvalues, vectors = torch.linalg.eigh(rows @ rows.T)
            moment, vectors = vectors.T @ (self.targets - centre), rows.T @ vectors
        else:
            gram, moment = self._scaled() if standardise else self._with_ones()
            eigenvalues, vectors = torch.linalg.eigh(gram)
            moment = vectors.T @ moment
        shrink = 1 / (eigenvalues.clamp_min(0)[:, None] + torch.tensor(alphas, dtype=torch.float64, device=device))

        every = vectors @ (shrink[:, :, None] * moment[:, None, :]).flatten(1)  # [features, alphas * targets]
        errors = torch.zeros(len(alphas), moment.shape[1], dtype=torch.float64, device=device)
        rows_at_once = max(1, CHUNK // max(every.shape))
        judge, truth = self.judge
        for chunk, values in zip(judge.split(rows_at_once), truth.split(rows_at_once), strict=True):
            predicted = (design(chunk) @ every).unflatten(1, errors.shape)
            errors += (predicted - (values - centre)[:, None]).square_().sum(dim=0)
        best = errors.argmin(dim=0)
        chosen = every.unflatten(1, errors.shape)[:, best, torch.arange(len(best), device=device)]
        weights = chosen[:count] / scale[:, None]
        offset = centre - mean @ weights if standardise else chosen[count]
        return LinearMap(weights, offset, tuple(alphas[index] for index in best.tolist()))

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """The Gram matrix of the centred features, and their products with the centred targets."""
        count = len(self.mean)
        gram = self.mean.new_zeros(count, count)
        moment = self.mean.new_zeros(count, self.targets.shape[1])
        for chunk, values in zip(_chunks(self.features), _chunks_like(self.features, self.targets), strict=True):
            columns = chunk.double() - self.mean
            gram += _gram(columns)
            moment.addmm_(columns.T, values - self.centre)
        return gram, moment

    def _scaled(self) -> tuple[Tensor, Tensor]:
        gram, moment = self._products
        return gram / self.deviation / self.deviation[:, None], moment / self.deviation[:, None]

    def _with_ones(self) -> tuple[Tensor, Tensor]:
        """Return the products of the features as they are, with a last feature of ones.

        They are added to the centred products, which loses no digits.
        """
        gram, moment = self._products
        size, rows = len(gram), len(self.features)
        mean = torch.cat([self.mean, self.mean.new_ones(1)])
        whole, products = rows * mean[:, None] * mean, rows * mean[:, None] * self.centre
        whole[:size, :size] += gram
        products[:size] += moment
        return whole, products


def _gram(columns: Tensor) -> Tensor:
    """Return ``columns.T @ columns``; numpy computes only one half of it."""
    if columns.is_cuda:
        return columns.T @ columns
    values = columns.numpy()
    return torch.from_numpy(values.T @ values)


def moments(features: Networks) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature, float64 ``[features]``; deviation 1 for a constant one."""
    mean = sum((chunk.double().sum(dim=0) for chunk in _chunks(features)), torch.tensor(0.0)) / len(features)
    squares = sum(((chunk.double() - mean).square().sum(dim=0) for chunk in _chunks(features)), torch.tensor(0.0))
    deviation = (squares / len(features)).sqrt()
    # A spread below float32's resolution is rounding, not information.
    return mean, torch.where(deviation > 1e-7 * mean.abs(), deviation, 1.0)


# --- classification -------------------------------------------------------------------------------------------


def fit_softmax_adam(
    features: Networks, labels: Tensor, classes: Sequence[int], *, seed: int = 0, epochs: int = 50, larger: int = 1
) -> LinearMap:
    """Train one softmax layer (head) per categorical target as in the paper, all of them at once.

    Adam with batches of 10, a learning rate of 1e-4 and a weight decay of 1e-6, kaiming-normal weights, the last epoch
    is used. The heads share only the order of the rows, so each is the same as if trained alone.

    Args:
        features: ``[rows, features]``.
        labels: int64 ``[rows, heads]``, from 0.
        classes: the number of classes of each head.
        seed: of the initial weights and the order of the rows.
        epochs: passes over the rows.
        larger: factor of both batch size and learning rate. The weights can move as far in as many passes, in fewer
            steps.
    """
    generator = torch.Generator().manual_seed(seed)
    onehot, mask = _onehot(labels, classes, torch.empty(0, device=features.device))
    deviation = (2 / features.shape[1]) ** 0.5
    weights = deviation * torch.randn(features.shape[1], mask.numel(), generator=generator)
    weights, offset = weights.to(features.device), torch.zeros_like(mask)
    optimizer = torch.optim.Adam([weights, offset], lr=larger * 1e-4, weight_decay=1e-6, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        shuffled = features[order].float() if isinstance(features, Tensor) else select(features, order)
        for rows, truth in zip(shuffled.split(10 * larger), onehot[order].split(10 * larger), strict=True):
            excess = _softmax(torch.addmm(offset, rows, weights) + mask, len(classes)).sub_(truth).div_(len(rows))
            weights.grad, offset.grad = rows.T @ excess, excess.sum(dim=0)
            optimizer.step()
    return LinearMap(weights.double(), (offset + mask).double())


def fit_softmax_lbfgs(
    train: tuple[Networks, Tensor],
    validation: tuple[Networks, Tensor],
    classes: Sequence[int],
    *,
    alphas: Sequence[float] = SOFTMAX_ALPHAS,
) -> LinearMap:
    """Fit one softmax layer per categorical target on standardised features, by scikit-learn's L-BFGS.

    It minimises the cross-entropy summed over rows plus alpha / 2 times the squared weights; alpha is chosen for each
    head by the accuracy on the validation rows, or on the training rows where there are none. A class without a
    training row is never predicted.

    Args:
        train: features ``[rows, features]`` and int64 labels ``[rows, heads]``, from 0; at least two classes a head.
        validation: the same for the validation rows; may have no rows, and labels that no training row has.
        classes: the number of classes of each head.
        alphas: the penalties to choose from, from strong to weak.
    """
    mean, scale = moments(train[0])
    judge, truth = validation if len(validation[0]) else train
    rows, judged = (
        torch.cat([((rows - mean) / scale).float() for rows in _chunks(part)]).cpu().numpy()
        for part in (train[0], judge)
    )
    weights = torch.zeros(len(mean), len(classes), max(classes), dtype=torch.float64)
    offset = torch.full(weights.shape[1:], -torch.inf, dtype=torch.float64)
    chosen = []
    for head in range(len(classes)):
        best = -1.0
        for alpha, model in _logistic_regressions(rows, train[1][:, head].cpu().numpy(), alphas):
            score = model.score(judged, truth[:, head].cpu().numpy())
            if score > best:
                best, found = score, (alpha, model.classes_, *_by_class(model))
        alpha, present, columns, intercepts = found
        weights[:, head, present], offset[head, present] = torch.from_numpy(columns), torch.from_numpy(intercepts)
        chosen.append(alpha)
    weights = rearrange(weights, "features heads classes -> features (heads classes)").to(mean) / scale[:, None]
    return LinearMap(weights, offset.flatten().to(mean) - mean @ weights, tuple(chosen))


def _logistic_regressions(
    rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], alphas: Sequence[float]
) -> Iterator[tuple[float, Any]]:
    """Yield each penalty and the model fitted with it, the same object every time: a fit starts at the last one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Two classes have one column, the difference of ours: half the penalty on it is the same objective.
    share = 0.5 if len(np.unique(labels)) == 2 else 1.0
    model = LogisticRegression(warm_start=True, max_iter=ITERATIONS)
    for alpha in alphas:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the layer after ITERATIONS steps is used
            model.set_params(C=1 / (share * alpha)).fit(rows, labels)
        yield alpha, model


def _by_class(model: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return weights ``[features, classes]`` and offsets ``[classes]`` of a fitted model, a column per class."""
    columns, intercepts = model.coef_.astype(float).T, model.intercept_.astype(float)
    if columns.shape[1] == 1:
        return np.concatenate([-columns / 2, columns / 2], axis=1), np.concatenate([-intercepts / 2, intercepts / 2])
    return columns, intercepts


def _onehot(labels: Tensor, classes: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels as ones among zeros ``[rows, heads * widest]``, and 0 or -inf for the classes that a head lacks."""
    widest = max(classes)
    onehot = torch.nn.functional.one_hot(labels, widest).flatten(1).to(like)
    present = torch.arange(widest) < torch.tensor(classes)[:, None]
    return onehot, torch.where(present.flatten(), 0.0, -torch.inf).to(like)


def _softmax(logits: Tensor, heads: int) -> Tensor:
    by_head = rearrange(logits, "rows (heads classes) -> rows heads classes", heads=heads)
    return rearrange(by_head.softmax(dim=2), "rows heads classes -> rows (heads classes)")


# --- scores ---------------------------------------------------------------------------------------------------


def r2(truth: Tensor, predicted: Tensor) -> float:
    """Return 1 - mean squared error / variance; NaN where the truth is constant."""
    truth, predicted = truth.double(), predicted.double()
    variance = (truth - truth.mean()).square().sum()
    return float(1 - (truth - predicted).square().sum() / variance) if variance > 0 else float("nan")


def accuracy(truth: Tensor, predicted: Tensor) -> float:
    """Return the share of equal labels."""
    return float((truth == predicted).double().mean())


def kendall_tau(truth: Tensor, predicted: Tensor) -> float:
    """Return Kendall's rank correlation (tau-b, which allows for ties); NaN where either side is constant."""
    from scipy.stats import kendalltau

    return cast(float, kendalltau(truth.cpu().numpy(), predicted.cpu().numpy()).statistic)


def _chunks(features: Networks) -> Iterator[Tensor]:
    yield from features.split(_chunk_rows(features))


def _chunks_like(features: Networks, other: Tensor) -> Iterator[Tensor]:
    """Split another tensor at the rows where `_chunks` splits the features."""
    yield from other.split(_chunk_rows(features))


def _chunk_rows(features: Networks) -> int:
    return max(1, CHUNK // features.shape[1])
