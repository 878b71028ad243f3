"""Losses against small examples written out, and against formulas written another way."""

import itertools
import math

import numpy as np
import pytest
import torch
from samples import ARCHITECTURES
from torch import Tensor

from representation.loss_kinds import LOSS_KINDS, LossKind
from representation.recipes import Loss, load_recipe
from representation.training.losses import (
    Objective,
    layer_scale,
    nt_xent,
    paper_code_positive_contrast,
    positive_contrast,
    squared_error,
)
from representation.training.trainer import EncoderTrainer
from zootools.architectures import build_schema
from zootools.errors import SpecError

# Two networks, two views each: rows 0 and 2 are a pair, rows 1 and 3.
VIEWS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, -1.0]])


def test_squared_error_is_that_of_a_written_out_example() -> None:
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    errors = [[1, 4], [9, 1]]
    assert squared_error(outputs, targets, None).item() == np.mean(errors)
    assert squared_error(outputs, targets, None, "sum").item() == np.sum(errors) / 2  # the paper's 1/M sum of norms
    assert squared_error(outputs, targets, torch.tensor([2.0, 0.5])).item() == np.mean([[4, 1], [36, 0.25]])


def test_nt_xent_is_that_of_a_written_out_example() -> None:
    e = math.exp
    # Cosines: row 0 has 1 with its partner, 0 with rows 1 and 3; row 1 has -1 with its partner, 0 with 0 and 2.
    coinciding, opposite = -math.log(e(2) / (e(2) + 2)), -math.log(e(-2) / (e(-2) + 2))
    expected = [coinciding, opposite, coinciding, opposite]
    assert nt_xent(VIEWS, 0.5).item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert nt_xent(VIEWS, 0.5, "sum").item() == pytest.approx(np.sum(expected), rel=1e-6)


def test_nt_xent_is_equation_2() -> None:
    """An independent formula: loops, numpy, double precision."""
    pairs, temperature = 7, 0.1
    views = torch.randn(2 * pairs, 5, generator=torch.Generator().manual_seed(0))
    unit = views.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    terms = []
    for i in range(2 * pairs):
        others = [math.exp(unit[i] @ unit[k] / temperature) for k in range(2 * pairs) if k != i]
        partner = math.exp(unit[i] @ unit[(i + pairs) % (2 * pairs)] / temperature)
        terms.append(-math.log(partner / sum(others)))
    assert nt_xent(views, temperature).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_positive_contrast_is_equation_3() -> None:
    assert positive_contrast(VIEWS, 0.1).item() == pytest.approx((-1 + 1) / 2 + math.log(0.1), rel=1e-6)
    assert positive_contrast(VIEWS, 0.1, "sum").item() == pytest.approx((-1 + 1) + 2 * math.log(0.1), rel=1e-6)


def test_the_papers_code_has_its_maximum_for_coinciding_and_for_opposite_views() -> None:
    same, opposite = torch.tensor([[1.0, 0.0]] * 1000), torch.tensor([[1.0, 0.0]] * 500 + [[-1.0, 0.0]] * 500)
    orthogonal = torch.tensor([[1.0, 0.0]] * 500 + [[0.0, 1.0]] * 500)
    # At a batch of 500 and T = 0.1 its ceiling is 0.1.
    assert paper_code_positive_contrast(same, 0.1).item() == pytest.approx(0.1)
    assert paper_code_positive_contrast(opposite, 0.1).item() == pytest.approx(0.1)
    assert paper_code_positive_contrast(orthogonal, 0.1).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("positive", "attracts"), [("equation_3", True), ("paper_code", False)])
def test_equation_3_attracts_the_views_and_the_papers_code_repels_them(positive: str, attracts: bool) -> None:
    schema = build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4)
    objective = Objective(
        Loss.model_validate({"kind": "Ec+D", "beta": 0.0, "positive": positive}), schema, torch.ones(2, 100)
    )
    views = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    views[4:] = views[:4] + 0.3 * views[4:]  # alike at first
    views.requires_grad_()
    cosine = torch.nn.functional.cosine_similarity
    before = cosine(views[:4], views[4:]).mean().item()
    optimizer = torch.optim.SGD([views], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        objective(None, torch.zeros(8, 100), views).total.backward()
        optimizer.step()
    after = cosine(views[:4], views[4:]).mean().item()
    assert before < 0.99
    assert (after > before) is attracts
    assert after > 0.99 if attracts else abs(after) < 0.1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ED", "reconstruction"), ("Ec", "contrast"), ("EcD", "both"), ("Ec+D", "both")],
)
def test_each_loss_weighs_its_terms_by_beta(kind: str, expected: str) -> None:
    schema = build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4)
    objective = Objective(Loss.model_validate({"kind": kind, "beta": 0.25}), schema, torch.ones(2, 100))
    outputs, targets = torch.zeros(4, 100), torch.ones(4, 100)
    settings = objective.settings
    terms = objective(outputs if settings.reconstructs else None, targets, VIEWS if settings.contrasts else None)
    contrast = positive_contrast(VIEWS, 0.1) if kind == "Ec+D" else nt_xent(VIEWS, 0.1)
    total = {"reconstruction": 1.0, "contrast": contrast.item(), "both": 0.25 + 0.75 * contrast.item()}[expected]
    assert terms.total.item() == pytest.approx(total, rel=1e-6)


def spread(projected: Tensor, settings: Loss) -> Tensor:
    """A contrast of this test's own: it pulls all views to the origin."""
    return settings.temperature * projected.square().mean()


def test_a_loss_of_ones_own_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_KINDS, "toy", LossKind(reconstructs=True, contrast=f"{__name__}:spread"))
    changes = ["loss.kind=toy", "loss.beta=0.75", "loss.temperature=2.0", "training.best=reconstruction"]
    recipe = load_recipe("smoke", changes)
    schema = build_schema(ARCHITECTURES["mlp"], (1, 4, 4), 4)
    objective = Objective(recipe.loss, schema, torch.ones(2, 100))
    terms = objective(torch.zeros(4, 100), torch.ones(4, 100), VIEWS)
    assert terms.contrast.item() == 2 * VIEWS.square().mean().item()
    assert terms.total.item() == pytest.approx(0.75 * 1 + 0.25 * terms.contrast.item(), rel=1e-6)

    weights = torch.randn(20, schema.size, generator=torch.Generator().manual_seed(0))
    trainer = EncoderTrainer(schema, weights, weights[:5], recipe, 0, torch.device("cpu"))
    assert trainer.train_epoch()["contrast"] > 0
    assert "r2" in trainer.validate()
    with pytest.raises(SpecError, match="found 'toi'; did you mean 'toy'"):
        load_recipe("smoke", ["loss.kind=toi"])


def test_layerwise_reconstruction_is_the_mean_of_each_layers_error_over_its_variance() -> None:
    schema = build_schema(ARCHITECTURES["cnn_small"], (1, 28, 28), 10)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(50, schema.size, generator=generator)
    weights[:, 1414:] *= 10  # the layers differ in spread
    outputs = weights + torch.randn(weights.shape, generator=generator)
    found = squared_error(outputs, weights, layer_scale(schema, weights)).item()
    ends = [0, 208, 1414, 1514, 2254, 2464]
    expected = [
        ((outputs - weights)[:, a:b].numpy() ** 2).mean() / weights[:, a:b].numpy().var()
        for a, b in itertools.pairwise(ends)
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
