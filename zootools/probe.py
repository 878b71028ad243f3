"""How fast this machine trains a specification: two seconds of the real trainer."""

import os
import time
from pathlib import Path

from zootools.builder import zoo_schema
from zootools.population import expand
from zootools.spec import ZooSpec

SECONDS = 2.0


def seconds_per_model_sample(
    spec: ZooSpec, data: Path | None = None, workers: int | None = None, backend: str = "auto"
) -> float:
    """Return the seconds that one model needs for one training sample when all workers train.

    Random images of the right shape are trained on, so no image file is read. Evaluation is not counted, nor
    is the last stack of a worker, which may be a small one.
    """
    import torch

    from zootools.images import ImageData, Subset
    from zootools.training.backend import choose_backend

    schema = zoo_schema(spec, data)
    models = expand(spec)
    first = models[0].hyperparameters
    alike = [
        model
        for model in models
        if (model.hyperparameters.activation, model.hyperparameters.optimizer) == (first.activation, first.optimizer)
    ]
    # Enough steps that the start of an epoch, which is the same for any length, does not count.
    count = min(spec.images.train, spec.training.batch_size * 64)
    images = Subset(torch.randn(count, *schema.input_shape), torch.arange(count) % schema.classes)
    data_set = ImageData(images, images, images, schema.classes)
    chosen = choose_backend(backend, "cpu", schema, spec.training.batch_size)
    trainer = chosen.trainers(schema, alike[:256], data_set, spec.training)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.train_epoch(1)  # warms up
        begun, epochs = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            epochs += 1
            trainer.train_epoch(1 + epochs)
        elapsed = time.perf_counter() - begun
    finally:
        torch.set_num_threads(threads)
    samples = epochs * trainer.group.train_counts[: trainer.count].sum()
    return float(elapsed / samples / (workers or os.cpu_count() or 1))
