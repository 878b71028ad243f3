"""The models of a specification: configurations, seeds, ids and splits, all by hashing.

Each of them is independent of order and of the rest of the grid, so a specification that grows keeps all earlier ids,
seeds, drawn values and splits.
"""

import hashlib
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from pydantic import ValidationError

from zootools.errors import SpecError
from zootools.hashing import canonical_json
from zootools.spec.faults import lower_first
from zootools.spec.population import Draw, Hyperparameters
from zootools.spec.zoo_spec import ZooSpec


class ModelConfig(NamedTuple):
    """One model of a zoo: its names, seed, split and hyper-parameters."""

    model_id: str
    configuration_id: str
    seed: int
    split: str
    hyperparameters: Hyperparameters


_Cell = dict[str, Any]
"""The hyper-parameters of one configuration that the specification names."""


def expand(spec: ZooSpec) -> list[ModelConfig]:
    """Return the models of a zoo, ordered by id.

    An id is a hash of everything that decides the model's weights: architecture, images, batch size, hyper-parameters
    and seed. The number of epochs, and hyper-parameters with their default, are not part of it, so ids stay the same
    with longer training and with new axes.

    Raises SpecError if ``models`` exceeds the number of models, or if one model occurs twice.
    """
    _check_count(spec)
    models = _all_models(spec)
    if spec.models is not None:
        # The models that are not chosen are compared as tuples only.
        chosen = heapq.nsmallest(spec.models, models, key=itemgetter(0))
    else:
        chosen = sorted(models, key=itemgetter(0))
    for first, second in itertools.pairwise(chosen):
        if first[0] == second[0]:
            raise SpecError(
                f"the model {first[0]} (seed {first[1]}) occurs twice: sample drew one configuration "
                "twice; use another draw_seed"
            )
    make = _maker(spec)
    made: dict[str, Hyperparameters] = {}
    result, by_configuration = [], spec.split.group_by == "configuration"
    train, validation = spec.split.train, spec.split.train + spec.split.validation
    for model_id, seed, configuration_id, cell in chosen:
        if (hyperparameters := made.get(configuration_id)) is None:
            hyperparameters = made[configuration_id] = make(cell)
        position = _unit(f'["split","{configuration_id if by_configuration else model_id}"]')
        split = "train" if position < train else "validation" if position < validation else "test"
        result.append(ModelConfig(model_id, configuration_id, seed, split, hyperparameters))
    return result


def count_models(spec: ZooSpec) -> int:
    """Return the number of models of `expand`, by arithmetic; only a sample is hashed.

    Raises SpecError as `expand` does, except for two models whose ids are equal by chance.
    """
    _check_count(spec)
    if spec.sample is not None:
        draws = {tuple(draw.values()) for draw in _draws(spec)}
        if len(draws) < spec.sample.count:
            return len(expand(spec))  # raises SpecError if the model that occurs twice is chosen
    return spec.models or spec.model_count


def count_structures(spec: ZooSpec) -> Counter[tuple[str, str, bool, float]]:
    """Return the number of models of each activation, optimizer, use of dropout, and share of training images.

    All configurations have the same number of models, so models are expanded only if ``models`` selects some of them.
    Raises SpecError as `expand` does.
    """
    if spec.models is not None:
        hyper = [model.hyperparameters for model in expand(spec)]
        return Counter((h.activation, h.optimizer, h.dropout > 0, h.train_fraction) for h in hyper)
    count_models(spec)
    counts: Counter[tuple[str, str, bool, float]] = Counter()
    for cell in _cells(spec):
        values = {**_DEFAULTS, **cell}
        structure = (values["activation"], values["optimizer"], values["dropout"] > 0, values["train_fraction"])
        counts[structure] += spec.seeds.per_configuration
    return counts


def configurations(spec: ZooSpec) -> Iterator[Hyperparameters]:
    """Yield every configuration: the cells of the grid, each with every draw of the sample."""
    return map(_maker(spec), _cells(spec))


def training_count(available: int, train_fraction: float) -> int:
    """Return how many of the available training images a model sees: the first ``train_fraction``, at least one."""
    return max(1, int(available * train_fraction))


def _check_count(spec: ZooSpec) -> None:
    if spec.models is not None and spec.models > spec.model_count:
        raise SpecError(f"models: found {spec.models}, but the specification makes only {spec.model_count}")


def _maker(spec: ZooSpec) -> Callable[[_Cell], Hyperparameters]:
    """Return the function that makes hyper-parameters from the values of a configuration."""
    if spec.unknown_names:  # unknown names cannot be validated
        return lambda cell: Hyperparameters.model_construct(**cell)
    return _hyperparameters


def _hyperparameters(cell: _Cell) -> Hyperparameters:
    try:
        return Hyperparameters(**cell)
    except ValidationError as error:  # rounded to six digits, a draw can exceed a limit that its ends do not exceed
        detail = error.errors()[0]
        axis = str(detail["loc"][0])
        raise SpecError(f"sample.{axis}: draws {cell[axis]!r}; {lower_first(detail['msg'])}") from None


def _cells(spec: ZooSpec) -> Iterator[_Cell]:
    axes = spec.grid.axes
    draws = list(_draws(spec)) if spec.sample is not None else [{}]
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        for draw in draws:
            yield {**cell, **draw}


def _draws(spec: ZooSpec) -> Iterator[_Cell]:
    """Yield the draws of a sample in the order of their number."""
    assert spec.sample is not None
    axes, draw_seed = spec.sample.axes, spec.sample.draw_seed
    for index in range(spec.sample.count):
        yield {axis: draw_value(draw, _unit(f'[{draw_seed},"sample","{axis}",{index}]')) for axis, draw in axes.items()}


def unit_hash(*parts: str | int) -> float:
    """Return a number in [0, 1) with 53 random bits: a hash of ``parts``."""
    return _unit(canonical_json(list(parts)))


def _unit(text: str) -> float:
    """Return `unit_hash` of the parts whose canonical JSON is ``text``."""
    return (_hash_int(text) >> 11) / 2**53


def draw_value(draw: Draw, position: float) -> Any:
    """Return the value of a draw at a position in [0, 1)."""
    if draw.choice is not None:
        return draw.choice[int(position * len(draw.choice))]
    if draw.log_uniform is not None:
        low, high = (math.log(end) for end in draw.log_uniform)
        value = math.exp(low + position * (high - low))
    else:
        assert draw.uniform is not None
        value = draw.uniform[0] + position * (draw.uniform[1] - draw.uniform[0])
    # Six digits, because the last bits of exp() differ between machines and must not change an id.
    return float(f"{value:.6g}")


def _all_models(spec: ZooSpec) -> Iterator[tuple[str, int, str, _Cell]]:
    """Yield id, seed, configuration id and hyper-parameters of every model.

    Ids are hashes of canonical JSON. The parts that many models share are written once.
    """
    architecture = canonical_json(spec.architecture.model_dump(mode="json", exclude_defaults=True))
    images = canonical_json(spec.images.model_dump(mode="json", exclude_defaults=True))
    training = f',"training":{{"batch_size":{spec.training.batch_size}}}}}'
    for cell in _cells(spec):
        before = f'{{"architecture":{architecture},"hyperparameters":{_cell_json(cell)},"images":{images}'
        configuration_id = hashlib.sha256(f"{before}{training}".encode()).hexdigest()[:12]
        # Within a configuration only the seed differs, so the text before it is hashed once.
        begun = hashlib.sha256(f'{before},"seed":'.encode())
        for seed in _seeds(spec, configuration_id):
            digest = begun.copy()
            digest.update(f"{seed}{training}".encode())
            yield digest.hexdigest()[:16], seed, configuration_id, cell


_DEFAULTS = {name: field.default for name, field in Hyperparameters.model_fields.items()}


def _cell_json(cell: _Cell) -> str:
    """Return the canonical JSON of hyper-parameters, without those that have their default."""
    entries = []
    for axis in sorted(cell):
        value = cell[axis]
        if value != _DEFAULTS[axis]:
            # JSON writes a float as repr does, but much more slowly.
            entries.append(f'"{axis}":{value!r}' if type(value) is float else f'"{axis}":{canonical_json(value)}')
    return f"{{{','.join(entries)}}}"


def _seeds(spec: ZooSpec, configuration_id: str) -> Iterator[int]:
    seeds = spec.seeds
    if seeds.fixed is not None:
        yield from seeds.fixed
    elif seeds.range is not None:
        yield from range(seeds.range[0], seeds.range[1] + 1)
    elif seeds.random is not None:
        random, drawn = seeds.random, set[int]()
        for index in range(random.per_configuration):
            for attempt in itertools.count():  # a seed that the configuration already has is drawn again
                span = random.high - random.low + 1
                offset = _hash_int(f'[{random.draw_seed},"seed","{configuration_id}",{index},{attempt}]') % span
                if (seed := random.low + offset) not in drawn:
                    break
            drawn.add(seed)
            yield seed


def _hash_int(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
