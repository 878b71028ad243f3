"""Making tasks from zoos, with the statistics of the population computed."""

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from representation.benchmark.metrics import OF_CLASSES, OF_NUMBERS
from representation.benchmark.populations import Checkpoints, Split, check, labels_of
from representation.benchmark.tasks import Distribution, MetricName, PinnedZoo, SplitCounts, Statistics, Task
from representation.recipes import Epochs
from zootools.bundled import bundled_specs
from zootools.choices import check_word
from zootools.errors import SpecError
from zootools.spec import ZooSpec, load_spec
from zootools.spec.sections import flat, parse_section
from zootools.storage.tables import SPLITS
from zootools.zoo import Zoo

DIGITS = 6
"""Significant digits of statistics."""
NO_SETTINGS = ("description", "models")
"""Keys of a specification that do not belong to `PinnedZoo.settings`; ``models`` is `PinnedZoo.models`."""


def make_task(
    zoo: Zoo,
    target: str,
    *,
    name: str | None = None,
    metric: str | None = None,
    epochs: Epochs | None = None,
    where: str | None = None,
    scored_on: Zoo | None = None,
    description: str | None = None,
) -> Task:
    """Return a task of a zoo, which is pinned by the hash of its checkpoints.

    Args:
        zoo: the zoo to fit to, and to score on its test split.
        target: the property to predict.
        name: by default the zoo's name and the target.
        metric: by default ``kendall_tau`` for a number, ``accuracy`` for a class.
        epochs: the epochs of the checkpoints; by default all but 0.
        where: a condition that the checkpoints fulfil.
        scored_on: another zoo whose test split is scored instead.
        description: a sentence for readers.

    Raises SpecError for a target, metric or population that cannot be scored.
    """
    epochs = epochs or Epochs()
    home = Checkpoints.of(zoo, target, epochs, where)
    away = None if scored_on is None else Checkpoints.of(scored_on, target, epochs, where)
    test = check(home, away, target)
    possible = OF_CLASSES if home.classes else OF_NUMBERS
    values = {
        "name": name or "_".join([zoo.name, *([] if scored_on is None else ["to", scored_on.name]), target]),
        "description": description
        or f"{target} of the networks of {zoo.name if scored_on is None else scored_on.name}",
        "zoo": _pinned(zoo, home.sha256()).dump(),
        "epochs": epochs.dump(),
        "target": target,
        "metric": check_word("metric", metric or possible[0], possible),
        "statistics": statistics(home, test, possible).dump(),
    }
    if scored_on is not None and away is not None:
        if scored_on.name == zoo.name:
            raise SpecError(f"{zoo.name}: scored_on: two zoos of one name; a task tells them apart by their names")
        values["scored_on"] = _pinned(scored_on, away.sha256(("test",))).dump()
    if where is not None:
        values["where"] = where
    return parse_section(Task, values, "task")


def like(task: Task, zoo: Zoo, scored_on: Zoo | None = None) -> Task:
    """Return a task as another one, but of the population of a zoo of your own."""
    return make_task(
        zoo,
        task.target,
        name=task.name,
        metric=task.metric,
        epochs=task.epochs,
        where=task.where,
        scored_on=scored_on,
        description=task.description,
    )


def statistics(home: Checkpoints, test: Split, metrics: Sequence[str]) -> Statistics:
    """Return the statistics of the checkpoints of a task, whose test split may be another zoo's."""
    splits = {**home.splits, "test": test}
    labels, values = labels_of(test).numpy(), labels_of(home.splits["train"]).numpy()
    _, counts = np.unique(labels, return_counts=True)
    tied = None if home.classes else float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
    ceilings: dict[MetricName, float | None] = {}
    if home.classes:
        ceilings["accuracy"] = _rounded(float(np.isin(labels, values).mean()))
    elif tied is not None:
        ceilings["kendall_tau"] = _rounded(math.sqrt(1 - tied))
        ceilings["r2"] = _rounded(repeated_r2(test))
    return Statistics(
        splits={
            name: SplitCounts(models=len({*splits[name].models}), checkpoints=len(splits[name])) for name in SPLITS
        },
        left_out=home.left_out,
        train=_distribution(values, home.classes),
        test=_distribution(labels, home.classes),
        majority=_rounded(float(counts.max() / len(labels))) or 0.0,
        tied=_rounded(tied),
        ceilings=ceilings,
    )


def repeated_r2(test: Split) -> float | None:
    """Return the R2 of a predictor that knows the true mean of each configuration at each epoch of the test split.

    What it misses is the variance of a single seed around that mean. None where no two checkpoints have the same
    configuration and epoch, or where configurations are not recorded.
    """
    labels = labels_of(test).numpy()
    if len({*test.groups}) in (0, len(labels)):
        return None
    _, place, sizes = np.unique(test.groups, return_inverse=True, return_counts=True)
    means = np.bincount(place, labels) / sizes
    within = float(np.square(labels - means[place]).sum() / (len(labels) - len(sizes)))
    return 1 - within / float(labels.var())


def _distribution(values: npt.NDArray[np.float64], classes: tuple[str, ...]) -> Distribution:
    if classes:
        return Distribution(classes={name: int((values == number).sum()) for number, name in enumerate(classes)})
    names = ("minimum", "quartile", "median", "upper_quartile", "maximum")
    quartiles = dict(zip(names, np.quantile(values, np.linspace(0, 1, 5)).tolist(), strict=True))
    found = quartiles | {"mean": float(values.mean()), "deviation": float(values.std())}
    return Distribution.model_validate({name: _rounded(value) for name, value in found.items()})


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def _pinned(zoo: Zoo, sha256: str) -> PinnedZoo:
    place, hub = zoo.place, None
    if place is not None and place.repository is not None:
        hub = place.repository + (f"@{place.commit}" if place.commit else "")
    spec = zoo.stored_spec
    return PinnedZoo(
        name=zoo.name,
        hub=hub,
        models=None if spec is None else spec.models,
        settings=() if spec is None else tuple(_changes(spec)),
        sha256=sha256,
    )


def _changes(spec: ZooSpec) -> list[str]:
    """Return ``KEY=VALUE`` for every value that differs from the bundled specification of the same name."""
    if spec.name not in (bundled := bundled_specs()):
        return []
    values, others = (flat(each.model_dump(mode="json")) for each in (spec, load_spec(bundled[spec.name])))
    changed = {key: value for key, value in values.items() if value != others.get(key)}
    return [f"{key}={json.dumps(value)}" for key, value in changed.items() if key not in NO_SETTINGS]
