"""Small specifications, models and trainers that the tests share, and what a test needs of the machine."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from gpu_on_host import host_trainer

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.native.compiler import find_compiler
from zootools.spec import Architecture, Cnn, Hyperparameters, Mlp, Training, ZooSpec, parse_spec
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import Trainer
from zootools.training.table import choose_backend

SERVERS = Path(__file__).parent
"""The folder of the servers and helpers, for the ``PYTHONPATH`` of a program that a test starts."""
ROOT = SERVERS.parents[1]
"""The checkout."""

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="lacks strace (apt-get install strace)")

BACKENDS = ("torch", "native")
"""The backends of a CPU. `native` needs a C++ compiler; a test without one fails, it does not skip."""

ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Mlp(name="mlp", hidden=(5,), bias=False),
    "mlp_deep": Mlp(name="mlp", hidden=(7, 6)),
    "cnn_small": Cnn(name="cnn_small"),
    "cnn_unterthiner": Cnn(name="cnn_unterthiner"),
    "cnn_large": Cnn(name="cnn_large"),
}

SPEC_TEXT = """\
name: example
images: {name: digits, train: 100, size: 28}
architecture: {name: cnn_small}
grid:
  activation: [tanh, relu]
  init: [uniform, normal]
  optimizer: [adam]
  lr: [1.0e-3, 1.0e-4]
seeds: {fixed: [1, 2]}
training: {epochs: 5, batch_size: 10}
"""
"""A valid specification of 16 models."""


TINY_ZOO: dict[str, Any] = {
    "name": "tiny",
    "description": "a zoo for tests",
    "images": {"name": "tetris", "train": 40, "test": 50, "noise_train": 0.2, "noise_test": 0.8},
    "architecture": {"name": "mlp", "hidden": [5], "bias": False},
    "grid": {"activation": ["tanh"], "init": ["uniform"], "optimizer": ["adam"], "lr": [1e-2]},
    "seeds": {"range": [1, 12]},
    "training": {"epochs": 2, "batch_size": 4},
}
"""The specification of `tiny_zoo`."""


LOOK_ZOO: dict[str, Any] = TINY_ZOO | {
    "name": "look",
    "grid": {
        "activation": ["tanh", "relu"],
        "init": ["uniform", "normal"],
        "optimizer": ["sgd"],
        "lr": [0.5],
        "weight_decay": [0.0, 100.0],
    },
    "seeds": {"range": [1, 6]},
    "training": {"epochs": 4, "batch_size": 4},
}
"""The specification of `look_zoo`: the weights of every second configuration grow until they are infinite."""


def mnist_folder() -> Path:
    """Return the folder of MNIST, or skip the test and name the missing file."""
    places = [Path(os.environ["ZOOTOOLS_DATA"])] if os.environ.get("ZOOTOOLS_DATA") else []
    places.append(Path(__file__).parents[3] / "shared" / "data")
    for place in places:
        if (place / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
            return place
    pytest.skip(f"lacking MNIST/raw/train-images-idx3-ubyte in {' or '.join(map(str, places))}")


def make_spec(**changes: Any) -> ZooSpec:
    """Return a specification of 16 models, with whole sections replaced."""
    values: dict[str, Any] = {
        "name": "example",
        "images": {"name": "digits", "train": 100, "size": 28},
        "architecture": {"name": "cnn_small"},
        "grid": {
            "activation": ["tanh", "relu"],
            "init": ["uniform", "normal"],
            "optimizer": ["adam"],
            "lr": [1e-3, 1e-4],
        },
        "seeds": {"fixed": [1, 2]},
        "training": {"epochs": 5, "batch_size": 10},
    }
    return parse_spec(values | changes, "test")


def make_model(seed: int, **changes: Any) -> ModelConfig:
    """Return one model; its hyper-parameters differ from tanh, uniform, adam, 1e-3 where told."""
    values = {"activation": "tanh", "init": "uniform", "optimizer": "adam", "lr": 1e-3} | changes
    return ModelConfig(f"{seed:016x}", "configuration", seed, "train", Hyperparameters(**values))


def make_trainers(
    backend: str, schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int
) -> list[Trainer]:
    """Return the trainers that a backend needs for some models: how many depends on the processor's vectors.

    The backend ``gpu`` is the kernel for GPUs, on the processor.
    """
    if backend == "gpu":
        return [host_trainer(schema, models, images, batch_size)]
    training = Training(epochs=1, batch_size=batch_size)
    device = images.train.images.device.type
    return list(choose_backend(backend, device, schema).trainers(schema, models, images, training))


def make_trainer(
    backend: str, schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int
) -> Trainer:
    """Return the one trainer that a backend needs for at most four models, as many as the narrowest vectors have."""
    assert len(models) <= 4, "on some processors these are several trainers; use make_trainers"
    (trainer,) = make_trainers(backend, schema, models, images, batch_size)
    return trainer


def other_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile kernels for a processor with instructions that no current one has."""
    if platform.machine() != "x86_64":
        pytest.skip("lacks an x86-64 processor, whose instruction sets this test knows")
    monkeypatch.setenv("CXX", " ".join([*find_compiler(), "-mxop"]))
