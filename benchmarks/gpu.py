"""Measure training, evaluation and encoders on a CUDA device, and compare them with the processor beside it.

    python benchmarks/gpu.py --seconds 270 --data /path/to/torchvision/data --json gpu.json

The sections run one after the other, and each row is printed as soon as it is measured:

- correctness: `StackedTrainer` on the device against `zootools.training.reference` on the processor, and which changes
  leave the bytes equal (without CUDA graphs, a second run, another order of the models, another width);
- training: cnn_small with 1, 16, 256 and 1000 models at several batch sizes;
- evaluation: the same networks on 5,000 test images;
- encoder: one training of the recipe `default` on random networks, on the device and on one core;
- projection: the time of MNIST-SEED (1000 models, 25 epochs, 50,000 images) by the rates of the section training.

The ways of training:

- peers: one model, DataLoader and torch.optim, loss and accuracy read at every step, as in published generators;
- one model: the same without DataLoader, and nothing is read;
- stacked: `StackedTrainer` without CUDA graphs; graphs: with CUDA graphs, as networks that do not fit the kernel
  are trained;
- graphs, TF32 and graphs, any algorithm: with other arithmetic than zoos are built with, for comparison;
- kernel: `GpuTrainer`, the kernel for GPUs, one block of threads per model for many steps; with the relative L2
  difference of its weights from those of `StackedTrainer` after the first epoch;
- native: the compiled kernel on all cores of the processor.

A rate is the median over the epochs of one row, by the host's clock after synchronising; the first epoch is not
measured. The peaks are measured in the same run: float32 and TF32 products of two 8192 x 8192 matrices, and a copy on
the device. Nothing is downloaded. `--test` runs everything without a GPU, on few models, to test this script.
"""

import functools
import gc
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

# The folder of a script comes first on the path, where representation.py would hide the package: move it last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from training import SMALL, Cell, Cores, cpu_model, start_worker, train_like_peers, training_flops, zoo_images

import zootools.training.stacked
from representation.recipes import load_recipe
from representation.training.trainer import EncoderTrainer
from zootools.architectures import Schema, build_schema
from zootools.architectures.networks import Network
from zootools.images.datasets import ImageData, Subset
from zootools.native.compiler import NoKernelError
from zootools.spec import Architecture, Cnn, Mlp, Training
from zootools.spec.model_configs import ModelConfig
from zootools.training.gpu import GpuBackend, GpuTrainer
from zootools.training.group import Group
from zootools.training.reference import make_optimizer, train_reference
from zootools.training.stacked import StackedTrainer
from zootools.training.steps import exact_arithmetic
from zootools.training.table import choose_backend

SECTIONS = ("correctness", "training", "evaluation", "encoder", "projection")
BATCHES = (4, 64, 10, 256)
MODELS = (16, 256, 1000)
STEPS, MODEL_SAMPLES = 256, 2_000_000
"""Most steps and model-samples of a measured epoch of the stacked trainer; it has at least 16 steps."""
MNIST_SEED = 1000 * 25 * 50_000
"""Model-samples of the zoo MNIST-SEED."""


@dataclass
class Run:
    """One run of the benchmark: its settings, its time, and its tables."""

    device: torch.device
    seconds: float
    cell: float
    data: Path | None
    json: Path | None
    test: bool
    begun: float = field(default_factory=time.perf_counter)
    machine: dict[str, object] = field(default_factory=dict)
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.perf_counter() - self.begun)

    def row(self, table: str, name: dict[str, object], measure: Callable[[], dict[str, object]]) -> None:
        """Measure one row and `add` it; a row that fails says why."""
        if self.left() < 0:
            found: dict[str, object] = {"note": "left out: no time left"}
        else:
            try:
                found = measure()
            except Exception as error:  # one row that fails, by lack of memory for instance, does not end the others
                traceback.print_exc()
                found = {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"}
        self.add(table, name | found)

    def add(self, table: str, row: dict[str, object]) -> None:
        """Print a row, and write all tables to the JSON file."""
        rows = self.tables.setdefault(table, [])
        rows.append(row)
        if len(rows) == 1:
            click.echo(f"\n{table}\n\n| {' | '.join(COLUMNS[table])} |\n|{'---|' * len(COLUMNS[table])}")
        click.echo(f"| {' | '.join(_shown(row.get(column, '')) for column in COLUMNS[table])} |")
        self.write()

    def write(self) -> None:
        """Write all that is measured to the JSON file."""
        if self.json:
            self.json.write_text(json.dumps({"machine": self.machine, **self.tables}, indent=1) + "\n")


COLUMNS = {
    "correctness": [
        "network", "difference to the reference", "tolerance", "same bytes without graphs", "in a second run",
        "in reverse order", "in another width", "note",
    ],
    "training": [
        "batch", "models", "way", "model-samples/s", "ms per step", "share of fp32 peak", "to peers", "memory GB",
        "note",
    ],
    "kernels": ["kernel", "launches per step", "ms per step", "share"],
    "host": ["models", "images", "what", "seconds", "note"],
    "evaluation": ["models", "way", "model-samples/s", "to peers", "memory GB", "note"],
    "encoder": ["networks of", "device", "precision", "networks/s", "ms per step", "note"],
    "projection": ["batch", "way", "models", "MNIST-SEED, training only", "note"],
}  # fmt: skip


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


# --- measuring ------------------------------------------------------------------------------------------------


def synchronise(run: Run) -> None:
    """Wait for the device."""
    if run.cuda:
        torch.cuda.synchronize()


def median_seconds(run: Run, work: Callable[[], object], least: int = 3) -> float:
    """Return the median time of a piece of work, after a first time that is not measured."""
    work()
    synchronise(run)
    begun, found = time.perf_counter(), list[float]()
    while len(found) < least or time.perf_counter() - begun < run.cell:
        start = time.perf_counter()
        work()
        synchronise(run)
        found.append(time.perf_counter() - start)
        if time.perf_counter() - begun > 4 * run.cell:
            break
    return statistics.median(found)


def peak_memory(run: Run) -> dict[str, object]:
    """Return the largest memory of the device since the last call of `fresh`."""
    return {"memory GB": torch.cuda.max_memory_allocated() / 1e9} if run.cuda else {}


def fresh(run: Run) -> None:
    """Release the memory of earlier rows."""
    gc.collect()
    if run.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_peaks(run: Run) -> None:
    """Measure the rate of float32 and TF32 products, and of copies on the device."""
    size = 512 if run.test else 8192
    a, b = torch.randn(2, size, size, device=run.device)
    with exact_arithmetic(run.device):
        run.machine["fp32 FLOP/s"] = 2 * size**3 / median_seconds(run, lambda: a @ b)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    run.machine["TF32 FLOP/s"] = 2 * size**3 / median_seconds(run, lambda: a @ b)
    torch.set_float32_matmul_precision(before)
    source = torch.randn(size**2 * 4, device=run.device)
    target = torch.empty_like(source)
    run.machine["bytes/s of a copy, read and written"] = 8 * source.numel() / median_seconds(
        run, lambda: target.copy_(source)
    )  # fmt: skip


@contextmanager
def other_arithmetic(tf32: bool) -> Iterator[None]:
    """Let `StackedTrainer` compute with TF32, or in float32 by algorithms that need not repeat their bits."""

    @contextmanager
    def arithmetic(device: torch.device) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        with torch.backends.cudnn.flags(enabled=True, deterministic=False, allow_tf32=tf32):
            yield
        torch.set_float32_matmul_precision(before)

    with mock.patch.object(zootools.training.stacked, "exact_arithmetic", arithmetic):
        yield


# --- correctness ----------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[str, Architecture]] = {
    "cnn_small": ("mnist", SMALL),
    "cnn_unterthiner": ("mnist", Cnn(name="cnn_unterthiner")),
    "MLP 784-100-10": ("mnist", Mlp(name="mlp", hidden=(100,))),
    "MLP 16-5-4": ("tetris", Mlp(name="mlp", hidden=(5,), bias=False)),
}
TOLERANCE = 1e-5
"""Largest median of the relative L2 difference of the weights, as in tests/unit/test_training.py."""


def mixed_models(count: int) -> list[ModelConfig]:
    """Return models of several learning rates, decays, dropouts and shares of the images."""
    cell = Cell("mnist", SMALL, 4, "relu", dropout=0.1)
    models = []
    for model in cell.models(0, count):
        hyper = model.hyperparameters
        changes = {
            "lr": 1e-3 * (1 + model.seed % 3),
            "weight_decay": 0.01 * (model.seed % 2),
            "dropout": 0.1 * (model.seed % 4),
            "train_fraction": (1.0, 0.5, 0.73)[model.seed % 3],
            "activation": "tanh",
        }
        models.append(model._replace(hyperparameters=hyper.model_copy(update=changes)))
    return models


def trained(schema: Schema, models: list[ModelConfig], images: ImageData, **settings: Any) -> Tensor:
    """Return the weights after two epochs, on the processor."""
    trainer = StackedTrainer(schema, models, images, 4, **settings)
    for epoch in (1, 2):
        trainer.train_epoch(epoch)
    return trainer.weights.cpu()


def correctness_row(run: Run, name: str) -> dict[str, object]:
    """Train a few models with two epochs of 42 images in every way, and compare the weights."""
    zoo, architecture = NETWORKS[name]
    images = some_images(zoo_images(zoo, run.data)[1], 42)
    there = images.to(run.device.type)
    schema = build_schema(architecture, images.input_shape, images.classes)
    models = mixed_models(16)
    weights = trained(schema, models, there)
    difference = statistics.median(differences(schema, models[:6], images, weights))
    return {
        "difference to the reference": difference,
        "tolerance": TOLERANCE,
        "same bytes without graphs": torch.equal(trained(schema, models, there, counted=False), weights),
        "in a second run": torch.equal(trained(schema, models, there), weights),
        "in reverse order": torch.equal(trained(schema, models[::-1], there).flip(0), weights),
        "in another width": torch.equal(trained(schema, models, there, width=16), weights),
        "note": "" if difference <= TOLERANCE else "WRONG",
    }


def kernel_row(run: Run, name: str) -> dict[str, object]:
    """Train the same models with the kernel for GPUs, and compare the weights."""
    zoo, architecture = NETWORKS[name]
    images = some_images(zoo_images(zoo, run.data)[1], 42)
    cell, models = Cell(zoo, architecture, 4, "tanh"), mixed_models(16)

    def weights_of(members: list[ModelConfig]) -> Tensor:
        trainer = kernel_trainer(run, cell, members, images)
        for epoch in (1, 2):
            trainer.train_epoch(epoch)
        return trainer.weights.cpu()

    weights = weights_of(models)
    difference = statistics.median(differences(cell.schema(images), models[:6], images, weights))
    return {
        "difference to the reference": difference,
        "tolerance": TOLERANCE,
        "in a second run": torch.equal(weights_of(models), weights),
        "in reverse order": torch.equal(weights_of(models[::-1]).flip(0), weights),
        "in another width": torch.equal(weights_of(models[3:5]), weights[3:5]),
        "note": "" if difference <= TOLERANCE else "WRONG",
    }


def differences(schema: Schema, models: list[ModelConfig], images: ImageData, weights: Tensor) -> list[float]:
    """Return the relative L2 differences of weights from those of the reference on the processor."""
    found = []
    for row, model in enumerate(models):
        *_, network = train_reference(schema, model, images, 4, 2)
        right = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        found.append(((weights[row] - right).norm() / right.norm()).item())
    return found


def some_images(images: ImageData, count: int) -> ImageData:
    """Return the same images with ``count`` training images, repeated if there are fewer."""
    rows = torch.arange(count) % len(images.train)
    train = Subset(images.train.images[rows], images.train.labels[rows])
    test = Subset(images.test.images[:5000], images.test.labels[:5000])
    return ImageData(train, images.validation, test, images.classes)


# --- training -------------------------------------------------------------------------------------------------


def one_model(run: Run, cell: Cell) -> tuple[ModelConfig, Network, torch.optim.Optimizer, ImageData]:
    """Return a model on the device before training, with its images on the processor."""
    images = some_images(zoo_images(cell.zoo, run.data)[1], cell.batch_size * (4 if run.test else 256))
    (model,) = cell.models(0, 1)
    network = next(train_reference(cell.schema(images), model, images.to(run.device.type), cell.batch_size, 0))
    return model, network, make_optimizer(network, model.hyperparameters), images


def peers(run: Run, cell: Cell) -> dict[str, object]:
    """Train one model like published generators of zoos."""
    _, network, optimizer, images = one_model(run, cell)
    dataset = TensorDataset(images.train.images, images.train.labels)
    loader = DataLoader(dataset, batch_size=cell.batch_size, shuffle=True)

    def epoch() -> None:
        train_like_peers(network, optimizer, loader, run.device.type)

    with exact_arithmetic(run.device):
        return training_result(run, cell, 1, len(images.train), median_seconds(run, epoch))


def plain(run: Run, cell: Cell) -> dict[str, object]:
    """Train one model with the images on the device, and read nothing."""
    _, network, optimizer, images = one_model(run, cell)
    train = images.to(run.device.type).train

    def epoch() -> None:
        for rows in torch.randperm(len(train), device=run.device).split(cell.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(train.images[rows]), train.labels[rows]).backward()
            optimizer.step()

    with exact_arithmetic(run.device):
        return training_result(run, cell, 1, len(train), median_seconds(run, epoch))


def images_of_stack(run: Run, cell: Cell, models: int) -> ImageData:
    """Return the images of a measured epoch of many models."""
    steps = 16 if run.test else max(16, min(STEPS, MODEL_SAMPLES // (models * cell.batch_size)))
    return some_images(zoo_images(cell.zoo, run.data)[1], steps * cell.batch_size)


def trainer_of(run: Run, cell: Cell, models: int, images: ImageData, counted: bool) -> StackedTrainer:
    """Return a trainer of exactly ``models`` models on the device."""
    settings: dict[str, Any] = {"width": models, "counted": counted}
    there = images.to(run.device.type)
    return StackedTrainer(cell.schema(images), cell.models(0, models), there, cell.batch_size, **settings)


def stacked(run: Run, cell: Cell, models: int, counted: bool) -> dict[str, object]:
    """Train many models with `StackedTrainer`."""
    images = images_of_stack(run, cell, models)
    trainer = trainer_of(run, cell, models, images, counted)
    epochs = itertools.count(1)
    seconds = median_seconds(run, lambda: trainer.train_epoch(next(epochs)), least=2)
    if not torch.isfinite(trainer.weights).all():
        raise FloatingPointError("the weights are not finite")
    return training_result(run, cell, models, len(images.train), seconds)


def training_result(run: Run, cell: Cell, models: int, images: int, seconds: float) -> dict[str, object]:
    """Return the figures of a row, given the seconds of an epoch."""
    rate = models * images / seconds
    flops = training_flops(cell.schema(zoo_images(cell.zoo, run.data)[1]))
    peak = run.machine.get("fp32 FLOP/s", math.nan)
    assert isinstance(peak, float)
    return {
        "model-samples/s": rate,
        "ms per step": 1000 * seconds / -(-images // cell.batch_size),
        "share of fp32 peak": f"{rate * flops / peak:.1%}",
        **peak_memory(run),
    }


def training_section(run: Run, cores: Cores | None, batch: int) -> None:
    """Measure all ways of training at one batch size."""
    cell = Cell("mnist", SMALL, batch)
    rates: dict[str, float] = {}

    def add(models: int, way: str, measure: Callable[[], dict[str, object]]) -> None:
        def row() -> dict[str, object]:
            fresh(run)
            found = measure()
            rate = found["model-samples/s"]
            assert isinstance(rate, float)
            rates.setdefault(way, rate)
            return found | ({"to peers": f"{rate / rates['peers']:.1f}x"} if "peers" in rates else {})

        run.row("training", {"batch": batch, "models": models, "way": way}, row)

    add(1, "peers", functools.partial(peers, run, cell))
    add(1, "one model", functools.partial(plain, run, cell))
    for count in (16, 32) if run.test else MODELS:
        add(count, "graphs", functools.partial(stacked, run, cell, count, True))
        if count < 1000 or batch == BATCHES[0]:
            add(count, "stacked", functools.partial(stacked, run, cell, count, False))
    for count in (3,) if run.test else MODELS:
        add(count, "kernel", functools.partial(kernel, run, cell, count))
    if batch in BATCHES[:2] and run.cuda:
        for way, tf32 in (("graphs, TF32", True), ("graphs, any algorithm", False)):
            add(256, way, functools.partial(stacked_with_other_arithmetic, run, cell, 256, tf32))
    if cores:
        add(16, "native", functools.partial(native, run, cores, "train", cell))


def stacked_with_other_arithmetic(run: Run, cell: Cell, models: int, tf32: bool) -> dict[str, object]:
    """Train many models with other arithmetic than zoos are built with."""
    with other_arithmetic(tf32):
        return stacked(run, cell, models, True)


def kernel_trainer(run: Run, cell: Cell, models: list[ModelConfig], images: ImageData) -> GpuTrainer:
    """Return the trainer of the kernel for GPUs; on a processor there is none."""
    if not run.cuda:
        raise NoKernelError("there is no GPU")
    schema, training = cell.schema(images), Training(epochs=1, batch_size=cell.batch_size)
    (trainer,) = GpuBackend.compiled(schema).trainers(schema, models, images.to(run.device.type), training)
    return trainer


def kernel(run: Run, cell: Cell, models: int) -> dict[str, object]:
    """Train many models with the kernel for GPUs, and compare its weights with those of `StackedTrainer`."""
    images, epochs = images_of_stack(run, cell, models), itertools.count(2)
    trainer, other = (
        kernel_trainer(run, cell, cell.models(0, models), images),
        trainer_of(run, cell, models, images, True),
    )
    for both in (trainer, other):
        both.train_epoch(1)
    distance = ((trainer.weights - other.weights).norm(dim=1) / other.weights.norm(dim=1)).median().item()
    seconds = median_seconds(run, lambda: trainer.train_epoch(next(epochs)), least=2)
    return training_result(run, cell, models, len(images.train), seconds) | {"note": f"difference {distance:.1e}"}


def native(run: Run, cores: Cores, kind: str, cell: Cell) -> dict[str, object]:
    """Measure the compiled kernel on all cores of the processor."""
    rate = cores.rates(kind, ["native"], cell)["native"]
    return {"model-samples/s": rate, "note": f"{cores.cores} cores of {run.machine['processor']}"}


def kernels_section(run: Run) -> None:
    """List the kernels of a step that take most time."""
    cell = Cell("mnist", SMALL, 64)
    models = 4 if run.test else 256
    images = some_images(zoo_images(cell.zoo, run.data)[1], 4 * cell.batch_size)
    trainer = trainer_of(run, cell, models, images, False)
    trainer.train_epoch(1)
    synchronise(run)
    activity = torch.profiler.ProfilerActivity.CUDA if run.cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        trainer.train_epoch(2)
        synchronise(run)
    events = [
        (event.self_device_time_total if run.cuda else event.self_cpu_time_total, event)
        for event in profile.key_averages()
    ]
    total = sum(time for time, _ in events)
    click.echo(f"\n{sum(event.count for _, event in events) / 4:.0f} kernels per step of {models} models at batch 64")
    for time_spent, event in sorted(events, key=lambda pair: -pair[0])[:10]:
        row = {"kernel": event.key[:100], "launches per step": event.count / 4, "ms per step": time_spent / 4000}
        run.add("kernels", row | {"share": f"{time_spent / total:.0%}"})


def host_section(run: Run) -> None:
    """Measure what the host computes for an epoch: the order of the images of each model."""
    models, count = (16, 1000) if run.test else (1000, 50_000)
    cell = Cell("mnist", SMALL, 10)
    images = some_images(zoo_images(cell.zoo, run.data)[1], count)
    group = Group(cell.schema(images), cell.models(0, models), images, 10, models)
    name = {"models": models, "images": count}
    run.row("host", name | {"what": "order of an epoch"}, lambda: timed(lambda: group.order_by_model(1)))
    order = torch.from_numpy(group.order_by_model(1))
    copied = torch.empty(count, models, dtype=torch.int32, device=run.device)

    def copy() -> None:
        copied.copy_(order.to(run.device).t())
        synchronise(run)

    run.row("host", name | {"what": "copying it to the device"}, lambda: timed(copy))


def timed(work: Callable[[], object]) -> dict[str, object]:
    """Return the seconds of a piece of work."""
    begun = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begun}


# --- evaluation, encoder, projection --------------------------------------------------------------------------


def evaluation_section(run: Run, cores: Cores | None) -> None:
    """Measure the scoring of models on the test images."""
    cell = Cell("mnist", SMALL, 4)
    images = some_images(zoo_images(cell.zoo, run.data)[1], 4)
    there, rates = images.to(run.device.type), dict[str, float]()

    def one() -> dict[str, object]:
        (model,) = cell.models(0, 1)
        network = next(train_reference(cell.schema(images), model, there, 4, 0)).eval()

        def score() -> object:
            with torch.no_grad(), exact_arithmetic(run.device):
                logits = network(there.test.images)
            return F.cross_entropy(logits, there.test.labels).item(), (logits.argmax(1) == there.test.labels).sum()

        return result("peers", 1, median_seconds(run, score))

    def many(models: int) -> dict[str, object]:
        trainer = StackedTrainer(cell.schema(images), cell.models(0, models), there, 4, width=models)
        return result("stacked", models, median_seconds(run, trainer.evaluate))

    def by_kernel(models: int) -> dict[str, object]:
        trainer = kernel_trainer(run, cell, cell.models(0, models), images)
        return result("kernel", models, median_seconds(run, trainer.evaluate))

    def result(way: str, models: int, seconds: float) -> dict[str, object]:
        rates[way] = models * len(there.test) / seconds
        ratio = f"{rates[way] / rates['peers']:.1f}x" if "peers" in rates else ""
        return {"model-samples/s": rates[way], "to peers": ratio, **peak_memory(run)}

    fresh(run)
    run.row("evaluation", {"models": 1, "way": "peers"}, one)
    for models in (16,) if run.test else MODELS:
        fresh(run)
        run.row("evaluation", {"models": models, "way": "stacked"}, functools.partial(many, models))
        run.row("evaluation", {"models": models, "way": "kernel"}, functools.partial(by_kernel, models))
    if cores:
        run.row("evaluation", {"models": 16, "way": "native"}, lambda: native(run, cores, "evaluate", cell))


def encoder_row(run: Run, schema: Schema, device: torch.device, precision: str) -> dict[str, object]:
    """Train an encoder with the recipe ``default`` on random networks."""
    few = run.test or device.type == "cpu"
    recipe = load_recipe("default", [f"training.precision={precision}", f"training.steps={3 if few else 50}"])
    weights = torch.rand(1000, schema.size, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = EncoderTrainer(schema, weights, weights[:10], recipe, 0, device)
        seconds = median_seconds(run, trainer.train_epoch, least=2) / trainer.steps
    finally:
        torch.set_num_threads(before)
    return {"networks/s": trainer.batch_size / seconds, "ms per step": 1000 * seconds}


def encoder_section(run: Run) -> None:
    """Measure the training of encoders on the device, and on one core."""
    schemas = {
        "TETRIS (16-5-4)": build_schema(Mlp(name="mlp", hidden=(5,), bias=False), (1, 4, 4), 4),
        "cnn_small": build_schema(SMALL, (1, 28, 28), 10),
    }
    cpu = torch.device("cpu")
    places = [(run.device, "auto"), (run.device, "fp32"), (cpu, "auto"), (cpu, "fp32")] if run.cuda else [(cpu, "fp32")]
    for name, schema in schemas.items():
        for device, precision in places:
            where = "one core" if device.type == "cpu" else "GPU"
            row = {"networks of": name, "device": where, "precision": precision}
            run.row("encoder", row, functools.partial(encoder_row, run, schema, device, precision))


def projection_section(run: Run) -> None:
    """Project the time of MNIST-SEED from the rates of the section training."""
    for row in list(run.tables.get("training", [])):
        rate = row.get("model-samples/s")
        if isinstance(rate, float) and row["way"] in ("peers", "graphs", "kernel", "native"):
            hours = MNIST_SEED / rate / 3600
            shown = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
            name = {"batch": row["batch"], "way": row["way"], "models": row["models"], "note": "projection"}
            run.add("projection", name | {"MNIST-SEED, training only": shown})


# --- the command ----------------------------------------------------------------------------------------------


@contextmanager
def all_cores(run: Run, wanted: bool) -> Iterator[Cores | None]:
    """Start a worker per core for the native kernel, or none if it cannot be compiled."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted:
        yield None
        return
    images = zoo_images("mnist", run.data)[1]
    begun = time.perf_counter()
    choose_backend("native", "cpu", build_schema(SMALL, images.input_shape, images.classes))  # compile it once
    run.machine["seconds to compile the kernel"] = round(time.perf_counter() - begun, 1)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawn, start_worker, (spawn.Barrier(count),)) as pool:
        cores = Cores(pool, count, run.cell, run.data)
        run.machine["fp32 FLOP/s of the processor"] = cores.peak
        yield cores


def describe(run: Run) -> None:
    """Write down what the machine is."""
    run.machine |= {"torch": torch.__version__, "processor": cpu_model(), "cores": os.cpu_count()}
    run.machine |= {"python": platform.python_version(), "images": zoo_images("mnist", run.data)[0]}
    if run.cuda:
        card = torch.cuda.get_device_properties(0)
        run.machine |= {"GPU": card.name, "multiprocessors": card.multi_processor_count}
        run.machine |= {"GPU memory GB": round(card.total_memory / 1e9, 1), "CUDA": torch.version.cuda}
        run.machine |= {"cuDNN": torch.backends.cudnn.version()}


@click.command()
@click.option("--section", "sections", multiple=True, type=click.Choice(SECTIONS), help="Default: all.")
@click.option("--seconds", default=270.0, show_default=True, help="Time of the whole run; later rows are left out.")
@click.option("--cell", default=0.7, show_default=True, help="Time of one row, about.")
@click.option("--batch", "batches", multiple=True, type=int, default=BATCHES, show_default=True)
@click.option("--native/--no-native", default=True, show_default=True, help="Measure the processor's kernel as well.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of torchvision's data; else $ZOOTOOLS_DATA.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the tables to this file.")
@click.option("--test", is_flag=True, help="Use the processor, few models and few images, to test this script.")
def main(
    sections: tuple[str, ...],
    seconds: float,
    cell: float,
    batches: tuple[int, ...],
    native: bool,
    data: Path | None,
    json_file: Path | None,
    test: bool,
) -> None:
    """Print rates of training, evaluation and encoders on a GPU as tables."""
    if not test and not torch.cuda.is_available():
        raise click.ClickException("torch finds no CUDA device; --test tests this script without one")
    device = torch.device("cpu" if test else "cuda")
    run, wanted = Run(device, seconds, cell, data, json_file, test), set(sections or SECTIONS)
    describe(run)
    if "correctness" in wanted:
        for name in NETWORKS:
            run.row("correctness", {"network": name}, functools.partial(correctness_row, run, name))
            run.row("correctness", {"network": f"{name}, kernel"}, functools.partial(kernel_row, run, name))
    if wanted & {"training", "evaluation"}:
        measure_peaks(run)
    with all_cores(run, native and bool(wanted & {"training", "evaluation"})) as cores:
        if "training" in wanted:
            host_section(run)
            for batch in batches[:2]:
                training_section(run, cores, batch)
        if "evaluation" in wanted:
            evaluation_section(run, cores)
        if "encoder" in wanted:
            encoder_section(run)
        if "training" in wanted:
            kernels_section(run)
            for batch in batches[2:]:
                training_section(run, cores, batch)
    if "projection" in wanted:
        projection_section(run)
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in run.machine.items()}
    click.echo("\n" + ", ".join(f"{name}: {value}" for name, value in shown.items()))
    run.write()


if __name__ == "__main__":
    main()
