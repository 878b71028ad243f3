"""Models, ids, seeds and splits depend on nothing but what they belong to."""

from typing import Any

import pytest
from samples import make_spec

from zootools.errors import SpecError
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, configurations, expand

GRID: dict[str, Any] = {
    "activation": ["tanh", "relu"],
    "init": ["uniform", "normal"],
    "optimizer": ["adam"],
    "lr": [1e-3, 1e-4],
}
RANDOM = {"random": {"per_configuration": 3, "low": 1, "high": 1000}}
SAMPLE = {"count": 20, "l2": {"log_uniform": [1e-6, 1e-2]}, "dropout": {"uniform": [0.0, 0.5]}}


def by_id(spec: ZooSpec) -> dict[str, ModelConfig]:
    models = expand(spec)
    assert [model.model_id for model in models] == sorted({model.model_id for model in models})
    return {model.model_id: model for model in models}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"seeds": {"range": [1, 5]}}, {"seeds": {"range": [1, 50]}}),
        ({"seeds": {"range": [5, 9]}}, {"seeds": {"fixed": [9, 8, 5, 7, 6, 1]}}),
        ({"seeds": RANDOM}, {"seeds": {"random": {**RANDOM["random"], "per_configuration": 9}}}),
        ({"grid": GRID}, {"grid": {**GRID, "lr": [1e-2, 1e-4, 1e-3]}}),
        ({"grid": GRID, "seeds": RANDOM}, {"grid": {**GRID, "activation": ["gelu", "relu", "tanh"]}, "seeds": RANDOM}),
        ({"grid": GRID}, {"grid": {**GRID, "weight_decay": [0.0, 0.1], "momentum": [0.9]}}),
        ({"sample": SAMPLE, "seeds": RANDOM}, {"sample": {**SAMPLE, "count": 60}, "seeds": RANDOM}),
        ({"training": {"epochs": 5, "batch_size": 10}}, {"training": {"epochs": 50, "batch_size": 10}}),
        ({}, {"name": "other", "description": "words", "license": "mit"}),
        ({}, {"training": {"epochs": 5, "batch_size": 10, "checkpoint_every": 2, "train_metrics_images": 7}}),
    ],
    ids=["range", "fixed", "random", "axis", "axis_random", "new_axis", "sample", "epochs", "words", "checkpoints"],
)
def test_growth_changes_no_id_seed_split_or_draw(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = by_id(make_spec(**before)), by_id(make_spec(**after))
    assert old.items() <= new.items()


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"epochs": 5, "batch_size": 11}},
        {"architecture": {"name": "cnn_large"}},
        {"images": {"name": "digits", "train": 101, "size": 28}},
        {"seeds": {"fixed": [3, 4]}},
        {"grid": {**GRID, "l2": [0.5]}},
        {"grid": {**GRID, "bias_init": [0.0]}},
    ],
)
def test_whatever_decides_the_weights_changes_every_id(change: dict[str, Any]) -> None:
    assert not set(by_id(make_spec())) & set(by_id(make_spec(**change)))


def test_ids_are_the_same_on_every_machine() -> None:
    assert [model.model_id for model in expand(make_spec())][:2] == ["239f658a8f7c7c03", "3250067614e8f1b2"]


def test_the_grid_is_the_product_of_its_axes() -> None:
    spec = make_spec(seeds={"fixed": [7]})
    found = {(h.activation, h.init, h.lr) for h in configurations(spec)}
    assert found == {(a, i, lr) for a in ("tanh", "relu") for i in ("uniform", "normal") for lr in (1e-3, 1e-4)}
    assert spec.model_count == len(expand(spec)) == len(found)


def test_fixed_seeds_are_shared_and_random_seeds_are_not() -> None:
    fixed = expand(make_spec(seeds={"fixed": [1, 2, 3]}))
    assert {model.seed for model in fixed} == {1, 2, 3}
    random = expand(make_spec(seeds=RANDOM))
    assert len({model.seed for model in random}) > 20  # 24 draws out of 1000
    assert all(1 <= model.seed <= 1000 for model in random)


def test_random_seeds_of_one_configuration_differ_even_when_all_are_needed() -> None:
    seeds: dict[str, list[int]] = {}
    for model in expand(make_spec(seeds={"random": {"per_configuration": 6, "low": 5, "high": 10}})):
        seeds.setdefault(model.configuration_id, []).append(model.seed)
    assert all(sorted(found) == [5, 6, 7, 8, 9, 10] for found in seeds.values())


def test_another_draw_seed_draws_other_seeds_and_other_values() -> None:
    again = {"random": {**RANDOM["random"], "draw_seed": 1}}
    assert {m.seed for m in expand(make_spec(seeds=RANDOM))} != {m.seed for m in expand(make_spec(seeds=again))}
    first, second = (list(configurations(make_spec(sample={**SAMPLE, "draw_seed": s}))) for s in (0, 1))
    assert not {h.l2 for h in first} & {h.l2 for h in second}


def test_draws_stay_in_their_interval_and_fill_it() -> None:
    draws = list(configurations(make_spec(sample={**SAMPLE, "count": 400, "train_fraction": {"choice": [0.5, 1.0]}})))
    l2, dropout = [h.l2 for h in draws], [h.dropout for h in draws]
    assert 1e-6 <= min(l2) < 1.2e-6
    assert 0.9e-2 < max(l2) <= 1e-2
    assert 0.4 < sum(value < 1e-4 for value in l2) / len(l2) < 0.6  # half of the decades
    assert 0 <= min(dropout) < 0.01
    assert 0.49 < max(dropout) <= 0.5
    assert {h.train_fraction for h in draws} == {0.5, 1.0}


def test_axes_of_a_sample_are_drawn_independently() -> None:
    spec = make_spec(sample={"count": 300, "l2": {"uniform": [0.0, 0.5]}, "dropout": {"uniform": [0.0, 0.5]}})
    draws = list(configurations(spec))[:300]
    both = sum((h.l2 < 0.25) == (h.dropout < 0.25) for h in draws)
    assert 100 < both < 200


def test_models_takes_those_with_the_smallest_ids() -> None:
    everything = expand(make_spec())
    assert expand(make_spec(models=5)) == everything[:5]


def test_more_models_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(SpecError, match=r"models: found 17, but the specification makes only 16"):
        expand(make_spec(models=17))


def test_a_configuration_drawn_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="occurs twice"):
        expand(make_spec(sample={"count": 30, "dropout": {"choice": [0.0, 0.5]}}))


def test_the_split_has_the_shares_asked_for() -> None:
    models = expand(make_spec(seeds={"range": [1, 500]}))
    shares = {name: sum(m.split == name for m in models) / len(models) for name in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.15, "test": 0.15}, abs=0.03)


def test_a_split_of_one_part_holds_everything() -> None:
    models = expand(make_spec(split={"train": 0.0, "validation": 0.0, "test": 1.0}))
    assert {model.split for model in models} == {"test"}


def test_group_by_configuration_keeps_the_seeds_of_a_configuration_together() -> None:
    split = {"train": 0.5, "validation": 0.25, "test": 0.25}
    seeds = {"range": [1, 30]}

    def splits(group_by: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for model in expand(make_spec(split={**split, "group_by": group_by}, seeds=seeds)):
            found.setdefault(model.configuration_id, set()).add(model.split)
        return found

    assert all(len(names) == 1 for names in splits("configuration").values())
    assert all(len(names) == 3 for names in splits("model").values())
