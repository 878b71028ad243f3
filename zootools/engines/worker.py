"""What every engine does with one stack, wherever it runs."""

from collections.abc import Callable
from pathlib import Path

from zootools.files import write_durably
from zootools.images import ImageData, Subset
from zootools.store import StackRecord, ZooFolder
from zootools.training.backend import Backend
from zootools.training.stack import StackRun

Report = Callable[[int, float], None]
"""Told the stack's epochs done, counted with the share of the one in progress."""


def save_images(images: ImageData, path: Path) -> None:
    """Write image tensors where workers map them; a scratch file that is written anew by every build."""
    from safetensors.torch import save

    subsets = {"train": images.train, "validation": images.validation, "test": images.test}
    tensors = {f"{name}.images": subset.images for name, subset in subsets.items()}
    tensors |= {f"{name}.labels": subset.labels for name, subset in subsets.items()}
    write_durably(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def map_images(path: Path, classes: int, device: str) -> ImageData:
    """Map the tensors that `save_images` wrote: workers on one machine share one copy in memory."""
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=device) as file:
        subsets = [
            Subset(file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels"))
            for name in ("train", "validation", "test")
        ]
    return ImageData(subsets[0], subsets[1], subsets[2], classes)


def train_stack(
    folder: ZooFolder,
    stack: int,
    images: ImageData,
    backend: Backend,
    report: Report = lambda stack, epochs: None,
) -> None:
    """Train one stack of a planned zoo from its last whole epoch to the end, committing every epoch."""
    plan = folder.read_plan()
    assert plan is not None, "a worker is started after the plan is stored"
    models, training = plan.models(), plan.spec.training
    run = StackRun(plan.schema, [models[model] for model in plan.stacks[stack]], images, training, backend)
    record = folder.read_record(stack)
    present = backend.fingerprint()
    if record is None or (record.epoch < 0 and not record.shards):
        record = StackRecord(present)
    elif record.last_fingerprint != present:
        record.resumed.append({"epoch": record.epoch, "fingerprint": present})
    if record.epoch < 0:
        folder.commit(stack, record, run, plan.schema, 0 in training.kept_epochs, False)
    else:
        run.restore(folder.read_state(stack), record.epoch, record.stopped)
    while not record.done:
        done = run.epoch
        report(stack, done)
        run.train_epoch(lambda share, done=done: report(stack, done + share))  # type: ignore[misc]
        folder.commit(stack, record, run, plan.schema, run.epoch in training.kept_epochs, run.epoch == training.epochs)
    report(stack, training.epochs)
