"""The local engine: worker processes on this machine, each of which trains whole stacks with one thread.

The workers write the results to the zoo's folder themselves; through the pipes travel the stacks to train, the
progress, and errors. When a worker dies, another one resumes its stack after the last whole epoch. An error that a
worker can report would only come again, so it ends the build at once; so does a worker that cannot start.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, reduction
from types import ModuleType
from typing import Any

from zootools.engines.engine import NOTHING, RETRIES, BuildJob, Report, Retried
from zootools.engines.failures import raise_stopped, stopped_by
from zootools.errors import ClusterError, WorkerError
from zootools.phases import processor_seconds
from zootools.storage.build_state import ZooFolder

LOOK_EVERY = 1.0
"""Seconds between two checks that the folder has not been moved or removed."""
HOPELESS = 3
"""When this many stacks have failed before any worker made progress, the others are not tried."""


class LocalEngine:
    """Trains in worker processes of this machine.

    Args:
        address: must be None, because there is no cluster. Raises ClusterError otherwise.
    """

    trains_here = True

    def __init__(self, address: str | None = None) -> None:
        if address is not None:
            raise ClusterError(f"address {address!r:.200}: the local engine has none; --address goes with --engine ray")

    def train(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> dict[int, str]:
        """Train stacks in ``job.workers`` processes, one by default (see `Engine.train`)."""
        return _Crew(job, stacks, report, retried).train()


@dataclass(frozen=True)
class _Shared:
    """A file descriptor that a new process receives with its arguments, before it runs any code of ours."""

    descriptor: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> _Shared:
    return _Shared(duplicate.detach())


@dataclass
class _Worker:
    process: Any
    """None if it was killed while it was being started; its pipe is then closed, like that of any dead worker."""
    pipe: connection.Connection
    lifeline: connection.Connection
    ready: bool = False
    """Whether it has imported the backend and mapped the images."""
    stack: int | None = None


class _Crew:
    """The workers of one build, and the stacks that are left for them."""

    def __init__(self, job: BuildJob, stacks: Sequence[int], report: Report, retried: Retried) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # torch is imported once in the fork server; every worker then starts in a tenth of a second.
        self._context.set_forkserver_preload(["zootools.engines.worker"])
        self._job, self._models = job, job.plan.models()
        plan = job.plan
        arguments = (job.zoo.path, plan.schema, plan.spec.training, job.classes, job.backend)
        self._pickled = bytes(reduction.ForkingPickler.dumps(arguments))
        self._report, self._retried = report, retried
        self._workers: list[_Worker] = []
        self._waiting, self._failed = deque(stacks), dict[int, str]()
        self._deaths = Counter[int]()
        self._start_seconds = 0.0
        """Processor seconds of the start of workers that are not reported yet."""
        self._progress = False
        """Whether any worker has trained anything."""
        self._looked = time.monotonic()

    def train(self) -> dict[int, str]:
        """Train all stacks; return those that failed (`LocalEngine.train`)."""
        try:
            while self._is_left() and (self._progress or len(self._failed) < HOPELESS):
                self._start_workers()
                self._hand_out_stacks()
                ready = connection.wait([worker.pipe for worker in self._workers], timeout=LOOK_EVERY)
                self._look_after_folder()
                for worker in [worker for worker in self._workers if worker.pipe in ready]:
                    self._listen(worker)
        finally:
            self._dismiss()
        return dict(sorted(self._failed.items()))

    def _is_left(self) -> bool:
        return bool(self._waiting) or any(worker.stack is not None for worker in self._workers)

    def _start_workers(self) -> None:
        busy = sum(worker.stack is not None for worker in self._workers)
        while len(self._workers) < min(self._job.workers or 1, busy + len(self._waiting)):
            with _without_script(self._pickled):
                self._workers.append(_start(self._context, self._pickled, self._job.lock))

    def _hand_out_stacks(self) -> None:
        for worker in self._workers:
            if worker.stack is None and self._waiting:
                worker.stack = self._waiting.popleft()
                # With its models: each worker would need seconds to work out those of a zoo of a million.
                models = [self._models[model] for model in self._job.plan.stacks[worker.stack]]
                with suppress(ConnectionError):  # the worker died; `_listen` finds out
                    worker.pipe.send((worker.stack, models))

    def _look_after_folder(self) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._job.zoo.fence()
            self._looked = time.monotonic()

    def _listen(self, worker: _Worker) -> None:
        try:
            message, value = worker.pipe.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if message == "progress":
            self._progress = True
            stack, epochs, seconds = value
            self._report(stack, epochs, {"workers": self._start_seconds, **seconds})
            self._start_seconds = 0.0
        elif message == "ready":
            own, of_server = value
            # The fork server, which has imported torch for all workers, counts once.
            self._start_seconds += own if any(other.ready for other in self._workers) else own + of_server
            worker.ready = True
        elif message == "done":
            worker.stack = None
            self._report(value, self._job.plan.spec.training.epochs)  # also where all models have diverged before
        else:
            raise_stopped(value)

    def _bury(self, worker: _Worker) -> None:
        """Remove a dead worker, and try its stack again or give it up."""
        self._job.zoo.fence()
        self._workers.remove(worker)
        stack, how = worker.stack, _end_of(worker)
        if stack is None:
            return
        self._deaths[stack] += 1
        self._retried(stack, how)
        if self._deaths[stack] <= RETRIES:
            self._waiting.appendleft(stack)
        else:
            self._failed[stack] = how

    def _dismiss(self) -> None:
        for worker in self._workers:
            worker.lifeline.close()  # workers leave at once; every file they write appears whole or not at all
            if worker.process is not None:
                worker.process.kill()
        for worker in self._workers:
            _wait_for(worker)


@contextmanager
def _without_script(job: bytes) -> Iterator[None]:
    """Start workers in this block that do not import the user's script.

    multiprocessing makes every new process import the main module again, and a script without the ``__main__`` guard
    would start a build there. Only a job with a backend that is defined in the script needs the import.
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
    except (
        ConnectionError,
        EOFError,
    ):  # the process was killed before it had read its arguments, or the fork server was
        started = False
    worker_pipe.close()
    watched.close()
    return _Worker(process if started else None, pipe, lifeline)


def _main(job: bytes, pipe: connection.Connection, watched: connection.Connection, lock: _Shared) -> None:
    """Train the stacks that come through the pipe, until the parent closes it or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the group; the parent ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=leave_with_parent, args=(watched,), daemon=True).start()
    last, doing = 0.0, "a worker cannot start"

    def report(stack: int, epochs: float, seconds: Mapping[str, float] = NOTHING) -> None:
        nonlocal last
        if epochs == int(epochs) or time.monotonic() - last > 0.5:
            last = time.monotonic()
            pipe.send(("progress", (stack, epochs, dict(seconds))))

    try:
        import torch

        from zootools.engines.worker import IMPORT_SECONDS, train_stack
        from zootools.storage.image_tensors import map_images

        torch.set_num_threads(1)
        # The job comes pickled, so that an error while it is unpickled can be reported.
        folder, schema, training, classes, backend = reduction.ForkingPickler.loads(job)
        zoo = ZooFolder(folder, lock.descriptor)
        images = map_images(zoo, classes, backend.device)
        pipe.send(("ready", (processor_seconds(), IMPORT_SECONDS)))
        while True:
            try:
                stack, models = pipe.recv()
            except EOFError:
                return
            doing = f"stack {stack} cannot be trained"
            train_stack(zoo, stack, models, schema, training, images, backend, report)
            pipe.send(("done", stack))
    except Exception as error:
        with suppress(OSError):  # the parent has died
            pipe.send(("stopped", stopped_by(error, doing)))


def leave_with_parent(watched: connection.Connection) -> None:
    """Wait until the parent's end of a pipe is closed, as it is however the parent dies; then end this process."""
    try:
        watched.recv()
    except (EOFError, OSError):
        os._exit(1)


def _wait_for(worker: _Worker) -> int | None:
    """Wait until a worker has ended; return its exit code, None if it was never started."""
    if worker.process is None:
        return None
    worker.process.join()
    return int(worker.process.exitcode)


def _end_of(worker: _Worker) -> str:
    """Wait until a worker has ended; return how. Raises WorkerError if its import of the user's script failed."""
    code = _wait_for(worker)
    if code is None:
        return "while it was being started"
    if code == 1 and not worker.ready:
        raise WorkerError(
            "a worker cannot start: Python ended while it imported the script that calls build(), which defines the "
            'backend; a script needs `if __name__ == "__main__":` before that call, or the backend a module of its own'
        )
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
