"""The backends that a build can name. Torch is imported when a backend is chosen, not with this module."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zootools.choices import check_word
from zootools.errors import StorageError

if TYPE_CHECKING:
    from zootools.architectures import Schema
    from zootools.spec import Hyperparameters
    from zootools.training.backend import StandardBackend


@dataclass(frozen=True)
class Population:
    """The models that a backend is chosen for."""

    device: str
    """``cpu``, ``cuda``, or ``auto`` for the better of both on a machine with a CUDA device."""
    schema: "Schema"
    """The layers of the models."""
    batch_size: int = 1
    """Samples of one step."""
    first: "Hyperparameters | None" = None
    """The hyper-parameters of one of the models, for a measurement; None for a network with tanh, trained by Adam."""
    recorded: str | None = None
    """The name of the backend that has trained models or epochs of the same zoo before."""


def choose_backend(
    name: str,
    device: str,
    schema: "Schema",
    batch_size: int = 1,
    first: "Hyperparameters | None" = None,
    recorded: str | None = None,
) -> "StandardBackend":
    """Return the backend of a name.

    Args:
        name: a key of `BACKENDS`; ``auto`` is native on a CPU if the kernel can be compiled and is faster, else torch.
            Where it depends on the processor which of the two is faster, it is measured once
            (`zootools.training.speed`); a zoo that has a backend keeps it.
        device: ``cpu`` or ``cuda``; on a machine with a CUDA device also ``auto``: CUDA, but for networks that do not
            fit the kernel for GPUs and that the one for CPUs trains faster than PyTorch does on CUDA (docs/gpu.md).
        schema: the layers of the models.
        batch_size: samples of one step.
        first: the hyper-parameters of one of the models (`Population.first`).
        recorded: the backend that the zoo has already (`Population.recorded`).

    Raises SpecError for an unknown name, and when ``$ZOOTOOLS_ISA`` names an instruction set that is unknown or that
    the processor lacks; NoKernelError or StorageError when the name is ``native`` and the kernel cannot be compiled.
    """
    return BACKENDS[check_word("backend", name, tuple(BACKENDS))](
        Population(device, schema, batch_size, first, recorded)
    )


def _auto(population: Population) -> "StandardBackend":
    from zootools.native.compiler import NoKernelError
    from zootools.training.gpu import GpuBackend
    from zootools.training.native import NativeBackend
    from zootools.training.speed import clearly_faster, measured_speeds
    from zootools.training.stacked import TorchBackend

    device, schema, batch_size = population.device, population.schema, population.batch_size
    if device != "cpu" and population.recorded != "torch":
        with suppress(NoKernelError, StorageError):
            return GpuBackend.compiled(schema)
    if device == "auto" and clearly_faster(schema, batch_size) == "native":
        with suppress(NoKernelError, StorageError):
            return NativeBackend.compiled(schema)
    if device != "cpu":
        return TorchBackend("cuda", "the device is cuda")
    if population.recorded == "torch":
        return TorchBackend(device, "it has trained the models that the zoo has")
    clear = population.recorded or clearly_faster(schema, batch_size)
    if clear == "torch":
        return TorchBackend(device, "faster for large linear layers")
    try:
        native = NativeBackend.compiled(schema)
    except (NoKernelError, StorageError) as error:
        return TorchBackend(device, f"slower; {error}")
    if clear is None:
        speeds = measured_speeds(native, schema, batch_size, population.first)
        if speeds.faster == "torch":
            reason = f"measured to be faster: {speeds.torch:,.0f} model-samples/s, native {speeds.native:,.0f}"
            return TorchBackend(device, reason)
    return native


def _native(population: Population) -> "StandardBackend":
    from zootools.training.gpu import GpuBackend
    from zootools.training.native import NativeBackend

    if population.device == "cpu":
        return NativeBackend.compiled(population.schema)
    return GpuBackend.compiled(population.schema)


def _torch(population: Population) -> "StandardBackend":
    from zootools.training.stacked import TorchBackend

    return TorchBackend("cuda" if population.device == "auto" else population.device, "as requested")


BACKENDS: "dict[str, Callable[[Population], StandardBackend]]" = {
    "auto": _auto,
    "native": _native,
    "torch": _torch,
}
"""The backends by name."""
