"""Measuring how fast this machine trains a specification: the real trainer runs for two seconds."""

import os
import time
from pathlib import Path

from zootools.building.planning import zoo_schema
from zootools.building.preflight import choose_device
from zootools.spec import ZooSpec
from zootools.spec.model_configs import configurations, count_models
from zootools.training.table import choose_backend

SECONDS = 2.0
MODELS, GPU_MODELS = 256, 1024
"""Maximum number of models that are trained, on the CPU and on a GPU."""


def seconds_per_model_sample(
    spec: ZooSpec,
    data: Path | None = None,
    workers: int | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> float:
    """Return the seconds that one model needs for one training sample when all workers train, or the GPU.

    The images are random, so no image file is read. Neither evaluation nor the smaller last stack of a worker is
    included. Raises what `choose_device` and `choose_backend` raise.
    """
    from zootools.training.repeatable import one_thread
    from zootools.training.speed import made_up_images, made_up_models

    schema = zoo_schema(spec, data)
    first = next(configurations(spec))
    alike = [h for h in configurations(spec) if (h.activation, h.optimizer) == (first.activation, first.optimizer)]
    chosen = choose_backend(backend, choose_device(device), schema, spec.training.batch_size, first)
    on_gpu = chosen.device != "cpu"
    models = made_up_models(alike, min(GPU_MODELS if on_gpu else MODELS, count_models(spec)))
    # Enough steps to make the start of an epoch, which takes the same time for any length, negligible.
    images = made_up_images(schema, min(spec.images.train, spec.training.batch_size * 64))
    trainer = chosen.trainers(schema, models, images.to(chosen.device), spec.training)[0]
    with one_thread():
        trainer.train_epoch(1)  # warm-up
        begun, epochs = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            epochs += 1
            trainer.train_epoch(1 + epochs)
        elapsed = time.perf_counter() - begun
    samples = epochs * trainer.group.train_counts[: trainer.count].sum()
    return float(elapsed / samples / (1 if on_gpu else workers or os.cpu_count() or 1))
