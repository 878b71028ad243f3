"""One run: a method on a task with a seed, which gives one row."""

import hashlib
import inspect
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representation.benchmark.costs import measured, one_thread
from representation.benchmark.methods.method import Method, Population, Problem
from representation.benchmark.methods.read_files import ReadsFiles
from representation.benchmark.metrics import METRICS, OF_CLASSES, OF_NUMBERS
from representation.benchmark.populations import TaskData
from representation.benchmark.results import Result, Versions
from representation.errors import LossError
from representation.evaluation.baselines import UnfitError
from zootools import __version__
from zootools.errors import SpecError
from zootools.text import printable
from zootools.training.repeatable import make_products_repeatable

make_products_repeatable()

GROUPS = 20
"""Groups of test models that the jackknife leaves out one after the other."""
LONGEST_REASON = 190
"""Characters of a reason."""


def run(data: TaskData, kind: type[Method], seed: int) -> Result:
    """Fit a method to the training split, choose on the validation split, and score the test split once.

    What cannot be fitted or scored is a row without a score, and with the reason. Raises SpecError for predictions of
    the wrong shape or type.
    """
    problem = Problem(data.schema, data.task.target, data.classes, data.task.metric, seed)
    method, reason = kind(problem), ""
    parameters, predicted, judged = None, None, None
    with one_thread(), torch.random.fork_rng(devices=[]), measured() as fitting:
        torch.manual_seed(seed)
        try:
            if method.runs and data.task.target == "activation":
                raise UnfitError("it is given the activation function, which is the target")
            method.fit(data.train, data.validation)
            parameters = method.parameters
        except (UnfitError, LossError) as error:
            reason = str(error)
    with one_thread(), torch.random.fork_rng(devices=[]), measured() as predicting:
        try:
            if not reason:
                judged = _predictions(method, data.validation) if len(data.validation) else None
                predicted = _predictions(method, data.test)
        except UnfitError as error:
            reason = str(error)
    scores, interval = dict[str, float | None](), None
    if predicted is not None:
        scores, undefined = _scores(data, predicted)
        reason = undefined or reason
        if not undefined:
            interval = jackknife(METRICS[data.task.metric], data.test.labels, predicted, data.test_models)
    statistics = data.task.statistics
    return Result(
        task=data.task.name,
        task_sha256=data.task.sha256,
        method=kind.name,
        code_sha256=code_sha256(kind),
        seed=seed,
        metric=data.task.metric,
        score=scores.get(data.task.metric),
        interval=interval,
        reason=printable(reason, LONGEST_REASON - 60) or None,
        validation=None if judged is None else _finite(problem.score(data.validation.labels, judged)),
        **scores,
        networks=len(data.test),
        ceiling=data.task.ceiling,
        majority=statistics.majority,
        invariant=kind.invariant,
        trains=kind.trains,
        parameters=parameters,
        fit_seconds=fitting.seconds + method.shared_seconds,
        predict_seconds=predicting.seconds,
        peak_bytes=_larger(fitting.peak_bytes, predicting.peak_bytes),
        versions=versions(),
    )


def _predictions(method: Method, part: Population) -> Tensor:
    """Return the predictions of networks without their labels."""
    predicted = method.predict(Population(part.networks, part.activations))
    if predicted.shape != (len(part),) or predicted.is_complex() or predicted.dtype == torch.bool:
        raise SpecError(
            f"{method.name}: predict: found {predicted.dtype} of shape {list(predicted.shape)}; expected [{len(part)}]"
        )
    return predicted.detach()


def _scores(data: TaskData, predicted: Tensor) -> tuple[dict[str, float | None], str]:
    """Return every metric of the target's kind, and why that of the task is not defined if it is not."""
    names = OF_CLASSES if data.classes else OF_NUMBERS
    if not predicted.isfinite().all():
        bad = int((~predicted.isfinite()).sum())
        return dict.fromkeys(names), f"{bad} of {len(predicted)} predictions are not finite"
    scores = {name: _finite(METRICS[name](data.test.labels, predicted)) for name in names}
    if scores[data.task.metric] is not None:
        return scores, ""
    same = "all predictions are equal" if bool((predicted == predicted[0]).all()) else "all labels are equal"
    return scores, f"{data.task.metric} is not defined: {same}"


def jackknife(
    metric: Callable[[Tensor, Tensor], float], truth: Tensor, predicted: Tensor, models: Sequence[str]
) -> float | None:
    """Return half the width of the 95 % interval of a metric over other models.

    The models are divided into `GROUPS` groups, each of which is left out once: the epochs of a model stay together,
    and no network occurs twice, which would tie its own copies. None where fewer than three models, or a part on which
    the metric is not defined, forbid that.
    """
    from scipy.stats import t

    _, places = np.unique(models, return_inverse=True)
    count = min(GROUPS, int(places.max()) + 1)
    group = torch.from_numpy(places % count)
    if count < 3:
        return None
    values = np.array([metric(truth[group != left], predicted[group != left]) for left in range(count)])
    error = np.sqrt((count - 1) / count * np.square(values - values.mean()).sum())
    return _finite(float(t.ppf(0.975, count - 1) * error))


def code_sha256(kind: type[Method]) -> str | None:
    """Return the hash of the sources of a class and its bases, and of the files that it reads (`ReadsFiles`).

    None if one of the classes has no source file.
    """
    digest = hashlib.sha256()
    try:
        for base in kind.__mro__:
            if issubclass(base, Method):
                digest.update(Path(inspect.getfile(base)).read_bytes())
    except (TypeError, OSError):
        return None
    for file in kind.files if issubclass(kind, ReadsFiles) else ():
        digest.update(file.read_bytes())
    return digest.hexdigest()


def versions() -> Versions:
    """Return what computes here."""
    return Versions(
        zootools=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        scikit_learn=version("scikit-learn"),
        processor=torch.backends.cpu.get_cpu_capability(),
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _larger(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else max(first, second)
