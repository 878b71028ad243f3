"""How many model-samples per second (forward + backward + optimizer step) a machine trains.

    python benchmarks/training.py --seconds 5 --data /path/to/torchvision/data

Three ways, one after the other in one run, each on the whole machine (a process per core, one thread each):

- reference: `zootools.training.reference`, one model per process. It draws dropout even at rate zero, so it
  says what is right, not what is fast;
- peers: one model per process, DataLoader and torch.optim, loss and accuracy read at every step, as the
  published zoo generators do;
- stacked: `StackedTrainer`, `stack_width` models per process.

All are counted in whole epochs over the same images. No scores on a test set, no checkpoints.
"""

import functools
import itertools
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import click
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from zootools.architectures import Schema, build_schema
from zootools.image_files import data_folder
from zootools.images import ImageData, Subset, load_images
from zootools.population import ModelConfig
from zootools.spec import Cnn, DatasetImages, Hyperparameters, Mlp, TetrisImages
from zootools.training.reference import make_optimizer, train_reference
from zootools.training.stacked import StackedTrainer, stack_width

BATCH_SIZES = {"tetris": (1, 10, 64, 256), "mnist": (4, 10, 64, 256)}
LEARNING_RATES = {"tetris": 3e-5, "mnist": 3e-4}
MNIST_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@functools.cache
def zoo_images(zoo: str, data: Path | None) -> tuple[str, ImageData]:
    """Return what the table calls the images, and the images. Nothing is downloaded."""
    if zoo == "tetris":
        return "seeded", load_images(TetrisImages(name="tetris", train=1000, test=1, noise_train=0.2, noise_test=0.8))
    if all((data_folder(data) / "MNIST" / "raw" / file).is_file() for file in MNIST_FILES):
        return "MNIST", load_images(DatasetImages(name="mnist", train=1000, test=1, mean=0.1307, std=0.3081), data)
    return "digits at 28x28", load_images(DatasetImages(name="digits", train=1000, test=1, size=28))


def epoch_images(zoo: str, batch_size: int, data: Path | None) -> ImageData:
    """Return the images of one epoch: all of TETRIS; of MNIST so few that a stack needs about a second."""
    images = zoo_images(zoo, data)[1]
    if zoo == "tetris":
        return images
    count = -(-max(256, 2 * batch_size) // batch_size) * batch_size
    train = Subset(images.train.images[:count], images.train.labels[:count])
    return ImageData(train, images.validation, images.test, images.classes)


# --- the three ways: iterators of which each step trains one epoch ---------------------------------------------


def reference(schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int) -> Iterator[object]:
    """The definition of what is right: the first model alone."""
    return itertools.islice(train_reference(schema, models[0], images, batch_size, 10**9), 1, None)


def peers(schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int) -> Iterator[object]:
    """The first model alone, trained as the published zoo generators do it."""
    network = next(train_reference(schema, models[0], images, batch_size, 0))
    optimizer = make_optimizer(network, models[0].hyperparameters)
    dataset = TensorDataset(images.train.images, images.train.labels)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    while True:
        loss_sum = correct = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            logits = network(inputs)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
        yield loss_sum, correct


def stacked(schema: Schema, models: list[ModelConfig], images: ImageData, batch_size: int) -> Iterator[object]:
    """All models, side by side."""
    return map(StackedTrainer(schema, models, images, batch_size).train_epoch, itertools.count(1))


WAYS = {way.__name__: way for way in (reference, peers, stacked)}


# --- measuring ------------------------------------------------------------------------------------------------


_barrier: Barrier


def start_worker(barrier: Barrier) -> None:
    """Prepare a worker process."""
    global _barrier
    _barrier = barrier
    torch.set_num_threads(1)


def measure(way: str, zoo: str, batch_size: int, seconds: float, data: Path | None, rank: int) -> float:
    """Return the model-samples per second of this process, while the others do the same."""
    images = epoch_images(zoo, batch_size, data)
    architecture = Mlp(name="mlp", hidden=(5,), bias=False) if zoo == "tetris" else Cnn(name="cnn_small")
    schema = build_schema(architecture, images.input_shape, images.classes)
    hyper = Hyperparameters(activation="tanh", init="uniform", optimizer="adam", lr=LEARNING_RATES[zoo])
    width = stack_width(schema, "cpu")
    models = [ModelConfig("", "", rank * width + index, "train", hyper) for index in range(width)]
    epochs = WAYS[way](schema, models, images, batch_size)
    next(epochs)  # warm-up
    _barrier.wait(timeout=600)
    begin, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds:
        next(epochs)
        done += 1
        elapsed = time.perf_counter() - begin
    return done * (width if way == "stacked" else 1) * len(images.train) / elapsed


def cpu_model() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="Least time of one cell.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of torchvision's data; else $ZOOTOOLS_DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(seconds: float, data: Path | None, as_json: bool) -> None:
    """Print model-samples per second of the three ways as a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    spawn = multiprocessing.get_context("spawn")
    machine = {"torch": torch.__version__, "cpu": cpu_model(), "cores": cores, "seconds": seconds}
    table = ["| zoo | batch | reference | peers | stacked | stacked/peers | stacked/reference |"]
    table.append("|---|--:|--:|--:|--:|--:|--:|")
    rows = []
    with ProcessPoolExecutor(cores, spawn, start_worker, (spawn.Barrier(cores),)) as pool:
        for zoo, batch_size in ((zoo, size) for zoo, sizes in BATCH_SIZES.items() for size in sizes):
            rates: dict[str, float] = {}
            for way in WAYS:
                click.echo(f"{zoo}, batch size {batch_size}: {way}", err=True)
                # A worker waits at the barrier until each of the others has a task too, so each gets one.
                tasks = [pool.submit(measure, way, zoo, batch_size, seconds, data, rank) for rank in range(cores)]
                rates[way] = sum(task.result() for task in tasks)
            images = zoo_images(zoo, data)[0]
            rows.append({"zoo": zoo, "images": images, "batch_size": batch_size, **rates})
            cells = [f"{zoo} ({images})", str(batch_size), *(f"{rate:,.0f}" for rate in rates.values())]
            cells += [f"{rates['stacked'] / rates[other]:.1f}x" for other in ("peers", "reference")]
            table.append(f"| {' | '.join(cells)} |")
    if as_json:
        click.echo(json.dumps({"machine": machine, "rows": rows}, indent=2))
    else:
        header = ", ".join(f"{key} {value}" for key, value in machine.items())
        click.echo("\n".join([f"Model-samples per second: {header} (a cell)", "", *table]))


if __name__ == "__main__":
    main()
