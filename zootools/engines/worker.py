"""What every engine does with one stack, wherever it runs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from zootools.architectures import Schema
from zootools.checked import unreadable
from zootools.errors import DamagedZooError
from zootools.images import ImageData, Subset
from zootools.inside import path_inside
from zootools.population import ModelConfig
from zootools.shards import shard_bytes
from zootools.spec import Training
from zootools.store import IMAGES, Epoch, StackRecord, ZooFolder
from zootools.training.backend import Backend
from zootools.training.stack import StackRun

RETRIES = 2
"""How often a stack is tried again after the death of its worker."""

Report = Callable[[int, float], None]
"""Told the stack's epochs done, counted with the share of the one in progress."""


def save_images(images: ImageData, zoo: ZooFolder) -> None:
    """Write image tensors where workers map them; a scratch file that is written anew by every build."""
    from safetensors.torch import save

    with zoo.file(IMAGES) as file:
        file.write(save(image_tensors(images)))


def map_images(zoo: ZooFolder, classes: int, device: str) -> ImageData:
    """Map the tensors that `save_images` wrote: workers on one machine share one copy in memory.

    Raises DamagedZooError when they cannot be read, or are not images that a network can be trained on.
    """
    from safetensors import SafetensorError, safe_open

    place, again = f"{zoo.path}: {IMAGES}", "the same build writes them again"
    try:
        with path_inside(zoo.path, IMAGES) as path, safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return images_of_tensors(tensors, classes)
    except DamagedZooError as error:
        raise DamagedZooError(f"{place}: {error}") from error
    except OSError as error:
        raise DamagedZooError(f"{place}: the stored images: {unreadable(error)}; {again}") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedZooError(f"{place}: the stored images: cannot be read ({error}); {again}") from error


def image_tensors(images: ImageData) -> dict[str, Tensor]:
    """Return all tensors of the images by name, to be sent or stored."""
    subsets = {"train": images.train, "validation": images.validation, "test": images.test}
    tensors = {f"{name}.images": subset.images for name, subset in subsets.items()}
    tensors |= {f"{name}.labels": subset.labels for name, subset in subsets.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def images_of_tensors(tensors: Mapping[str, Tensor], classes: int) -> ImageData:
    """Return the images that `image_tensors` took apart.

    Raises DamagedZooError when they are not (`ImageData.fault`): trainers index memory by their shapes and labels.
    """
    expected = {f"{part}.{kind}" for part in ("train", "validation", "test") for kind in ("images", "labels")}
    if set(tensors) != expected:
        raise DamagedZooError(f"the stored images: tensors {sorted(tensors)[:10]}, expected {sorted(expected)}")
    subsets = [Subset(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in ("train", "validation", "test")]
    images = ImageData(subsets[0], subsets[1], subsets[2], classes)
    fault = images.fault(tuple(images.train.images.shape[1:]))
    if fault:
        raise DamagedZooError(f"the stored images: {fault}")
    return images


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
