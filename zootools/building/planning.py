"""Planning a zoo before training: the models of each stack, and the size of the build."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zootools.architectures import Schema, build_schema
from zootools.errors import SpecError
from zootools.images.shapes import check_images, image_shape
from zootools.spec import ZooSpec
from zootools.spec.model_configs import ModelConfig, count_structures, training_count
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import MAX_STACK_MODELS

USUAL_STACK = 256
"""Models of a stack at most, unless there are more than `MANY_FILES` shards."""

FEW_FILES = 1000
"""Stacks are as small as possible, for more units of work, up to this number of shards."""

MANY_FILES = 9000
"""With more shards, nearly as many as a hub accepts, stacks grow beyond `USUAL_STACK`, up to `MAX_STACK_MODELS`."""

MODEL_BYTES, SHARD_BYTES = 120, 175
"""Bytes in zoo.json for a model at most (a diverged one), and for a shard."""

MAX_SHARDS = 200_000


@dataclass(frozen=True)
class Estimate:
    """The size of a build, by arithmetic."""

    models: int
    checkpoints: int
    stacks: int
    largest_stack: int
    """Models in the largest stack."""
    bytes: int
    """Bytes on disk, about."""
    steps: int
    """Optimizer steps, summed over the models."""
    model_samples: int
    """Training images seen, summed over models and epochs."""


def zoo_schema(spec: ZooSpec, data: Path | None = None) -> Schema:
    """Return the layer schema of a specification's models. Raises SpecError if the images do not fit it."""
    shape, classes = image_shape(spec.images, data)
    return build_schema(spec.architecture, shape, classes)


def plan_stacks(
    models: Sequence[ModelConfig], schema: Schema, checkpoints: int, device: str = "cpu", mixed: int | None = None
) -> list[list[str]]:
    """Return the ids of the models of each stack: models of one activation and optimizer, all or none with dropout.

    With ``mixed`` these are neighbours in stacks of that number of models. ``checkpoints`` is their number per model.
    The result depends on the arguments alone, not on the number of workers.
    """
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for model in sorted(models, key=lambda model: model.model_id):
        hyper = model.hyperparameters
        groups.setdefault((hyper.activation, hyper.optimizer, hyper.dropout > 0), []).append(model.model_id)
    if mixed is not None:
        everybody = [model for _, ids in sorted(groups.items()) for model in ids]
        return [everybody[start : start + mixed] for start in range(0, len(everybody), mixed)]
    size = _stack_size([len(ids) for ids in groups.values()], schema, checkpoints, device)
    return [ids[start : start + size] for _, ids in sorted(groups.items()) for start in range(0, len(ids), size)]


def _stack_size(groups: Iterable[int], schema: Schema, checkpoints: int, device: str = "cpu") -> int:
    """Return the maximum number of models of a stack, given the number of models of each structure.

    Raises SpecError if there would be more shards than a manifest can name.
    """
    groups = list(groups)
    size = 256 if device == "cuda" or schema.size <= 2_000 else 16

    def shards() -> int:
        return checkpoints * sum(-(-count // size) for count in groups)

    while (size < USUAL_STACK and shards() > FEW_FILES) or (size < MAX_STACK_MODELS and shards() > MANY_FILES):
        size *= 2
    if shards() > MAX_SHARDS or sum(groups) * MODEL_BYTES + shards() * SHARD_BYTES > MAX_BYTES:
        raise SpecError(
            f"{sum(groups):,} models of {checkpoints:,} checkpoints in {shards():,} shards are more than one zoo can "
            "hold: keep fewer (training.checkpoint_every, checkpoint_epochs), or make several zoos"
        )
    return size


def estimate(spec: ZooSpec, data: Path | None = None, models: Sequence[ModelConfig] | None = None) -> Estimate:
    """Return the size of the build of a specification, without reading or writing a zoo.

    Args:
        spec: the specification.
        data: the folder of the image files.
        models: the result of `zootools.spec.model_configs.expand`, if already computed.
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
        images = training_count(spec.images.train, fraction)
        samples += number * images
        steps += number * -(-images // training.batch_size)
    total, size = sum(groups.values()), _stack_size(groups.values(), schema, kept)
    # The shard, the row of Parquet (compression saves at most a fifth), and the scores in both.
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
    """Return the schema of a specification's models. Raises SpecError if no build of the specification can succeed.

    Pixels are not read; the number of images is compared with that of the files, or the published one.
    """
    schema = zoo_schema(spec, data)
    check_images(spec.images, data)
    return schema
