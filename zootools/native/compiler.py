"""Compiling the kernel of a layer schema, once per schema, compiler and instruction set."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from zootools.architectures import Layer, Schema
from zootools.errors import StorageError, ZooError
from zootools.files import durable_path, write_durably

_FOLDER = Path(__file__).parent
_SOURCES = ("vec.h", "layers.h", "network.h")
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
    "-ffp-contract=fast",  # products and sums fuse; which ones do is part of the numeric fingerprint
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
)
SECONDS = 300
"""A compilation that takes longer has hung."""
_INSTRUCTIONS = (
    "SSE3=pni SSSE3 SSE4_1 SSE4_2 POPCNT LZCNT=abm MOVBE BMI=bmi1 BMI2 F16C FMA FMA4 XOP AVX AVX2 GFNI AVX512F "
    "AVX512CD AVX512BW AVX512DQ AVX512VL AVX512IFMA AVX512VBMI AVX512VBMI2=avx512_vbmi2 AVX512VNNI=avx512_vnni "
    "AVX512BITALG=avx512_bitalg AVX512VPOPCNTDQ=avx512_vpopcntdq AVX512FP16=avx512_fp16 "
    "ARM_FEATURE_SVE=sve ARM_FEATURE_SVE2=sve2"
)
"""The instruction sets that a compiler uses unasked: as it predefines them, and as Linux names them if that differs."""
_FEATURES = ("flags", "Features")
"""What /proc/cpuinfo calls a processor's instruction sets, on x86 and on ARM."""


class NoKernelError(ZooError):
    """There is no compiler, or it cannot compile the kernel."""


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler: ``$CXX``, else the system's, else the one in the wheel ``ziglang``.

    Raises NoKernelError, naming the extra to install, when there is none.
    """
    chosen = os.environ.get("CXX")
    if chosen:
        command = chosen.split()
        if shutil.which(command[0]) is None:
            raise NoKernelError(f"$CXX names {command[0]!r}, which is no command here")
        return command
    for name in ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang"):
        # "cc" and not "c++", which would first build a C++ standard library that the kernel does not use.
        return [sys.executable, "-m", "ziglang", "cc"]
    raise NoKernelError("no C++ compiler is found; install g++ or clang, or pip install 'zootools[native]'")


def kernel_source(schema: Schema, instructions: Sequence[str] = ()) -> str:
    """Return the C++ that specialises the kernel for a schema: its sizes as compile-time constants.

    The kernel keeps the names of the ``instructions`` that it is compiled for, so that whoever loads it can compare.
    """
    shape, stages = schema.input_shape, []
    for layer, output in zip(schema.layers, schema.output_shapes, strict=True):
        stages.append(f"    Stage<{_core(layer, shape)}, {_flags(layer)}>")
        shape = output
    channels, height, width = schema.input_shape
    return (
        '#include "network.h"\n\nusing Net = Network<\n'
        + ",\n".join(stages)
        + f">;\n\nEXPORT_NETWORK(Net, {channels * height * width}, {schema.classes})\n"
        f'EXPORT const char lanes_instructions[] = "{" ".join(instructions)}";\n'
    )


def compile_kernel(schema: Schema, flags: tuple[str, ...] = ()) -> Path:
    """Return the compiled kernel of a schema, from the user's cache if it was compiled before.

    Args:
        schema: the layers.
        flags: further flags for the compiler, such as another ``-march``.

    Raises NoKernelError when there is no compiler or it fails, StorageError when the cache cannot be written.
    """
    command, flags = find_compiler(), (*_FLAGS, *flags)
    compiled_for = target(tuple(command), flags)
    source = kernel_source(schema, _instructions(compiled_for))
    key = _digest(compiled_for, *flags, source, _sources())
    path = cache_folder() / f"{key}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable_path(path) as temporary:
            _run([*command, *flags, f"-I{_FOLDER}", "-x", "c++", "-", "-o", str(temporary)], source)
    except (StorageError, OSError) as error:
        raise StorageError(f"the cache of compiled kernels: {error}; name another one with $XDG_CACHE_HOME") from error
    return path


def keep_kernel(kernel: bytes) -> Path:
    """Return a file in the user's cache that holds a kernel which another machine has compiled.

    Raises StorageError when the cache cannot be written.
    """
    path = cache_folder() / f"{hashlib.sha256(kernel).hexdigest()[:32]}.so"
    if not path.is_file() or path.read_bytes() != kernel:
        write_durably(path, kernel)
    return path


@functools.cache
def target(command: tuple[str, ...], flags: tuple[str, ...]) -> str:
    """Return all that a compiler predefines: its version and the instruction set that it compiles for."""
    return _run([*command, *(flag for flag in flags if flag != "-shared"), "-dM", "-E", "-x", "c++", "-"], "")


def _instructions(target: str) -> list[str]:
    """Return the instruction sets that a compiler may use, by their names in Linux."""
    found = {line.split()[1].strip("_") for line in target.splitlines()}
    names = (entry.partition("=") for entry in _INSTRUCTIONS.split())
    return [linux or name.lower() for name, _, linux in names if name in found]


@functools.cache
def processor_features() -> frozenset[str]:
    """Return the instruction sets of this machine's processor, by their names in Linux; elsewhere none are known."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = (line.partition(":") for line in file)
            return next((frozenset(names.split()) for key, _, names in lines if key.strip() in _FEATURES), frozenset())
    except OSError:
        return frozenset()


def describe_compiler() -> dict[str, str]:
    """Return what decides the bits of a kernel: its C++, the compiler, its flags, and what it compiles for."""
    command = tuple(find_compiler())
    return {
        "compiler": _run([*command, "--version"], "").splitlines()[0],
        "flags": " ".join(_FLAGS),
        "target": _digest(target(command, _FLAGS)),
        "kernel": _digest(_sources()),
    }


def _sources() -> str:
    return "".join((_FOLDER / name).read_text() for name in _SOURCES)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Return where compiled kernels are kept: ``$XDG_CACHE_HOME/zootools/native``, by default below ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "zootools" / "native"


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernelError(f"the compiler {' '.join(command[:2])} cannot be run ({error})") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        reason = lines[0].strip()[:300] if lines else f"exit code {done.returncode}"
        raise NoKernelError(f"the compiler {command[0]} cannot compile the kernel: {reason}")
    return done.stdout


def _core(layer: Layer, shape: tuple[int, int, int]) -> str:
    bias = str(layer.bias).lower()
    if layer.kind == "linear":
        return f"Linear<{layer.inputs}, {layer.outputs}, {bias}>"
    channels, height, width = shape
    sizes = (channels, height, width, layer.outputs, layer.kernel, layer.stride, layer.max_pool)
    return f"Conv<{', '.join(map(str, sizes))}, {bias}>"


def _flags(layer: Layer) -> str:
    return ", ".join(str(flag).lower() for flag in (layer.activation, layer.dropout, layer.global_average_pool))
