"""The plan of a reproduction: its zoos and encoders, and the time that those take which the folder lacks."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from representation.reproduction.items import Item, all_jobs, all_zoos
from representation.reproduction.job_costs import Speeds, training_checkpoints
from representation.reproduction.work import Workspace
from zootools.building.planning import estimate, zoo_schema
from zootools.building.resuming import look_into
from zootools.building.throughput import seconds_per_model_sample
from zootools.object_store.sync import open_output
from zootools.progress import duration
from zootools.spec import ZooSpec


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
    """Seeds whose encoder is not trained; to score those that are takes seconds."""
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
    speeds = Speeds(workspace, jobs, seeds)
    encoders = []
    for job in [job for job in jobs if job.learns and job.zoo in there]:
        others = [zoo for zoo in job.transfers if zoo in there]
        left = seeds
        if unfinished.isdisjoint((job.zoo, *others)):
            left = sum(
                workspace.found(job, seed, others) is None and not workspace.is_trained(job, seed)
                for seed in range(seeds)
            )
        name, changes = workspace.scale.recipe_words(job)
        encoders.append(
            PlannedEncoder(
                encoder=job.name,
                recipe=" ".join((name, *changes)),
                checkpoints=training_checkpoints(workspace.scale, job),
                epochs=workspace.scale.recipe_of(job).training.epochs,
                to_train=left,
                seconds=round(speeds.seconds(job) * left / workers, 1) if left else 0.0,
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
    return "\n".join([*lines, f"about {duration(value.seconds)} on this machine, an estimate"])
