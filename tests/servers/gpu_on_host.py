"""The kernel for GPUs, compiled for this machine's processor: the same source, with threads of the processor."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

from zootools.architectures import Schema
from zootools.images.datasets import ImageData
from zootools.native.compiler import SOURCES_FOLDER, find_compiler
from zootools.native.cuda import EvaluationArguments, GpuLimits, TrainingArguments, gpu_macros, gpu_source
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.gpu import WIDTH, GpuTrainer, slopes_needed

LIMITS = GpuLimits("the host", "none", block_bytes=1 << 20, total_bytes=1 << 20)
EXPORTS = """
extern "C" void host_train(const Training *t) { launch(train, *t, t->models, 1); }
extern "C" void host_evaluate(const Evaluation *e) { launch(evaluate, *e, e->models, e->parts); }
"""


class HostKernel:
    """A `GpuKernel` on the processor, whose calls return when the computation is finished."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def train(self, arguments: TrainingArguments) -> None:
        self._library.host_train(ctypes.byref(arguments))

    def evaluate(self, arguments: EvaluationArguments) -> None:
        self._library.host_evaluate(ctypes.byref(arguments))

    def wait(self) -> None:
        pass


@functools.cache
def host_kernel(schema: Schema, slopes: bool) -> HostKernel:
    """Compile the kernel of a schema."""
    macros = gpu_macros(schema, LIMITS, slopes)
    source = f'#include "gpu_host.h"\n#include "gpu.h"\n{gpu_source(schema)}{EXPORTS}'
    # No fused products: then the sums do not depend on what the compiler makes of the loops.
    flags = ("-std=c++20", "-O2", "-ffp-contract=off", "-pthread", "-fPIC", "-shared")
    folders = (f"-I{SOURCES_FOLDER}", f"-I{Path(__file__).parent}")
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        command = [*find_compiler(), *flags, *folders, *defined, "-x", "c++", "-", "-o", str(library)]
        subprocess.run(command, input=source, text=True, check=True, timeout=300)
        return HostKernel(library)  # a library that is loaded needs its file no more


def host_trainer(schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int) -> GpuTrainer:
    """Return the trainer for GPUs with a kernel on the processor."""
    assert images.train.images.device == torch.device("cpu")
    return GpuTrainer(host_kernel(schema, slopes_needed(models)), schema, models, images, batch_size)


class HostBackend:
    """The backend for GPUs with a kernel on the processor."""

    device = "cpu"
    name = "host"
    reason = "as a test wants it"
    mixed = True

    def fingerprint(self) -> dict[str, object]:
        return {"backend": "host"}

    def trainers(
        self, schema: Schema, models: list[ModelConfig], images: ImageData, training: Training
    ) -> list[GpuTrainer]:
        kernel = host_kernel(schema, slopes_needed(models))
        return [GpuTrainer(kernel, schema, models, images, training.batch_size, training.train_metrics_images)]

    def width(self, schema: Schema) -> int:
        del schema
        return WIDTH
