"""The Ray engine: stacks as tasks of a cluster, whose results come to the one process that writes.

Only this process, the driver, touches the zoo's folder: the machines of the cluster share no disk with it or with each
other. A task trains one stack from its last whole epoch on and sends every epoch as soon as it is trained; the driver
commits them with the code that the workers of the local engine use. A task writes no file, so a task that dies, hangs,
is started twice or outlives its driver leaves nothing behind.

Images and the compiled kernel are put into Ray's object store once. A machine is used if it has the driver's version of
zootools, its numeric fingerprint, and a processor that can run the kernel; the others are left out, by name.
"""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zootools import __version__
from zootools.engines.cluster import connect, import_ray
from zootools.engines.engine import BuildJob, Report, Retried
from zootools.engines.failures import raise_stopped, stopped_by
from zootools.engines.journal import Journal
from zootools.engines.ray_tasks import LOOK_EVERY, Death, Tasks
from zootools.errors import ClusterError, StorageError, differences
from zootools.native.compiler import NoKernelError
from zootools.phases import processor_seconds

if TYPE_CHECKING:
    from zootools.architectures import Schema
    from zootools.spec import Training
    from zootools.spec.model_configs import ModelConfig
    from zootools.storage.records import TrainedEpoch
    from zootools.training.backend import Backend

LOG = logging.getLogger(__name__)

GPU_SHARE = 0.5
"""The part of a GPU that a stack takes: one stack computes while another one draws its data order or is scored."""
QUEUED = 2
"""Tasks sent beyond those that find a processor, so that a processor that becomes free has one at once. Each holds the
state of its stack in memory."""


class RayEngine:
    """Trains in tasks of a Ray cluster.

    Args:
        address: of the cluster (see `connect`); None for $RAY_ADDRESS, else a Ray that is started here.

    Raises ClusterError when Ray is not installed.
    """

    trains_here = False

    def __init__(self, address: str | None = None) -> None:
        self._ray, self._address = import_ray(), address

    def train(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> dict[int, str]:
        """Train stacks, ``job.workers`` at once or as many as the cluster has room for (see `Engine.train`).

        Raises also ClusterError when no cluster answers, no machine of it is fit, or a stack loses one machine after
        the other; DamagedZooError when an epoch came twice with different bytes; StorageError when Ray itself fails.
        """
        if not stacks:
            return {}
        with connect(self._address, job.workers):
            return _Driver(self._ray, job, stacks, report, retried).train()


def task_needs(device: str) -> dict[str, float]:
    """Return the processors and GPUs that one task takes, as options of `ray.remote`."""
    return {"num_cpus": 1} | ({"num_gpus": GPU_SHARE} if device == "cuda" else {})


@dataclass(frozen=True)
class _TaskJob:
    """What all tasks of a build are given."""

    schema: "Schema"
    training: "Training"
    classes: int
    backend: "Backend"
    fingerprint: dict[str, Any]


class _Driver:
    """Sends the stacks of a build to the cluster, and commits the epochs that come back.

    This process must be connected to the cluster.
    """

    def __init__(self, ray: Any, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> None:
        self._ray, self._job = ray, job
        self._report, self._retried = report, retried
        self._waiting, self._failed = deque(stacks), dict[int, str]()
        self._models = job.plan.models()
        fingerprint, needs = job.backend.fingerprint(), task_needs(job.backend.device)
        self._journal, self._machines = Journal(job.zoo, fingerprint), Machines(ray, needs)
        self._tasks = Tasks[int](lambda stack: f"stack {stack}")
        self._function = ray.remote(**Tasks.options(needs))(_make_task())
        training = job.plan.spec.training
        self._shared = [
            ray.put(_TaskJob(job.plan.schema, training, job.classes, job.backend, fingerprint)),
            ray.put(_image_arrays(job)),
        ]

    def train(self) -> dict[int, str]:
        """Train all stacks; return those that failed, and how (`RayEngine.train`)."""
        with self._tasks:
            while self._waiting or self._tasks:
                self._send_stacks()
                result = self._tasks.next_result()
                self._journal.check()
                if result is None:
                    continue
                stack, message = result
                if isinstance(message, Death):
                    self._try_again(stack, message)
                else:
                    self._receive(stack, *message)
        return dict(sorted(self._failed.items()))

    def _send_stacks(self) -> None:
        """Send stacks while there is room for them."""
        room = self._machines.room() + QUEUED
        while self._waiting and len(self._tasks) < min(room, self._job.workers or room):
            stack, plan = self._waiting.popleft(), self._job.plan
            models = [self._models[model] for model in plan.stacks[stack]]
            own = self._ray.put((models, self._journal.start(stack)))
            name = f"stack-{stack:05d} of {plan.spec.name}"
            function = self._function.options(name=name, **self._machines.selector())
            self._tasks.add(function.remote(__version__, [*self._shared, own]), stack)

    def _receive(self, stack: int, message: str, value: Any) -> None:
        """Act on what a task has sent (see `train_task`)."""
        if message == "epoch":
            if self._journal.take(stack, value):
                self._tasks.advanced(stack)
            if value.done:
                self._tasks.forget(stack)
            epochs = self._job.plan.spec.training.epochs if value.done else value.number
            self._report(stack, epochs, value.seconds)
        elif message == "refused":
            self._tasks.forget(stack)
            self._machines.refuse(*value)
            self._waiting.appendleft(stack)
        else:
            raise_stopped(value)

    def _try_again(self, stack: int, death: Death) -> None:
        self._retried(stack, death.how)
        if self._tasks.may_retry(stack, death):
            self._waiting.appendleft(stack)
        else:
            self._failed[stack] = death.how


def _image_arrays(job: BuildJob) -> dict[str, npt.NDArray[np.generic]]:
    """Return the stored images as arrays, which all tasks of a machine map without copying them."""
    from zootools.storage.image_tensors import image_tensors, map_images

    images = map_images(job.zoo, job.classes, "cpu")
    return {name: tensor.numpy() for name, tensor in image_tensors(images).items()}


class Machines:
    """The machines of the cluster, and those of them that have refused the build.

    Args:
        ray: the module.
        needs: the processors and GPUs that one task takes (`task_needs`).
    """

    def __init__(self, ray: Any, needs: dict[str, float]) -> None:
        self._ray = ray
        self._needs = {"CPU": needs["num_cpus"], "GPU": needs.get("num_gpus", 0)}
        self._refused: dict[str, str] = {}
        self._room, self._looked, self._told = 0, float("-inf"), False

    def room(self) -> int:
        """Return how many tasks the machines that have not refused can run at once; 0 while a cluster still starts.

        Raises ClusterError, with all refusals, when no other machine is left.
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
            LOG.warning("no machine of the cluster has what a task needs (%s); waiting for one", self._needs)
            self._told = True
        return self._room

    def refuse(self, node: str, reason: str) -> None:
        """Leave a machine out from now on.

        Args:
            node: its id in the cluster.
            reason: its name and why it cannot train, for the log and for ClusterError.
        """
        if node not in self._refused:
            LOG.warning("%s; the build continues without it", reason)
        self._refused[node] = reason
        self._looked = float("-inf")

    def selector(self) -> dict[str, Any]:
        """Return the option of `ray.remote` that keeps a task off the machines that have refused."""
        return {"label_selector": {"ray.io/node-id": f"!in({','.join(self._refused)})"}} if self._refused else {}


# --- in the worker -------------------------------------------------------------------------------------


def _make_task() -> Callable[[str, list[Any]], Iterator[tuple[str, Any]]]:
    """Return the function that a task runs.

    Ray sends an inner function by value, so it can run, and report, where zootools is missing or another version. What
    cannot be unpacked without zootools comes as references to objects.
    """

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
        yield "started", None  # `ray_tasks.STARTED`
        from zootools.engines.ray import train_task

        try:
            job, arrays, mine = ray.get(references)
        except ray.exceptions.RaySystemError as error:  # for instance, the module of the backend is missing there
            yield "refused", (node, f"{machine} cannot unpack the build ({str(error).strip().splitlines()[-1][:300]})")
            return
        for message, value in train_task(job, arrays, mine):
            yield message, (node, f"{machine} {value}") if message == "refused" else value

    return train


def train_task(
    job: _TaskJob, arrays: dict[str, npt.NDArray[np.generic]], mine: "tuple[list[ModelConfig], TrainedEpoch | None]"
) -> Iterator[tuple[str, Any]]:
    """Train a stack on a machine of the cluster.

    Args:
        job: what all tasks of the build have in common.
        arrays: the images, by name of tensor.
        mine: the models of the stack, and the epoch after which to resume it.

    Yields ``("epoch", TrainedEpoch)`` for every epoch; at the end instead ``("refused", reason)`` where another machine
    may be able to train the stack, or ``("stopped", Stopped)`` where none will.
    """
    begun = processor_seconds()
    import torch

    from zootools.engines.worker import compute_epochs
    from zootools.storage.image_tensors import images_of_tensors

    torch.set_num_threads(1)
    models, start = mine
    try:
        backend = job.backend
        other = differences(backend.fingerprint(), job.fingerprint)
        if other:
            yield "refused", f"has another numeric fingerprint ({'; '.join(other)})"
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
            tensors = {name: torch.from_numpy(array).to(backend.device) for name, array in arrays.items()}
        images = images_of_tensors(tensors, job.classes)
        started = {"workers": processor_seconds() - begun}
    except (NoKernelError, StorageError) as error:
        yield "refused", f"cannot run the kernel ({error})"
        return
    except Exception as error:  # which another machine may not raise
        yield "refused", f"cannot start ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        return
    try:
        for epoch in compute_epochs(job.schema, models, images, job.training, backend, start):
            epoch.seconds.update(started)
            started = {}
            yield "epoch", epoch
    except (NoKernelError, StorageError) as error:
        yield "refused", f"cannot run the kernel ({error})"
    except Exception as error:
        yield "stopped", stopped_by(error, f"the stack of model {models[0].model_id} cannot be trained")
