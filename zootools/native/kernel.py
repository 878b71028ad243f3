"""Calling a compiled kernel through its C interface. The structures are those of ``network.h``."""

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from zootools.architectures import Schema
from zootools.native.compiler import ISA, NoKernelError, lacking, processor_features
from zootools.spec import Activation, Optimizer

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
"""The kernel takes the index of a name, which is its value in an enum of network.h: both have the same order."""

_POINTER = ctypes.c_void_p


class _TrainingArguments(ctypes.Structure):
    """``Training`` of network.h."""

    _fields_ = (
        ("images", _POINTER),
        ("labels", _POINTER),
        ("order", _POINTER),
        ("counts", _POINTER),
        ("batch", ctypes.c_int64),
        ("weights", _POINTER),
        ("first", _POINTER),
        ("second", _POINTER),
        ("gradients", _POINTER),
        ("workspace", _POINTER),
        ("rates", _POINTER),
        ("corrections", _POINTER),
        ("bias_decay", _POINTER),
        ("kernel_decay", _POINTER),
        ("is_kernel", _POINTER),
        ("momentum", _POINTER),
        ("keys", _POINTER),
        ("thresholds", _POINTER),
        ("scale", _POINTER),
        ("activation", ctypes.c_int32),
        ("optimizer", ctypes.c_int32),
    )


class _EvaluationArguments(ctypes.Structure):
    """``Evaluation`` of network.h."""

    _fields_ = (
        ("images", _POINTER),
        ("labels", _POINTER),
        ("limits", _POINTER),
        ("weights", _POINTER),
        ("workspace", _POINTER),
        ("loss", _POINTER),
        ("confusion", _POINTER),
        ("activation", ctypes.c_int32),
    )


class Kernel:
    """The compiled kernel of one schema.

    ``width`` is the number of models that it trains side by side. The compiled code does not check its arguments before
    it reads and writes memory, so they are compared with the schema here.

    Args:
        code: the shared library (`compile_kernel`).
        schema: the schema that it was compiled for.

    Raises NoKernelError if the library cannot be loaded, or needs instructions that this processor lacks.
    """

    def __init__(self, code: bytes, schema: Schema) -> None:
        try:
            self._library = _load(code)
            _check_processor(self._library)
            self._train, self._evaluate = self._library.lanes_train, self._library.lanes_evaluate
            self.width: int = self._library.lanes_width()
            parameters: int = self._library.lanes_parameters()
            self._library.lanes_workspace.restype = ctypes.c_int64
            workspace: int = self._library.lanes_workspace()
        except (OSError, AttributeError, ValueError) as error:
            raise NoKernelError(f"the compiled kernel cannot be loaded ({error})") from error
        if parameters != schema.size:
            raise NoKernelError(f"the kernel was compiled for {parameters} parameters, not for {schema.size}")
        self.schema, self._arrays = schema, _arrays(schema, self.width)
        self._train.argtypes = [ctypes.POINTER(_TrainingArguments), ctypes.c_int64, ctypes.c_int64]
        self._evaluate.argtypes = [ctypes.POINTER(_EvaluationArguments), ctypes.c_int64, ctypes.c_int64]
        self._train.restype = self._evaluate.restype = None
        self._workspace = lane_array((workspace // 4,))

    def train(self, arguments: Mapping[str, Any]) -> Callable[[int, int], None]:
        """Return a function ``run(first, last)`` that trains the models on the steps first to last - 1 of an epoch.

        ``arguments`` are the fields of ``Training`` in network.h. Raises ValueError at once for arguments that the
        kernel cannot index.
        """
        structure = self._structure(_TrainingArguments, arguments)
        steps, images = len(arguments["rates"]), len(arguments["images"])
        order, counts, batch = arguments["order"], arguments["counts"], arguments["batch"]
        if batch < 1 or len(order) < steps * batch:
            raise _refusal(f"{steps} steps with a batch of {batch} do not fit an order of {len(order)} rows")
        _check_range("order", order, images)
        _check_range("counts", counts, steps * batch + 1)
        if not 0 <= arguments["optimizer"] < len(OPTIMIZERS):
            raise _refusal(f"optimizer is {arguments['optimizer']}, expected 0 to {len(OPTIMIZERS) - 1}")
        if (arguments["bias_decay"] is None) != (arguments["kernel_decay"] is None):
            raise _refusal("bias_decay and kernel_decay must be given together")

        def run(first_step: int, last_step: int) -> None:
            if not 0 <= first_step <= last_step <= steps:
                raise _refusal(f"steps {first_step} to {last_step} are not in 0 to {steps}")
            self._train(ctypes.byref(structure), first_step, last_step)

        return run

    def evaluate(self, arguments: Mapping[str, Any], first: int, last: int) -> None:
        """Score the models on the images from first to last - 1.

        ``arguments`` are the fields of ``Evaluation`` in network.h; ``loss`` and ``confusion`` are added to.

        Raises ValueError for arguments that the kernel cannot index.
        """
        images = len(arguments["images"])
        if not 0 <= first <= last <= images:
            raise _refusal(f"images {first} to {last} are not in 0 to {images}")
        self._evaluate(ctypes.byref(self._structure(_EvaluationArguments, arguments)), first, last)

    def _structure(self, kind: Any, arguments: Mapping[str, Any]) -> Any:
        """Return a filled C structure, which keeps its arrays alive, after checking that the kernel can index them."""
        values = {"workspace": self._workspace, **arguments}
        if not 0 <= values["activation"] < len(ACTIVATIONS):
            raise _refusal(f"activation is {values['activation']}, expected 0 to {len(ACTIVATIONS) - 1}")
        count, steps = len(values["images"]), len(values.get("rates", ()))
        lengths = {"images": count, "labels": count, "order": len(values.get("order", ()))}
        lengths |= {"rates": steps, "corrections": steps}
        for name, (dtype, shape) in self._arrays.items():
            if name in values and (values[name] is not None or name not in _OPTIONAL):
                expected = (lengths[name], *shape) if name in lengths else shape
                _check_array(name, values[name], dtype, expected)
        _check_range("labels", values["labels"], self.schema.classes)
        structure = kind()
        structure.arrays = values
        for name, _ in kind._fields_:
            value = values[name]
            setattr(structure, name, value.ctypes.data if isinstance(value, np.ndarray) else value)
        return structure


_OPTIONAL = ("bias_decay", "kernel_decay", "keys")
_ALIGNED = ("weights", "first", "second", "gradients")
"""The arrays that the kernel reads as whole vectors (`lane_array`)."""


def _arrays(schema: Schema, width: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the dtype and shape of each array that the kernel takes; without the first dimension if it varies."""
    lanes, classes = (width,), schema.classes
    shapes: dict[Any, dict[str, tuple[int, ...]]] = {
        np.float32: {
            "images": schema.input_shape,
            **dict.fromkeys(("weights", "first", "second", "gradients"), (schema.size, width)),
            **dict.fromkeys(("rates", "corrections", "bias_decay", "kernel_decay", "momentum", "scale"), lanes),
        },
        np.float64: {"loss": lanes},
        np.int32: {"order": lanes},
        np.int64: {"labels": (), "counts": lanes, "limits": lanes, "confusion": (width, classes, classes)},
        np.uint32: {"keys": (len(schema.layers), width), "thresholds": lanes},
        np.bool_: {"is_kernel": (schema.size,)},
    }
    return {name: (np.dtype(kind), shape) for kind, named in shapes.items() for name, shape in named.items()}


def _refusal(found: str) -> ValueError:
    return ValueError(f"the kernel cannot index its arguments: {found}")


def _check_array(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise _refusal(f"{name} is not an array")
    if array.dtype != dtype or array.shape != shape:
        raise _refusal(f"{name} is {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise _refusal(f"{name} is not contiguous")
    if name in _ALIGNED and array.ctypes.data % 64:
        raise _refusal(f"{name} does not begin at a multiple of 64 bytes")


def _check_range(name: str, array: npt.NDArray[np.integer], end: int) -> None:
    if array.size and not (array.min() >= 0 and array.max() < end):
        raise _refusal(f"{name} is {array.min()} to {array.max()}, expected 0 to {end - 1}")


_loaded: dict[str, ctypes.CDLL] = {}


def _load(code: bytes) -> ctypes.CDLL:
    """Load a shared library from memory, so that exactly these bytes are executed, even if a file changes."""
    key = hashlib.sha256(code).hexdigest()
    if key not in _loaded:
        try:
            # The descriptor stays open: the loader identifies a library by its path, which must not be used again.
            descriptor = os.memfd_create("zootools-kernel", os.MFD_CLOEXEC)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(code)
            _loaded[key] = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        except (AttributeError, OSError):  # not Linux, or a Linux that forbids execution from memory
            with tempfile.NamedTemporaryFile(suffix=".so") as file:
                file.write(code)
                file.flush()
                _loaded[key] = ctypes.CDLL(file.name)
    return _loaded[key]


def _check_processor(library: ctypes.CDLL) -> None:
    """Refuse a kernel whose instructions this processor lacks, before any of its code has run.

    Raises NoKernelError, and ValueError if the library does not list its instructions.
    """
    needed = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "lanes_instructions"))).decode().split()
    present = processor_features()
    if present and (missing := lacking(needed, present)):
        raise NoKernelError(
            f"this processor lacks instructions that the kernel was compiled for: {', '.join(missing)}; "
            f"choose others with ${ISA}"
        )


def lane_array(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return float32 zeros at an address that is a multiple of 64 bytes, as vector instructions require."""
    size = int(np.prod(shape))
    room = np.zeros(size + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size].reshape(shape)
