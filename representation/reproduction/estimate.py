"""The time and memory that a reproduction takes, estimated by arithmetic, and from two seconds of training here."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from representation.encoders.encoder import Architecture, Encoder
from representation.recipes import Recipe
from representation.reproduction.items import Item, Job, all_jobs, all_zoos
from representation.reproduction.scales import Scale
from representation.reproduction.work import Workspace
from representation.training.memory import estimate as memory_estimate
from zootools.architectures import Schema
from zootools.building.planning import estimate, zoo_schema
from zootools.building.resuming import look_into
from zootools.building.throughput import seconds_per_model_sample
from zootools.object_store.sync import open_output
from zootools.progress import duration
from zootools.spec import ZooSpec
from zootools.spec.model_configs import expand
from zootools.training.repeatable import one_thread

SHARE_OF_PEAK = 0.25
"""Speed of training an encoder, as a share of the speed of a large matrix product: a round figure, for estimates."""
PROBING = 3e11
"""Floating-point operations counted for a job without an encoder: some seconds."""


@cache
def job_flops(scale: Scale, job: Job) -> float:
    """Return the floating-point operations of a job: training on two views, forward and backward, and probing."""
    if not job.learns:
        return PROBING
    recipe, spec = scale.recipe_of(job), scale.spec(job.zoo)
    checkpoints = _training_checkpoints(scale, job)
    views = 2 * training_steps(recipe, checkpoints) * min(recipe.training.batch_size, checkpoints)
    return PROBING / 3 + 3 * _forward_flops(zoo_schema(spec), recipe.encoder) / 2 * views


@cache
def job_memory(scale: Scale, job: Job) -> int:
    """Return the bytes that the training of a job's encoder needs at least, with full batches; 0 without one."""
    if not job.learns:
        return 0
    recipe = scale.recipe_of(job)
    return memory_estimate(zoo_schema(scale.spec(job.zoo)), recipe, recipe.training.batch_size).total


@cache
def _forward_flops(schema: Schema, encoder: Architecture) -> int:
    """Return the floating-point operations to encode and decode two networks."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = Encoder.build(schema, encoder).to("meta")  # also the constants that it has from NumPy
        network.decode(network(torch.empty(2, schema.size)))
    return counter.get_total_flops()


def training_steps(recipe: Recipe, checkpoints: int) -> int:
    """Return the steps of a training on a number of checkpoints."""
    return recipe.training.epochs * recipe.training.steps_of_epoch(checkpoints)


def _training_checkpoints(scale: Scale, job: Job) -> int:
    spec, epochs = scale.spec(job.zoo), scale.recipe_of(job).epochs
    last = epochs.last or spec.training.epochs
    kept = [
        e for e in spec.training.kept_epochs if epochs.first <= e <= last and (e - epochs.first) % epochs.every == 0
    ]
    return len(kept) * _training_models(scale, job.zoo)


@cache
def _training_models(scale: Scale, zoo: str) -> int:
    return sum(model.split == "train" for model in expand(scale.spec(zoo)))


@dataclass(frozen=True)
class PlannedZoo:
    """A zoo that items need."""

    zoo: str
    models: int
    checkpoints: int
    bytes: int
    to_train: int
    """Models that are not yet trained to the end."""
    seconds: float
    """Estimated wall time on this machine of what is left, as in the other classes."""


@dataclass(frozen=True)
class PlannedEncoder:
    """An encoder that items need."""

    encoder: str
    recipe: str
    checkpoints: int
    epochs: int
    to_train: int
    """Seeds that have no result yet."""
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The work of a reproduction."""

    scale: str
    seeds: int
    zoos: tuple[PlannedZoo, ...]
    encoders: tuple[PlannedEncoder, ...]
    seconds: float


def plan(
    items: Sequence[Item],
    workspace: Workspace,
    seeds: int,
    workers: int | None,
    data: Path | None,
    only: str | None = None,
) -> Plan:
    """Return the zoos and encoders that items need, with estimates of the time of what the folder lacks.

    The arguments are those of `representation.reproduction.run.reproduce`.

    Raises SpecError if the folder has a zoo of another specification, DamagedZooError if it has damaged files.
    """
    workers, building = workers or os.cpu_count() or 1, only in (None, "zoos")
    zoos = [_zoo(workspace, zoo, workers, data) for zoo in all_zoos(items)] if building else []
    unfinished = {zoo.zoo for zoo in zoos if zoo.to_train}
    there = [zoo for zoo in all_zoos(items) if building or workspace.is_built(zoo)]
    jobs = all_jobs(items) if only in (None, "encoders") else []
    rate = _flops_per_second() * SHARE_OF_PEAK * workers
    encoders = []
    for job in [job for job in jobs if job.learns and job.zoo in there]:
        others = [zoo for zoo in job.transfers if zoo in there]
        left = seeds
        if unfinished.isdisjoint((job.zoo, *others)):
            left = sum(workspace.found(job, seed, others) is None for seed in range(seeds))
        name, changes = workspace.scale.recipe_words(job)
        encoders.append(
            PlannedEncoder(
                encoder=job.name,
                recipe=" ".join((name, *changes)),
                checkpoints=_training_checkpoints(workspace.scale, job),
                epochs=workspace.scale.recipe_of(job).training.epochs,
                to_train=left,
                seconds=round(job_flops(workspace.scale, job) * left / rate, 1),
            )
        )
    total = sum(zoo.seconds for zoo in zoos) + sum(encoder.seconds for encoder in encoders)
    return Plan(workspace.scale.name, seeds, tuple(zoos), tuple(encoders), round(total, 1))


def _zoo(workspace: Workspace, zoo: str, workers: int, data: Path | None) -> PlannedZoo:
    spec = workspace.scale.spec(zoo, workspace.stand_in(zoo, data))
    asked = estimate(spec, data)
    whole = asked.models * spec.training.epochs
    present = look_into(open_output(workspace.zoo(zoo)), spec, zoo_schema(spec, data))
    assert present is not None  # None is for object stores
    left = asked.model_samples * present.model_epochs / whole
    seconds = round(left * _rate(spec, workers, data), 1) if left else 0.0
    return PlannedZoo(zoo, asked.models, asked.checkpoints, asked.bytes, present.to_train, seconds)


_RATES: dict[tuple[str, int], float] = {}


def _rate(spec: ZooSpec, workers: int, data: Path | None) -> float:
    """Return the seconds per model and training sample, measured once for each network and batch size."""
    key = (f"{spec.architecture} {zoo_schema(spec, data).input_shape} {spec.training.batch_size}", workers)
    if key not in _RATES:
        _RATES[key] = seconds_per_model_sample(spec, data, workers)
    return _RATES[key]


def _flops_per_second() -> float:
    """Return the speed of one core at a product of float32 matrices."""
    with one_thread():
        matrix = torch.randn(1024, 1024)
        matrix @ matrix
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.3:
            matrix @ matrix
            count += 1
        return 2 * 1024**3 * count / (time.perf_counter() - begun)


def show_plan(value: Plan) -> str:
    """Return a plan as text."""

    def time_left(entry: PlannedZoo | PlannedEncoder) -> str:
        return f"{duration(entry.seconds) if entry.to_train else 'there':>9}"

    lines = [
        f"{zoo.zoo:<18} {zoo.models:>6} models {zoo.checkpoints:>9,} checkpoints {zoo.bytes / 1e9:>6.1f} GB"
        f" {time_left(zoo)}"
        for zoo in value.zoos
    ]
    lines += [
        f"{entry.encoder:<28} {entry.checkpoints:>10,} checkpoints x {entry.epochs:>4} epochs {time_left(entry)}"
        for entry in value.encoders
    ]
    return "\n".join([*lines, f"about {duration(value.seconds)} on this machine, by arithmetic"])
