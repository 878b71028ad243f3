"""What every engine does with one stack, wherever it runs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from zootools.architectures import Schema
from zootools.engines.engine import Report
from zootools.errors import DamagedZooError
from zootools.images.datasets import ImageData
from zootools.spec import Training
from zootools.spec.model_configs import ModelConfig
from zootools.storage.build_state import Epoch, StackRecord, ZooFolder
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
    report: Report = lambda stack, epochs: None,
) -> None:
    """Train one stack of a zoo, of these models, from its last whole epoch to the end, committing every epoch."""
    record = folder.begin_stack(stack, backend.fingerprint())
    if record.done:
        return
    start = last_epoch(folder, stack, record)
    tick = functools.partial(report, stack)
    for epoch in compute_epochs(schema, models, images, training, backend, start, tick):
        folder.commit(stack, record, epoch)
        report(stack, epoch.number)


def last_epoch(folder: ZooFolder, stack: int, record: StackRecord) -> Epoch | None:
    """Return the last whole epoch of a stack that is not done, as `compute_epochs` goes on from it."""
    if record.epoch < 0:
        return None
    return Epoch(record.epoch, record.done, record.stopped, None, folder.state_bytes(stack))


def compute_epochs(
    schema: Schema,
    models: Sequence[ModelConfig],
    images: ImageData,
    training: Training,
    backend: Backend,
    start: Epoch | None = None,
    report: Callable[[float], None] = lambda epochs: None,
) -> Iterator[Epoch]:
    """Yield the epochs of a stack as they are trained: all of them, or those after ``start``.

    ``report`` is told the epochs done, counted with the share of the one in progress. Raises DamagedZooError when what
    to start from are not the tensors of these models.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    run = StackRun(schema, models, images, training, backend)
    if start is None:
        yield _epoch(run, schema, training)
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
        run.train_epoch(lambda share, done=done: report(done + share))  # type: ignore[misc]
        yield _epoch(run, schema, training)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))[:500]


def _epoch(run: StackRun, schema: Schema, training: Training) -> Epoch:
    from safetensors.torch import save

    shard = None
    if run.epoch in training.kept_epochs:
        weights, info = run.checkpoint()
        if info.model_ids:
            shard = shard_bytes(schema, weights, info)
    done = run.epoch == training.epochs or run.all_stopped
    return Epoch(run.epoch, done, dict(run.stopped), shard, b"" if done else save(run.save()))
