"""The local engine: worker processes on this machine, each training whole stacks with one thread.

Results are files, written by the workers themselves; what travels through the pipes is which stack to train,
how far it is, and errors. A worker that dies is replaced and its stack tried again from its last whole epoch. An error
that a worker can still report would only come again: it ends the build at once, and so does a worker that cannot start.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, reduction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zootools.engines.failures import raise_stopped, stopped_by
from zootools.engines.worker import RETRIES
from zootools.errors import WorkerError
from zootools.storage.build_state import ZooFolder

if TYPE_CHECKING:
    from zootools.storage.build_state import Plan
    from zootools.training.backend import Backend

LOOK_EVERY = 1.0
"""Seconds between two looks at whether the folder is still there."""
HOPELESS = 3
"""After this many stacks that were given up before any progress, the others are not tried."""


@dataclass(frozen=True)
class _Shared:
    """A descriptor that a new process receives with its arguments, before it runs anything."""

    descriptor: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> _Shared:
    return _Shared(duplicate.detach())


@dataclass
class _Worker:
    process: Any
    """None if it was killed while it was being started; its pipe is at its end then, like that of any dead worker."""
    pipe: connection.Connection
    lifeline: connection.Connection
    ready: bool = False
    """Whether it has imported and mapped all that it needs to train."""
    stack: int | None = None


def run_local(
    folder: Path,
    plan: "Plan",
    stacks: Sequence[int],
    *,
    classes: int,
    backend: "Backend",
    workers: int,
    lock: int,
    report: Callable[[int, float], None],
    retried: Callable[[int, str], None],
) -> dict[int, str]:
    """Train stacks of a planned zoo; return those whose workers died again and again, and how they did.

    Args:
        folder: the zoo's folder; its images are stored.
        plan: what is in it.
        stacks: which stacks to train.
        classes: number of image classes.
        backend: what trains them.
        workers: how many processes.
        lock: descriptor of the folder's lock; workers hold it too, so it outlives this process while they do.
        report: called with a stack and its epochs done.
        retried: called with a stack whose worker died, and how.

    Raises the ZooError that a worker met (a full disk, say), WorkerError when one cannot start or fails, and what
    `ZooFolder.fence` raises when the folder is no longer there. What was committed stays.
    """
    context = multiprocessing.get_context("forkserver")
    # torch is imported once in the fork server; every worker then starts in a tenth of a second.
    context.set_forkserver_preload(["zootools.engines.worker"])
    zoo, models, epochs = ZooFolder(folder, lock), plan.models(), plan.spec.training.epochs
    job = bytes(reduction.ForkingPickler.dumps((folder, plan.schema, plan.spec.training, classes, backend)))
    waiting, deaths, failed = deque(stacks), dict.fromkeys(stacks, 0), dict[int, str]()
    crew: list[_Worker] = []
    looked, progress = time.monotonic(), False
    try:
        while (waiting or any(worker.stack is not None for worker in crew)) and (progress or len(failed) < HOPELESS):
            busy = sum(worker.stack is not None for worker in crew)
            while len(crew) < min(workers, busy + len(waiting)):
                with _without_script(job):
                    crew.append(_start(context, job, lock))
            for worker in crew:
                if worker.stack is None and waiting:
                    worker.stack = waiting.popleft()
                    with suppress(ConnectionError):  # it is dead, which we are told when we read
                        # Its models too: each worker would need seconds to work out those of a zoo of a million.
                        worker.pipe.send((worker.stack, [models[model] for model in plan.stacks[worker.stack]]))
            ready = connection.wait([worker.pipe for worker in crew], timeout=LOOK_EVERY)
            if time.monotonic() - looked > LOOK_EVERY:
                zoo.fence()
                looked = time.monotonic()
            for worker in [worker for worker in crew if worker.pipe in ready]:
                try:
                    message, value = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    zoo.fence()
                    crew.remove(worker)
                    stack, how = worker.stack, _end_of(worker)
                    if stack is None:
                        continue
                    deaths[stack] += 1
                    retried(stack, how)
                    if deaths[stack] <= RETRIES:
                        waiting.appendleft(stack)
                    else:
                        failed[stack] = how
                    continue
                if message == "progress":
                    progress = True
                    report(*value)
                elif message == "ready":
                    worker.ready = True
                elif message == "done":
                    worker.stack = None
                    report(value, epochs)  # also where all models have diverged before
                else:
                    raise_stopped(value)
    finally:
        for worker in crew:
            worker.lifeline.close()  # workers leave at once; every file they write appears whole or not at all
            if worker.process is not None:
                worker.process.kill()
        for worker in crew:
            _wait_for(worker)
    return dict(sorted(failed.items()))


@contextmanager
def _without_script(job: bytes) -> Iterator[None]:
    """Start workers that do not run the user's script, which would build there too unless it guards against that.

    multiprocessing has every new process import the main module again. Only a job with a backend that is defined there
    needs it.
    """
    main = sys.modules["__main__"]
    if b"__main__" not in job:
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(context: Any, job: bytes, lock: int) -> _Worker:
    pipe, worker_pipe = context.Pipe()
    watched, lifeline = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(job, worker_pipe, watched, _Shared(lock)), daemon=True)
    try:
        process.start()
        started = True
    except (ConnectionError, EOFError):  # killed before it had read what it is to do, or the fork server was
        started = False
    worker_pipe.close()
    watched.close()
    return _Worker(process if started else None, pipe, lifeline)


def _main(job: bytes, pipe: connection.Connection, watched: connection.Connection, lock: _Shared) -> None:
    """Train the stacks that come through the pipe, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=leave_with_parent, args=(watched,), daemon=True).start()
    last, doing = 0.0, "a worker cannot start"

    def report(stack: int, epochs: float) -> None:
        nonlocal last
        if epochs == int(epochs) or time.monotonic() - last > 0.5:
            last = time.monotonic()
            pipe.send(("progress", (stack, epochs)))

    try:
        import torch

        from zootools.engines.worker import train_stack
        from zootools.storage.image_tensors import map_images

        torch.set_num_threads(1)
        # What was pickled comes as bytes, so that an error in unpickling it is one that can be told of.
        folder, schema, training, classes, backend = reduction.ForkingPickler.loads(job)
        zoo = ZooFolder(folder, lock.descriptor)
        images = map_images(zoo, classes, backend.device)
        pipe.send(("ready", None))
        while True:
            try:
                stack, models = pipe.recv()
            except EOFError:
                return
            doing = f"stack {stack} cannot be trained"
            train_stack(zoo, stack, models, schema, training, images, backend, report)
            pipe.send(("done", stack))
    except Exception as error:
        with suppress(OSError):  # the parent is gone
            pipe.send(("stopped", stopped_by(error, doing)))


def leave_with_parent(watched: connection.Connection) -> None:
    """Wait for the parent's end of a pipe to close, which the system does however the parent dies."""
    try:
        watched.recv()
    except (EOFError, OSError):
        os._exit(1)


def _wait_for(worker: _Worker) -> int | None:
    """Wait until a worker is gone; return its exit code, None if it never was a process."""
    if worker.process is None:
        return None
    worker.process.join()
    return int(worker.process.exitcode)


def _end_of(worker: _Worker) -> str:
    """Wait until a worker is gone, and say how it went. Raises WorkerError if it ended because it cannot start."""
    code = _wait_for(worker)
    if code is None:
        return "while it was being started"
    if code == 1 and not worker.ready:
        raise WorkerError(
            "a worker cannot start: Python ended while it imported the script that calls build(), which defines the "
            'backend; a script needs `if __name__ == "__main__":` before that call, or the backend a module of its own'
        )
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
