"""A model's bytes depend on the model alone (rows T1-T4), and old zoos stay readable (T6).

For every backend and every architecture with its kinds of layers: not on the number of workers, the order of the
models, the stack they sit in, an interruption, or a neighbour that diverges. T2 at every moment is C1 (test_crash).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import NIGHTLY, fault_random, tree
from golden import DATA, describe
from samples import ARCHITECTURES, BACKENDS, make_model

from zootools import build, open_zoo
from zootools.architectures import Schema
from zootools.bundled import bundled_specs
from zootools.images.datasets import ImageData
from zootools.spec import Mlp, Training, ZooSpec, load_spec, parse_spec
from zootools.spec.model_configs import ModelConfig, expand
from zootools.storage.shards import shard_bytes
from zootools.training.stack import StackRun
from zootools.training.table import choose_backend
from zootools.verify import faults

OPTIMIZERS = ["adam", "sgd", "rmsprop"]
EPOCHS = 2
TRAINING = Training(epochs=EPOCHS, batch_size=10)  # not a multiple of 4: rows of a stack start at odd addresses


def mixed(seed: int, optimizer: str) -> ModelConfig:
    """One of many different models of one structure, with dropout, decay and a share of the data."""
    changes: dict[str, Any] = {"lr": 1e-3 * (1 + seed % 3), "weight_decay": 0.01 * (seed % 2), "l2": 1e-3}
    changes |= {"dropout": 0.1 * (1 + seed % 3), "train_fraction": (1.0, 0.5, 0.73)[seed % 3]}
    return make_model(seed, init="kaiming_uniform", optimizer=optimizer, **changes)


def trained(run: StackRun) -> StackRun:
    while run.epoch < EPOCHS:
        run.train_epoch()
    return run


def bytes_of(run: StackRun, schema: Schema) -> dict[str, bytes]:
    """Weights and scores of each model of a run, as they would be stored."""
    flat, info = run.checkpoint()
    result = {}
    for row, model in enumerate(info.model_ids):
        properties = {name: [values[row]] for name, values in info.properties.items()}
        result[model] = shard_bytes(schema, flat[row : row + 1], type(info)(info.epoch, [model], properties))
    return result


@pytest.mark.parametrize("optimizer", OPTIMIZERS if NIGHTLY else ["adam"])
def test_t1_bytes_do_not_depend_on_the_stack(problem: tuple[Schema, ImageData], backend: str, optimizer: str) -> None:
    """Widths 1, 2, 3, 8, 17 and 32, shuffled order, one lane removed."""
    schema, images = problem
    chosen = choose_backend(backend, "cpu", schema)
    models = [mixed(seed, optimizer) for seed in range(1, 33)]

    def stack(members: list[ModelConfig]) -> dict[str, bytes]:
        return bytes_of(trained(StackRun(schema, members, images, TRAINING, chosen)), schema)

    whole = stack(models)
    assert len(whole) == 32
    shuffled = list(models)
    fault_random("T1").shuffle(shuffled)
    for members in (models[:1], models[5:7], models[3:6], models[8:16], models[:17], shuffled, models[:4] + models[5:]):
        assert stack(members) == {model.model_id: whole[model.model_id] for model in members}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_t2_bytes_do_not_depend_on_an_interruption(
    problem: tuple[Schema, ImageData], backend: str, optimizer: str
) -> None:
    schema, images = problem
    chosen = choose_backend(backend, "cpu", schema)
    models = [mixed(seed, optimizer) for seed in range(1, 4)]
    whole = trained(StackRun(schema, models, images, TRAINING, chosen))
    begun = StackRun(schema, models, images, TRAINING, chosen)
    for epoch in range(EPOCHS):
        saved = {name: tensor.clone() for name, tensor in begun.save().items()}
        begun = StackRun(schema, models, images, TRAINING, chosen)
        begun.restore(saved, epoch, {})
        begun.train_epoch()
    assert bytes_of(begun, schema) == bytes_of(whole, schema)
    assert {n: t.numpy().tobytes() for n, t in begun.save().items()} == {
        n: t.numpy().tobytes() for n, t in whole.save().items()
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_t3_bytes_do_not_depend_on_a_neighbour_that_diverges(
    problem: tuple[Schema, ImageData], backend: str, optimizer: str
) -> None:
    schema, images = problem
    chosen = choose_backend(backend, "cpu", schema)
    calm = [make_model(seed, init="kaiming_uniform", optimizer=optimizer) for seed in (1, 2)]
    wild = [
        make_model(3, init="normal", init_std=1000.0, optimizer=optimizer, lr=100.0, weight_decay=100.0),
        make_model(4, init="kaiming_uniform", optimizer=optimizer, lr=100.0, weight_decay=100.0, bias_init=1000.0),
    ]
    among = StackRun(schema, [calm[0], *wild, calm[1]], images, TRAINING, chosen)
    saved = among.save()
    saved["weights"][1] = float("nan")  # as wild as can be: one neighbour is not finite from the start
    among.restore(saved, 0, {})
    found = bytes_of(trained(among), schema)
    assert wild[0].model_id in among.stopped
    alone = bytes_of(trained(StackRun(schema, calm, images, TRAINING, chosen)), schema)
    assert {model.model_id: found[model.model_id] for model in calm} == alone


def grid_spec(architecture: str, models: int | None = None) -> ZooSpec:
    """A zoo of an architecture with every optimizer, with and without dropout: six stacks."""
    network = ARCHITECTURES[architecture]
    tetris = {"name": "tetris", "train": 24, "test": 20, "noise_train": 0.2, "noise_test": 0.8}
    spec: dict[str, Any] = {
        "name": "subset",
        "images": tetris if isinstance(network, Mlp) else {"name": "digits", "train": 24, "test": 20, "size": 28},
        "architecture": network.model_dump(mode="json", exclude_none=True),
        "grid": {
            "activation": ["tanh"],
            "init": ["kaiming_uniform"],
            "optimizer": OPTIMIZERS,
            "lr": [1e-2],
            "dropout": [0.0, 0.2],
        },
        "seeds": {"range": [1, 3]},
        "training": {"epochs": 2, "batch_size": 5},
    }
    return parse_spec(spec | ({"models": models} if models else {}), "test")


NETWORKS = list(ARCHITECTURES) if NIGHTLY else ["mlp", "cnn_small"]
"""The architectures of whole zoos: one of each kind of layers, or all in the long lane."""


@pytest.fixture(scope="module", params=[(name, backend) for name in NETWORKS for backend in BACKENDS], ids="-".join)
def grid_zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """An architecture, a backend, and the zoo that one worker makes of all of `grid_spec`."""
    architecture, backend = request.param
    out = tmp_path_factory.mktemp("grid") / "zoo"
    build(grid_spec(architecture), out, workers=1, backend=backend, quiet=True)
    return architecture, backend, out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_t1_whole_zoos_are_equal_for_any_number_of_workers(
    tmp_path: Path, grid_zoo: tuple[str, str, Path], workers: int
) -> None:
    architecture, backend, whole = grid_zoo
    build(grid_spec(architecture), tmp_path / "zoo", workers=workers, backend=backend, quiet=True)
    assert tree(tmp_path / "zoo") == tree(whole)
    assert len(list(whole.glob("checkpoints/*"))) == 6
    print(f"T1 {architecture} {backend}: {workers} workers make the {len(tree(whole))} files of one")


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 11])
def test_t4_the_models_of_a_smaller_zoo_are_rows_of_the_larger_one(
    tmp_path: Path, grid_zoo: tuple[str, str, Path], count: int
) -> None:
    architecture, backend, whole = grid_zoo
    build(grid_spec(architecture, count), tmp_path / "zoo", backend=backend, quiet=True)
    part, all_of_it = open_zoo(tmp_path / "zoo"), open_zoo(whole)
    rows = {(row["model_id"], row["epoch"]): i for i, row in enumerate(all_of_it.metadata.to_pylist())}
    assert len(part.models) == count
    index = [rows[row["model_id"], row["epoch"]] for row in part.metadata.to_pylist()]
    assert np.array_equal(part.weights().numpy(), all_of_it.weights().numpy()[index])
    same = [name for name in part.metadata.column_names if name not in ("stack", "row")]
    assert part.metadata.select(same).to_pylist() == all_of_it.metadata.take(index).select(same).to_pylist()


# --- T6 ------------------------------------------------------------------------------------------------


def test_t6_every_registered_architecture_is_under_test() -> None:
    from typing import get_args

    from zootools.spec import Cnn

    registered = {name for section in (Mlp, Cnn) for name in get_args(section.model_fields["name"].annotation)}
    assert {architecture.name for architecture in ARCHITECTURES.values()} == registered


@pytest.mark.parametrize("name", ["golden_mlp", "golden_cnn", "golden_grown"])
def test_t6_a_zoo_of_an_older_version_is_read_with_the_same_values(name: str) -> None:
    """tests/data has the zoos as version 0.1.0 built them; expected.json describes their contents."""
    expected = json.loads((DATA / "expected.json").read_text())[name]
    assert describe(DATA / name) == expected
    assert list(faults(DATA / name)) == []
    zoo = open_zoo(DATA / name)
    zoo.module(zoo.models[0], 0)


def test_t6_the_ids_of_the_bundled_zoos_never_change() -> None:
    """Once only, before any release: tetris_seed and tetris_hyp got other images (CHANGELOG, 26 November 2026)."""
    expected = json.loads((DATA / "expected.json").read_text())["ids"]
    assert len(expected) > 5
    for name, first in expected.items():
        spec = load_spec(bundled_specs()[name])
        assert [model.model_id for model in expand(spec)[:3]] == first
