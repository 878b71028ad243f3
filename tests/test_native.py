"""The compiled kernel: gradients of every kind of layer, every instruction set, and compilers that fail."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, make_model, make_trainer, other_processor
from torch.nn import functional as F

from zootools.architectures import Layer, Schema, build_schema
from zootools.errors import StorageError, ZooError
from zootools.images import ImageData, Subset
from zootools.native.compiler import compile_kernel, find_compiler
from zootools.native.kernel import ACTIVATIONS, OPTIMIZERS, Kernel
from zootools.networks import Network
from zootools.spec import Mlp
from zootools.training.backend import choose_backend
from zootools.training.initialise import initial_weights
from zootools.training.native import NativeTrainer

BATCH = 5


def chain(shape: tuple[int, int, int], *layers: dict[str, Any]) -> Schema:
    """Return a schema of layers whose inputs follow from what comes before; ``features`` of the last are 3 classes."""
    built: list[Layer] = []
    for number, values in enumerate(layers, 1):
        before = Schema("test", shape, tuple(built)).output_shapes[-1] if built else shape
        kind = "conv" if "kernel" in values else "linear"
        inputs = before[0] if kind == "conv" else before[0] * before[1] * before[2]
        built.append(Layer(f"layer{number}", kind, inputs, **({"activation": number < len(layers)} | values)))  # type: ignore[arg-type]
    return Schema("test", shape, tuple(built))


SCHEMAS = {
    "one linear layer": chain((1, 2, 3), {"outputs": 3}),
    "linear layers wider than a block, with and without bias": chain(
        (2, 3, 3), {"outputs": 19, "bias": False}, {"outputs": 8}, {"outputs": 3}
    ),
    "kernel 1": chain((3, 5, 4), {"outputs": 5, "kernel": 1}, {"outputs": 3}),
    "kernel as large as the image": chain((2, 6, 6), {"outputs": 7, "kernel": 6}, {"outputs": 3}),
    "kernel wider than the registers": chain((1, 30, 30), {"outputs": 2, "kernel": 29}, {"outputs": 3}),
    "stride 2 into stride 3": chain(
        (2, 17, 15), {"outputs": 4, "kernel": 3, "stride": 2}, {"outputs": 5, "kernel": 2, "stride": 3}, {"outputs": 3}
    ),
    "stride wider than the kernel": chain(
        (1, 11, 11), {"outputs": 3, "kernel": 1, "stride": 3}, {"outputs": 2, "kernel": 2}, {"outputs": 3}
    ),
    "pooling of 2 and of 3, with rows left over": chain(
        (1, 24, 21),
        {"outputs": 5, "kernel": 3, "max_pool": 2},
        {"outputs": 6, "kernel": 2, "max_pool": 3},
        {"outputs": 3},
    ),
    "pooling after a stride": chain(
        (1, 20, 20),
        {"outputs": 4, "kernel": 3, "stride": 2, "max_pool": 2},
        {"outputs": 3, "kernel": 2},
        {"outputs": 3},
    ),
    "global average pooling": chain(
        (3, 9, 9),
        {"outputs": 6, "kernel": 3},
        {"outputs": 5, "kernel": 3, "max_pool": 2, "global_average_pool": True},
        {"outputs": 3},
    ),
    "a convolution without bias or activation": chain(
        (1, 7, 7), {"outputs": 2, "kernel": 3, "bias": False, "activation": False}, {"outputs": 3}
    ),
}


def random_images(schema: Schema) -> ImageData:
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, *schema.input_shape, generator=draws)
    subset = Subset(images, torch.tensor([0, 1, 2, 1, 0]))
    return ImageData(subset, Subset(images[:0], subset.labels[:0]), subset, schema.classes)


def gradient_error(schema: Schema, activation: str, seed: int = 3) -> float:
    """Relative L2 distance of the kernel's gradient after one step from that of float64 autograd."""
    images = random_images(schema)
    model = make_model(seed, activation=activation, init="kaiming_normal", optimizer="sgd", lr=1e-3)
    trainer = make_trainer("native", schema, [model], images, BATCH)
    trainer.train_epoch(1)
    found = trainer.save()["momentum"][0].double()  # after the first step the momentum is the gradient
    network = Network(schema, activation).double()
    start = torch.from_numpy(initial_weights(schema, model.hyperparameters, seed)).double()
    torch.nn.utils.vector_to_parameters(start, network.parameters())
    F.cross_entropy(network(images.train.images.double()), images.train.labels).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_gradients_of_every_layer_equal_float64_autograd(schema: Schema) -> None:
    assert gradient_error(schema, "tanh") < 2e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("architecture", ["mlp_deep", "cnn_small", "cnn_unterthiner", "cnn_large"])
def test_gradients_of_every_activation_equal_float64_autograd(architecture: str, activation: str) -> None:
    shape = (1, 4, 4) if architecture.startswith("mlp") else (3, 32, 32)
    assert gradient_error(build_schema(ARCHITECTURES[architecture], shape, 3), activation) < 2e-6


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_step_of_every_optimizer_equals_torch_in_float64(optimizer: str) -> None:
    from zootools.training.reference import make_optimizer

    schema = SCHEMAS["linear layers wider than a block, with and without bias"]
    images = random_images(schema)
    changes = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.1, "init": "kaiming_normal"}
    model = make_model(5, **changes)
    trainer = make_trainer("native", schema, [model], images, BATCH)
    network = Network(schema, "tanh").double()
    start = torch.from_numpy(initial_weights(schema, model.hyperparameters, 5)).double()
    torch.nn.utils.vector_to_parameters(start, network.parameters())
    steps = make_optimizer(network, model.hyperparameters)
    for epoch in (1, 2, 3):  # one step each: the second and third use what the optimizer remembers
        trainer.train_epoch(epoch)
        steps.zero_grad()
        F.cross_entropy(network(images.train.images.double()), images.train.labels).backward()
        steps.step()
        expected = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        assert float((trainer.weights[0] - expected).norm() / expected.norm()) < 1e-6


# --- instruction sets and compilers -----------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "width"), [("-march=haswell", 8), ("-march=x86-64", 4)])
@pytest.mark.parametrize("architecture", ["mlp_deep", "cnn_small", "cnn_unterthiner"])
def test_narrower_vectors_compute_the_same(digits: ImageData, architecture: str, flag: str, width: int) -> None:
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("lacks an x86-64 processor with AVX2")
    schema = build_schema(ARCHITECTURES[architecture], digits.input_shape, digits.classes)
    models = [make_model(seed, init="kaiming_uniform", dropout=0.2) for seed in (1, 2, 3)]
    narrow = NativeTrainer(Kernel(compile_kernel(schema, (flag,)), schema), models, digits, 4)
    assert narrow.kernel.width == width
    native = make_trainer("native", schema, models, digits, 4)
    for trainer in (narrow, native):
        trainer.train_epoch(1)
    torch.testing.assert_close(narrow.weights, native.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "x86_64-linux-gnu"])
def test_the_compiler_in_the_wheel_compiles_for_arm_too(target: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="lacks ziglang (pip install 'zootools[native]')")
    from zootools.native import compiler

    (tmp_path / "kernel.cpp").write_text(compiler.kernel_source(SCHEMAS["global average pooling"]))
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-target", target, f"-I{Path(compiler.__file__).parent}"]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "kernel.cpp", "-o", "kernel.so"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "kernel.so").stat().st_size > 1000


SMALL = SCHEMAS["one linear layer"]


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zootools" / "native"


def test_the_compiler_in_the_wheel_serves(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    pytest.importorskip("ziglang", reason="lacks ziglang (pip install 'zootools[native]')")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert find_compiler()[1:] == ["-m", "ziglang", "cc"]
    assert choose_backend("auto", "cpu", SMALL).name == "native"
    assert gradient_error(SMALL, "gelu") < 2e-6
    assert len(list(empty_cache.iterdir())) == 1


def test_without_a_compiler_torch_serves_and_says_why(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    chosen = choose_backend("auto", "cpu", SMALL)
    assert (chosen.name, chosen.reason) == ("torch", "slower; $CXX names 'no-such-compiler', which is no command here")
    with pytest.raises(ZooError, match="no-such-compiler"):
        choose_backend("native", "cpu", SMALL)
    monkeypatch.delenv("CXX")
    monkeypatch.setitem(sys.modules, "ziglang", None)  # an import of it fails now
    with pytest.raises(ZooError, match=r"install g\+\+ or clang, or pip install 'zootools\[native\]'"):
        find_compiler()
    assert not empty_cache.exists()


def test_a_broken_compiler_is_named_with_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'broken: fatal error: out of order' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(ZooError, match=r"broken-c\+\+ cannot compile the kernel: broken: fatal error: out of order"):
        choose_backend("native", "cpu", SMALL)
    assert "out of order" in choose_backend("auto", "cpu", SMALL).reason
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cache of compiled kernels: .*XDG_CACHE_HOME"):
        choose_backend("native", "cpu", SMALL)
    assert "cache" in choose_backend("auto", "cpu", SMALL).reason


def test_processes_that_compile_at_once_all_get_the_kernel(empty_cache: Path) -> None:
    script = (
        "from zootools.architectures import build_schema; from zootools.spec import Mlp;"
        "from zootools.training.backend import choose_backend;"
        "schema = build_schema(Mlp(name='mlp', hidden=(5,)), (1, 4, 4), 4);"
        "print(choose_backend('native', 'cpu', schema).kernel)"
    )
    words = [sys.executable, "-c", script]
    crew = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=300)[0] for process in crew}
    assert [process.returncode for process in crew] == [0, 0, 0]
    assert len(paths) == 1
    assert [path.name for path in empty_cache.iterdir()] == [Path(paths.pop().strip()).name]


def test_a_kernel_for_another_processor_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """Its instructions would end the process. Here they come from the compiler's own flags."""
    mine = compile_kernel(SMALL)
    other_processor(monkeypatch)
    with pytest.raises(ZooError, match=r"this processor lacks instructions that it was compiled for: fma4, xop"):
        choose_backend("native", "cpu", SMALL)
    chosen = choose_backend("auto", "cpu", SMALL)
    assert chosen.name == "torch"
    assert "lacks instructions" in chosen.reason
    (theirs,) = set(empty_cache.iterdir()) - {mine}
    monkeypatch.delenv("CXX")
    theirs.rename(mine)  # as a cache on a shared home might hold it
    with pytest.raises(ZooError, match=rf"{mine.name}: this processor lacks .* fma4, xop"):
        choose_backend("native", "cpu", SMALL)


def test_a_damaged_kernel_is_refused_by_name(empty_cache: Path) -> None:
    path = compile_kernel(SMALL)
    path.write_bytes(b"no machine code")
    with pytest.raises(ZooError, match=rf"{path.name}.*delete it"):
        choose_backend("native", "cpu", SMALL)


def test_native_is_refused_on_cuda() -> None:
    with pytest.raises(ZooError, match="--device cpu"):
        choose_backend("native", "cuda", SMALL)
    assert choose_backend("auto", "cuda", SMALL).name == "torch"


def test_auto_takes_torch_for_wide_linear_layers_at_large_batches() -> None:
    wide = build_schema(Mlp(name="mlp", hidden=(100,)), (1, 28, 28), 10)
    assert choose_backend("auto", "cpu", wide, batch_size=64).name == "torch"
    assert choose_backend("auto", "cpu", wide, batch_size=4).name == "native"
    assert choose_backend("native", "cpu", wide, batch_size=64).name == "native"
