"""Zoos of the backend for GPUs, whose stacks have models of several activations and optimizers."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from crash import TINY, tree
from gpu_on_host import HostBackend

from zootools import ZooSpec, build, open_zoo
from zootools.errors import SpecError
from zootools.spec import parse_spec
from zootools.verify import faults


@pytest.fixture
def spec() -> ZooSpec:
    """A specification with six structures."""
    values = yaml.safe_load(TINY)
    values["grid"] |= {"activation": ["tanh", "relu", "gelu"], "optimizer": ["adam", "sgd"]}
    return parse_spec(values, "tiny")


def test_one_stack_has_all_structures_and_the_models_of_other_backends(spec: ZooSpec, tmp_path: Path) -> None:
    manifest = build(spec, tmp_path / "mixed", backend=HostBackend(), quiet=True)
    assert len(manifest.stacks) == 1
    assert len(build(spec, tmp_path / "torch", backend="torch", quiet=True).stacks) == 6
    mixed, usual = (open_zoo(tmp_path / name) for name in ("mixed", "torch"))
    assert not list(faults(tmp_path / "mixed"))
    order = [
        {
            key: row
            for row, key in enumerate(
                zip(*(zoo.metadata[name].to_pylist() for name in ("model_id", "epoch")), strict=True)
            )
        }
        for zoo in (mixed, usual)
    ]
    assert order[0].keys() == order[1].keys()
    rows = [order[1][key] for key in order[0]]
    assert np.allclose(mixed.weights(), usual.weights()[rows], rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert np.allclose(mixed.metadata[name], usual.metadata[name].to_numpy()[rows], atol=1e-4)


def test_more_epochs_of_a_mixed_stack_give_the_bytes_of_one_build(spec: ZooSpec, tmp_path: Path) -> None:
    fewer = spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 2})})
    build(fewer, tmp_path / "resumed", backend=HostBackend(), keep_state=True, quiet=True)
    build(spec, tmp_path / "resumed", backend=HostBackend(), keep_state=True, quiet=True)
    build(spec, tmp_path / "whole", backend=HostBackend(), keep_state=True, quiet=True)
    assert tree(tmp_path / "resumed") == tree(tmp_path / "whole")


def test_a_mixed_zoo_is_not_completed_by_another_backend(spec: ZooSpec, tmp_path: Path) -> None:
    fewer = spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 2})})
    build(fewer, tmp_path / "zoo", backend=HostBackend(), keep_state=True, quiet=True)
    with pytest.raises(SpecError, match="backend"):
        build(spec, tmp_path / "zoo", backend="torch", keep_state=True, quiet=True)
    manifest = build(
        spec, tmp_path / "zoo", backend="torch", keep_state=True, quiet=True, allow_fingerprint_change=True
    )
    assert manifest.counts.ok == len(manifest.stacks[0].models)
