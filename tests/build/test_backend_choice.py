"""Which of the two backends of a CPU `--backend auto` takes, and that a zoo keeps its own."""

from pathlib import Path

import pytest
import torch
from samples import TINY_ZOO

from zootools import build
from zootools.architectures import Schema, build_schema
from zootools.native.sealed import read_sealed, write_sealed
from zootools.spec import Cnn, Mlp, parse_spec
from zootools.spec.model_configs import configurations
from zootools.training.speed import Speeds, clearly_faster
from zootools.training.table import choose_backend


def mlp(hidden: int) -> Schema:
    return build_schema(Mlp(name="mlp", hidden=(hidden,)), (1, 28, 28), 10)


def test_what_is_clear_needs_no_measurement() -> None:
    assert clearly_faster(build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10), 256) == "native"
    assert clearly_faster(mlp(5), 256) == "native"
    assert clearly_faster(mlp(100), 64) is None
    assert choose_backend("auto", "cpu", mlp(2000), batch_size=256).name == "torch"


def test_with_a_cuda_device_the_kernel_for_gpus_trains_what_fits_it() -> None:
    small, wide = build_schema(Cnn(name="cnn_small"), (1, 28, 28), 10), mlp(2000)
    chosen = {
        (name, schema.size): choose_backend(name, "auto", schema, batch_size=256)
        for name in ("auto", "torch")
        for schema in (small, wide)
    }
    found = {key: (backend.name, backend.device) for key, backend in chosen.items()}
    assert found == {
        # Where that kernel cannot be compiled, as here without a device, the one for processors is the fastest.
        ("auto", small.size): ("native", "cuda" if torch.cuda.is_available() else "cpu"),
        ("torch", small.size): ("torch", "cuda"),
        ("auto", wide.size): ("torch", "cuda"),
        ("torch", wide.size): ("torch", "cuda"),
    }


def test_measurements_are_kept_and_damaged_ones_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "zootools" / "native"
    model = next(configurations(parse_spec(TINY_ZOO, "test")))

    def chosen() -> str:
        return choose_backend("auto", "cpu", mlp(13), 16, model).name

    first = chosen()
    (path,) = cache.glob("*.json")
    assert Speeds.model_validate_json(read_sealed(path) or b"").faster == first
    for made_up in (Speeds(native=1, torch=2), Speeds(native=2, torch=1)):
        write_sealed(path, made_up.model_dump_json().encode())
        assert chosen() == made_up.faster
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1", b"3", 1))
    chosen()
    assert Speeds.model_validate_json(read_sealed(path) or b"").native > 3, "the rate of a processor"
    write_sealed(path, b'{"native": 2, "torch": Infinity}')
    chosen()
    assert Speeds.model_validate_json(read_sealed(path) or b"").native > 3
    choose_backend("auto", "cpu", mlp(13), 8, model)
    choose_backend("auto", "cpu", mlp(13), 16, model.model_copy(update={"activation": "relu"}))
    assert len(list(cache.glob("*.json"))) == 3
    for name in ("native", "torch"):
        assert choose_backend(name, "cpu", mlp(13), 16, model).name == name


def test_a_zoo_that_grows_keeps_its_backend(tmp_path: Path) -> None:
    small, large = (parse_spec(TINY_ZOO | {"seeds": {"range": [1, last]}}, "test") for last in (2, 4))
    build(small, tmp_path / "zoo", backend="torch", workers=1, quiet=True)
    assert clearly_faster(build_schema(large.architecture, (1, 4, 4), 4), 4) == "native"
    manifest = build(large, tmp_path / "zoo", workers=1, quiet=True)
    assert [fingerprint["backend"] for fingerprint in manifest.fingerprints] == ["torch"]
