"""A compiled kernel: its C interface as Python calls. The structures are those of ``network.h``."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zootools.architectures import Schema
from zootools.native.compiler import NoKernelError, processor_features

ACTIVATIONS = ("tanh", "relu", "sigmoid", "gelu", "leaky_relu", "silu")
OPTIMIZERS = ("adam", "sgd", "rmsprop")

_POINTER = ctypes.c_void_p


class _Training(ctypes.Structure):
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


class _Evaluation(ctypes.Structure):
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

    ``width`` is how many models it trains side by side.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            _check_processor(path, self._library)
            self._train, self._evaluate = self._library.lanes_train, self._library.lanes_evaluate
            self.width: int = self._library.lanes_width()
            parameters: int = self._library.lanes_parameters()
            self._library.lanes_workspace.restype = ctypes.c_int64
            workspace: int = self._library.lanes_workspace()
        except (OSError, AttributeError, ValueError) as error:
            raise NoKernelError(f"{path}: is no kernel that can be loaded ({error}); delete it") from error
        if parameters != schema.size:
            raise NoKernelError(f"{path}: was compiled for {parameters} parameters, not for {schema.size}; delete it")
        self.schema = schema
        self._train.argtypes = [ctypes.POINTER(_Training), ctypes.c_int64, ctypes.c_int64]
        self._evaluate.argtypes = [ctypes.POINTER(_Evaluation), ctypes.c_int64, ctypes.c_int64]
        self._train.restype = self._evaluate.restype = None
        self._workspace = lane_array((workspace // 4,))

    def train(self, arguments: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Train the models for some steps of an epoch; ``arguments`` are the fields of ``Training`` in network.h."""
        self._train(self._structure(_Training, arguments), first_step, last_step)

    def evaluate(self, arguments: Mapping[str, Any], first: int, last: int) -> None:
        """Score the models on some images; ``arguments`` are the fields of ``Evaluation`` in network.h."""
        self._evaluate(self._structure(_Evaluation, arguments), first, last)

    def _structure(self, kind: Any, arguments: Mapping[str, Any]) -> Any:
        """Fill a C structure; the arrays stay alive through ``arguments`` while the call runs."""
        values = {"workspace": self._workspace, **arguments}
        structure = kind()
        for name, _ in kind._fields_:
            value = values[name]
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous, name
                value = value.ctypes.data
            setattr(structure, name, value)
        return ctypes.byref(structure)


def _check_processor(path: Path, library: ctypes.CDLL) -> None:
    """Refuse a kernel of another machine whose instructions would end this process; nothing of it has run yet.

    Raises NoKernelError, and ValueError when the library does not say what it needs.
    """
    needed = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "lanes_instructions"))).decode().split()
    present = processor_features()
    if present and (missing := sorted({*needed} - present)):
        raise NoKernelError(f"{path}: this processor lacks instructions that it was compiled for: {', '.join(missing)}")


def lane_array(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return zeros at an address that vector instructions take: a multiple of 64 bytes."""
    size = int(np.prod(shape))
    room = np.zeros(size + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size].reshape(shape)
