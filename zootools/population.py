"""From a specification to its models: configurations, seeds, ids and splits, all by hashing.

Nothing here depends on order or on what else is in the grid, so a specification that grows
keeps every id, seed, drawn value and split it had.
"""

import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zootools.errors import SpecError
from zootools.spec import Draw, Hyperparameters, ZooSpec


@dataclass(frozen=True)
class ModelConfig:
    """One model of a zoo: what it is trained with, and what it is called."""

    model_id: str
    configuration_id: str
    seed: int
    split: str
    hyperparameters: Hyperparameters


def expand(spec: ZooSpec) -> list[ModelConfig]:
    """Return the models of a zoo, ordered by id.

    An id is a hash of what decides the model's weights: architecture, images, batch size, hyper-parameters
    and seed. The number of epochs, and hyper-parameters at their default, are not part of it, so ids stay
    when training gets longer or a new axis is invented.
    """
    models = _all_models(spec)
    if spec.models is not None:
        chosen = heapq.nsmallest(spec.models, models, key=lambda model: model.model_id)
        if len(chosen) < spec.models:
            raise SpecError(f"models: found {spec.models}, but the specification makes only {len(chosen)}")
    else:
        chosen = sorted(models, key=lambda model: model.model_id)
    for first, second in itertools.pairwise(chosen):
        if first.model_id == second.model_id:
            raise SpecError(
                f"the model {first.model_id} (seed {first.seed}) occurs twice: sample drew one configuration "
                "twice; use another draw_seed"
            )
    return chosen


def configurations(spec: ZooSpec) -> Iterator[Hyperparameters]:
    """Yield every configuration: the cells of the grid, each with every draw of the sample."""
    axes = spec.grid.axes
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if spec.sample is None:
            yield Hyperparameters(**cell)
            continue
        for index in range(spec.sample.count):
            drawn = {
                axis: draw_value(draw, unit_hash(spec.sample.draw_seed, "sample", axis, index))
                for axis, draw in spec.sample.axes.items()
            }
            yield Hyperparameters(**cell, **drawn)


def unit_hash(*parts: str | int) -> float:
    """Return a number in [0, 1) that depends on nothing but ``parts``; 53 random bits."""
    return (_hash_int(*parts) >> 11) / 2**53


def draw_value(draw: Draw, position: float) -> Any:
    """Return the value that a draw has at a position in [0, 1)."""
    if draw.choice is not None:
        return draw.choice[int(position * len(draw.choice))]
    if draw.log_uniform is not None:
        low, high = (math.log(end) for end in draw.log_uniform)
        value = math.exp(low + position * (high - low))
    else:
        assert draw.uniform is not None
        value = draw.uniform[0] + position * (draw.uniform[1] - draw.uniform[0])
    # Six digits, so that the last bits of another machine's exp() cannot change an id.
    return float(f"{value:.6g}")


def _all_models(spec: ZooSpec) -> Iterator[ModelConfig]:
    identity = {
        "architecture": spec.architecture.model_dump(mode="json", exclude_defaults=True),
        "images": spec.images.model_dump(mode="json", exclude_defaults=True),
        "training": {"batch_size": spec.training.batch_size},
    }
    for hyperparameters in configurations(spec):
        values = hyperparameters.model_dump(mode="json", exclude_defaults=True)
        configuration = {**identity, "hyperparameters": values}
        configuration_id = _digest(canonical_json(configuration), 12)
        # The text of a model differs from its neighbours' in the seed alone.
        before, after = canonical_json({**configuration, "seed": None}).split('"seed":null')
        for seed in _seeds(spec, configuration_id):
            model_id = _digest(f'{before}"seed":{seed}{after}', 16)
            group = configuration_id if spec.split.group_by == "configuration" else model_id
            yield ModelConfig(model_id, configuration_id, seed, _split(spec, group), hyperparameters)


def _seeds(spec: ZooSpec, configuration_id: str) -> Iterator[int]:
    seeds = spec.seeds
    if seeds.fixed is not None:
        yield from seeds.fixed
    elif seeds.range is not None:
        yield from range(seeds.range[0], seeds.range[1] + 1)
    elif seeds.random is not None:
        random, drawn = seeds.random, set[int]()
        for index in range(random.per_configuration):
            for attempt in itertools.count():  # a seed that this configuration already has is drawn again
                span = random.high - random.low + 1
                offset = _hash_int(random.draw_seed, "seed", configuration_id, index, attempt) % span
                if (seed := random.low + offset) not in drawn:
                    break
            drawn.add(seed)
            yield seed


def _split(spec: ZooSpec, group: str) -> str:
    position = unit_hash("split", group)
    if position < spec.split.train:
        return "train"
    return "validation" if position < spec.split.train + spec.split.validation else "test"


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _hash_int(*parts: str | int) -> int:
    return int.from_bytes(hashlib.sha256(canonical_json(list(parts)).encode()).digest()[:8])
