"""The linear probes and their scores, against scikit-learn, autograd and written-out examples."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from representation.evaluation import probes
from representation.evaluation.probes import (
    ALPHAS,
    Regression,
    accuracy,
    fit_ridge,
    fit_softmax_adam,
    fit_softmax_lbfgs,
    kendall_tau,
    r2,
)


def problem(rows: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of very different scales, and three targets with noise and offsets."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 1, features)
    x = (torch.randn(rows, features, generator=generator) + 0.5) * scales
    maps = torch.randn(features, 3, generator=torch.Generator().manual_seed(99)).double()
    noise = torch.randn(rows, 3, generator=generator).double() * torch.tensor([0.1, 3.0, 30.0])
    return x, x.double() @ maps + torch.tensor([0.0, 5.0, -100.0]) + noise


def oracle(standardise: bool, alpha: float, x: Tensor, y: Tensor, new: Tensor) -> np.ndarray:
    """Return the predictions of scikit-learn."""
    if standardise:
        model = make_pipeline(StandardScaler(), Ridge(alpha, solver="svd"))
        return model.fit(x.double().numpy(), y.numpy()).predict(new.double().numpy())
    ones = [np.column_stack([part.double().numpy(), np.ones(len(part))]) for part in (x, new)]
    return Ridge(alpha, fit_intercept=False, solver="svd").fit(ones[0], y.numpy()).predict(ones[1])


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("rows", [200, 25])  # more and fewer rows than features
def test_ridge_is_that_of_scikit_learn(standardise: bool, rows: int) -> None:
    train, (new, _) = problem(rows, 30), problem(50, 30, seed=1)
    for alpha in ALPHAS:
        ridge = fit_ridge(train, train, standardise=standardise, alphas=[alpha])
        expected = oracle(standardise, alpha, *train, new)
        np.testing.assert_allclose(ridge(new).numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_one_regression_serves_both_probes_even_where_means_are_much_larger_than_deviations() -> None:
    (x, y), (new, _) = problem(200, 30), problem(50, 30, seed=1)
    far = x + 1e3 * torch.logspace(-2, 1, 30)
    regression = Regression((far, y), (far, y))
    for standardise in (True, False):
        for alpha in (1e-2, 10.0):
            found = regression.fit(standardise, [alpha])(new + 1e3 * torch.logspace(-2, 1, 30))
            expected = oracle(standardise, alpha, far, y, new + 1e3 * torch.logspace(-2, 1, 30))
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("chunk", [probes.CHUNK, 1000])  # at once, and in chunks that do not divide the rows
def test_each_target_gets_the_penalty_that_is_best_on_the_validation_rows(
    standardise: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CHUNK", chunk)
    train, validation = problem(70, 30), problem(80, 30, seed=1)
    ridge = fit_ridge(train, validation, standardise=standardise)
    scores = [
        r2_score(validation[1], oracle(standardise, alpha, *train, validation[0]), multioutput="raw_values")
        for alpha in ALPHAS
    ]
    best = tuple(ALPHAS[index] for index in np.argmax(scores, axis=0))
    assert ridge.alphas == best
    assert len(set(best)) > 1
    for target, alpha in enumerate(best):
        expected = oracle(standardise, alpha, *train, validation[0])[:, target]
        np.testing.assert_allclose(ridge(validation[0])[:, target].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_the_penalties_are_those_of_the_paper() -> None:
    assert len(ALPHAS) == 17
    assert np.allclose(
        sorted(ALPHAS), [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
    )


def test_without_validation_rows_the_training_rows_choose() -> None:
    x, y = problem(70, 30)
    assert fit_ridge((x, y), (x[:0], y[:0])).alphas == fit_ridge((x, y), (x, y)).alphas == (ALPHAS[0],) * 3


def test_a_constant_feature_says_nothing_even_where_it_is_not_constant_later() -> None:
    (x, y), (new, _) = problem(70, 5), problem(20, 5, seed=1)
    more = torch.cat([x, torch.full((70, 1), 0.1)], dim=1)
    later = torch.cat([new, torch.full((20, 1), 3.0)], dim=1)
    without, with_constant = (fit_ridge((f, y), (f, y), standardise=True) for f in (x, more))
    torch.testing.assert_close(with_constant(later), without(new), rtol=1e-9, atol=1e-9)


def labelled(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eight features, and two kinds of labels, of 4 and of 2 classes, that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator) * torch.logspace(-1, 1, 8)
    noisy = x[:, :4] / torch.logspace(-1, 1, 8)[:4] + 0.5 * torch.randn(rows, 4, generator=generator)
    return x, torch.stack([noisy.argmax(1), (noisy.sum(1) > 0).long()], dim=1)


@pytest.mark.parametrize("larger", [1, 3])
def test_softmax_heads_trained_together_are_each_what_autograd_trains_alone(larger: int) -> None:
    x, labels = labelled(43, 0)  # the last batch has 3 rows
    together = fit_softmax_adam(x, labels, [4, 2], seed=5, epochs=3, larger=larger)
    for head, classes in enumerate((4, 2)):
        generator = torch.Generator().manual_seed(5)
        layer = torch.nn.Linear(8, classes)
        start = torch.randn(8, 8, generator=generator)[:, 4 * head : 4 * head + classes] * (2 / 8) ** 0.5
        layer.weight.data, layer.bias.data = start.T.clone(), torch.zeros(classes)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4 * larger, weight_decay=1e-6)
        for _ in range(3):
            for rows in torch.randperm(43, generator=generator).split(10 * larger):
                optimizer.zero_grad()
                F.cross_entropy(layer(x[rows]), labels[rows, head]).backward()
                optimizer.step()
        part = slice(4 * head, 4 * head + classes)
        torch.testing.assert_close(together.weights[:, part].float(), layer.weight.T, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.offset[part].float(), layer.bias, rtol=1e-4, atol=1e-6)
    assert set(together.classes(x, 2)[:, 1].tolist()) <= {0, 1}


def test_softmax_by_lbfgs_is_the_optimum_that_scikit_learn_finds() -> None:
    train, validation = labelled(300, 0), labelled(200, 1)
    alphas = [1000.0, 10.0, 0.1]
    fitted = fit_softmax_lbfgs(train, validation, [4, 2], alphas=alphas)
    scaler = StandardScaler().fit(train[0].double().numpy())
    x, new = (scaler.transform(part[0].double().numpy()) for part in (train, validation))
    for head, classes in enumerate((4, 2)):
        # scikit-learn has one column for two classes: the difference of the two, with half the penalty on it.
        penalties = [alpha / (2 if classes == 2 else 1) for alpha in alphas]
        models = [
            LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=1000).fit(x, train[1][:, head].numpy())
            for penalty in penalties
        ]
        scores = [model.score(new, validation[1][:, head].numpy()) for model in models]
        best = int(np.argmax(scores))
        assert fitted.alphas[head] == alphas[best]
        ours = fitted(validation[0])[:, 4 * head : 4 * head + classes].softmax(dim=1).numpy()
        np.testing.assert_allclose(ours, models[best].predict_proba(new), atol=2e-3)
        assert accuracy(validation[1][:, head], fitted.classes(validation[0], 2)[:, head]) == pytest.approx(
            scores[best]
        )


def test_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(100, generator=generator)
    predicted = truth + torch.randn(100, generator=generator)
    assert r2(truth, predicted) == pytest.approx(r2_score(truth, predicted))
    labels, guesses = torch.randint(3, (2, 100), generator=generator)
    assert accuracy(labels, guesses) == accuracy_score(labels, guesses)
    # Of the six pairs of 1 2 3 4 and 1 3 2 4, five are in the same order.
    assert kendall_tau(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4])) == pytest.approx((5 - 1) / 6)
    constant = torch.ones(100)
    assert np.isnan([r2(constant, predicted), kendall_tau(truth, constant)]).all()
