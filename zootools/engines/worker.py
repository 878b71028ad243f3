"""The training of one stack, which is the same in every engine."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from zootools.architectures import Schema
from zootools.engines.engine import NOTHING, Report
from zootools.errors import DamagedZooError
from zootools.images.datasets import ImageData
from zootools.phases import Phases, processor_seconds
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.storage.build_state import ZooFolder
from zootools.storage.records import StackRecord, TrainedEpoch
from zootools.storage.shards import shard_bytes
from zootools.training.backend import Backend
from zootools.training.stack import StackRun


def train_stack(
    folder: ZooFolder,
    stack: int,
    models: Sequence[ModelConfig],
    schema: Schema,
    training: Training,
    images: ImageData,
    backend: Backend,
    report: Report = lambda stack, epochs, seconds=NOTHING: None,
) -> None:
    """Train a stack from its last whole epoch to the end, and commit every epoch to the zoo's folder.

    Args:
        folder: the zoo's folder; this process, or the one that started it, holds its lock.
        stack: index of the stack in the plan.
        models: the stack's models.
        schema: their layers.
        training: how they are trained.
        images: what they are trained with.
        backend: the backend that trains them.
        report: called with the stack and its epochs done, and after every epoch with its processor seconds too.

    Raises what `compute_epochs` and `ZooFolder.commit` raise.
    """
    record = folder.begin_stack(stack, backend.fingerprint())
    if record.done:
        return
    start = last_epoch(folder, stack, record)
    tick = functools.partial(report, stack)
    for epoch in compute_epochs(schema, models, images, training, backend, start, tick):
        phases = Phases(epoch.seconds)
        with phases.phase("storage"):
            folder.commit(stack, record, epoch)
        report(stack, epoch.number, phases.seconds)


def last_epoch(folder: ZooFolder, stack: int, record: StackRecord) -> TrainedEpoch | None:
    """Return the last whole epoch of an unfinished stack, for `compute_epochs` to resume from; None for a new one."""
    if record.epoch < 0:
        return None
    return TrainedEpoch(record.epoch, record.done, record.stopped, None, folder.state_bytes(stack))


def compute_epochs(
    schema: Schema,
    models: Sequence[ModelConfig],
    images: ImageData,
    training: Training,
    backend: Backend,
    start: TrainedEpoch | None = None,
    report: Callable[[float], None] = lambda epochs: None,
) -> Iterator[TrainedEpoch]:
    """Train a stack; yield every epoch as soon as it is trained.

    Args:
        schema: the layers of the models.
        models: the models of the stack.
        images: what they are trained with.
        training: how they are trained.
        backend: the backend that trains them.
        start: the epoch after which to resume; None to begin, with epoch 0, the initialisation.
        report: called with the epochs done; a fraction is the share of the epoch in progress.

    Raises DamagedZooError when the state in ``start`` does not hold the tensors of these models.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    phases = Phases()
    with phases.phase("training"):
        run = StackRun(schema, models, images, training, backend)
    if start is None:
        yield _epoch(run, schema, training, phases)
    else:
        what = f"the weights and optimizer state of epoch {start.number}"
        try:
            saved = load(start.state)
        except SafetensorError as error:
            raise DamagedZooError(f"{what}: {error}") from error
        found, expected = _shapes(saved), _shapes(run.save())
        if found != expected:
            raise DamagedZooError(f"{what}: found {found}, expected {expected}")
        run.restore(saved, start.number, start.stopped)
    while run.epoch < training.epochs and not run.all_stopped:
        done = run.epoch
        with phases.phase("training"):
            run.train_epoch(lambda share, done=done: report(done + share))  # type: ignore[misc]
        yield _epoch(run, schema, training, phases)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))[:500]


def _epoch(run: StackRun, schema: Schema, training: Training, phases: Phases) -> TrainedEpoch:
    from safetensors.torch import save

    shard = None
    if run.epoch in training.kept_epochs:
        with phases.phase("evaluation"):
            weights, info = run.checkpoint()
        if info.model_ids:
            with phases.phase("storage"):
                shard = shard_bytes(schema, weights, info)
    done = run.epoch == training.epochs or run.all_stopped
    # The state of the last epoch is kept too, because more epochs may be asked for later (`--keep-state`).
    with phases.phase("storage"):
        state = save(run.save())
    return TrainedEpoch(run.epoch, done, dict(run.stopped), shard, state, phases.take())


IMPORT_SECONDS = processor_seconds()
"""Processor seconds of this process at the end of the import; workers that are forked later inherit the value."""
