"""The compiled kernel: gradients of every kind of layer, every instruction set, and compilers that fail."""

import json
import os
import platform
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from crash import fault_random, lane, tree
from samples import ARCHITECTURES, TINY_ZOO, make_model, make_trainer, other_processor
from torch.nn import functional as F

from zootools import build
from zootools.architectures import Layer, Schema, build_schema
from zootools.architectures.networks import Network
from zootools.cli import main
from zootools.errors import SpecError, StorageError, ZooError
from zootools.images.datasets import ImageData, Subset
from zootools.native.compiler import (
    INSTRUCTION_SETS,
    ISA,
    NoKernelError,
    compile_kernel,
    find_compiler,
    missing_instructions,
)
from zootools.native.kernel import ACTIVATIONS, OPTIMIZERS, Kernel
from zootools.spec import parse_spec
from zootools.training.initialise import initial_weights
from zootools.training.native import NativeTrainer
from zootools.training.table import choose_backend

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


SMALL = SCHEMAS["one linear layer"]


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zootools" / "native"


# --- instruction sets and compilers -----------------------------------------------------------------------


WIDTHS = {"avx512": 16, "avx2": 8, "sse": 4, "neon": 4}


def test_every_instruction_set_has_a_width_under_test() -> None:
    assert INSTRUCTION_SETS.keys() <= WIDTHS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mlp_deep", "cnn_small", "cnn_unterthiner"])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set_computes_the_same(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch, name: str, architecture: str
) -> None:
    if missing := missing_instructions(name):
        pytest.skip(f"lacks a processor with {', '.join(missing)}")
    schema = build_schema(ARCHITECTURES[architecture], digits.input_shape, digits.classes)
    models = [make_model(seed, init="kaiming_uniform", dropout=0.2) for seed in (1, 2, 3)]
    monkeypatch.delenv(ISA, raising=False)
    native = make_trainer("native", schema, models, digits, 4)
    monkeypatch.setenv(ISA, name)
    forced = make_trainer("native", schema, models, digits, 4)
    assert isinstance(forced, NativeTrainer)
    assert forced.kernel.width == WIDTHS[name]
    for trainer in (forced, native):
        trainer.train_epoch(1)
    torch.testing.assert_close(forced.weights, native.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_an_unknown_instruction_set_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, backend: str
) -> None:
    monkeypatch.setenv(ISA, "avx3")
    with pytest.raises(SpecError, match=r"\$ZOOTOOLS_ISA: 'avx3' is not an instruction set") as refusal:
        choose_backend(backend, "cpu", SMALL)
    assert all(name in str(refusal.value) for name in INSTRUCTION_SETS)
    assert choose_backend("torch", "cpu", SMALL).name == "torch"
    assert not empty_cache.exists()


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_an_instruction_set_that_the_processor_lacks_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, backend: str
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("lacks an x86-64 processor, whose instruction sets this test knows")
    # An old processor, whatever this one is.
    monkeypatch.setattr("zootools.native.compiler.processor_features", lambda: frozenset({"fpu", "sse", "sse2"}))
    monkeypatch.setenv(ISA, "avx2")
    with pytest.raises(SpecError, match=r"lacks instructions of avx2: .*avx2, .*fma.*; expected one of: sse"):
        choose_backend(backend, "cpu", SMALL)
    assert not empty_cache.exists()
    for name in ("sse", "SSE"):
        monkeypatch.setenv(ISA, name)
        assert choose_backend(backend, "cpu", SMALL).name == "native"


def test_doctor_lists_the_instruction_sets_and_names_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [name for name in INSTRUCTION_SETS if not missing_instructions(name)]
    for name in ["", *offered]:
        monkeypatch.setenv(ISA, name)
        done = CliRunner().invoke(main, ["doctor", "--json"])
        assert json.loads(done.stdout)["machine"]["instruction_sets"] == (", ".join(offered) or platform.machine())
    monkeypatch.setenv(ISA, "mmx")
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert "$ZOOTOOLS_ISA: 'mmx'" in " ".join(json.loads(done.stdout)["problems"])


def smallest() -> str:
    """The narrowest instruction set of this architecture, which every processor of it has."""
    if not INSTRUCTION_SETS:
        pytest.skip(f"lacks a processor with several instruction sets ({platform.machine()})")
    return list(INSTRUCTION_SETS)[-1]


@pytest.mark.slow
def test_a_zoo_is_of_one_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instruction set is part of the numeric fingerprint: a zoo does not grow with another one unnoticed."""
    spec, grown = (parse_spec(TINY_ZOO | {"seeds": {"range": [1, last]}}, "test") for last in (2, 3))
    monkeypatch.setenv(ISA, smallest())
    (fingerprint,) = build(spec, tmp_path / "zoo", backend="native", workers=1, quiet=True).fingerprints
    assert INSTRUCTION_SETS[smallest()] in fingerprint["flags"]
    monkeypatch.delenv(ISA)
    with pytest.raises(SpecError, match=r"another numeric fingerprint \(flags: .* would mix the bytes of both"):
        build(grown, tmp_path / "zoo", backend="native", workers=1, quiet=True)
    monkeypatch.setenv(ISA, smallest())
    whole = build(grown, tmp_path / "zoo", backend="native", workers=1, quiet=True)
    assert whole.fingerprints == [fingerprint]
    assert whole.counts.ok == 3


@pytest.mark.slow
def test_the_compiler_in_the_wheel_compiles_for_arm_too(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="lacks ziglang (pip install 'zootools[native]')")
    from zootools.native import compiler

    (tmp_path / "kernel.cpp").write_text(compiler.kernel_source(SCHEMAS["global average pooling"]))
    target = "aarch64-linux-gnu" if platform.machine() == "x86_64" else "x86_64-linux-gnu"  # the next test has this one
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-target", target, f"-I{Path(compiler.__file__).parent}"]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "kernel.cpp", "-o", "kernel.so"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "kernel.so").stat().st_size > 1000


@pytest.mark.slow
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
    assert (chosen.name, chosen.reason) == (
        "torch",
        "slower; $CXX names 'no-such-compiler', which is not a command on this machine",
    )
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


@pytest.mark.slow
def test_processes_that_compile_at_once_all_get_the_kernel(empty_cache: Path) -> None:
    script = (
        "import hashlib; from zootools.architectures import build_schema; from zootools.spec import Mlp;"
        "from zootools.training.table import choose_backend;"
        "schema = build_schema(Mlp(name='mlp', hidden=(5,)), (1, 4, 4), 4);"
        "print(hashlib.sha256(choose_backend('native', 'cpu', schema).kernel).hexdigest())"
    )
    words = [sys.executable, "-c", script]
    crew = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    kernels = {process.communicate(timeout=300)[0] for process in crew}
    assert [process.returncode for process in crew] == [0, 0, 0]
    assert len(kernels) == 1
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]


def test_a_kernel_for_another_processor_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """Its instructions would end the process. Here they come from the compiler's own flags."""
    other_processor(monkeypatch)
    with pytest.raises(NoKernelError, match=r"this processor lacks instructions .* compiled for: fma4, xop"):
        choose_backend("native", "cpu", SMALL)
    chosen = choose_backend("auto", "cpu", SMALL)
    assert chosen.name == "torch"
    assert "lacks instructions" in chosen.reason


def test_what_is_not_a_kernel_is_refused() -> None:
    for code in (b"", b"no machine code"):
        with pytest.raises(NoKernelError, match="cannot be loaded"):
            Kernel(code, SMALL)
    with pytest.raises(NoKernelError, match=r"compiled for \d+ parameters, not for \d+"):
        Kernel(compile_kernel(SMALL), SCHEMAS["kernel 1"])


def test_where_nothing_is_run_from_memory_kernels_are_loaded_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("zootools.native.kernel._loaded", {})
    assert gradient_error(SMALL, "tanh") < 2e-6


# --- the cache -----------------------------------------------------------------------------------------------


def cached(cache: Path) -> Path:
    (path,) = cache.glob("*.so")
    return path


def test_a_kernel_is_compiled_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compile_kernel(SMALL)
    before = cached(empty_cache).stat()
    monkeypatch.setenv("TMPDIR", "/nowhere")  # without which nothing can be compiled
    assert compile_kernel(SMALL) == kernel
    assert os.path.samestat(before, cached(empty_cache).stat())


def damages(whole: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """One kernel, damaged in many ways."""
    for _ in range(lane(2, 300)):
        bit = chance.randrange(8 * len(whole))
        flipped = whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
        yield f"bit {bit} flipped", flipped
        size = chance.randrange(len(whole))
        yield f"cut to {size} bytes", whole[:size]
        yield f"zeros from {size} on", whole[:size] + bytes(len(whole) - size)
    yield "empty", b""
    yield "cut within the sha256", whole[:-1]
    yield "longer", whole + b"\0"
    yield "without its sha256", whole[:-32]


@pytest.mark.slow
def test_a_damaged_kernel_in_the_cache_is_compiled_again(empty_cache: Path) -> None:
    kernel = compile_kernel(SMALL)
    whole = cached(empty_cache).read_bytes()
    for name, damaged in damages(whole, fault_random("kernel")):
        if damaged == whole:  # zeros where there were zeros
            continue
        cached(empty_cache).write_bytes(damaged)
        assert compile_kernel(SMALL) == kernel, name
        assert cached(empty_cache).read_bytes() == whole, name


@pytest.mark.slow
def test_a_build_after_a_damage_of_its_kernel_has_the_same_bytes(tmp_path: Path, empty_cache: Path) -> None:
    """A flipped bit in the code, a file cut short: neither reaches the zoo, nor the workers."""
    chance, spec = fault_random("kernel in builds"), parse_spec(TINY_ZOO | {"seeds": {"range": [1, 2]}}, "test")
    build(spec, tmp_path / "whole", backend="native", workers=1, quiet=True)
    whole = cached(empty_cache).read_bytes()
    for number in range(lane(3, 50)):
        place = chance.randrange(len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        cached(empty_cache).write_bytes(flipped if number % 2 else whole[:place])
        build(spec, tmp_path / f"zoo-{number}", backend="native", workers=1, quiet=True)
        assert tree(tmp_path / f"zoo-{number}") == tree(tmp_path / "whole")
        assert cached(empty_cache).read_bytes() == whole


def test_a_kernel_under_the_name_of_another_one_is_compiled_again(empty_cache: Path) -> None:
    first, second = SCHEMAS["kernel 1"], SMALL
    kernel = compile_kernel(first)
    path = cached(empty_cache)
    wanted = compile_kernel(second)
    (other,) = set(empty_cache.glob("*.so")) - {path}
    other.write_bytes(path.read_bytes())
    assert kernel != wanted == compile_kernel(second)


@pytest.mark.parametrize("kind", ["link", "pipe", "unreadable", "of another user"])
def test_what_is_not_a_file_of_the_user_is_compiled_anew(tmp_path: Path, empty_cache: Path, kind: str) -> None:
    kernel = compile_kernel(SMALL)
    path, elsewhere = cached(empty_cache), tmp_path / "elsewhere.so"
    if kind == "link":
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "unreadable":
        path.chmod(0)
    else:
        if os.geteuid() != 0:
            pytest.skip("lacks the rights of root, to give a file away")
        os.chown(path, 12345, 12345)
    assert compile_kernel(SMALL) == kernel
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode)
    assert found.st_uid == os.geteuid()
    if kind == "link":
        assert elsewhere.read_bytes() == path.read_bytes()


def test_nobody_else_may_write_into_the_cache(empty_cache: Path) -> None:
    kernel = compile_kernel(SMALL)
    for mode in (0o777, 0o775):
        empty_cache.chmod(mode)  # as an earlier version made it, under some umasks
        assert compile_kernel(SMALL) == kernel
        assert stat.S_IMODE(empty_cache.stat().st_mode) == 0o755


def test_a_cache_of_another_user_is_refused_by_name(empty_cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("lacks the rights of root, to give a folder away")
    compile_kernel(SMALL)
    os.chown(empty_cache, 12345, 12345)
    with pytest.raises(StorageError, match=r"native belongs to the user with number 12345.*XDG_CACHE_HOME"):
        choose_backend("native", "cpu", SMALL)
    assert "12345" in choose_backend("auto", "cpu", SMALL).reason


# --- what the kernel is called with ----------------------------------------------------------------------------


def other_value(name: str, row: tuple[int, ...], value: int) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].copy()
        arguments[name][row] = value

    return change


def other_array(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update({name: change(arguments[name])})


WRONG_ARGUMENTS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"label {value}": other_value("labels", (2,), value) for value in (-1, 3, 2**40, -(2**63))},
    **{f"order {value}": other_value("order", (4, 1), value) for value in (-1, BATCH, 2**31 - 1, -(2**31))},
    **{f"count {value}": other_value("counts", (0,), value) for value in (-1, BATCH + 1, 2**62)},
    "no images": lambda arguments: arguments.update(
        images=arguments["images"][:0], labels=arguments["labels"][:0], order=arguments["order"] * 0
    ),
    "fewer images": other_array("images", lambda images: images[:-1]),
    "fewer labels": other_array("labels", lambda labels: labels[:-1]),
    "a shorter order": other_array("order", lambda order: order[:-1]),
    "another shape of the images": other_array("images", lambda images: images.reshape(BATCH, 1, 3, 2)),
    "smaller images": other_array("images", lambda images: np.ascontiguousarray(images[..., :-1])),
    "a batch of 0": lambda arguments: arguments.update(batch=0),
    "a larger batch": lambda arguments: arguments.update(batch=BATCH + 1),
    "an unknown activation": lambda arguments: arguments.update(activation=len(ACTIVATIONS)),
    "an unknown optimizer": lambda arguments: arguments.update(optimizer=-1),
    "one decay": lambda arguments: arguments.update(bias_decay=arguments["momentum"], kernel_decay=None),
    "images that are not contiguous": other_array("images", lambda images: np.repeat(images, 2, axis=3)[..., ::2]),
    "an order that is not contiguous": other_array("order", lambda order: np.repeat(order, 2, axis=1)[:, ::2]),
    "weights that are not aligned": other_array(
        "weights", lambda weights: np.zeros(weights.size + 17, np.float32)[1:][: weights.size].reshape(weights.shape)
    ),
    "no weights": lambda arguments: arguments.update(weights=None),
    **{
        f"{name} of another type": other_array(name, lambda array: array.astype(np.float16))
        for name in ("images", "labels", "order", "counts", "weights", "rates", "is_kernel", "thresholds", "scale")
    },
    **{
        f"{name} of another length": other_array(name, lambda array: np.ascontiguousarray(array[..., :-1]))
        for name in ("counts", "weights", "first", "gradients", "rates", "corrections", "momentum", "thresholds")
    },
    "dropout keys of one layer too many": lambda arguments: arguments.update(
        keys=np.zeros((2, len(arguments["counts"])), np.uint32)
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
def test_the_kernel_refuses_what_it_cannot_index(wrong: str) -> None:
    trainer = make_trainer("native", SMALL, [make_model(1)], random_images(SMALL), BATCH)
    assert isinstance(trainer, NativeTrainer)
    arguments = trainer.arguments(1)
    WRONG_ARGUMENTS[wrong](arguments)
    with pytest.raises(ValueError, match="the kernel cannot index its arguments: "):
        trainer.kernel.train(arguments)


def test_the_kernel_refuses_steps_and_images_that_there_are_not() -> None:
    trainer = make_trainer("native", SMALL, [make_model(1)], random_images(SMALL), BATCH)
    assert isinstance(trainer, NativeTrainer)
    train = trainer.kernel.train(trainer.arguments(1))
    for first, last in ((0, 2), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match=r"steps -?\d to \d are not in 0 to 1"):
            train(first, last)
    subset, width = trainer.group.images.test, trainer.kernel.width
    arguments = {
        "images": subset.images.numpy(),
        "labels": subset.labels.numpy(),
        "limits": np.full(width, BATCH),
        "weights": trainer.arguments(1)["weights"],
        "loss": np.zeros(width),
        "confusion": np.zeros((width, 3, 3), np.int64),
        "activation": 0,
    }
    trainer.kernel.evaluate(arguments, 0, BATCH)
    for first, last in ((0, BATCH + 1), (-1, 1), (3, 2)):
        with pytest.raises(ValueError, match=r"images .* are not in 0 to 5"):
            trainer.kernel.evaluate(arguments, first, last)
    for change in ({"labels": subset.labels.numpy() + 1}, {"confusion": np.zeros((width, 2, 2), np.int64)}):
        with pytest.raises(ValueError, match="the kernel cannot index its arguments: "):
            trainer.kernel.evaluate(arguments | change, 0, BATCH)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA, to see the refusal")
def test_the_kernel_for_gpus_is_refused_without_one() -> None:
    with pytest.raises(ZooError, match="no CUDA device"):
        choose_backend("native", "cuda", SMALL)
    assert choose_backend("auto", "cuda", SMALL).name == "torch"
