"""Compiling the kernel of a layer schema, once per schema, compiler and instruction set."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
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


def kernel_source(schema: Schema) -> str:
    """Return the C++ that specialises the kernel for a schema: its sizes as compile-time constants."""
    shape, stages = schema.input_shape, []
    for layer, output in zip(schema.layers, schema.output_shapes, strict=True):
        stages.append(f"    Stage<{_core(layer, shape)}, {_flags(layer)}>")
        shape = output
    channels, height, width = schema.input_shape
    return (
        '#include "network.h"\n\nusing Net = Network<\n'
        + ",\n".join(stages)
        + f">;\n\nEXPORT_NETWORK(Net, {channels * height * width}, {schema.classes})\n"
    )


def compile_kernel(schema: Schema, flags: tuple[str, ...] = ()) -> Path:
    """Return the compiled kernel of a schema, from the user's cache if it was compiled before.

    Args:
        schema: the layers.
        flags: further flags for the compiler, such as another ``-march``.

    Raises NoKernelError when there is no compiler or it fails, StorageError when the cache cannot be written.
    """
    command, source, flags = find_compiler(), kernel_source(schema), (*_FLAGS, *flags)
    key = _digest(target(tuple(command), flags), *flags, source, _sources())
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
