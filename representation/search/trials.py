"""The trials of a search, run by Ray Tune: where, how many at once, again after a death, and no longer than worth it.

The values that a trial changes are drawn before (`representation.search.space`), its scores are what counts, and they
are recorded by this process; Tune's own files are thrown away.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from representation.dataset import ZooDataset, ZooSplit
from representation.encoders.encoder import Encoder
from representation.evaluation.scoring import validation_scores
from representation.search.space import Space, Trial
from representation.targets import Target
from representation.training.distributed import Resources, unpacked
from representation.training.train import LossError, train_epochs
from zootools.engines.cluster import connect
from zootools.engines.engine import RETRIES
from zootools.errors import WorkerError
from zootools.progress import Progress

HOPELESS = -1e300
"""What a trial is said to reach that diverged: a number, so that the stopping rule can compare it."""


@dataclass
class TrialResult:
    """What became of a trial."""

    changes: list[str]
    outcome: str = ""
    """``finished``, ``stopped`` or ``diverged``."""
    curve: list[float] = field(default_factory=list)
    """What it reached after each epoch, more being better: the objective times its sign."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Of the encoder that it kept, the columns of the results; none if it diverged."""


@dataclass(frozen=True)
class TrialInputs:
    """What the workers of all trials are given, once for each machine."""

    arrays: Any
    """Packed weights."""
    properties: dict[str, dict[str, Target]]
    """By split, the properties of the same rows."""
    targets: list[str]
    """Those that are probed for."""
    space: Space
    trials: list[Trial]
    ended: dict[int, TrialResult]
    """The trials of an earlier session, by number."""


def run_trials(work: TrialInputs, ended: Callable[[int, TrialResult], None], address: str | None, quiet: bool) -> None:
    """Run all trials that have not ended before, and tell ``ended`` of each with its number when it does.

    Raises WorkerError when the workers of a trial die again and again.
    """
    epochs = [trial.recipe.training.epochs for trial in work.trials]
    done = [float(trial.number in work.ended) for trial in work.trials]
    progress = Progress([1] * len(done), 1, done, quiet, unit="trials")
    with connect(address), TemporaryDirectory(prefix="zootools-") as storage, _quiet_tune(), progress:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        running: dict[int, TrialResult] = {}
        complete = [False] * len(done)

        class Recorder(tune.Callback):
            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                number = trial.config["trial"]
                if number not in work.ended:
                    if result["epoch"] == 1:  # the first, or once more after the death of a worker
                        running[number] = TrialResult(list(work.trials[number].changes))
                    running[number].curve.append(result["reached"])
                    running[number].scores = json.loads(result["scores"])
                    progress.update(number, min(1, result["epoch"] / epochs[number]))

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                number = trial.config["trial"]
                complete[number] = True
                if number not in work.ended:
                    trained = running.pop(number)
                    whole = len(trained.curve) == epochs[number]
                    trained.outcome = "diverged" if not trained.scores else "finished" if whole else "stopped"
                    ended(number, trained)
                    progress.update(number, 1)

        stopping = work.space.stopping
        asha = ASHAScheduler(
            time_attr="epoch",
            max_t=max(epochs),
            grace_period=min(stopping.after, max(epochs)),
            reduction_factor=stopping.factor,
        )
        resources = Resources.of(len(done) - int(sum(done)))
        analysis = tune.run(
            tune.with_parameters(_run_trial, work=work, resources=resources),
            config={"trial": tune.grid_search([trial.number for trial in work.trials])},
            metric="reached",
            mode="max",
            scheduler=asha,
            resources_per_trial={"cpu": resources.threads, "gpu": resources.gpus},
            max_failures=RETRIES,
            raise_on_failed_trial=False,
            reuse_actors=True,
            callbacks=[Recorder()],
            storage_path=storage,
            verbose=0,
        )
        for failed in (trial for trial in analysis.trials if trial.status == "ERROR"):
            reason = str(failed.get_error()).strip().splitlines()[-1]
            raise WorkerError(
                f"trial {failed.config['trial']} failed {RETRIES + 1} times ({reason}); those that have ended are kept"
            )
        if not all(complete):
            raise KeyboardInterrupt


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Let Tune print nothing and write no tables of its own; and what it does about Ctrl-C ends with it.

    That is to stop its workers, which would otherwise keep their processors as long as the connection lasts.
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


def _run_trial(config: dict[str, int], work: TrialInputs, resources: Resources) -> None:
    """Train and score one trial where Ray put it, or repeat what is known of it, for the stopping rule to see."""
    from ray import tune

    trial = work.trials[config["trial"]]
    if trial.number in work.ended:
        for number, reached in enumerate(work.ended[trial.number].curve, start=1):
            tune.report({"epoch": number, "reached": reached})
        return
    torch.set_num_threads(resources.threads)
    weights = unpacked(work.arrays)
    parts = {split: ZooSplit(getattr(weights, split), targets) for split, targets in work.properties.items()}
    home = ZooDataset(weights.zoo, weights.schema, parts, {})
    done, scores = 0, list[dict[str, Any]]()
    with TemporaryDirectory(prefix="zootools-") as scratch:
        folder = Path(scratch)
        try:
            for epoch in train_epochs(weights, trial.recipe, folder, quiet=True, device=resources.device):
                done = epoch.line["epoch"]
                if epoch.best["epoch"] == done:
                    scores = _scores(work, home, trial, folder, epoch.best)
                values = [score["value"] for score in scores]
                reached = work.space.objective.sign * sum(values) / len(values) if values else HOPELESS
                tune.report({"epoch": done, "reached": reached, "scores": json.dumps(scores)})
        except LossError:
            tune.report({"epoch": done + 1, "reached": HOPELESS, "scores": "[]"})


def _scores(
    work: TrialInputs, home: ZooDataset, trial: Trial, folder: Path, best: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what the kept encoder in a folder scores on the validation split."""
    loss, train, validation = trial.recipe.loss.kind, home.splits["train"], home.splits["validation"]
    score = work.space.objective.score
    if score == "probes":
        return validation_scores(home, work.targets, Encoder.from_pretrained(folder), loss)
    metric, value = ("r2", best.get("r2", HOPELESS)) if score == "reconstruction" else ("loss", best["total"])
    about = {"method": loss, "seed": 0, "fitted_on": len(train), "evaluated_on": home.name, "split": "validation"}
    return [about | {"target": score, "metric": metric, "value": value, "rows": len(validation)}]
