"""Compiling the kernel of a layer schema, once per schema, compiler and instruction set.

Compiled kernels are kept in the user's cache.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from zootools.architectures import Layer, Schema
from zootools.errors import SpecError, StorageError, ZooError, did_you_mean
from zootools.native.sealed import read_sealed, write_sealed
from zootools.paths import cache_folder

LOG = logging.getLogger(__name__)

SOURCES_FOLDER = Path(__file__).parent
_SOURCES = ("vec.h", "layers.h", "network.h")
"""Their text, comments included, is part of the fingerprint that zoos record: with a reworded comment zoo.json would
differ, and unfinished zoos would not resume. So network.h still calls `zootools.rng` by its old name, streams."""
_X86 = platform.machine() in ("x86_64", "AMD64")
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    *(("-mprefer-vector-width=512",) if _X86 else ()),
    "-ffp-contract=fast",  # the compiler fuses products and sums; the numeric fingerprint has its version and flags
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
)
SECONDS = 300
"""Time limit of a compilation."""
_INSTRUCTIONS = (
    "SSE3=pni SSSE3 SSE4_1 SSE4_2 POPCNT LZCNT=abm MOVBE BMI=bmi1 BMI2 F16C FMA FMA4 XOP AVX AVX2 GFNI AVX512F "
    "AVX512CD AVX512BW AVX512DQ AVX512VL AVX512IFMA AVX512VBMI AVX512VBMI2=avx512_vbmi2 AVX512VNNI=avx512_vnni "
    "AVX512BITALG=avx512_bitalg AVX512VPOPCNTDQ=avx512_vpopcntdq AVX512FP16=avx512_fp16 "
    "ARM_FEATURE_SVE=sve ARM_FEATURE_SVE2=sve2"
)
"""Instruction sets that a compiler uses by default: its macros, and the names in Linux where they differ."""
ISA = "ZOOTOOLS_ISA"
"""The environment variable with the instruction set to compile for; by default all that the processor has."""
if _X86:
    INSTRUCTION_SETS = {"avx512": "-march=skylake-avx512", "avx2": "-march=haswell", "sse": "-march=x86-64"}
elif platform.machine() in ("aarch64", "arm64"):
    INSTRUCTION_SETS = {"neon": "-mcpu=generic"}
else:
    INSTRUCTION_SETS = {}
"""The values of `ISA` on this architecture, widest first, with the option of the compiler."""
_FEATURES = ("flags", "Features")
"""The keys of a processor's instruction sets in /proc/cpuinfo, on x86 and on ARM."""


class NoKernelError(ZooError):
    """No compiler is found, or it cannot compile the kernel."""


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler: ``$CXX``, else the system's, else the one in the wheel ``ziglang``.

    Raises NoKernelError, naming the extra to install, if none is found.
    """
    chosen = os.environ.get("CXX")
    if chosen:
        command = chosen.split()
        if shutil.which(command[0]) is None:
            raise NoKernelError(f"$CXX names {command[0]!r}, which is not a command on this machine")
        return command
    for name in ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang"):
        # Not "c++", which would first build a C++ standard library that the kernel does not use.
        return [sys.executable, "-m", "ziglang", "cc"]
    raise NoKernelError("no C++ compiler found; install g++ or clang, or pip install 'zootools[native]'")


def kernel_source(schema: Schema, instructions: Sequence[str] = ()) -> str:
    """Return the C++ that specialises the kernel for a schema: its sizes as compile-time constants.

    The kernel contains the names of the ``instructions`` that it is compiled for, which are compared when it is loaded.
    """
    stages = [f"    Stage<{_core(layer, shape)}, {stage_flags(layer)}>" for layer, shape in with_input_shapes(schema)]
    channels, height, width = schema.input_shape
    return (
        '#include "network.h"\n\nusing Net = Network<\n'
        + ",\n".join(stages)
        + f">;\n\nEXPORT_NETWORK(Net, {channels * height * width}, {schema.classes})\n"
        f'EXPORT const char lanes_instructions[] = "{" ".join(instructions)}";\n'
    )


def with_input_shapes(schema: Schema) -> list[tuple[Layer, tuple[int, int, int]]]:
    """Return every layer with the shape of its inputs."""
    return list(zip(schema.layers, (schema.input_shape, *schema.output_shapes[:-1]), strict=True))


def compiler_flags() -> tuple[str, ...]:
    """Return the flags of the compiler for the instruction set in ``$ZOOTOOLS_ISA``.

    Raises SpecError for an unknown instruction set, and for one that this processor lacks.
    """
    name = os.environ.get(ISA, "").lower()
    if name and name not in INSTRUCTION_SETS:
        known = did_you_mean(name, INSTRUCTION_SETS) if INSTRUCTION_SETS else "; unset it, because there is only one"
        raise SpecError(f"${ISA}: {name!r} is not an instruction set of the architecture {platform.machine()}{known}")
    if name and (missing := missing_instructions(name)):
        offered = ", ".join(other for other in INSTRUCTION_SETS if not missing_instructions(other))
        raise SpecError(
            f"${ISA}: this processor lacks instructions of {name}: {', '.join(missing)}; expected one of: {offered}"
        )
    return _flags_for(name)


def missing_instructions(instruction_set: str) -> list[str]:
    """Return the instructions of an instruction set, by their names in Linux, that this processor lacks."""
    command = tuple(find_compiler())
    needed = _instructions(target(command, _flags_for(instruction_set)))
    # If the system does not list the instruction sets of the processor, the compiler does.
    return lacking(needed, processor_features() or _instructions(target(command, _flags_for(""))))


def lacking(needed: Iterable[str], present: Iterable[str]) -> list[str]:
    """Return the instructions that are needed and not present."""
    return sorted({*needed} - {*present})


def compile_kernel(schema: Schema) -> bytes:
    """Return the compiled kernel of a schema, a shared library, from the user's cache if it was compiled before.

    The cache stores each kernel with its sha256; a damaged file is replaced. Processes that compile the same kernel at
    the same time each write the whole file.

    Raises NoKernelError if no compiler is found or it fails, SpecError if ``$ZOOTOOLS_ISA`` is wrong, StorageError if
    the cache cannot be read or written, or belongs to another user.
    """
    command, flags = find_compiler(), compiler_flags()
    compiled_for = target(tuple(command), flags)
    source = kernel_source(schema, _instructions(compiled_for))
    key = _digest(compiled_for, *flags, source, _sources())
    path = cache_folder() / "native" / f"{key}.so"
    try:
        if (kernel := read_sealed(path)) is not None:
            return kernel
        LOG.info("kernel: compiling the one of %s for this processor, once", schema.name)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / path.name
            _run([*command, *flags, f"-I{SOURCES_FOLDER}", "-x", "c++", "-", "-o", str(output)], source)
            kernel = output.read_bytes()
        write_sealed(path, kernel)
    except (StorageError, OSError) as error:
        raise StorageError(
            f"the cache of compiled kernels: {error}; choose another cache with $XDG_CACHE_HOME"
        ) from error
    return kernel


@functools.cache
def target(command: tuple[str, ...], flags: tuple[str, ...]) -> str:
    """Return the macros that a compiler predefines: its version and the instruction set that it compiles for."""
    return _run([*command, *(flag for flag in flags if flag != "-shared"), "-dM", "-E", "-x", "c++", "-"], "")


def _instructions(target: str) -> list[str]:
    """Return the instruction sets that a compiler can use, by their names in Linux."""
    found = {line.split()[1].strip("_") for line in target.splitlines()}
    names = (entry.partition("=") for entry in _INSTRUCTIONS.split())
    return [linux or name.lower() for name, _, linux in names if name in found]


@functools.cache
def processor_features() -> frozenset[str]:
    """Return the instruction sets of this machine's processor, by their names in Linux; on other systems none."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = (line.partition(":") for line in file)
            return next((frozenset(names.split()) for key, _, names in lines if key.strip() in _FEATURES), frozenset())
    except OSError:
        return frozenset()


def describe_compiler() -> dict[str, str]:
    """Return the part of a fingerprint that decides the bits of a kernel: compiler, flags, target and C++ sources."""
    command, flags = tuple(find_compiler()), compiler_flags()
    # With $ZOOTOOLS_ISA also the full instruction set of the processor, because other libraries use it in training.
    targets = [target(command, which) for which in dict.fromkeys((flags, _FLAGS))]
    return {
        "compiler": _run([*command, "--version"], "").splitlines()[0],
        "flags": " ".join(flags),
        "target": _digest(*targets),
        "kernel": _digest(_sources()),
    }


def _flags_for(instruction_set: str) -> tuple[str, ...]:
    """Return the flags for an instruction set; for an empty name, for all that the processor has."""
    if not instruction_set:
        return _FLAGS
    option, _, processor = INSTRUCTION_SETS[instruction_set].partition("=")
    if any("zig" in Path(word).name for word in find_compiler()):
        processor = processor.replace("-", "_")
    return tuple(f"{option}={processor}" if flag == "-march=native" else flag for flag in _FLAGS)


def _sources() -> str:
    return "".join((SOURCES_FOLDER / name).read_text() for name in _SOURCES)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


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
    if layer.kind == "linear":
        return f"Linear<{layer.inputs}, {layer.outputs}, {str(layer.bias).lower()}>"
    return conv_core(layer, shape)


def conv_core(layer: Layer, shape: tuple[int, int, int]) -> str:
    """Return the C++ type of a convolution of inputs of ``shape``."""
    sizes = (*shape, layer.outputs, layer.kernel, layer.stride, layer.max_pool)
    return f"Conv<{', '.join(map(str, sizes))}, {str(layer.bias).lower()}>"


def stage_flags(layer: Layer) -> str:
    """Return the last template arguments of a stage: whether activation, dropout and global average pooling follow."""
    return ", ".join(str(flag).lower() for flag in (layer.activation, layer.dropout, layer.global_average_pool))
