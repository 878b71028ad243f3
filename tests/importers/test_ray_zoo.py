"""Importing zoos of Ray Tune, in folders that the test writes as the ModelZooDataset has them."""

import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_zoos import RayCnn, Written, flat, pruned, ray_parameters, result_line, write_ray_zoo

from zootools import import_zoo, open_zoo
from zootools.architectures import build_schema
from zootools.errors import SpecError, ZooNotFoundError
from zootools.importers.ray_zoo import RayZoo
from zootools.spec import Cnn
from zootools.testing import ImporterExample, ImporterTests
from zootools.zoo import Zoo

FIRST, SECOND = (f"NN_tune_trainable_0b1f2_0000{n}_{n}_seed={n + 1}_2021-05-04_11-12-13" for n in range(2))


def imported(path: Path, out: Path, **options: Any) -> Zoo:
    """Import a folder without re-evaluating its models, and open the zoo."""
    import_zoo("ray-zoo", path, out, check=0, quiet=True, **options)
    return open_zoo(out, include_diverged=True)


def rows(zoo: Zoo) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the metadata and the weights by trial and epoch."""
    weights = zoo.weights().numpy()
    return {
        (row["source_model"], row["epoch"]): row | {"weights": values}
        for row, values in zip(zoo.metadata.to_pylist(), weights, strict=True)
    }


def left_out(zoo: Zoo) -> dict[str, list[str]]:
    """Return what was left out, by the reason."""
    assert zoo.imported is not None
    return {entry.why: list(entry.examples) for entry in zoo.imported.left_out}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """Two trials, the second one with dropout, of three checkpoints each."""
    path = tmp_path_factory.mktemp("ray") / "tune_zoo"
    return path, write_ray_zoo(path)


@pytest.fixture
def copy(written: tuple[Path, Written], tmp_path: Path) -> Path:
    """A copy of it, for a test that changes it."""
    return Path(shutil.copytree(written[0], tmp_path / "tune_zoo"))


def write_many(path: Path, size: int) -> None:
    """Write trials of 50 checkpoints with at least this number of bytes of weights."""
    network = RayCnn("tanh", 0.0)
    one = 4 * sum(parameter.numel() for parameter in network.parameters())
    for number in range(size // one + 1):
        trial = path / f"trial_{number // 50}"
        folder = trial / f"checkpoint_{number % 50:06d}"
        folder.mkdir(parents=True)
        torch.save(network.state_dict(), folder / "checkpoints")
        (trial / "params.json").write_text(json.dumps(ray_parameters(seed=number // 50)))
        (trial / "result.json").touch()


def cut(path: Path) -> None:
    """Remove the second half of a file of weights."""
    file = path / FIRST / "checkpoint_000001" / "checkpoints"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def shift_keys(path: Path) -> None:
    """Remove the last layer of a file of weights, as a loader that knows other keys would."""
    file = path / FIRST / "checkpoint_000001" / "checkpoints"
    state = torch.load(file, weights_only=True)
    torch.save(OrderedDict(list(state.items())[:-2]), file)


@pytest.mark.slow  # every import starts a process that imports torch
class TestRayZoo(ImporterTests):
    """The conformance tests of an importer."""

    @pytest.fixture
    def example(self, written: tuple[Path, Written]) -> ImporterExample:
        damages = {
            "cut": cut,
            "shifted keys": shift_keys,
            "no parameters": lambda path: (path / FIRST / "params.json").unlink(),
            "no results": lambda path: (path / FIRST / "result.json").unlink(),
            "not weights": lambda path: (path / FIRST / "checkpoint_000000" / "checkpoints").write_bytes(b"x" * 100),
        }
        path, content = written
        return ImporterExample(RayZoo(), path, content.weights, content.properties, damages, write_many)


def test_scores_before_the_first_epoch_are_not_known(written: tuple[Path, Written], tmp_path: Path) -> None:
    """The generators write -999 for the training scores of an untrained network."""
    found = rows(imported(written[0], tmp_path / "zoo"))
    assert found[FIRST, 0]["train_accuracy"] is None
    assert found[FIRST, 0]["test_accuracy"] == written[1].properties[FIRST, 0]["test_accuracy"]
    assert found[FIRST, 1]["generalization_gap"] == pytest.approx(
        found[FIRST, 1]["train_accuracy"] - found[FIRST, 1]["test_accuracy"]
    )


def test_a_network_of_the_zoo_computes_what_the_original_computes(
    written: tuple[Path, Written], tmp_path: Path
) -> None:
    zoo = imported(written[0], tmp_path / "zoo")
    original = RayCnn("tanh", 0.5)
    original.load_state_dict(torch.load(written[0] / SECOND / "checkpoint_000002" / "checkpoints", weights_only=True))
    model = next(row["model_id"] for row in zoo.metadata.to_pylist() if row["source_model"] == SECOND)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(zoo.module(model, 2).eval()(images), original.eval()(images))


def test_scores_are_joined_by_iteration_and_the_last_line_wins(copy: Path, tmp_path: Path) -> None:
    """A trial that was restored repeats iterations; an order of lines or a cut line means nothing."""
    parameters = ray_parameters()
    lines = [
        result_line(parameters, 2, {"test_accuracy": 0.25}),
        result_line(parameters, 1, {"test_accuracy": 0.5}),
        result_line(parameters, 2, {"test_accuracy": 0.75}),
        result_line(parameters, 9, {"test_accuracy": 0.99}),
        result_line(parameters, 0, {"test_accuracy": 0.125})[:-20] + "\n",
    ]
    (copy / FIRST / "result.json").write_text("".join(lines))
    zoo = imported(copy, tmp_path / "zoo")
    found = rows(zoo)
    assert [found[FIRST, epoch]["test_accuracy"] for epoch in range(3)] == [None, 0.5, 0.75]
    assert left_out(zoo)["a later line has the same iteration"] == [f"{FIRST}/result.json: line 1"]
    assert left_out(zoo)["is not a result in JSON"] == [f"{FIRST}/result.json: line 5"]
    assert left_out(zoo)["has results, but no checkpoint"] == [f"{FIRST}: epoch 9"]
    assert left_out(zoo)["are missing in result.json; the weights are kept"] == [f"{FIRST}: results of epoch 0"]


def test_missing_epochs_are_counted(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / FIRST / "checkpoint_000001")
    zoo = imported(copy, tmp_path / "zoo")
    assert len(zoo) == 5
    assert left_out(zoo)["has results, but no checkpoint"] == [f"{FIRST}: epoch 1"]


def reason_of(zoo: Zoo, name: str) -> str:
    """Return why a file was left out."""
    (reason,) = [why for why, names in left_out(zoo).items() if name in names]
    return reason


def test_a_file_that_is_cut_is_left_out_and_counted(copy: Path, tmp_path: Path) -> None:
    cut(copy)
    zoo = imported(copy, tmp_path / "zoo")
    assert (FIRST, 1) not in rows(zoo)
    assert len(zoo) == 5
    assert "is truncated or damaged" in reason_of(zoo, f"{FIRST}/checkpoint_000001/checkpoints")


def test_a_file_whose_keys_do_not_fit_is_left_out_and_counted(copy: Path, tmp_path: Path) -> None:
    """It is not filled up with others, and not cut to what is there."""
    shift_keys(copy)
    zoo = imported(copy, tmp_path / "zoo")
    assert (FIRST, 1) not in rows(zoo)
    assert len(zoo) == 5
    assert "has 4 layers with parameters" in reason_of(zoo, f"{FIRST}/checkpoint_000001/checkpoints")


def test_nothing_is_left_of_an_import_without_checkpoints(copy: Path, tmp_path: Path) -> None:
    for file in copy.glob("*/*/checkpoints"):
        file.write_bytes(b"not weights")
    with pytest.raises(SpecError, match="no checkpoint can be imported"):
        imported(copy, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


class Payload:
    """What unpickling it would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_does_not_run(copy: Path, tmp_path: Path) -> None:
    file = copy / FIRST / "checkpoint_000001" / "checkpoints"
    torch.save({"module_list.0.weight": Payload(tmp_path / "executed")}, file)
    zoo = imported(copy, tmp_path / "zoo")
    assert not (tmp_path / "executed").exists()
    assert len(zoo) == 5
    assert "code" in reason_of(zoo, f"{FIRST}/checkpoint_000001/checkpoints")
    torch.load(file, weights_only=False)  # the payload would have worked
    assert (tmp_path / "executed").exists()


def test_weights_that_are_not_finite_mark_their_model(copy: Path, tmp_path: Path) -> None:
    file = copy / FIRST / "checkpoint_000002" / "checkpoints"
    state = torch.load(file, weights_only=True)
    state["module_list.3.bias"][0] = torch.nan
    torch.save(state, file)
    zoo = imported(copy, tmp_path / "zoo")
    assert (FIRST, 2) not in rows(zoo)
    assert rows(zoo)[FIRST, 1]["status"] == "diverged"
    assert rows(zoo)[SECOND, 1]["status"] == "ok"
    assert zoo.counts.diverged == 1


def test_mixed_architectures_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / SECOND / "params.json").write_text(json.dumps(ray_parameters(**{"model::type": "CNN3"})))
    with pytest.raises(SpecError, match=r"CNN on 1 channels \(1 trials\), CNN3 on 1 channels \(1 trials\)"):
        imported(copy, tmp_path / "zoo")


@pytest.mark.parametrize(("kind", "message"), [("Resnet18", "branches"), ("CNN4", "did you mean 'CNN")])
def test_other_architectures_are_refused(copy: Path, tmp_path: Path, kind: str, message: str) -> None:
    for trial in (FIRST, SECOND):
        (copy / trial / "params.json").write_text(json.dumps(ray_parameters(**{"model::type": kind})))
    with pytest.raises(SpecError, match=message):
        imported(copy, tmp_path / "zoo")


def test_layers_of_other_architectures_can_be_given(copy: Path, tmp_path: Path) -> None:
    for trial in (FIRST, SECOND):
        (copy / trial / "params.json").write_text(json.dumps(ray_parameters(**{"model::type": "own"})))
    assert len(imported(copy, tmp_path / "zoo", model_schema=build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10))) == 6


def test_two_folders_of_one_epoch_are_refused(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy / FIRST / "checkpoint_000001", copy / FIRST / "checkpoint_1")
    with pytest.raises(
        SpecError, match=r"checkpoint_000001/checkpoints and .*checkpoint_1/checkpoints are both epoch 1"
    ):
        imported(copy, tmp_path / "zoo")


def test_a_sparse_twin_has_the_weights_with_which_it_was_evaluated(tmp_path: Path) -> None:
    """Variational dropout keeps a variance beside each weight, and removes weights with a large one."""
    torch.manual_seed(3)
    network = RayCnn("tanh", 0.0)
    trial = tmp_path / "ard" / "NN_tune_trainable_from_checkpoint_7a_00000"
    (trial / "checkpoint_000025").mkdir(parents=True)
    source = "PosixPath('zoos/MNIST/tune_zoo_mnist_uniform/NN_tune_trainable_0b1f2_00000_0')"
    parameters = ray_parameters(**{"model::type": "CNN_ARD", "training::init_checkpoint_path": source})
    (trial / "params.json").write_text(json.dumps(parameters))
    (trial / "result.json").write_text(result_line(parameters, 25, {"test_accuracy": 0.5, "sparsity_ratio": 0.8125}))
    state = network.state_dict()
    sigma = {}
    for name, values in state.items():
        ending = "log_sigma2_bias" if name.endswith("bias") else "log_sigma2"
        sigma[name.rsplit(".", 1)[0] + "." + ending] = torch.empty_like(values).uniform_(-8, 4)
    torch.save({**state, **sigma}, trial / "checkpoint_000025" / "checkpoints")
    (row,) = rows(imported(tmp_path / "ard", tmp_path / "zoo")).values()
    expected = flat(pruned(state, sigma))
    assert 0.1 < (expected == 0).mean() < 0.9
    np.testing.assert_array_equal(row["weights"], expected)
    assert row["sparsity_ratio"] == 0.8125
    assert row["twin_of"] == "NN_tune_trainable_0b1f2_00000_0"


def test_a_folder_without_trials_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "result.json").touch()
    with pytest.raises(ZooNotFoundError, match=r"mnist: no folder below it has a params.json"):
        imported(tmp_path / "mnist", tmp_path / "zoo")
    with pytest.raises(ZooNotFoundError, match=r"did you mean .*mnist"):
        imported(tmp_path / "mnits", tmp_path / "zoo")


def test_links_are_not_followed(copy: Path, tmp_path: Path) -> None:
    file = copy / FIRST / "checkpoint_000001" / "checkpoints"
    file.rename(tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    zoo = imported(copy, tmp_path / "zoo")
    assert len(zoo) == 5
    assert left_out(zoo)["is a link, which is not followed"] == [f"{FIRST}/checkpoint_000001/checkpoints"]
