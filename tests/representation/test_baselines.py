"""The baselines: statistics against numpy, PCA against its definition."""

from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, KernelPCA
from torch import Tensor

from representation.evaluation.baselines import (
    CosinePca,
    LinearPca,
    PaperStatistics,
    RbfPca,
    Umap,
    UnfitError,
    UnterthinerStatistics,
    flatten,
)
from zootools.architectures import Schema, build_schema
from zootools.images.datasets import ImageData
from zootools.spec import Architecture, Cnn, Mlp


@pytest.fixture(scope="module")
def schema() -> Schema:
    """100 parameters in two layers without biases."""
    return build_schema(Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), 4)


def random_weights(rows: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, size, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_those_of_numpy_in_both_conventions(problem: tuple[Schema, ImageData]) -> None:
    schema = problem[0]
    weights = random_weights(6, schema.size)
    for method, percentiles in (
        (PaperStatistics(), (1, 25, 50, 75, 99)),
        (UnterthinerStatistics(), (0, 25, 50, 75, 100)),
    ):
        expected = []
        for layer in schema.layers:
            for kind in ("weight", "bias"):
                if kind == "bias" and (method.name == "s(W)" or not layer.bias):
                    continue
                (p,) = [p for p in schema.parameters if p.name == f"{layer.name}.{kind}"]
                values = weights[:, p.offset : p.end].numpy().astype(np.float64)
                expected.append([values.mean(1), values.var(1), *np.percentile(values, percentiles, axis=1)])
        method.fit(weights, schema)
        found = method.embed(weights)
        assert found.shape == (6, 7 * len(expected))
        np.testing.assert_allclose(found, np.concatenate(expected).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "shape", "counts"),
    [
        (Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), (14, 14)),
        (Cnn(name="cnn_small"), (1, 28, 28), (35, 70)),
        (Cnn(name="cnn_unterthiner"), (1, 28, 28), (28, 56)),
    ],
)
def test_there_are_as_many_statistics_as_published(
    architecture: Architecture, shape: tuple[int, int, int], counts: tuple[int, int]
) -> None:
    schema = build_schema(architecture, shape, 10)
    for method, count in zip((PaperStatistics(), UnterthinerStatistics()), counts, strict=True):
        method.fit(random_weights(1, schema.size), schema)
        assert method.embed(random_weights(2, schema.size)).shape == (2, count)


def test_cosine_pca_is_kernel_pca_with_the_cosine_kernel(schema: Schema) -> None:
    train, new = random_weights(80, 100), random_weights(20, 100, seed=1)
    method = CosinePca(7)
    method.fit(train, schema)
    exact = KernelPCA(7, kernel="cosine", eigen_solver="dense").fit(train.double().numpy())
    # Components are defined up to their sign.
    np.testing.assert_allclose(method.embed(new).abs(), np.abs(exact.transform(new.double().numpy())), atol=1e-8)


def test_linear_pca_is_fitted_on_all_rows_and_kernel_pca_on_a_seeded_sample(
    schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("representation.evaluation.baselines.MAX_FIT", 60)
    few_directions = torch.logspace(1, -6, 100)  # a spectrum that falls, as that of real zoos does
    train, new = (random_weights(rows, 100, seed) * few_directions for rows, seed in ((90, 0), (20, 1)))
    linear = LinearPca(4)
    linear.fit(train, schema)
    assert linear.fitted_on == 90
    exact = PCA(4, svd_solver="full").fit(train.double().numpy())
    np.testing.assert_allclose(linear.embed(new).abs(), np.abs(exact.transform(new.double().numpy())), atol=1e-8)

    first, again, other = RbfPca(4, seed=0), RbfPca(4, seed=0), RbfPca(4, seed=1)
    for method in (first, again, other):
        method.fit(train, schema)
        assert method.fitted_on == 60
    assert torch.equal(first.embed(new), again.embed(new))
    assert not torch.allclose(first.embed(new).abs(), other.embed(new).abs(), atol=1e-3)

    monkeypatch.setattr("representation.evaluation.baselines.MAX_FIT", 1000)
    whole = RbfPca(4)
    whole.fit(train, schema)
    exact = KernelPCA(4, kernel="rbf", gamma=1 / 100, eigen_solver="dense").fit(train.double().numpy())
    np.testing.assert_allclose(whole.embed(new).abs(), np.abs(exact.transform(new.double().numpy())), atol=1e-6)


def test_no_more_components_than_the_training_rows_have(schema: Schema) -> None:
    for method in (LinearPca(50), CosinePca(50), RbfPca(50)):
        method.fit(random_weights(6, 100), schema)
        features = method.embed(random_weights(3, 100, seed=1))
        assert features.shape == (3, 5)
        assert features.isfinite().all()


@pytest.mark.slow
def test_umap_maps_unseen_weights_and_says_when_it_cannot(schema: Schema) -> None:
    umap = pytest.importorskip("umap")
    assert Umap.missing(26) == ""
    assert "25 neighbours" in Umap.missing(25)
    method, train, new = Umap(50), random_weights(40, 100), random_weights(7, 100, seed=1)
    threads = torch.get_num_threads()
    method.fit(train, schema)
    assert method.embed(new).shape == (7, 38)
    assert torch.get_num_threads() == threads
    # It gets distances; UMAP that computes them itself places the same neighbours in the same way.
    alone = umap.UMAP(25, 38, min_dist=0.001, n_epochs=200, random_state=0, n_jobs=1).fit(train.double().numpy())
    ours = method._model.graph_
    assert abs(ours - alone.graph_).max() < 1e-5


@pytest.mark.slow
def test_umap_is_fitted_to_a_stated_number_of_rows(schema: Schema) -> None:
    pytest.importorskip("umap")
    method = Umap(3, most=60)
    method.fit(random_weights(90, 100), schema)
    assert method.fitted_on == 60
    assert method.embed(random_weights(90, 100)).isfinite().all()


def test_what_a_baseline_cannot_compute_is_refused_with_the_reason(schema: Schema) -> None:
    with pytest.raises(UnfitError, match=r"rows of length up to .*e\+30; it scales distances up to 1e\+18"):
        Umap(2).fit(random_weights(40, 100) * 1e30, schema)
    for method in (LinearPca(3), CosinePca(3), RbfPca(3)):
        with pytest.raises(UnfitError, match=r"it fails on these weights \(ValueError: Input X? ?contains NaN"):
            method.fit(torch.full((10, 100), torch.nan), schema)
        method.fit(random_weights(10, 100), schema)
        with pytest.raises(UnfitError, match="it fails on these weights"):
            method.embed(random_weights(10, 99))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_any_finite_weights_have_finite_features_and_a_place_in_the_plane(
    schema: Schema, rows: int, scale: float
) -> None:
    weights = random_weights(rows, 100) * scale
    points, name = flatten(weights, umap=scale > 1)
    assert points.shape == (rows, 2)
    assert points.isfinite().all()
    assert name == "PCA"
    for method in (LinearPca(3), CosinePca(3), RbfPca(3), PaperStatistics(), UnterthinerStatistics()):
        with nullcontext() if rows > 2 and scale else suppress(UnfitError):
            method.fit(weights, schema)
            assert method.embed(weights).isfinite().all() or rows == 1
