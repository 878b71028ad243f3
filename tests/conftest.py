"""What the tests share: small specifications, images and models. Nothing here stands in for the package's code."""

import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import Builders, folder_in_memory
from hub_server import TOKEN, HubServer, serve

from zootools.architectures import Schema
from zootools.images import ImageData, load_images
from zootools.native.compiler import find_compiler
from zootools.population import ModelConfig
from zootools.registry import build_schema
from zootools.spec import (
    Architecture,
    Cnn,
    DatasetImages,
    Hyperparameters,
    Mlp,
    TetrisImages,
    Training,
    ZooSpec,
    parse_spec,
)
from zootools.training.backend import Trainer, choose_backend

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the builds that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
"""Bits are promised for one thread, and networks this small are slower on two."""

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="lacks strace (apt-get install strace)")

BACKENDS = ("torch", "native")
"""What can train on a CPU; `native` needs a C++ compiler, and a test without one fails rather than skips."""

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


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Write a specification file; ``(old, new)`` pairs replace parts of `SPEC_TEXT`."""

    def write(*changes: tuple[str, str], text: str = SPEC_TEXT) -> Path:
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def mnist_folder() -> Path:
    """Return where MNIST lies; the test is skipped, saying what it lacks, where it does not."""
    places = [Path(os.environ["ZOOTOOLS_DATA"])] if os.environ.get("ZOOTOOLS_DATA") else []
    places.append(Path(__file__).parents[2] / "shared" / "data")
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
    """Return the trainers that a backend needs for some models: how many depends on the processor's vectors."""
    training = Training(epochs=1, batch_size=batch_size)
    device = images.train.images.device.type
    return choose_backend(backend, device, schema).trainers(schema, models, images, training)


def make_trainer(
    backend: str, schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int
) -> Trainer:
    """Return the one trainer that a backend needs for at most four models, as many as the narrowest vectors have."""
    assert len(models) <= 4, "on some processors these are several trainers; use make_trainers"
    (trainer,) = make_trainers(backend, schema, models, images, batch_size)
    return trainer


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend of a CPU."""
    return str(request.param)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where that can be (`folder_in_memory`)."""
    with folder_in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def builders() -> Iterator[Builders]:
    """A server that builds zoos in processes which can be killed (`crash`)."""
    server = Builders()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tetris() -> ImageData:
    """A few tetris images; 42 do not divide by a batch of 4."""
    return load_images(TetrisImages(name="tetris", train=42, test=20, noise_train=0.2, noise_test=0.8))


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """A few digits, large enough for every convolutional network."""
    return load_images(DatasetImages(name="digits", train=42, test=20, size=28, mean=0.3, std=0.3))


@pytest.fixture(params=list(ARCHITECTURES))
def problem(request: pytest.FixtureRequest, tetris: ImageData, digits: ImageData) -> tuple[Schema, ImageData]:
    """Each architecture with images that fit it."""
    architecture = ARCHITECTURES[request.param]
    images = tetris if isinstance(architecture, Mlp) else digits
    return build_schema(architecture, images.input_shape, images.classes), images


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished zoo of 12 models, three checkpoints each, with all three splits; read only."""
    from zootools import build

    out = tmp_path_factory.mktemp("zoos") / "tiny"
    build(parse_spec(TINY_ZOO, "test"), out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="session")
def grown_zoo(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    """The tiny zoo, grown to 16 models: its old shards are the same, its tables are not; read only."""
    from zootools import build

    out = shutil.copytree(tiny_zoo, tmp_path_factory.mktemp("zoos") / "tiny")
    build(parse_spec(TINY_ZOO | {"seeds": {"range": [1, 16]}}, "test"), out, workers=1, quiet=True)
    return out


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


@pytest.fixture(scope="session")
def look_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo to look at: 48 models of several activations and initialisations, half of them diverge; read only."""
    from zootools import build

    out = tmp_path_factory.mktemp("zoos") / "look"
    build(parse_spec(LOOK_ZOO, "test"), out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="session")
def look_encoder(tmp_path_factory: pytest.TempPathFactory, look_zoo: Path) -> Path:
    """An encoder for `look_zoo`, as it is before any training."""
    from representation import Encoder, load_recipe
    from zootools import open_zoo

    out = tmp_path_factory.mktemp("encoder")
    Encoder.build(open_zoo(look_zoo).schema, load_recipe("smoke").encoder).save_pretrained(out)
    return out


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback, and huggingface-hub in this process set up for it: a token, a cache of its own, no Xet."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with serve() as running:
        yield running


def other_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels be compiled for a processor with instructions that none of today's has."""
    if platform.machine() != "x86_64":
        pytest.skip("lacks an x86-64 processor, whose instruction sets this test knows")
    monkeypatch.setenv("CXX", " ".join([*find_compiler(), "-mxop"]))
