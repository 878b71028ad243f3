"""The trials of a search, run by Ray Tune, which schedules them, retries after a death and stops the bad ones early.

The values that a trial changes are drawn before (`representation.search.space`). This process records the scores;
Tune's own files are removed.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from representation.dataset import ZooDataset, ZooSplit
from representation.encoders.encoder import Encoder
from representation.errors import LossError
from representation.evaluation.results import Score
from representation.evaluation.scoring import validation_scores
from representation.search.space import Space, Trial
from representation.targets import Target
from representation.training.distributed import Resources, unpacked
from representation.training.folder import BestEpoch
from representation.training.train import train_epochs
from zootools.engines.cluster import connect
from zootools.engines.engine import RETRIES
from zootools.errors import WorkerError
from zootools.progress import Progress
from zootools.spec.sections import Section

HOPELESS = -1e300
"""The value reported for a diverged trial: finite, so that the stopping rule can compare it."""


class TrialResult(Section):
    """The outcome of a trial."""

    changes: tuple[str, ...]
    """Of the recipe that the search began with."""
    outcome: Literal["finished", "stopped", "diverged"]
    """``stopped`` early by the stopping rule; ``diverged`` when its loss was no longer finite."""
    curve: tuple[float, ...]
    """The objective times its sign after each epoch: more is better."""
    scores: tuple[Score, ...]
    """Scores of the encoder that it kept, on the validation split; none if it diverged."""


_SCORES = TypeAdapter(tuple[Score, ...])


@dataclass(frozen=True)
class TrialInputs:
    """Data for the workers of all trials, sent once to each machine."""

    arrays: Any
    """Weights as `representation.training.distributed.packed` returns them."""
    properties: dict[str, dict[str, Target]]
    """By split, the properties of the same rows."""
    targets: list[str]
    """Properties that the objective probes for."""
    space: Space
    trials: list[Trial]
    ended: dict[int, TrialResult]
    """The trials of an earlier session, by number."""


class _Recorder:
    """Collects the reports of the trials that run, and passes on the result of each one that ends."""

    def __init__(self, inputs: TrialInputs, keep: Callable[[int, TrialResult], None], progress: Progress) -> None:
        self.inputs, self.keep, self.progress = inputs, keep, progress
        self.curves: dict[int, list[float]] = {}
        self.scores: dict[int, tuple[Score, ...]] = {}
        self.complete = [False] * len(inputs.trials)

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Take the report of one epoch of a trial, as `_run_trial` makes it."""
        if number not in self.inputs.ended:
            if report["epoch"] == 1:  # the first report, or the first after the death of a worker
                self.curves[number] = []
            self.curves[number].append(report["reached"])
            self.scores[number] = _SCORES.validate_json(report["scores"])
            self.progress.update(number, min(1, report["epoch"] / self._epochs(number)))

    def completed(self, number: int) -> None:
        """Take the end of a trial."""
        self.complete[number] = True
        if number not in self.inputs.ended:
            curve, scores = tuple(self.curves.pop(number)), self.scores.pop(number)
            outcome: Literal["finished", "stopped", "diverged"] = "diverged"
            if scores:
                outcome = "finished" if len(curve) == self._epochs(number) else "stopped"
            changes = self.inputs.trials[number].changes
            self.keep(number, TrialResult(changes=changes, outcome=outcome, curve=curve, scores=scores))
            self.progress.update(number, 1)

    def _epochs(self, number: int) -> int:
        return self.inputs.trials[number].recipe.training.epochs


def run_trials(inputs: TrialInputs, keep: Callable[[int, TrialResult], None], address: str | None, quiet: bool) -> None:
    """Run all trials that have not ended before, and call ``keep`` with number and result of each when it ends.

    Raises WorkerError when the workers of a trial die again and again.
    """
    epochs = max(trial.recipe.training.epochs for trial in inputs.trials)
    done = [float(trial.number in inputs.ended) for trial in inputs.trials]
    progress = Progress([1] * len(done), 1, done, quiet, unit="trials")
    with connect(address), TemporaryDirectory(prefix="zootools-") as storage, _quiet_tune(), progress:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        recorder = _Recorder(inputs, keep, progress)

        class Callback(tune.Callback):
            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                recorder.reported(trial.config["trial"], result)

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                recorder.completed(trial.config["trial"])

        stopping = inputs.space.stopping
        grace, factor = min(stopping.after, epochs), stopping.factor
        left = [trial.recipe for trial in inputs.trials if trial.number not in inputs.ended]
        resources = Resources.of(inputs.arrays, left)
        analysis = tune.run(
            tune.with_parameters(_run_trial, inputs=inputs, resources=resources),
            config={"trial": tune.grid_search([trial.number for trial in inputs.trials])},
            metric="reached",
            mode="max",
            scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=factor),
            resources_per_trial={"cpu": resources.threads, "gpu": resources.gpus, "memory": resources.memory},
            max_failures=RETRIES,
            raise_on_failed_trial=False,
            reuse_actors=True,
            callbacks=[Callback()],
            storage_path=storage,
            verbose=0,
        )
        for failed in (trial for trial in analysis.trials if trial.status == "ERROR"):
            number, reason = failed.config["trial"], str(failed.get_error()).strip().splitlines()[-1]
            raise WorkerError(
                f"trial {number} failed {RETRIES + 1} times ({reason}); the results of the others are kept"
            )
        if not all(recorder.complete):
            raise KeyboardInterrupt


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from printing and from writing tables of its own; restore the signal handlers that it installs.

    Tune stops its workers on Ctrl-C; without that they would keep their processors as long as the connection lasts.
    """
    settings = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    before, log = dict(os.environ), logging.getLogger("ray.tune")
    level, handlers = log.level, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    os.environ.update(settings)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for name in settings:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _run_trial(config: dict[str, int], inputs: TrialInputs, resources: Resources) -> None:
    """Train and score one trial in a worker; of a trial that ended before, report the curve to the stopping rule."""
    from ray import tune

    trial = inputs.trials[config["trial"]]
    if trial.number in inputs.ended:
        for number, reached in enumerate(inputs.ended[trial.number].curve, start=1):
            tune.report({"epoch": number, "reached": reached})
        return
    torch.set_num_threads(resources.threads)
    weights = unpacked(inputs.arrays)
    splits = {split: ZooSplit(getattr(weights, split), targets) for split, targets in inputs.properties.items()}
    home = ZooDataset(weights.zoo, weights.schema, splits, {})
    done, scores = 0, list[Score]()
    with TemporaryDirectory(prefix="zootools-") as scratch:
        folder = Path(scratch)
        try:
            for epoch in train_epochs(weights, trial.recipe, folder, quiet=True, device=resources.device):
                done = epoch.number
                if epoch.best.epoch == done:
                    scores = _scores(inputs, home, trial, folder, epoch.best)
                reached = inputs.space.objective.sign * _mean(scores) if scores else HOPELESS
                tune.report({"epoch": done, "reached": reached, "scores": _SCORES.dump_json(tuple(scores)).decode()})
        except LossError:
            tune.report({"epoch": done + 1, "reached": HOPELESS, "scores": "[]"})


def _mean(scores: Sequence[Score]) -> float:
    """Return the mean of the scores; `HOPELESS` where one is not defined."""
    values = [score.value for score in scores if score.value is not None]
    return sum(values) / len(values) if len(values) == len(scores) else HOPELESS


def _scores(inputs: TrialInputs, home: ZooDataset, trial: Trial, folder: Path, best: BestEpoch) -> list[Score]:
    """Return the scores of the kept encoder in a folder on the validation split."""
    loss, train, validation = trial.recipe.loss.kind, home.splits["train"], home.splits["validation"]
    target = inputs.space.objective.score
    if target == "probes":
        return validation_scores(home, inputs.targets, Encoder.from_pretrained(folder), loss)
    metric, value = ("r2", best.r2) if target == "reconstruction" else ("loss", best.total)
    return [
        Score(
            method=loss,
            seed=0,
            fitted_on=len(train),
            evaluated_on=home.name,
            split="validation",
            target=target,
            metric=metric,
            value=value,
            rows=len(validation),
        )
    ]
