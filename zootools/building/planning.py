"""Planning a zoo before anything is trained: which models share a stack, and what the build will take."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zootools.architectures import Schema, build_schema
from zootools.errors import SpecError
from zootools.images.shapes import check_images, image_shape
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, count_structures
from zootools.storage.hashed_json import MAX_BYTES

MAX_STACK = 256

FEW_FILES = 1000
"""Stacks are as small as they can be (for more work units) without making more shards than this."""

HUGE_STACK = 4096

MANY_FILES = 9000
"""Beyond so many shards, which is nearly what a hub takes, stacks grow further: up to `HUGE_STACK` models."""

MODEL_BYTES, SHARD_BYTES = 120, 175
"""What zoo.json takes for a model at most (one that has diverged), and for a shard."""

MAX_SHARDS = 200_000


@dataclass(frozen=True)
class Estimate:
    """What a specification asks for, by arithmetic."""

    models: int
    checkpoints: int
    stacks: int
    largest_stack: int
    """Models in the largest stack."""
    bytes: int
    steps: int
    model_samples: int


def zoo_schema(spec: ZooSpec, data: Path | None = None) -> Schema:
    """Return the layer schema of a specification's models. Raises SpecError where images do not fit it."""
    shape, classes = image_shape(spec.images, data)
    return build_schema(spec.architecture, shape, classes)


def plan_stacks(
    models: Sequence[ModelConfig], schema: Schema, checkpoints: int, device: str = "cpu"
) -> list[list[str]]:
    """Put models of one structure together: activation, optimizer, and whether there is dropout.

    The result depends on the models alone, never on the number of workers.
    """
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for model in sorted(models, key=lambda model: model.model_id):
        hyper = model.hyperparameters
        groups.setdefault((hyper.activation, hyper.optimizer, hyper.dropout > 0), []).append(model.model_id)
    size = _stack_size([len(ids) for ids in groups.values()], schema, checkpoints, device)
    return [ids[start : start + size] for _, ids in sorted(groups.items()) for start in range(0, len(ids), size)]


def _stack_size(groups: Iterable[int], schema: Schema, checkpoints: int, device: str = "cpu") -> int:
    """Return how many models a stack has at most, given the number of models of each structure.

    Raises SpecError where there would be more shards than a manifest can name.
    """
    groups = list(groups)
    size = 256 if device == "cuda" or schema.size <= 2_000 else 16

    def shards() -> int:
        return checkpoints * sum(-(-count // size) for count in groups)

    while (size < MAX_STACK and shards() > FEW_FILES) or (size < HUGE_STACK and shards() > MANY_FILES):
        size *= 2
    if shards() > MAX_SHARDS or sum(groups) * MODEL_BYTES + shards() * SHARD_BYTES > MAX_BYTES:
        raise SpecError(
            f"{sum(groups):,} models of {checkpoints:,} checkpoints in {shards():,} shards are more than one zoo can "
            "have: keep fewer (training.checkpoint_every, checkpoint_epochs), or make several zoos"
        )
    return size


def estimate(spec: ZooSpec, data: Path | None = None, models: Sequence[ModelConfig] | None = None) -> Estimate:
    """Return what building a specification will take, without touching a disk.

    ``models`` are those of the specification, for who has them at hand.
    """
    schema, kept, training = zoo_schema(spec, data), len(spec.training.kept_epochs), spec.training
    if models is None:
        structures = count_structures(spec)
    else:
        hyper = [model.hyperparameters for model in models]
        structures = Counter((h.activation, h.optimizer, h.dropout > 0, h.train_fraction) for h in hyper)
    groups: Counter[tuple[str, str, bool]] = Counter()
    steps = samples = 0
    for (activation, optimizer, dropout, fraction), number in structures.items():
        groups[activation, optimizer, dropout] += number
        images = max(1, int(spec.images.train * fraction))
        samples += number * images
        steps += number * -(-images // training.batch_size)
    total, size = sum(groups.values()), _stack_size(groups.values(), schema, kept)
    # The shard, the row of Parquet (compressed by about a fifth at best), and the scores in both.
    per_checkpoint = 8 * schema.size + 600
    return Estimate(
        models=total,
        checkpoints=total * kept,
        stacks=sum(-(-number // size) for number in groups.values()),
        largest_stack=min(size, max(groups.values())),
        bytes=total * (kept * per_checkpoint + 12 * schema.size),
        steps=training.epochs * steps,
        model_samples=training.epochs * samples,
    )


def check_spec(spec: ZooSpec, data: Path | None = None) -> Schema:
    """Return the schema of a specification's models; raise SpecError for what no build could make of it.

    Images are not read, so their number is compared with what is known of their data set.
    """
    schema = zoo_schema(spec, data)
    check_images(spec.images, data)
    return schema
