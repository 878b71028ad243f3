"""The Ray engine: stacks as tasks of a cluster, whose results come to the one process that writes.

Only this process, the driver, touches the zoo's folder: the machines of the cluster share no disk with it or with each
other. A task trains one stack from its last whole epoch on and sends every epoch as it is done; the driver commits them
with the code that the workers of the local engine use. A task writes nothing, so no task that dies, hangs, is started
twice or outlives its driver can leave anything behind.

Images and the compiled kernel are put into Ray's object store once. A machine is used if it has the driver's version of
zootools, its numeric fingerprint and a processor for the kernel, else it is left out, by name.
"""

import logging
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zootools import __version__
from zootools.engines.cluster import connect, import_ray
from zootools.engines.failures import raise_stopped, stopped_by
from zootools.engines.journal import Journal
from zootools.engines.worker import RETRIES, compute_epochs
from zootools.errors import ClusterError, StorageError, WorkerError
from zootools.native.compiler import NoKernelError
from zootools.storage.image_tensors import image_tensors, images_of_tensors

if TYPE_CHECKING:
    from zootools.architectures import Schema
    from zootools.images.datasets import ImageData
    from zootools.spec import Training
    from zootools.spec.model_configs import ModelConfig
    from zootools.storage.build_state import Epoch, Plan, ZooFolder
    from zootools.training.backend import Backend

log = logging.getLogger(__name__)

GPU_SHARE = 0.5
"""Of a GPU, per stack: one stack computes while another one draws its data order or is scored."""
AHEAD = 2
"""Epochs that a task may have computed and the driver not yet taken."""
QUEUED = 2
"""Tasks beyond those that find a processor: who ends one finds the next. Each holds its stack's state in memory."""
LOSSES = 10
"""How many machines a stack may lose between two of its epochs. Machines come and go; but a stack that takes down every
one must not go on for ever with those that an autoscaler or a batch system brings anew."""
LOOK_EVERY = 5.0
"""Seconds between two looks at which machines there are."""
WARN_AFTER = 60.0
"""Seconds without any task at work after which a warning says so; the next one comes after twice as many, and so on."""


@dataclass(frozen=True)
class _Job:
    """What all tasks of a build are given."""

    schema: "Schema"
    training: "Training"
    classes: int
    backend: "Backend"
    fingerprint: dict[str, Any]


def task_needs(device: str) -> dict[str, float]:
    """Return what one task takes of a machine, as options of `ray.remote`."""
    return {"num_cpus": 1} | ({"num_gpus": GPU_SHARE} if device == "cuda" else {})


def run_ray(
    folder: "ZooFolder",
    plan: "Plan",
    stacks: Sequence[int],
    *,
    images: "ImageData",
    backend: "Backend",
    address: str | None,
    workers: int | None,
    report: Callable[[int, float], None],
    retried: Callable[[int, str], None],
) -> dict[int, str]:
    """Train stacks of a planned zoo on a cluster; return those whose workers died again and again, and how they did.

    Args:
        folder: the zoo's folder, whose lock this process holds.
        plan: what is in it.
        stacks: which stacks to train.
        images: what they are trained with.
        backend: what trains them.
        address: where the cluster is (see `connect`).
        workers: how many stacks at once; by default as many as the cluster has room for.
        report: called with a stack and its epochs done.
        retried: called with a stack whose worker died, and how.

    Raises ClusterError when there is no cluster, no machine of it is fit, or a stack loses one machine after the other;
    DamagedZooError when an epoch came twice with different bytes; the ZooError that a task met, or WorkerError for any
    other error; and what `ZooFolder.fence` raises when the folder is no longer there. What was committed stays.
    """
    if not stacks:
        return {}
    ray = import_ray()
    needs = task_needs(backend.device)
    options = {"num_returns": "streaming", "max_retries": 0, "_generator_backpressure_num_objects": AHEAD, **needs}
    fingerprint, models = backend.fingerprint(), plan.models()
    journal, machines = Journal(folder, fingerprint), Machines(ray, needs)
    job = _Job(plan.schema, plan.spec.training, images.classes, backend, fingerprint)
    with connect(address, workers):
        task = ray.remote(**options)(_make_task())
        arrays = {name: tensor.cpu().numpy() for name, tensor in image_tensors(images).items()}
        shared = [ray.put(job), ray.put(arrays)]

        def submit(stack: int) -> Any:
            mine = ray.put(([models[model] for model in plan.stacks[stack]], journal.start(stack)))
            name = f"stack-{stack:05d} of {plan.spec.name}"
            return task.options(name=name, **machines.selector()).remote(__version__, [*shared, mine])

        epochs = plan.spec.training.epochs
        return _train(ray, stacks, submit, machines, journal, workers, epochs, report, retried)


def _train(
    ray: Any,
    stacks: Sequence[int],
    submit: Callable[[int], Any],
    machines: "Machines",
    journal: Journal,
    workers: int | None,
    epochs: int,
    report: Callable[[int, float], None],
    retried: Callable[[int, str], None],
) -> dict[int, str]:
    """Submit stacks as there is room for them, and commit what comes; return those that failed, and how."""
    waiting, failed = deque(stacks), dict[int, str]()
    deaths, losses = Counter[int](), Counter[int]()  # of workers and of machines, since a stack's last committed epoch
    running: dict[Any, int] = {}
    idle = _Idle()
    errors = ray.exceptions
    try:
        while waiting or running:
            room = machines.room() + QUEUED
            while waiting and len(running) < min(room, workers or room):
                stack = waiting.popleft()
                running[submit(stack)] = stack
            ready, _ = ray.wait(list(running), timeout=LOOK_EVERY)
            journal.check()
            idle.warn(running, machines)
            for results in ready:
                # A task leaves the row only when it has ended, so whatever is raised, every other task is cancelled.
                stack = running[results] = running.pop(results)
                try:
                    message, value = ray.get(next(results))
                except (errors.NodeDiedError, errors.ObjectLostError) as error:
                    del running[results]
                    retried(stack, f"its machine is lost: {_first_sentence(error)}")
                    losses[stack] += 1
                    if losses[stack] > LOSSES:
                        raise ClusterError(
                            f"stack {stack} has lost {losses[stack]} machines one after the other and got no epoch "
                            "further; find out why they are lost, the same command goes on"
                        ) from error
                    waiting.appendleft(stack)
                    continue
                except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
                    del running[results]
                    retried(stack, _first_sentence(error))
                    deaths[stack] += 1
                    if deaths[stack] <= RETRIES:
                        waiting.appendleft(stack)
                    else:
                        failed[stack] = _first_sentence(error)
                    continue
                except errors.RayTaskError as error:
                    raise WorkerError(f"stack {stack} cannot be trained: {_first_sentence(error)}") from error
                except errors.RaySystemError as error:
                    raise StorageError(
                        f"the cluster fails: {_first_sentence(error)}; the same command goes on"
                    ) from error
                if message == "started":
                    idle.started.add(results)
                elif message == "epoch":
                    if journal.take(stack, value):
                        deaths[stack] = losses[stack] = 0
                    if value.done:
                        del running[results]
                    report(stack, epochs if value.done else value.number)
                elif message == "refused":
                    del running[results]
                    machines.refuse(*value)
                    waiting.appendleft(stack)
                else:
                    raise_stopped(value)
    finally:
        for results in running:
            with suppress(errors.RayError):
                ray.cancel(results, force=True)
    return dict(sorted(failed.items()))


class _Idle:
    """Warns when none of a build's tasks is at work for long, although it has machines.

    A cluster may be busy with what others run on it, for days perhaps, and so nothing ends the build.
    """

    def __init__(self) -> None:
        self.started = set[Any]()
        """The tasks that a machine has begun."""
        self._since, self._after = time.monotonic(), WARN_AFTER

    def warn(self, running: Collection[Any], machines: "Machines") -> None:
        """Warn if it is time to.

        Args:
            running: the tasks that were sent and have not ended.
            machines: where they may run.
        """
        self.started.intersection_update(running)
        if self.started:
            self._since, self._after = time.monotonic(), WARN_AFTER
            return
        idle, room = time.monotonic() - self._since, machines.room()
        if idle >= self._after and room:
            log.warning(
                "no task has started for %.0f s, although the machines in use have room for %d: they are busy with "
                "other work or cannot start a worker (`ray status` says more); the build waits for them",
                idle,
                room,
            )
            self._after *= 2


class Machines:
    """The machines of the cluster, and which of them the build does not use.

    Args:
        ray: the module.
        needs: what one task takes, as options of `ray.remote`.
    """

    def __init__(self, ray: Any, needs: dict[str, float]) -> None:
        self._ray = ray
        self._needs = {"CPU": needs["num_cpus"], "GPU": needs.get("num_gpus", 0)}
        self._refused: dict[str, str] = {}
        self._room, self._looked, self._told = 0, float("-inf"), False

    def room(self) -> int:
        """Return how many tasks the machines in use can run at once; 0 also while a cluster is still starting some.

        Raises ClusterError when all machines that there are were refused.
        """
        if time.monotonic() - self._looked < LOOK_EVERY:
            return self._room
        self._room, self._looked = 0, time.monotonic()
        for node in self._ray.nodes():
            if node["Alive"] and node["NodeID"] not in self._refused:
                has = node["Resources"]
                self._room += min(int(has.get(kind, 0) / need) for kind, need in self._needs.items() if need)
        if self._refused and not self._room:
            reasons = (f"  {reason}" for reason in self._refused.values())
            raise ClusterError("no machine of the cluster is fit for this build", *reasons)
        if not self._room and not self._told:
            log.warning("no machine of the cluster has what a task needs (%s); waiting for one", self._needs)
            self._told = True
        return self._room

    def refuse(self, node: str, reason: str) -> None:
        """Use a machine no more."""
        if node not in self._refused:
            log.warning("%s; the build goes on without it", reason)
        self._refused[node] = reason
        self._looked = float("-inf")

    def selector(self) -> dict[str, Any]:
        """Return the option of a task that keeps it from refused machines."""
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(self._refused)})"}} if self._refused else {}


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


# --- the worker's side ---------------------------------------------------------------------------------


def _make_task() -> Callable[[str, list[Any]], Iterator[tuple[str, Any]]]:
    """Return the function of a task. Ray sends an inner function whole, so it runs, and can say so, where zootools is
    missing or another one; all that needs zootools to be unpacked comes as references."""

    def train(version: str, references: list[Any]) -> Iterator[tuple[str, Any]]:
        import socket

        import ray

        node = ray.get_runtime_context().get_node_id()
        machine = f"machine {socket.gethostname()} (Ray node {node})"
        try:
            from zootools import __version__ as present
        except ImportError as error:
            yield "refused", (node, f"{machine} has no zootools, expected {version} as here ({error})")
            return
        if present != version:
            yield "refused", (node, f"{machine} has zootools {present}, expected {version} as here")
            return
        yield "started", node
        from zootools.engines.ray import train_task

        try:
            job, arrays, mine = ray.get(references)
        except ray.exceptions.RaySystemError as error:  # such as a backend whose module is missing there
            yield "refused", (node, f"{machine} cannot unpack the build ({str(error).strip().splitlines()[-1][:300]})")
            return
        for message, value in train_task(job, arrays, mine):
            yield message, (node, f"{machine} {value}") if message == "refused" else value

    return train


def train_task(
    job: _Job, arrays: dict[str, npt.NDArray[np.generic]], mine: "tuple[list[ModelConfig], Epoch | None]"
) -> Iterator[tuple[str, Any]]:
    """Train a stack on a machine of the cluster; yield its epochs, or why it cannot."""
    import torch

    torch.set_num_threads(1)
    models, start = mine
    try:
        backend = job.backend
        present = backend.fingerprint()
        differences = [
            f"{key} {present.get(key)!r} there, {job.fingerprint.get(key)!r} here"
            for key in sorted({*present, *job.fingerprint})
            if present.get(key) != job.fingerprint.get(key)
        ]
        if differences:
            yield "refused", f"has another numeric fingerprint ({', '.join(differences)})"
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes to it
            tensors = {name: torch.from_numpy(array).to(backend.device) for name, array in arrays.items()}
        images = images_of_tensors(tensors, job.classes)
    except (NoKernelError, StorageError) as error:
        yield "refused", f"cannot run the kernel ({error})"
        return
    except Exception as error:  # another machine may do better
        yield "refused", f"cannot start ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        return
    try:
        for epoch in compute_epochs(job.schema, models, images, job.training, backend, start):
            yield "epoch", epoch
    except (NoKernelError, StorageError) as error:
        yield "refused", f"cannot run the kernel ({error})"
    except Exception as error:
        yield "stopped", stopped_by(error, f"the stack of model {models[0].model_id} cannot be trained")
