"""The local engine: worker processes on this machine, each training whole stacks with one thread.

Results are files, written by the workers themselves; what travels through the pipes is which stack to train,
how far it is, and errors. A worker that dies is replaced and its stack tried again from its last whole epoch.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.engines.worker import RETRIES
from zootools.errors import StorageError, ZooError

if TYPE_CHECKING:
    from zootools.architectures import Schema
    from zootools.spec import Training
    from zootools.store import Plan
    from zootools.training.backend import Backend


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
) -> list[int]:
    """Train stacks of a planned zoo and return those that failed.

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

    Raises the ZooError that a worker met (a full disk, say); what was committed stays.
    """
    context = multiprocessing.get_context("forkserver")
    # torch is imported once in the fork server; every worker then starts in a tenth of a second.
    context.set_forkserver_preload(["zootools.engines.worker"])
    models = plan.models()
    waiting, deaths, failed = deque(stacks), dict.fromkeys(stacks, 0), list[int]()
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.stack is not None for worker in crew):
            busy = sum(worker.stack is not None for worker in crew)
            while len(crew) < min(workers, busy + len(waiting)):
                crew.append(_start(context, folder, plan, classes, backend, lock))
            for worker in crew:
                if worker.stack is None and waiting:
                    worker.stack = waiting.popleft()
                    with suppress(ConnectionError):  # it is dead, which we are told when we read
                        # Its models too: each worker would need seconds to work out those of a zoo of a million.
                        worker.pipe.send((worker.stack, [models[model] for model in plan.stacks[worker.stack]]))
            ready = connection.wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                try:
                    message, value = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    crew.remove(worker)
                    how, stack = _end_of(worker), worker.stack
                    if stack is None:
                        continue
                    deaths[stack] += 1
                    retried(stack, how)
                    if deaths[stack] <= RETRIES:
                        waiting.appendleft(stack)
                    else:
                        failed.append(stack)
                    continue
                if message == "progress":
                    report(*value)
                elif message == "done":
                    worker.stack = None
                elif message == "refused":
                    raise value
                else:
                    raise RuntimeError(f"a worker failed; this is a fault of zootools:\n{value}")
    finally:
        for worker in crew:
            worker.lifeline.close()  # workers leave at once; every file they write appears whole or not at all
            if worker.process is not None:
                worker.process.kill()
        for worker in crew:
            _end_of(worker)
    return sorted(failed)


def _start(context: Any, folder: Path, plan: "Plan", classes: int, backend: "Backend", lock: int) -> _Worker:
    pipe, worker_pipe = context.Pipe()
    watched, lifeline = context.Pipe(duplex=False)
    process = context.Process(
        target=_main,
        args=(folder, plan.schema, plan.spec.training, classes, backend, worker_pipe, watched, _Shared(lock)),
        daemon=True,
    )
    try:
        process.start()
        started = True
    except (ConnectionError, EOFError):  # killed before it had read what it is to do, or the fork server was
        started = False
    worker_pipe.close()
    watched.close()
    return _Worker(process if started else None, pipe, lifeline)


def _main(
    folder: Path,
    schema: "Schema",
    training: "Training",
    classes: int,
    backend: "Backend",
    pipe: connection.Connection,
    watched: connection.Connection,
    lock: _Shared,
) -> None:
    """Train the stacks that come through the pipe, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=leave_with_parent, args=(watched,), daemon=True).start()

    import torch

    from zootools.engines.worker import map_images, train_stack
    from zootools.inside import path_inside
    from zootools.store import IMAGES, ZooFolder

    torch.set_num_threads(1)
    zoo, last = ZooFolder(folder, lock.descriptor), 0.0

    def report(stack: int, epochs: float) -> None:
        nonlocal last
        if epochs == int(epochs) or time.monotonic() - last > 0.5:
            last = time.monotonic()
            pipe.send(("progress", (stack, epochs)))

    with path_inside(folder, IMAGES) as path:
        images = map_images(path, classes, backend.device)
    while True:
        try:
            stack, models = pipe.recv()
        except EOFError:
            return
        try:
            train_stack(zoo, stack, models, schema, training, images, backend, report)
            pipe.send(("done", stack))
        except ZooError as error:
            pipe.send(("refused", error))
        except OSError as error:
            pipe.send(("refused", StorageError(f"stack {stack}: {error}")))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))


def leave_with_parent(watched: connection.Connection) -> None:
    """Wait for the parent's end of a pipe to close, which the system does however the parent dies."""
    try:
        watched.recv()
    except (EOFError, OSError):
        os._exit(1)


def _end_of(worker: _Worker) -> str:
    """Wait until a worker is gone, and say how it went."""
    if worker.process is None:
        return "while it was being started"
    worker.process.join()
    code = worker.process.exitcode
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
