"""What the jobs of a reproduction cost: operations, memory, and the time that they take on this machine."""

import time
from collections.abc import Iterable
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from representation.encoders.encoder import Architecture, Encoder
from representation.recipes import Recipe, without_description
from representation.reproduction.items import Job
from representation.reproduction.scales import Scale
from representation.reproduction.work import Workspace, machine
from representation.training.memory import estimate as memory_estimate
from zootools.architectures import Schema
from zootools.building.planning import zoo_schema
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
    checkpoints = training_checkpoints(scale, job)
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


def training_checkpoints(scale: Scale, job: Job) -> int:
    """Return the checkpoints that the encoder of a job is trained on, of those that the recipe selects by epoch."""
    spec, epochs = scale.spec(job.zoo), scale.recipe_of(job).epochs
    last = epochs.last or spec.training.epochs
    kept = [
        e for e in spec.training.kept_epochs if epochs.first <= e <= last and (e - epochs.first) % epochs.every == 0
    ]
    return len(kept) * _training_models(scale, job.zoo)


@cache
def _training_models(scale: Scale, zoo: str) -> int:
    return sum(model.split == "train" for model in expand(scale.spec(zoo)))


class Speeds:
    """The speed of this machine at the jobs of a reproduction.

    It is that at the jobs of the same kind and zoo whose results are in the folder; where there is none, at those of
    the same kind; else `SHARE_OF_PEAK` of the speed of a matrix product. The kind is the architecture of the encoder,
    or the method of a job without one.
    """

    def __init__(self, workspace: Workspace, jobs: Iterable[Job], seeds: int) -> None:
        """Read those results of the jobs that this machine made.

        Raises DamagedZooError for a file that is not a result.
        """
        self._scale, here = workspace.scale, machine()
        self._done: dict[tuple[str, ...], tuple[float, float]] = {}
        for job in jobs:
            recipe = without_description(self._scale.recipe_of(job))
            for result in filter(None, (workspace.stored(job, seed) for seed in range(seeds))):
                if result.machine == here and result.identity.recipe == recipe:
                    self.record(job, result.cpu_seconds)

    def record(self, job: Job, seconds: float) -> None:
        """Record the processor seconds that a job took."""
        for key in self._keys(job):
            flops, before = self._done.get(key, (0.0, 0.0))
            self._done[key] = flops + job_flops(self._scale, job), before + seconds

    def seconds(self, job: Job) -> float:
        """Return the processor seconds that a job is expected to take, with one seed."""
        for key in self._keys(job):
            if key in self._done:
                flops, seconds = self._done[key]
                return job_flops(self._scale, job) * seconds / flops
        return job_flops(self._scale, job) / (_flops_per_second() * SHARE_OF_PEAK)

    def _keys(self, job: Job) -> tuple[tuple[str, ...], ...]:
        kind = self._scale.recipe_of(job).encoder.kind if job.learns else job.method
        return (kind, job.zoo), (kind,)


@cache
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
