"""The compilation of the kernel for GPUs, which needs no GPU; test_training.py compares the results."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from samples import ARCHITECTURES

from zootools.architectures import Schema, build_schema
from zootools.native.compiler import NoKernelError
from zootools.native.cuda import GpuLimits, compile_for_gpu
from zootools.spec import Mlp

pytestmark = pytest.mark.skipif(
    find_spec("cuda") is None, reason="lacks NVRTC, which comes with PyTorch's CUDA builds (pip install cuda-bindings)"
)
H100 = GpuLimits("an H100", "sm_90", block_bytes=232_448, total_bytes=233_472)
SMALL_CARD = GpuLimits("a card with little shared memory", "sm_86", block_bytes=101_376, total_bytes=102_400)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def schema_of(name: str) -> Schema:
    return build_schema(ARCHITECTURES[name], (1, 4, 4) if name == "mlp" else (1, 28, 28), 10)


@pytest.mark.parametrize(("name", "limits"), [("cnn_small", H100), ("mlp", SMALL_CARD)])
def test_the_kernel_is_compiled_once(name: str, limits: GpuLimits) -> None:
    schema = schema_of(name)
    code = compile_for_gpu(schema, limits, slopes=True)
    assert b"block_shared_bytes" in code
    assert compile_for_gpu(schema, limits, slopes=True) == code
    assert compile_for_gpu(schema, limits, slopes=False) != code


def test_a_network_that_does_not_fit_is_refused() -> None:
    wide = build_schema(Mlp(name="mlp", hidden=(100,)), (1, 28, 28), 10)
    for schema, limits in ((wide, H100), (schema_of("cnn_unterthiner"), SMALL_CARD)):
        with pytest.raises(NoKernelError, match="does not fit the shared memory of a block"):
            compile_for_gpu(schema, limits, slopes=True)
