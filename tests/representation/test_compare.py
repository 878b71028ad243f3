"""Representations of one's own beside the baselines."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from representation import Results, compare, represent
from zootools import Zoo, open_zoo
from zootools.errors import SpecError

COLUMNS = ("method", "seed", "evaluated_on", "split", "target", "metric", "probe", "value", "alpha", "rows")


@pytest.fixture(scope="module", autouse=True)
def frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and a cache that is empty at first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Zoo:
    return open_zoo(tiny_zoo)


def scores(results: Results, method: str) -> list[dict[str, Any]]:
    rows = results.table.select(COLUMNS).to_pylist()
    return [{key: row[key] for key in COLUMNS if key != "method"} for row in rows if row["method"] == method]


def test_a_function_and_a_matrix_are_scored_as_the_baseline_of_the_same_features(zoo: Zoo, tmp_path: Path) -> None:
    ours = represent(zoo, "default", tmp_path / "out", baselines_only=True, quiet=True)
    weights = zoo.weights()
    results = compare(zoo, {"same": lambda rows: rows, "rows": weights.numpy()}, quiet=True)
    assert set(results.table["method"].to_pylist()) == {"W", "s(W)", "same", "rows"}
    expected = scores(ours, "W")
    assert len(expected) > 20
    for method in ("W", "same", "rows"):
        assert scores(results, method) == expected
    assert scores(results, "s(W)") == scores(ours, "s(W)")
    assert results.excluded.items() <= ours.excluded.items()
    assert "same" in results.render()


def test_a_list_has_one_entry_for_each_seed_with_an_interval(zoo: Zoo) -> None:
    torch.manual_seed(0)
    encoders = [nn.Linear(zoo.schema.size, 4) for _ in range(3)]
    results = compare(zoo, {"mine": encoders}, baselines=["W", "PCA-rbf"], targets=["test_accuracy"], quiet=True)
    assert (
        {row["seed"] for row in scores(results, "mine")}
        == {row["seed"] for row in scores(results, "PCA-rbf")}
        == {0, 1, 2}
    )
    assert {row["seed"] for row in scores(results, "W")} == {0}
    assert set(results.table["target"].to_pylist()) == {"test_accuracy"}
    found = [entry for entry in results.summary() if entry.method == "mine" and entry.split == "test"]
    assert found
    assert all(entry.seeds == 3 and entry.interval is not None for entry in found)
    with torch.no_grad():
        matrices = [encoder(zoo.weights()) for encoder in encoders]
    again = compare(zoo, {"mine": matrices}, baselines=(), targets=["test_accuracy"], quiet=True)
    for one, other in zip(scores(results, "mine"), scores(again, "mine"), strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-6)


def test_a_function_is_applied_to_the_zoos_of_a_transfer(zoo: Zoo, grown_zoo: Path) -> None:
    seen = list[int]()

    def mine(weights: Tensor) -> np.ndarray[Any, Any]:
        seen.append(len(weights))
        return weights.numpy() * 2

    other = open_zoo(grown_zoo, where="epoch >= 1")
    results = compare(zoo, {"mine": mine}, baselines=["W"], transfer_to=[other], quiet=True)
    assert sum(seen) == len(zoo.where("epoch >= 1")) + len(other.split("test"))
    away = [row for row in scores(results, "mine") if row["evaluated_on"] != zoo.name]
    assert {row["split"] for row in away} == {"test"}
    assert len(away) == len([row for row in scores(results, "W") if row["evaluated_on"] != zoo.name]) > 5
    with pytest.raises(
        SpecError, match=r"methods\['rows'\]: is a matrix, which has no rows for the zoos of transfer_to"
    ):
        compare(zoo, {"mine": mine, "rows": zoo.weights()}, transfer_to=[other], quiet=True)


def _with_nan(weights: Tensor) -> Tensor:
    return weights.clone().fill_(torch.nan)


@pytest.mark.parametrize(
    ("methods", "keywords", "message"),
    [
        (
            {"mine": lambda w: w[:, 0]},
            {},
            "methods['mine']: found features [14] of torch.float32; expected numbers [n, d]",
        ),
        ({"mine": [lambda w: w, lambda w: w[:2]]}, {}, "methods['mine'][1]: found features [2, 100] of weights ["),
        ({"mine": lambda w: w.tolist()}, {}, "methods['mine']: found list; expected a tensor or an array"),
        ({"mine": _with_nan}, {}, "rows have NaN or infinity; expected finite features"),
        ({"mine": torch.full((36, 2), torch.inf)}, {}, "methods['mine'], train split: "),
        ({"mine": torch.ones(35, 2)}, {}, "methods['mine']: found a matrix [35, 2]; expected [36, d]"),
        ({"mine": []}, {}, "methods['mine']: found an empty list"),
        ({"mine": "W"}, {}, "methods['mine']: found str; expected a function of weights, or a matrix"),
        ({"s(W)": lambda w: w}, {}, "methods: 's(W)' is the name of a baseline; expected another one"),
        ({}, {"baselines": ["PCA-liner"]}, "baselines: found 'PCA-liner'; did you mean 'PCA-linear'?"),
        ({}, {"baselines": "W"}, "baselines: found the text 'W'; expected a list of names, such as ['W']"),
        ({}, {"targets": ["test_acuracy"]}, "targets: found 'test_acuracy'; did you mean 'test_accuracy'?"),
        ({}, {"targets": ["optimizer"]}, "targets: optimizer cannot be predicted: constant (adam)"),
        ({}, {"targets": "epoch"}, "targets: found the text 'epoch'"),
    ],
)
def test_what_cannot_be_compared_is_named(
    zoo: Zoo, methods: dict[str, Any], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        compare(zoo, methods, quiet=True, **keywords)
