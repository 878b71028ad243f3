"""Measure the model-samples per second that a machine trains and evaluates.

    python benchmarks/training.py --seconds 3 --data /path/to/torchvision/data

Four trainers, one after the other in one run, each on the whole machine (a process per core, one thread each). Seconds
are processor seconds, so that rates on a shared machine are comparable.

- reference: `zootools.training.reference`, one model per process. It defines the right result and is not optimised;
  for instance it draws dropout even at rate zero;
- peers: one model per process, DataLoader and torch.optim, loss and accuracy read at every step, as in published
  generators of zoos; they evaluate the whole test set as one batch;
- torch: `StackedTrainer`, many models per process in PyTorch;
- native: `NativeTrainer`, the compiled kernel, one model per SIMD lane.

The first table trains the networks of TETRIS-SEED and MNIST-SEED at several batch sizes, and a wide MLP (784-100-10),
for which `--backend auto` measures which backend is faster. The second trains other architectures, activations and
optimizers with the native kernel only. The third evaluates. The peak is the rate of a float32 product of two
2048 x 2048 matrices on this machine, measured in the same run.
"""

import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from zootools.architectures import Schema, build_schema
from zootools.images.datasets import ImageData, Subset, load_images
from zootools.paths import data_folder
from zootools.spec import Architecture, Cnn, DatasetImages, Hyperparameters, Mlp, TetrisImages, Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.backend import Trainer
from zootools.training.reference import make_optimizer, train_reference
from zootools.training.table import choose_backend

MNIST_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@dataclass(frozen=True)
class Cell:
    """The networks of one row of a table, and how they are trained."""

    zoo: str
    architecture: Architecture
    batch_size: int
    activation: str = "tanh"
    optimizer: str = "adam"
    dropout: float = 0.0

    def schema(self, images: ImageData) -> Schema:
        """Return the layers."""
        return build_schema(self.architecture, images.input_shape, images.classes)

    def models(self, rank: int, count: int) -> list[ModelConfig]:
        """Return models with seeds that no other worker has."""
        lr = 3e-5 if self.zoo == "tetris" else 3e-4
        init = "uniform" if self.activation == "tanh" else "kaiming_uniform"
        hyper = Hyperparameters.model_validate(
            {
                "activation": self.activation,
                "init": init,
                "optimizer": self.optimizer,
                "lr": lr,
                "dropout": self.dropout,
            }
        )
        return [ModelConfig("", "", rank * count + index, "train", hyper) for index in range(count)]


MLP, SMALL = Mlp(name="mlp", hidden=(5,), bias=False), Cnn(name="cnn_small")
MAIN = [
    *(Cell("tetris", MLP, size) for size in (1, 10, 64, 256)),
    *(Cell("mnist", SMALL, size) for size in (4, 10, 64, 256)),
]
WIDE = Mlp(name="mlp", hidden=(100,))
WIDE_CELLS = [Cell("mnist", WIDE, size) for size in (4, 64)]
VARIANTS = [
    Cell("mnist", SMALL, 4),
    *(Cell("mnist", SMALL, 4, activation) for activation in ("relu", "sigmoid", "gelu", "leaky_relu", "silu")),
    *(Cell("mnist", SMALL, 4, optimizer=optimizer) for optimizer in ("sgd", "rmsprop")),
    Cell("mnist", SMALL, 4, dropout=0.5),
    Cell("mnist", Cnn(name="cnn_unterthiner"), 4),
    Cell("colour", Cnn(name="cnn_large"), 4),
]
EVALUATED = [Cell("mnist", SMALL, 4)]


@functools.cache
def zoo_images(zoo: str, data: Path | None) -> tuple[str, ImageData]:
    """Return the name of the images in the tables, and the images. Nothing is downloaded."""
    if zoo == "tetris":
        return "seeded", load_images(TetrisImages(name="tetris", train=1000, test=1, noise_train=0.2, noise_test=0.8))
    if zoo == "colour":
        draws = torch.Generator().manual_seed(0)
        subset = Subset(torch.randn(1000, 3, 32, 32, generator=draws), torch.arange(1000) % 10)
        return "random", ImageData(subset, Subset(subset.images[:0], subset.labels[:0]), subset, 10)
    if all((data_folder(data) / "MNIST" / "raw" / file).is_file() for file in MNIST_FILES):
        images = DatasetImages(name="mnist", train=1000, test=5000, mean=0.1307, std=0.3081)
        return "MNIST", load_images(images, data)
    return "digits at 28x28", load_images(DatasetImages(name="digits", train=1000, size=28))


def epoch_images(cell: Cell, data: Path | None) -> ImageData:
    """Return the images of one epoch: all of TETRIS; of the others a part for which PyTorch needs about a second."""
    images = zoo_images(cell.zoo, data)[1]
    if cell.zoo == "tetris":
        return images
    count = -(-max(256, 2 * cell.batch_size) // cell.batch_size) * cell.batch_size
    train = Subset(images.train.images[:count], images.train.labels[:count])
    return ImageData(train, images.validation, images.test, images.classes)


# --- the trainers: (models, iterator whose steps are epochs) ----------------------------------------------------


def reference(cell: Cell, images: ImageData, rank: int) -> tuple[int, Iterator[object]]:
    """Train one model with the reference trainer."""
    (model,) = cell.models(rank, 1)
    return 1, itertools.islice(train_reference(cell.schema(images), model, images, cell.batch_size, 10**9), 1, None)


def train_like_peers(
    network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[Tensor, ...]], device: str = "cpu"
) -> tuple[float, float]:
    """Train one epoch like published generators of zoos; return the sum of the losses and the correct samples."""
    loss_sum = correct = 0.0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(inputs)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
    return loss_sum, correct


def peers(cell: Cell, images: ImageData, rank: int) -> tuple[int, Iterator[object]]:
    """Train one model like published generators of zoos."""
    (model,) = cell.models(rank, 1)
    network = next(train_reference(cell.schema(images), model, images, cell.batch_size, 0))
    optimizer = make_optimizer(network, model.hyperparameters)
    dataset = TensorDataset(images.train.images, images.train.labels)
    loader = DataLoader(dataset, batch_size=cell.batch_size, shuffle=True)

    def epochs() -> Iterator[object]:
        while True:
            yield train_like_peers(network, optimizer, loader)

    return 1, epochs()


def trainer_of(backend: str, cell: Cell, images: ImageData, rank: int) -> Trainer:
    """Return one trainer of a backend, with as many models as it takes."""
    chosen, training = (
        choose_backend(backend, "cpu", cell.schema(images)),
        Training(epochs=1, batch_size=cell.batch_size),
    )
    return chosen.trainers(cell.schema(images), cell.models(rank, 256), images, training)[0]


def many(backend: str, cell: Cell, images: ImageData, rank: int) -> tuple[int, Iterator[object]]:
    """Train many models side by side."""
    trainer = trainer_of(backend, cell, images, rank)
    return trainer.count, map(trainer.train_epoch, itertools.count(1))


WAYS = {
    "reference": reference,
    "peers": peers,
    "torch": functools.partial(many, "torch"),
    "native": functools.partial(many, "native"),
}


def evaluate_peers(cell: Cell, images: ImageData, rank: int) -> tuple[int, Iterator[object]]:
    """Evaluate one model on the whole test set as one batch."""
    (model,) = cell.models(rank, 1)
    network = next(train_reference(cell.schema(images), model, images, cell.batch_size, 0)).eval()

    def passes() -> Iterator[object]:
        while True:
            with torch.no_grad():
                logits = network(images.test.images)
            yield F.cross_entropy(logits, images.test.labels).item(), (logits.argmax(1) == images.test.labels).sum()

    return 1, passes()


def evaluate_many(backend: str, cell: Cell, images: ImageData, rank: int) -> tuple[int, Iterator[object]]:
    """Evaluate many models side by side, with F scores."""
    only_test = ImageData(Subset(images.train.images[:1], images.train.labels[:1]), images.validation, images.test, 10)
    trainer = trainer_of(backend, cell, only_test, rank)
    return trainer.count, (trainer.evaluate() for _ in itertools.count())


EVALUATIONS = {
    "peers": evaluate_peers,
    "torch": functools.partial(evaluate_many, "torch"),
    "native": functools.partial(evaluate_many, "native"),
}


# --- measuring ------------------------------------------------------------------------------------------------


_barrier: Barrier


def start_worker(barrier: Barrier) -> None:
    """Prepare a worker process."""
    global _barrier
    _barrier = barrier
    torch.set_num_threads(1)


def measure(kind: str, way: str, cell: Cell, seconds: float, data: Path | None, rank: int) -> float:
    """Return the model-samples per second of this process, while the others do the same."""
    images = epoch_images(cell, data)
    models, epochs = (WAYS if kind == "train" else EVALUATIONS)[way](cell, images, rank)
    samples = len(images.train) if kind == "train" else len(images.test)
    next(epochs)  # warm-up
    _barrier.wait(timeout=600)
    begin, done, elapsed = time.process_time(), 0, 0.0
    while elapsed < seconds:
        next(epochs)
        done += 1
        elapsed = time.process_time() - begin
    return done * models * samples / elapsed


def measure_peak(seconds: float) -> float:
    """Return the best float32 FLOP/s of a 2048-cubed matrix product in this process, while the others do the same."""
    a, b = torch.randn(2, 2048, 2048)
    a @ b
    _barrier.wait(timeout=600)
    begin, best = time.process_time(), math.inf
    while time.process_time() - begin < seconds:
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * 2048**3 / best


def memory_of_training(cell: Cell, data: Path | None) -> float:
    """Return the memory of a training process beyond torch and the images: MB of proportional set size."""
    images = epoch_images(cell, data)
    next(WAYS["reference"](cell, images, 0)[1])
    before = _proportional_set_size()
    trainers = [trainer_of("native", cell, images, rank) for rank in range(16)]  # a stack of 256 models
    for trainer in trainers:
        trainer.train_epoch(1)
        trainer.evaluate()
    return _proportional_set_size() - before


def _proportional_set_size() -> float:
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return math.nan
    return next(int(line.split()[1]) for line in rollup.read_text().splitlines() if line.startswith("Pss:")) / 1024


def training_flops(schema: Schema) -> float:
    """Return the FLOP of one sample, forward and backward; the first layer's input needs no gradient."""
    first = schema.layers[0]
    places = 1
    if first.kind == "conv":
        places = math.prod((side - first.kernel) // first.stride + 1 for side in schema.input_shape[1:])
    return 3 * schema.forward_flops() - 2 * first.outputs * first.fan_in * places


def cpu_model() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    click.echo(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        click.echo(f"| {' | '.join(f'{v:,.0f}' if isinstance(v, float) else str(v) for v in row.values())} |")


class Cores:
    """Measures on all cores at once: one worker process per core, each with one thread."""

    def __init__(self, pool: ProcessPoolExecutor, cores: int, seconds: float, data: Path | None) -> None:
        self.pool, self.cores, self.seconds, self.data = pool, cores, seconds, data
        self.peak = self._sum([pool.submit(measure_peak, 1.0) for _ in range(cores)])

    @staticmethod
    def _sum(tasks: list[Future[float]]) -> float:
        # A worker waits at the barrier until all others have a task, so each worker gets one.
        return sum(task.result() for task in tasks)

    def rates(self, kind: str, ways: Iterable[str], cell: Cell) -> dict[str, float]:
        """Return the model-samples per second of each way on all cores."""
        click.echo(f"{kind} {cell}", err=True)
        found = {}
        for way in ways:
            words = (kind, way, cell, self.seconds, self.data)
            found[way] = self._sum([self.pool.submit(measure, *words, rank) for rank in range(self.cores)])
        return found

    def share_of_peak(self, rate: float, cell: Cell, flops: Callable[[Schema], float] = training_flops) -> str:
        """Return the share of the float32 peak that a rate is, in percent; ``flops`` are those of one sample."""
        return f"{rate * flops(cell.schema(epoch_images(cell, self.data))) / self.peak:.0%}"


def training_row(cores: Cores, cell: Cell) -> dict[str, Any]:
    """Measure a row of the first table."""
    found = cores.rates("train", WAYS, cell)
    return {
        "images": f"{cell.zoo} ({zoo_images(cell.zoo, cores.data)[0]})",
        "network": cell.architecture.name,
        "batch": cell.batch_size,
        **found,
        **ratios(found),
        "native, share of peak": cores.share_of_peak(found["native"], cell),
        "peers, share of peak": cores.share_of_peak(found["peers"], cell),
        "torch, share of peak": cores.share_of_peak(found["torch"], cell),
    }


def variant_rows(cores: Cores) -> list[dict[str, Any]]:
    """Measure the second table; its first row is the one that others are compared with."""
    rows: list[dict[str, Any]] = []
    for cell in VARIANTS:
        rate = cores.rates("train", ["native"], cell)["native"]
        first = rows[0]["native"] if rows else rate
        rows.append(
            {
                "architecture": cell.architecture.name,
                "activation": cell.activation,
                "optimizer": cell.optimizer,
                "dropout": str(cell.dropout),
                "native": rate,
                "to tanh, adam": f"{rate / first:.2f}" if cell.architecture == SMALL else "",
                "share of peak": cores.share_of_peak(rate, cell),
            }
        )
    return rows


def evaluation_row(cores: Cores, cell: Cell) -> dict[str, Any]:
    """Measure a row of the third table."""
    found = cores.rates("evaluate", EVALUATIONS, cell)
    return {
        "network": cell.architecture.name,
        **found,
        **ratios(found),
        "native, share of peak": cores.share_of_peak(found["native"], cell, Schema.forward_flops),
    }


def ratios(found: dict[str, float]) -> dict[str, str]:
    """Return the rates of the two backends relative to the peers'."""
    return {f"{way}/peers": f"{found[way] / found['peers']:.1f}x" for way in ("torch", "native")}


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="Minimal time of one cell.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of torchvision's data; else $ZOOTOOLS_DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(seconds: float, data: Path | None, as_json: bool) -> None:
    """Print model-samples per second as tables."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawn, start_worker, (spawn.Barrier(count),)) as pool:
        cores = Cores(pool, count, seconds, data)
        tables = {
            "training": [training_row(cores, cell) for cell in [*MAIN, *WIDE_CELLS]],
            "variants": variant_rows(cores),
            "evaluation": [evaluation_row(cores, cell) for cell in EVALUATED],
        }
        memory = pool.submit(memory_of_training, VARIANTS[0], data).result()
    machine = {
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cores": count,
        "peak": f"{cores.peak / 1e9:.0f} GFLOP/s",
        "memory of a worker beyond torch and images": f"{memory:.0f} MB",
        "seconds a cell": seconds,
    }
    if as_json:
        click.echo(json.dumps({"machine": machine, **tables}, indent=2))
        return
    click.echo(", ".join(f"{key} {value}" for key, value in machine.items()))
    show("Training, model-samples per second", tables["training"])
    show("Other networks and settings", tables["variants"])
    show("Evaluation, model-samples per second", tables["evaluation"])


if __name__ == "__main__":
    main()
