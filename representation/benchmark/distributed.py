"""Runs of the benchmark on a Ray cluster (extra ``ray``): every row is one task with one processor.

The networks of a task are put into the object store once. A row whose worker dies is computed again elsewhere.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from representation.benchmark.methods.method import Examples
from representation.benchmark.populations import TaskData
from representation.benchmark.results import Result
from representation.benchmark.run import run
from representation.benchmark.work import Work
from representation.networks import in_memory
from zootools.engines.cluster import connect
from zootools.engines.engine import RETRIES
from zootools.engines.ray_tasks import STARTED, Death, Tasks
from zootools.errors import WorkerError

PARTS = ("train", "validation", "test")
"""The fields of `TaskData` with networks."""


def run_on_cluster(data: Mapping[str, TaskData], work: Sequence[Work], address: str | None) -> Iterator[Result]:
    """Run pieces of work on a cluster; yield each row when it is finished, in any order.

    Raises WorkerError when the workers of a row die repeatedly.
    """
    if not work:
        return
    import ray

    with connect(address), Tasks[Work](str) as tasks:
        shared = {name: ray.put(packed(part)) for name, part in data.items()}
        task = ray.remote(**Tasks.options({"num_cpus": 1}))(_run)

        def start(piece: Work) -> None:
            named = task.options(name=str(piece))
            tasks.add(named.remote(shared[piece.task], piece.kind, piece.seed), piece)

        for piece in work:
            start(piece)
        while tasks:
            found = tasks.next_result()
            if found is None:
                continue
            piece, message = found
            if isinstance(message, Death):
                if not tasks.may_retry(piece, message):
                    how = f"its workers died {RETRIES + 1} times ({message.how})"
                    raise WorkerError(f"{piece}: {how}; the same command resumes") from message.error
                start(piece)
                continue
            yield message


def packed(data: TaskData) -> Any:
    """Return the data of a task as NumPy arrays, which all workers of a machine map without a copy."""
    parts = dict[str, Any]()
    for name in PARTS:
        part: Examples = getattr(data, name)
        parts[name] = in_memory(part.networks).numpy(), part.activations.numpy(), part.labels.numpy()
    return replace(data, **parts)


def unpacked(data: Any) -> TaskData:
    """Return the data of a task from the arrays of `packed`; their memory is shared and read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        parts: dict[str, Any] = {name: Examples(*map(torch.from_numpy, getattr(data, name))) for name in PARTS}
    return TaskData(**{**vars(data), **parts})


def _run(shared: Any, kind: Any, seed: int) -> Iterator[Result | tuple[str, None]]:
    yield STARTED
    yield run(unpacked(shared), kind, seed)
