"""Training encoders on a Ray cluster (extra ``ray``).

The weights of the zoo are put into the object store once, and every seed is one task. After each epoch the changed
files of a task's folder are sent back to this process, the only one that writes to ``out``. So ``out`` always has the
content that training on this machine would have written: a task whose worker or node died resumes elsewhere after its
last committed epoch, and so does an interrupted command.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from representation.encoders.encoder import Encoder
from representation.errors import LossError
from representation.recipes import Recipe
from representation.training.folder import TrainingFolder
from representation.training.memory import estimate
from representation.training.train import Weights, train_epochs
from zootools.engines.cluster import connect
from zootools.engines.engine import RETRIES
from zootools.engines.ray_tasks import STARTED, Death, Tasks
from zootools.errors import WorkerError
from zootools.filesystem.files import write_durably
from zootools.filesystem.lock import FolderLock
from zootools.progress import Progress
from zootools.text import say
from zootools.zoo import Zoo

SMALLEST_SHARE = 0.25
"""Smallest share of a GPU for one training."""


def train_encoders(
    zoo: Zoo, recipe: Recipe, folders: Sequence[Path], *, address: str | None = None, quiet: bool = False
) -> list[Encoder]:
    """Train an encoder for each of the seeds 0, 1, ... on a Ray cluster, and return them.

    ``folders[seed]`` gets the same files as by `representation.training.train.train_encoder`, byte for byte where
    processors and number of threads are the same (see `Resources`); only the seconds in the records differ.

    Raises WorkerError when the workers of a seed die repeatedly, and the errors of `train_encoder`.
    """
    weights = Weights.of(zoo, recipe, quiet, stream=False)  # workers elsewhere do not have the files
    with ExitStack() as stack:
        jobs = []
        for seed, path in enumerate(folders):
            folder, identity = TrainingFolder(path), weights.identity(recipe, seed)
            if folder.is_finished(identity) and not folder.work.exists():
                continue
            stack.enter_context(FolderLock(folder.lock))
            if not folder.is_finished(identity):
                state = folder.read(identity)
                jobs.append(_SeedTraining(seed, folder, state[1].epoch if state else 0))
            else:
                folder.remove_work()
        if jobs:
            stack.enter_context(connect(address))
            _train_seeds(weights, recipe, jobs, quiet)
        for job in jobs:
            job.folder.remove_work()
    return [Encoder.from_pretrained(path) for path in folders]


class Resources(NamedTuple):
    """Resources of a cluster for one training: processors and memory of a node, or a share of a GPU."""

    threads: int
    """torch's number of threads in this process, at most the number of processors of the largest node."""
    gpus: float
    memory: int
    """Bytes that no other task on the node may use, so that trainings which do not fit together run in turn."""

    @classmethod
    def of(cls, weights: Weights, recipes: Sequence[Recipe]) -> "Resources":
        """Divide the cluster that this process is connected to between the trainings of some recipes.

        If a recipe is estimated to need more memory than any node has, all memory of one is reserved.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        if gpus:
            return cls(1, max(SMALLEST_SHARE, min(1.0, gpus / len(recipes))), 0)
        threads = max(1, min(torch.get_num_threads(), int(max(node.get("CPU", 1) for node in nodes))))
        need = max(estimate(weights.schema, recipe, len(weights.train)).total for recipe in recipes)
        fit = (node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= threads)
        largest = max(fit, default=0)  # none yet, if an autoscaler starts nodes for the first task
        return cls(threads, 0, int(min(need, largest)))

    @property
    def device(self) -> str:
        """The device for `train_epochs`."""
        return "cuda" if self.gpus else "cpu"


def packed(weights: Weights) -> Any:
    """Return weights in memory as NumPy arrays, which all workers of a machine map without a copy."""
    tensors = {"train": weights.train, "validation": weights.validation}
    arrays = {name: part.numpy() for name, part in tensors.items() if isinstance(part, torch.Tensor)}
    assert arrays.keys() == tensors.keys(), "they are read with stream=False"
    return weights._replace(**arrays)  # type: ignore[arg-type]


def unpacked(arrays: Any) -> Weights:
    """Return weights from the arrays of `packed`; their memory is shared and read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(getattr(arrays, name)) for name in ("train", "validation")}
    unpacked: Weights = arrays._replace(**tensors)
    return unpacked


@dataclass(eq=False)
class _SeedTraining:
    """The training of one seed."""

    seed: int
    folder: TrainingFolder
    epoch: int
    """The last one that is committed."""


def _train_seeds(weights: Weights, recipe: Recipe, jobs: Sequence[_SeedTraining], quiet: bool) -> None:
    """Train all seeds; this process must be connected to the cluster."""
    import ray

    share, shared = Resources.of(weights, [recipe] * len(jobs)), ray.put(packed(weights))
    needs = {"num_cpus": share.threads, "num_gpus": share.gpus, "memory": share.memory}
    task = ray.remote(**Tasks.options(needs))(_train_seed)

    def start(job: _SeedTraining) -> None:
        files = {name: (job.folder.path / name).read_bytes() for name in _stamps(job.folder.path)}
        named = task.options(name=f"encoder of {weights.zoo}, seed {job.seed}")
        tasks.add(named.remote(shared, recipe, job.seed, files, share, job.folder.path), job)

    epochs = recipe.training.epochs
    with (
        Progress([1] * len(jobs), epochs, [job.epoch for job in jobs], quiet, unit="epochs") as progress,
        Tasks[_SeedTraining](lambda job: str(job.folder.path)) as tasks,
    ):
        for job in jobs:
            start(job)
        while tasks:
            result = tasks.next_result()
            if result is None:
                continue
            job, message = result
            if isinstance(message, Death):
                if not tasks.may_retry(job, message):
                    raise WorkerError(
                        f"{job.folder.path}: its workers died {RETRIES + 1} times after epoch {job.epoch} "
                        f"({message.how}); the same command resumes from there"
                    ) from message.error
                if not quiet:
                    note = f"the worker of seed {job.seed} died; another one resumes after epoch {job.epoch}"
                    say(note, err=True)
                start(job)
                continue
            job.epoch, files = message
            for name, data in files.items():
                write_durably(job.folder.path / name, data)
            tasks.advanced(job)
            progress.update(jobs.index(job), job.epoch)


def _train_seed(
    shared: Any, recipe: Recipe, seed: int, files: dict[str, bytes], share: Resources, name: Path
) -> Iterator[tuple[int, dict[str, bytes]] | tuple[str, None]]:
    """Train one seed in a worker, from the ``files`` of its folder; yield the changed files after each epoch.

    ``name`` is the training's folder, for messages."""
    yield STARTED
    torch.set_num_threads(share.threads)
    with TemporaryDirectory(prefix="zootools-") as scratch:
        folder = Path(scratch)
        (folder / ".work").mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        sent = _stamps(folder)

        def changed() -> dict[str, bytes]:
            nonlocal sent
            old, sent = sent, _stamps(folder)
            return {file: (folder / file).read_bytes() for file in sent if sent[file] != old.get(file)}

        try:
            for epoch in train_epochs(unpacked(shared), recipe, folder, seed, quiet=True, device=share.device):
                yield epoch.number, changed()
        except LossError as error:
            raise LossError(name, error.reason) from None
        yield recipe.training.epochs, changed()


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return modification time, inode and size of each file, in the order in which an epoch commits them."""
    last = ("log.jsonl", ".work/state.safetensors", "training.json")
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name not in last]
    found = {name: (folder / name).stat() for name in (*names, *last) if (folder / name).exists()}
    return {name: (stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in found.items()}
