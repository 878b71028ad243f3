"""Training an encoder on a zoo: seeded, resumable, the best epoch kept.

>>> encoder = train_encoder(open_zoo("zoos/tetris_seed"), load_recipe("default"), Path("encoders/tetris_seed"))
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from representation.dataset import takes
from representation.encoders.encoder import Encoder
from representation.errors import LossError, PlacedError
from representation.networks import SHARE, Networks, hash_networks, read_networks, select
from representation.recipes import Recipe
from representation.training.behaviour import Behaviour
from representation.training.folder import BestEpoch, TrainingFolder, TrainingIdentity, TrainingRecord, TrainingState
from representation.training.memory import check_memory, memory_named
from representation.training.trainer import EncoderTrainer, choose_precision
from zootools.architectures import Schema
from zootools.extras import optional
from zootools.filesystem.files import write_durably
from zootools.filesystem.lock import FolderLock
from zootools.hashing import canonical_json
from zootools.progress import Progress
from zootools.spec.sections import flat
from zootools.text import say
from zootools.zoo import Zoo

SAVED_EVERY = 60.0
"""Seconds after which a step of a long epoch is saved."""


def train_encoder(
    zoo: Zoo,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    *,
    quiet: bool = False,
    epochs: int | None = None,
    device: str = "auto",
    track: str | None = None,
) -> Encoder:
    """Train an encoder on a zoo's train split, and return that of the epoch that is best on the validation split.

    The same call again resumes after the last epoch, or within one after a step that was saved (`SAVED_EVERY`); for a
    finished training it only loads the encoder. On the CPU of one machine, with one number of threads, the result
    depends only on zoo, recipe and seed, interrupted or not.

    Args:
        zoo: a zoo or a part of one; its checkpoints are divided by its own splits and filtered by recipe.epochs.
        recipe: network, loss, augmentation and training.
        out: folder of the encoder (config.json, model.safetensors), recipe.yaml, log.jsonl and training.json.
        seed: of initialisation, order of the data, augmentation and dropout.
        quiet: show no progress.
        epochs: number of epochs, instead of recipe.training.epochs.
        device: ``auto``, ``cpu`` or ``cuda``.
        track: also log to the trackio project of this name.

    Raises SpecError when the zoo has too few models, when ``out`` holds another training, or when the loss is no longer
    finite; BusyError when another process trains there.
    """
    if epochs is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs})})
    weights = Weights.of(zoo, recipe, quiet)
    for _ in train_epochs(weights, recipe, out, seed, quiet=quiet, device=device, track=track):
        pass
    return Encoder.from_pretrained(out)


class Weights(NamedTuple):
    """The data of a training: the weights of a zoo's train and validation split that the recipe accepts."""

    zoo: str
    schema: Schema
    train: Networks
    """float32 ``[checkpoints, parameters]``, as is `validation`."""
    validation: Networks
    behaviour: Behaviour | None = None
    """The images of a recipe with `loss.behaviour`."""

    @classmethod
    def of(cls, zoo: Zoo, recipe: Recipe, quiet: bool = False, stream: bool = True) -> "Weights":
        """Read the weights; report on stderr how many checkpoints are left out.

        Where they would take more than a third of the available memory (`representation.networks.SHARE`), they stay in
        the zoo's files if they may be streamed, and are read batch by batch. Raises SpecError when the zoo has too few
        models.
        """
        parts, share = training_data(zoo, recipe), SHARE if stream else math.inf
        total = sum(map(len, parts.values()))
        found = [
            _taken_weights(read_networks(part, share * len(part) / total), part.folder, recipe, name, quiet)
            for name, part in parts.items()
        ]
        behaviour = Behaviour.of(parts["train"]) if recipe.loss.behaviour else None
        train, validation = found
        return cls(zoo.name, zoo.schema, train, validation, behaviour)

    def identity(self, recipe: Recipe, seed: int) -> TrainingIdentity:
        """Return the identity of a training on these weights, without device and precision."""
        digest = hashlib.sha256(canonical_json(self.schema.to_json()).encode())
        for part in (self.train, self.validation):
            hash_networks(digest, part)
        return TrainingIdentity(recipe=recipe, seed=seed, weights_sha256=digest.hexdigest())


class TrainedEpoch(NamedTuple):
    """One committed epoch of a training."""

    number: int
    """From 1."""
    best: BestEpoch
    """The best epoch so far, whose encoder is the one that is kept."""


def train_epochs(
    weights: Weights,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    *,
    quiet: bool = False,
    device: str = "auto",
    track: str | None = None,
) -> Iterator[TrainedEpoch]:
    """Train as `train_encoder` does; yield each epoch when it is committed to the folder."""
    device, precision = _computed_on(recipe, device)
    identity = weights.identity(recipe, seed).model_copy(update={"device": device, "precision": precision})
    folder = TrainingFolder(out)
    if folder.is_finished(identity) and not folder.work.exists():
        return
    if not folder.is_finished(identity):
        check_memory(weights.schema, recipe, len(weights.train), device=torch.device(device))
    # Dropout and initialisation draw from torch's global generators; their state is restored afterwards.
    cuda = [torch.cuda.current_device()] if device == "cuda" else []
    with FolderLock(folder.lock), torch.random.fork_rng(cuda), _matmul_precision(precision):
        if not folder.is_finished(identity):
            with memory_named(weights.schema, recipe, len(weights.train)):
                trainer = EncoderTrainer(
                    weights.schema,
                    weights.train,
                    weights.validation,
                    recipe,
                    seed,
                    torch.device(device),
                    weights.behaviour,
                )
                yield from _train_remaining(trainer, folder, identity, weights.zoo, quiet, track)
        folder.remove_work()


def check_folders(weights: Weights, recipe: Recipe, folders: Sequence[Path], device: str = "auto") -> None:
    """Check that the folders for the seeds 0, 1, ... can be used, before anything is computed; write nothing.

    Raises SpecError if one holds another training, DamagedZooError if its records cannot be read, BusyError if another
    process trains there.
    """
    device, precision = _computed_on(recipe, device)
    common = weights.identity(recipe, 0).model_copy(update={"device": device, "precision": precision})
    for seed, path in enumerate(folders):
        folder, identity = TrainingFolder(path), common.model_copy(update={"seed": seed})
        if not folder.is_finished(identity) and folder.lock.exists():
            with FolderLock(folder.lock):
                folder.read(identity)


def _computed_on(recipe: Recipe, device: str) -> tuple[str, str]:
    """Return device and precision of a training, with ``auto`` resolved."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = choose_precision(recipe.training.precision, torch.device(device))
    return device, precision


def training_data(zoo: Zoo, recipe: Recipe) -> dict[str, Zoo]:
    """Return the checkpoints that a recipe trains and validates on, by split: ``train`` and ``validation``.

    Raises SpecError when the zoo has no checkpoints, or too few models.
    """
    if not len(zoo):
        diverged = zoo.counts.diverged
        hint = f"; {diverged} of its {zoo.counts.expected} models diverged" if diverged else ""
        raise PlacedError(zoo.folder, f"nothing to learn from: no checkpoints are left{hint}")
    chosen = recipe.epochs.select(zoo)
    splits = {name: chosen.split(name) for name in ("train", "validation")}
    for name, least in (("train", 2), ("validation", 1)):
        found = len(splits[name].models)
        if found < least:
            raise PlacedError(
                zoo.folder,
                f"the {name} split has {found} of the zoo's {len(zoo.models)} models; training an encoder needs at "
                f"least {least} there",
            )
    return splits


def _train_remaining(
    trainer: EncoderTrainer,
    folder: TrainingFolder,
    identity: TrainingIdentity,
    zoo: str,
    quiet: bool,
    track: str | None,
) -> Iterator[TrainedEpoch]:
    """Train the epochs that are not committed yet, and commit each."""
    session, epochs = _Session(trainer, folder, identity), trainer.recipe.training.epochs
    done = trainer.epoch + trainer.step / trainer.steps
    folder.cut_log(trainer.epoch)
    recipe = yaml.safe_dump(trainer.recipe.dump(), sort_keys=False, width=100)
    write_durably(folder.path / "recipe.yaml", recipe.encode())
    with Progress([1], epochs, [done], quiet, unit="epochs") as progress, _tracking(track, identity) as log:

        def tick(share: float) -> None:
            progress.update(0, trainer.epoch + share)
            session.save_if_due()

        while trainer.epoch < epochs:
            line = session.train_epoch(tick)
            # Before the state: a line without one is removed on resume, a state without its line would have lost it.
            folder.append_log(line)
            session.save()
            log(line)
            yield TrainedEpoch(trainer.epoch, session.best)
    folder.finish(session.record(zoo))


class _Session:
    """One session of a training: it begins with the state in the folder, if there is one."""

    def __init__(self, trainer: EncoderTrainer, folder: TrainingFolder, identity: TrainingIdentity) -> None:
        self.trainer, self.folder, self.identity = trainer, folder, identity
        self._best: BestEpoch | None = None
        self._seconds = self._cpu_seconds = 0.0
        if (stored := folder.read(identity)) is not None:
            tensors, state = stored
            trainer.restore(tensors, state)
            self._best, self._seconds, self._cpu_seconds = state.best, state.seconds, state.cpu_seconds
        self._saved = time.monotonic()

    @property
    def best(self) -> BestEpoch:
        """The best epoch of those that are complete; there must be one."""
        assert self._best is not None
        return self._best

    def train_epoch(self, tick: Callable[[float], None]) -> dict[str, float]:
        """Train for the rest of an epoch; keep its encoder if it is the best; return its line of the log."""
        trainer = self.trainer
        self._start_clock()
        train = trainer.train_epoch(tick)
        train |= trainer.reconstruction_r2(trainer.weights)
        validation = trainer.validate()
        self._read_clock()
        line = {"epoch": trainer.epoch, "lr": trainer.optimizer.rates[0], "seconds": self._seconds}
        line |= {f"train_{name}": value for name, value in train.items()}
        line |= {f"validation_{name}": value for name, value in validation.items()}
        line |= {} if trainer.linear_r2 is None else {"linear_r2": trainer.linear_r2}
        score = validation["reconstruction" if trainer.recipe.training.best == "reconstruction" else "total"]
        if not all(map(math.isfinite, [*train.values(), score])):
            raise LossError(
                self.folder.path,
                f"the loss is no longer finite after epoch {trainer.epoch}; use a smaller training.lr, or "
                "training.precision=fp32",
            )
        if self._best is None or score < self._best.score:
            self._best = BestEpoch(epoch=trainer.epoch, score=score, **validation)
            trainer.encoder.save_pretrained(self.folder.path)
        return line

    def save_if_due(self) -> None:
        """Save the state after a step, if the last one was saved more than `SAVED_EVERY` seconds ago."""
        if time.monotonic() - self._saved > SAVED_EVERY:
            self._read_clock()
            self.save()
            self._start_clock()  # as after an epoch, the time of saving is not that of the training

    def save(self) -> None:
        """Save the state after the last step."""
        tensors, rest = self.trainer.save()
        state = TrainingState(
            identity=self.identity,
            best=self._best,
            seconds=self._seconds,
            cpu_seconds=self._cpu_seconds,
            **dict(rest),
        )
        self.folder.write(tensors, state)
        self._saved = time.monotonic()

    def record(self, zoo: str) -> TrainingRecord:
        """Return the record of the finished training."""
        return TrainingRecord(
            zoo=zoo,
            identity=self.identity,
            epochs=self.trainer.epoch,
            best=self.best,
            seconds=self._seconds,
            cpu_seconds=self._cpu_seconds,
        )

    def _start_clock(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _read_clock(self) -> None:
        """Add the time since the clock was started or read."""
        wall, cpu = self._wall, self._cpu
        self._start_clock()
        self._seconds += self._wall - wall
        self._cpu_seconds += self._cpu - cpu


@contextmanager
def _tracking(project: str | None, identity: TrainingIdentity) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that logs a line to trackio; without a project it does nothing."""
    if project is None:
        yield lambda line: None
        return
    trackio = optional("trackio", "track", "track")
    trackio.init(project=project, config=flat(identity.dump()))
    try:
        yield trackio.log
    finally:
        trackio.finish()


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _taken_weights(weights: Networks, folder: Path, recipe: Recipe, split: str, quiet: bool) -> Networks:
    """Return the weights that the recipe accepts; report on stderr how many it rejects, and why."""
    taken, reason = takes(recipe, weights)
    if not taken.any():
        raise PlacedError(folder, f"all {len(weights)} checkpoints of the {split} split are left out: {reason}")
    if not taken.all() and not quiet:
        say(f"{int((~taken).sum())} of {len(weights)} {split} checkpoints are left out: {reason}", err=True)
    return weights if taken.all() else select(weights, taken)
