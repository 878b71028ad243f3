"""Which backend trains a population of linear networks faster on this processor, by a measurement.

The kernel reads all weights for every sample, a batched product of PyTorch once per batch. Which is faster depends on
the sizes, the batch and the processor, and cannot be told in advance where the two are close. The result is kept in the
user's cache, with the compiled kernels.
"""

import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import cycle
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zootools.architectures import Schema
from zootools.errors import StorageError
from zootools.images.datasets import ImageData, Subset
from zootools.native.compiler import processor_features
from zootools.native.sealed import read_sealed, write_sealed
from zootools.paths import cache_folder
from zootools.spec import Hyperparameters, Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import StandardBackend
from zootools.training.native import NativeBackend
from zootools.training.repeatable import one_thread
from zootools.training.stacked import TorchBackend

SMALL = 10_000
"""Parameters up to which the kernel is always faster, because the weights of all its lanes stay in the cache."""
LARGE, LARGE_STEP = 1 << 19, 1 << 25
"""Parameters, and parameters times samples of a step, beyond which a measurement takes more than a second."""
LARGE_BATCH = 16
"""Batch from which PyTorch is faster for networks beyond `LARGE` or `LARGE_STEP`."""
SECONDS = 0.5
"""Processor seconds after which no further round of a measurement is begun."""
ROUNDS = 5

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Speeds(BaseModel):
    """Model-samples per second of the two backends of a CPU, on one core."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    native: _Rate
    torch: _Rate

    @property
    def faster(self) -> Literal["native", "torch"]:
        """The name of the faster backend."""
        return "native" if self.native >= self.torch else "torch"


def clearly_faster(schema: Schema, batch_size: int) -> Literal["native", "torch"] | None:
    """Return the backend that is faster on every processor; None where it must be measured."""
    if any(layer.kind != "linear" for layer in schema.layers) or schema.size <= SMALL:
        return "native"
    if schema.size > LARGE or schema.size * batch_size > LARGE_STEP:
        return "torch" if batch_size >= LARGE_BATCH else "native"
    return None


def measured_speeds(
    native: NativeBackend, schema: Schema, batch_size: int, like: Hyperparameters | None = None
) -> Speeds:
    """Return the speeds of both backends from the cache, or measure them, in less than a second, and store them.

    The key contains everything that the speeds depend on: the kernel, which is specific to layers, compiler and
    instruction set, the processor's instructions, the version of PyTorch, batch size, activation, optimizer and whether
    units are dropped. A damaged entry is measured again; a cache that cannot be written is no error.

    Args:
        native: the kernel.
        schema: the layers of the models.
        batch_size: samples of one step.
        like: the hyper-parameters of one of the models; by default tanh and Adam.
    """
    hyper = _measured_hyperparameters(like)
    parts = (hashlib.sha256(native.kernel).hexdigest(), torch.__version__, *sorted(processor_features()))
    key = "\0".join((*parts, str(batch_size), hyper.model_dump_json()))
    path = cache_folder() / "native" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(StorageError, ValidationError):
        if (stored := read_sealed(path)) is not None:
            return Speeds.model_validate_json(stored)
    speeds = _measure(native, schema, batch_size, hyper)
    with suppress(StorageError, OSError):
        write_sealed(path, speeds.model_dump_json().encode())
    return speeds


def _measured_hyperparameters(like: Hyperparameters | None) -> Hyperparameters:
    """Return hyper-parameters that take as long as the given ones."""
    chosen: dict[str, object] = {} if like is None else {"activation": like.activation, "optimizer": like.optimizer}
    chosen["dropout"] = 0.5 if like is not None and like.dropout else 0.0
    values = {"activation": "tanh", "init": "kaiming_uniform", "optimizer": "adam", "lr": 1e-4}
    return Hyperparameters.model_validate(values | chosen)


def _measure(native: NativeBackend, schema: Schema, batch_size: int, hyper: Hyperparameters) -> Speeds:
    """Train made-up models with both backends in turn; return the best rate of each."""
    # Enough steps to make the start of an epoch negligible, but few of a network that takes long.
    steps = max(1, min(16, LARGE_STEP // 4 // (schema.size * batch_size)))
    images, training = made_up_images(schema, steps * batch_size), Training(epochs=1, batch_size=batch_size)
    backends: dict[str, StandardBackend] = {"native": native, "torch": TorchBackend("cpu", "measured")}
    trainers = {
        name: backend.trainers(schema, made_up_models([hyper], backend.width(schema)), images, training)[0]
        for name, backend in backends.items()
    }
    best, begun = dict.fromkeys(trainers, 0.0), time.thread_time()
    with one_thread():
        for number in range(1, ROUNDS + 1):
            for name, trainer in trainers.items():
                start = time.thread_time()
                trainer.train_epoch(number)
                rate = trainer.count * len(images.train) / max(time.thread_time() - start, 1e-6)
                best[name] = max(best[name], rate)
            if time.thread_time() - begun > SECONDS and number > 1:  # the first round is also the warm-up
                break
    return Speeds(native=best["native"], torch=best["torch"])


def made_up_models(alike: Iterable[Hyperparameters], count: int) -> list[ModelConfig]:
    """Return models of one structure for a measurement; their seeds do not change the speed."""
    numbered = zip(range(count), cycle(alike), strict=False)
    return [ModelConfig(f"{number:016x}", "", number, "train", hyper) for number, hyper in numbered]


def made_up_images(schema: Schema, count: int) -> ImageData:
    """Return random images that fit a schema, so that no image file is read for a measurement."""
    draws = torch.Generator().manual_seed(0)
    images = Subset(torch.randn(count, *schema.input_shape, generator=draws), torch.arange(count) % schema.classes)
    return ImageData(images, images, images, schema.classes)
