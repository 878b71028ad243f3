"""Fixtures that the rooms share: zoos, images, servers. Nothing here replaces code of the package."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import Builders, folder_in_memory
from hub_server import TOKEN, HubServer, serve
from huggingface_hub import constants
from platformdirs import user_cache_path
from samples import ARCHITECTURES, BACKENDS, LOOK_ZOO, SPEC_TEXT, TINY_ZOO

from zootools.architectures import Schema, build_schema
from zootools.images.datasets import ImageData, load_images
from zootools.paths import cache_folder
from zootools.spec import (
    DatasetImages,
    Mlp,
    TetrisImages,
    parse_spec,
)

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the builds that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
"""Bits are promised for one thread, and networks this small are slower on two."""

# The tests have a cache of their own, which keeps what takes long to make: kernels, fonts. Tests of other caches set
# their own. A worker of xdist inherits the setting.
TESTS_CACHE = "zootools-tests"
if user_cache_path().name != TESTS_CACHE:
    os.environ["XDG_CACHE_HOME"] = str(user_cache_path(TESTS_CACHE, appauthor=False))

# The hub of the tests is on this machine, and may be used by those who work offline too.
os.environ.pop("HF_HUB_OFFLINE", None)
constants.HF_HUB_OFFLINE = False

ROOMS = {"cluster", "docs", "faults", "reproduction"}
"""Folders whose tests carry a marker of the same name; `make test` deselects them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a slow room with the name of the room."""
    for item in items:
        if item.path.parent.name in ROOMS:
            item.add_marker(item.path.parent.name)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Scores of baselines that an earlier session has stored are forgotten, so that this one computes them."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(cache_folder() / "baselines", ignore_errors=True)


DESELECTED = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        stash = items[0].config.stash
        stash[DESELECTED] = stash.get(DESELECTED, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells how many tests it has deselected, which pytest prints only without xdist."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = session.config.stash.get(DESELECTED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and config.stash.get(DESELECTED, 0):
        terminalreporter.write_line(f"{config.stash[DESELECTED]} tests deselected")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: one worker takes a whole file, since its tests share zoos, and one takes all of tests/cluster.

    Ray's tests look for Ray's processes on the whole machine, so two of them must not run beside each other.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/cluster" if file.startswith("tests/cluster/") else file

    return ByFile(config, log)


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


PROBLEMS = ARCHITECTURES | {"mlp_wide": Mlp(name="mlp", hidden=(500,))}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name == "cnn_large" else []) for name in PROBLEMS]
)
def problem(request: pytest.FixtureRequest, tetris: ImageData, digits: ImageData) -> tuple[Schema, ImageData]:
    """Each architecture, and one that PyTorch updates in another way, with images that fit it."""
    architecture = PROBLEMS[request.param]
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
