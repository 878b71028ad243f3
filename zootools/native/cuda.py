"""The kernel of a layer schema for CUDA (gpu.h): compiled at run time, and launched on PyTorch's device and stream.

NVRTC and the bindings come with PyTorch's CUDA builds, so neither nvcc nor the CUDA toolkit is needed. Compiled kernels
are kept in the user's cache, like those for processors.
"""

import ctypes
import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from zootools.architectures import Schema
from zootools.errors import StorageError
from zootools.native.compiler import SOURCES_FOLDER, NoKernelError, conv_core, stage_flags, with_input_shapes
from zootools.native.sealed import read_sealed, write_sealed
from zootools.paths import cache_folder

LOG = logging.getLogger(__name__)

THREADS, FEW_THREADS = 256, 64
"""Threads of a block; fewer where the largest layer has no more than `FEW_UNITS` units."""
FEW_UNITS = 64
_FLAGS = ("--std=c++17", "-default-device")
_POINTER = ctypes.c_void_p
_TRAINING_POINTERS = (
    *("weights", "first", "second", "images", "labels", "order", "counts", "rates", "first_corrections"),
    *("second_corrections", "decay", "is_kernel", "momentum", "keys", "thresholds", "scale", "activations"),
    "optimizers",
)
_EVALUATION_POINTERS = ("weights", "images", "labels", "limits", "activations", "losses", "confusion")


class TrainingArguments(ctypes.Structure):
    """``Training`` of gpu.h."""

    _fields_ = (
        *((name, _POINTER) for name in _TRAINING_POINTERS),
        ("places", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("batch", "models", "epochs_before", "first_step", "last_step")),
    )


class EvaluationArguments(ctypes.Structure):
    """``Evaluation`` of gpu.h."""

    _fields_ = (
        *((name, _POINTER) for name in _EVALUATION_POINTERS),
        *((name, ctypes.c_int32) for name in ("models", "parts", "part_images")),
    )


@dataclass(frozen=True)
class GpuLimits:
    """What a kernel is compiled for."""

    name: str
    """The name of the GPU."""
    architecture: str
    """As NVRTC names it, such as sm_90."""
    block_bytes: int
    """Shared memory of a block at most."""
    total_bytes: int
    """Shared memory of a multiprocessor."""

    @classmethod
    def of_current_device(cls) -> "GpuLimits":
        """Return those of PyTorch's current device. Raises NoKernelError without one, and without cuda-bindings."""
        if not torch.cuda.is_available():
            raise NoKernelError("torch finds no CUDA device")
        driver = _bindings("driver")
        device = _checked(driver.cuDeviceGet(torch.cuda.current_device()))
        attributes = driver.CUdevice_attribute
        block = attributes.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        total = attributes.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        major, minor = torch.cuda.get_device_capability()
        return cls(
            torch.cuda.get_device_name(),
            f"sm_{major}{minor}",
            _checked(driver.cuDeviceGetAttribute(block, device)),
            _checked(driver.cuDeviceGetAttribute(total, device)),
        )


class GpuKernel(Protocol):
    """A compiled kernel: `CudaKernel`, or in tests gpu.h on a processor."""

    def train(self, arguments: TrainingArguments) -> None:
        """Start the steps that the arguments name."""

    def evaluate(self, arguments: EvaluationArguments) -> None:
        """Start the evaluation."""

    def wait(self) -> None:
        """Return when all that was started is finished."""


def gpu_source(schema: Schema) -> str:
    """Return the C++ that specialises gpu.h for a schema: its sizes as compile-time constants."""
    stages = []
    for number, (layer, shape) in enumerate(with_input_shapes(schema)):
        core = conv_core(layer, shape if layer.kind == "conv" else (layer.inputs, 1, 1))
        stages.append(f"    Stage<SAMPLES, {str(number == 0).lower()}, {core}, {stage_flags(layer)}>")
    channels, height, width = schema.input_shape
    return (
        "\ntemplate <int SAMPLES> using Net = Network<SAMPLES,\n"
        + ",\n".join(stages)
        + f">;\nEXPORT_NETWORK(Net, {channels * height * width}, {schema.classes})\n"
    )


def gpu_macros(schema: Schema, limits: GpuLimits, slopes: bool) -> dict[str, int]:
    """Return the macros that gpu.h is compiled with; ``slopes``: keep the derivative of every unit."""
    return {
        "THREADS": threads_of(schema),
        "SLOPES": int(slopes),
        "SHARED_LIMIT": limits.block_bytes,
        "SHARED_TOTAL": limits.total_bytes,
    }


def threads_of(schema: Schema) -> int:
    """Return the number of threads of a block."""
    units = max(channels * height * width for channels, height, width in schema.output_shapes)
    return FEW_THREADS if units <= FEW_UNITS else THREADS


def compile_for_gpu(schema: Schema, limits: GpuLimits, slopes: bool) -> bytes:
    """Return the machine code of a kernel, from the user's cache if it was compiled before.

    Raises NoKernelError if NVRTC is not installed, or if the network does not fit the shared memory of a block;
    StorageError if the cache cannot be read or written.
    """
    macros = [f"-D{name}={value}" for name, value in gpu_macros(schema, limits, slopes).items()]
    options = [*_FLAGS, f"--gpu-architecture={limits.architecture}", *macros]
    source = _header() + gpu_source(schema)
    key = hashlib.sha256("\0".join([nvrtc_version(), *options, source]).encode()).hexdigest()[:32]
    path = cache_folder() / "native" / f"{key}.cubin"
    try:
        if (code := read_sealed(path)) is not None:
            return code
        LOG.info("kernel: compiling the one of %s for %s, once", schema.name, limits.name)
        code = _compile(source, options)
        write_sealed(path, code)
    except (StorageError, OSError) as error:
        raise StorageError(
            f"the cache of compiled kernels: {error}; choose another cache with $XDG_CACHE_HOME"
        ) from error
    return code


def nvrtc_version() -> str:
    """Return the version of NVRTC. Raises NoKernelError if it is not installed."""
    major, minor = _checked(_bindings("nvrtc").nvrtcVersion())
    return f"{major}.{minor}"


def describe_gpu_compiler(limits: GpuLimits) -> dict[str, str]:
    """Return the part of a fingerprint that decides the bits of a kernel."""
    return {
        "processor": limits.name,
        "compiler": f"NVRTC {nvrtc_version()}",
        "flags": " ".join((*_FLAGS, limits.architecture)),
        "kernel": hashlib.sha256(_header().encode()).hexdigest()[:32],
    }


class CudaKernel:
    """The compiled kernel of one schema, loaded on PyTorch's current device.

    Args:
        code: the machine code (`compile_for_gpu`).
        threads: of a block (`threads_of`).

    Raises NoKernelError if it cannot be loaded.
    """

    def __init__(self, code: bytes, threads: int) -> None:
        self._driver, self._threads = _bindings("driver"), threads
        torch.cuda.synchronize()  # makes PyTorch's context that of this thread
        self._module = _checked(self._driver.cuModuleLoadData(code))
        self._train, self._evaluate = (
            _checked(self._driver.cuModuleGetFunction(self._module, name)) for name in (b"train", b"evaluate")
        )
        self._shared_bytes = self._constant(b"block_shared_bytes")
        dynamic = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        for function in (self._train, self._evaluate):
            _checked(self._driver.cuFuncSetAttribute(function, dynamic, self._shared_bytes))

    def _constant(self, name: bytes) -> int:
        address, size = _checked(self._driver.cuModuleGetGlobal(self._module, name))
        value = ctypes.c_int32()
        _checked(self._driver.cuMemcpyDtoH(ctypes.addressof(value), address, size))
        return value.value

    def train(self, arguments: TrainingArguments) -> None:
        """Start the steps ``first_step`` to ``last_step - 1`` of all models on PyTorch's stream."""
        self._launch(self._train, arguments, arguments.models, 1)

    def evaluate(self, arguments: EvaluationArguments) -> None:
        """Start the evaluation of all models on PyTorch's stream."""
        self._launch(self._evaluate, arguments, arguments.models, arguments.parts)

    def wait(self) -> None:
        """Return when all that was started is finished. Raises RuntimeError if the device reports an error."""
        torch.cuda.current_stream().synchronize()

    def _launch(self, function: Any, arguments: ctypes.Structure, columns: int, rows: int) -> None:
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = torch.cuda.current_stream().cuda_stream
        block = (self._threads, 1, 1, self._shared_bytes, stream)
        _checked(self._driver.cuLaunchKernel(function, columns, rows, 1, *block, ctypes.addressof(parameters), 0))


def fill(structure: Any, tensors: Mapping[str, Tensor | None], **numbers: int) -> Any:
    """Return a structure with the addresses of tensors, which it keeps alive, and with numbers."""
    structure.tensors = dict(tensors)
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous")
        setattr(structure, name, None if tensor is None else tensor.data_ptr())
    for name, number in numbers.items():
        setattr(structure, name, number)
    return structure


def _compile(source: str, options: list[str]) -> bytes:
    nvrtc = _bindings("nvrtc")
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"zootools.cu", 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        errors = [line for line in log.decode(errors="replace").splitlines() if "error" in line]
        raise NoKernelError(f"the kernel for GPUs: {errors[0].strip()[:300] if errors else status.name}")
    code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return bytes(code)


def _bindings(name: str) -> ModuleType:
    """Return a module of cuda-bindings. Raises NoKernelError if it is not installed."""
    try:
        return import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise NoKernelError(f"the kernel for GPUs needs the package cuda-bindings ({error})") from error


def _checked(result: tuple[Any, ...]) -> Any:
    """Return what a function of CUDA returned beside its status. Raises NoKernelError for a status of failure."""
    status, *values = result
    if int(status) != 0:
        raise NoKernelError(f"CUDA reports {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def _header() -> str:
    return (SOURCES_FOLDER / "gpu.h").read_text()
