"""Which trainer computes: the compiled kernel (`native`) or stacked PyTorch (`torch`)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from zootools.architectures import Schema
from zootools.choices import BACKENDS, check_word
from zootools.errors import StorageError
from zootools.images.datasets import ImageData
from zootools.native.compiler import NoKernelError, compile_kernel, describe_compiler
from zootools.native.kernel import Kernel
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.evaluation import Scores
from zootools.training.group import Group, Tick
from zootools.training.native import NativeTrainer
from zootools.training.repeatable import make_products_repeatable
from zootools.training.stacked import StackedTrainer, stack_width

make_products_repeatable()

WIDE, LARGE_BATCH = 50_000, 32
"""Beyond both, a network of linear layers alone is faster in PyTorch: lanes read all weights for every sample, which
then no longer fit the cache; a batched product reads them once per batch (benchmarks/training.py, first table)."""


class Trainer(Protocol):
    """Trains several models of one structure side by side, each as if it were alone."""

    group: Group
    """The models with their data; the first ``count`` are trained, the others fill a fixed width."""
    count: int

    @property
    def weights(self) -> Tensor:
        """The flat weights, float32 ``[count, parameters]``, in the order of the schema."""

    def train_epoch(self, epoch: int, tick: Tick = ...) -> None:
        """Train every model over its share of the images once; epochs count from 1."""

    def evaluate(self) -> dict[str, Scores]:
        """Score the models as they are on the ``train``, ``validation`` (if any) and ``test`` images."""

    def save(self) -> dict[str, Tensor]:
        """Return all that a later `restore` needs: tensors whose first dimension is ``count``."""

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` returned."""


class Backend(Protocol):
    """What trains a zoo's models on one device. An object of your own with all of this can be given to `build`.

    It is pickled, and sent to the workers, which import its module.
    """

    @property
    def device(self) -> str:
        """Where the workers put the images, as torch names it: ``cpu``, ``cuda``."""

    @property
    def name(self) -> str:
        """What build.json calls it."""

    @property
    def reason(self) -> str:
        """Why it is this one, in half a sentence."""

    def fingerprint(self) -> dict[str, object]:
        """Return what decides a model's bits beside its specification, as values that JSON can store."""

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> Sequence[Trainer]:
        """Return trainers for all the models, each with as many as it trains side by side, in order."""


@dataclass(frozen=True)
class StandardBackend:
    """The compiled kernel, or stacked PyTorch; less than a megabyte, which is sent to workers."""

    device: str
    kernel: bytes | None = field(repr=False)
    """The compiled kernel of the zoo's schema; None for PyTorch. Workers get its bytes, not a file."""
    reason: str
    """Why it is this one, in half a sentence."""
    compiler: Mapping[str, str] = field(default_factory=dict)
    """What compiled the kernel (`describe_compiler`), here or on the machine that it comes from."""

    @property
    def name(self) -> str:
        """``native`` or ``torch``."""
        return "torch" if self.kernel is None else "native"

    def fingerprint(self) -> dict[str, object]:
        """Return what decides a model's bits beside its specification.

        Two builds are equal byte for byte under one fingerprint, and only close to each other under two.
        """
        import numpy
        import pyarrow
        import torch

        versions = {"threads": 1, "numpy": numpy.__version__, "pyarrow": pyarrow.__version__}
        if self.kernel is not None:
            return {"backend": "native", "device": "cpu", **self.compiler, **versions}
        processor = torch.cuda.get_device_name() if self.device == "cuda" else torch.backends.cpu.get_cpu_capability()
        torch_only = {"processor": processor, "torch": torch.__version__, "mkl": os.environ.get("MKL_CBWR", "")}
        return {"backend": "torch", "device": self.device, **torch_only, **versions}

    def trainers(
        self, schema: Schema, models: Sequence[ModelConfig], images: ImageData, training: Training
    ) -> list[Trainer]:
        """Return trainers for all the models, each with as many as it trains side by side, in order."""
        rest = (images, training.batch_size, training.train_metrics_images)
        if self.kernel is not None:
            kernel = Kernel(self.kernel, schema)
            return [NativeTrainer(kernel, group, *rest) for group in _groups(models, kernel.width)]
        return [StackedTrainer(schema, group, *rest) for group in _groups(models, self.width(schema))]

    def width(self, schema: Schema) -> int:
        """Return how many models one trainer trains side by side; one with fewer takes as much memory."""
        return stack_width(schema, self.device) if self.kernel is None else Kernel(self.kernel, schema).width


def choose_backend(wanted: str, device: str, schema: Schema, batch_size: int = 1) -> StandardBackend:
    """Choose what trains a schema's models.

    Args:
        wanted: ``native``, ``torch``, or ``auto`` for native on a CPU where the kernel can be compiled and is faster.
        device: ``cpu`` or ``cuda``.
        schema: the layers of the models.
        batch_size: samples of one step.

    Raises NoKernelError or StorageError when ``native`` is wanted and the kernel cannot be compiled, and SpecError when
    ``$ZOOTOOLS_ISA`` names an instruction set that is unknown or that the processor lacks.
    """
    check_word("backend", wanted, BACKENDS)
    if wanted == "torch":
        return StandardBackend(device, None, "as asked for")
    if device != "cpu":
        if wanted == "native":
            raise NoKernelError(
                f"--backend native computes on the CPU; use --device cpu, or --backend torch on {device}"
            )
        return StandardBackend(device, None, f"the device is {device}")
    linear = all(layer.kind == "linear" for layer in schema.layers)
    if wanted == "auto" and linear and schema.size > WIDE and batch_size > LARGE_BATCH:
        return StandardBackend(device, None, "faster for wide linear layers and large batches")
    try:
        kernel = compile_kernel(schema)
        width = Kernel(kernel, schema).width
    except (NoKernelError, StorageError) as error:
        if wanted == "native":
            raise
        return StandardBackend(device, None, f"slower; {error}")
    return StandardBackend(device, kernel, f"{width} models side by side, one per SIMD lane", describe_compiler())


def _groups(models: Sequence[ModelConfig], width: int) -> list[Sequence[ModelConfig]]:
    return [models[start : start + width] for start in range(0, len(models), width)]
