"""The backends that a build can name. Torch is imported when a backend is chosen, not with this module."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zootools.choices import check_word
from zootools.errors import StorageError

if TYPE_CHECKING:
    from zootools.architectures import Schema
    from zootools.training.backend import StandardBackend

WIDE, LARGE_BATCH = 50_000, 32
"""Parameters and batch size beyond which a network of linear layers alone is faster in PyTorch: lanes read all weights
for every sample, and so many no longer fit the cache; a batched product reads them once per batch
(benchmarks/training.py, first table)."""


def choose_backend(name: str, device: str, schema: "Schema", batch_size: int = 1) -> "StandardBackend":
    """Return the backend of a name.

    Args:
        name: a key of `BACKENDS`; ``auto`` is native on a CPU if the kernel can be compiled and is faster, else torch.
        device: ``cpu`` or ``cuda``.
        schema: the layers of the models.
        batch_size: samples of one step.

    Raises SpecError for an unknown name, and when ``$ZOOTOOLS_ISA`` names an instruction set that is unknown or that
    the processor lacks; NoKernelError or StorageError when the name is ``native`` and the kernel cannot be compiled.
    """
    return BACKENDS[check_word("backend", name, tuple(BACKENDS))](device, schema, batch_size)


def _auto(device: str, schema: "Schema", batch_size: int) -> "StandardBackend":
    from zootools.native.compiler import NoKernelError
    from zootools.training.native import NativeBackend
    from zootools.training.stacked import TorchBackend

    if device != "cpu":
        return TorchBackend(device, f"the device is {device}")
    linear = all(layer.kind == "linear" for layer in schema.layers)
    if linear and schema.size > WIDE and batch_size > LARGE_BATCH:
        return TorchBackend(device, "faster for wide linear layers and large batches")
    try:
        return NativeBackend.compiled(device, schema)
    except (NoKernelError, StorageError) as error:
        return TorchBackend(device, f"slower; {error}")


def _native(device: str, schema: "Schema", batch_size: int) -> "StandardBackend":
    from zootools.training.native import NativeBackend

    return NativeBackend.compiled(device, schema)


def _torch(device: str, schema: "Schema", batch_size: int) -> "StandardBackend":
    from zootools.training.stacked import TorchBackend

    return TorchBackend(device, "as requested")


BACKENDS: "dict[str, Callable[[str, Schema, int], StandardBackend]]" = {
    "auto": _auto,
    "native": _native,
    "torch": _torch,
}
"""The backends by name, each as a function of device, schema and batch size."""
