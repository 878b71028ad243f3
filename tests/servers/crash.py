"""A fork server that builds zoos, to kill them by the hundred.

`Builders` starts this file as a program. It imports torch once, and forks a process for every build, so one
costs a tenth of a second instead of three. The workers of these builds are forked too, instead of coming from
multiprocessing's own server; all else is what `zootools build` does.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import own_backends

BACKEND: Any = "torch"
"""The backend of the fork server's builds; torch is imported there anyway."""

NIGHTLY = float(os.environ.get("ZOOTOOLS_NIGHTLY", 0))
"""The size of the long lane (`make nightly`): 1 for all of it, 0.1 for a tenth, 0 for the usual tests."""
SEED = int(os.environ.get("ZOOTOOLS_FAULT_SEED", random.randrange(10**6)))


def lane(usual: int, nightly: int) -> int:
    """Return the number of tries of a test: ``usual``, or ``nightly`` in the long lane."""
    return max(usual, round(nightly * NIGHTLY)) if NIGHTLY else usual


@contextlib.contextmanager
def folder_in_memory(otherwise: Path) -> Iterator[Path]:
    """A new folder on a disk in memory, or where there is none in another one.

    Most of the time of a small build, or of one of a million mutations, is waiting for a real disk.
    """
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else otherwise) as folder:
        yield Path(folder)


def fault_random(test: str) -> random.Random:
    """Return the random numbers of one test; $ZOOTOOLS_FAULT_SEED repeats them."""
    print(f"ZOOTOOLS_FAULT_SEED={SEED}")
    return random.Random(f"{SEED}/{test}")


def counted(wanted: int, what: str) -> Iterator[int]:
    """Count tries, and print every 10,000th, so that a long test that is stopped has shown its count."""
    for number in range(wanted):
        if number and number % 10_000 == 0:
            print(f"{what}: {number} so far", flush=True)
        yield number


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a zoo but build.json, the one that may differ."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "build.json"
    }


def committed(out: Path) -> dict[str, int]:
    """Every shard that the records of an unfinished build name, and the epoch that its stack has reached."""
    from zootools.storage.build_state import ZooFolder

    zoo = ZooFolder(out)
    plan = zoo.read_plan()
    found = {}
    for stack in range(len(plan.stacks) if plan else 0):
        record = zoo.read_record(stack)
        found |= dict.fromkeys(record.shards if record else (), record.epoch if record else -1)
    return found


def check_what_is_visible(out: Path) -> None:
    """Check that a stopped build has left a valid part of a zoo, or nothing yet."""
    from zootools import open_zoo
    from zootools.errors import ZooNotFoundError
    from zootools.verify import faults

    try:
        assert [str(fault) for fault in faults(out)] == []
        zoo = open_zoo(out, include_diverged=True)
    except ZooNotFoundError:
        return
    zoo.weights()
    identities = list(zip(*zoo.metadata.select(["model_id", "epoch"]).to_pydict().values(), strict=True))
    assert len(set(identities)) == len(identities)
    counts = zoo.counts
    assert counts.expected == counts.ok + counts.diverged + counts.failed + counts.missing


TINY = """
name: tiny
images: {name: tetris, train: 40, test: 50, noise_train: 0.2, noise_test: 0.8}
architecture: {name: mlp, hidden: [5], bias: false}
grid: {activation: [tanh, relu], init: [uniform], optimizer: [adam], lr: [1.0e-2]}
seeds: {range: [1, 3]}
training: {epochs: 3, batch_size: 4}
"""
"""Six models in two stacks."""

CNN = """
name: digits
images: {name: digits, train: 48, validation: 30, test: 60, size: 28}
architecture: {name: cnn_small}
grid: {activation: [tanh], init: [kaiming_uniform], optimizer: [adam, sgd], lr: [1.0e-2], dropout: [0.0, 0.3]}
seeds: {range: [1, 5]}
training: {epochs: 2, batch_size: 8, train_metrics_images: 32}
"""
"""Twenty CNNs of every optimizer and dropout rate that it names."""


SMALL = TINY.replace("tanh, relu", "tanh").replace("epochs: 3", "epochs: 2")
"""Three models in one stack: as few files as a zoo can have."""


def held(epoch: int, release: Path) -> Callable[..., None]:
    """Return a `ZooFolder.commit` that waits, at this epoch and later ones, until the file ``release`` exists.

    So a test finds a build in the middle of its training, however fast the processor is and however slow the test.
    """
    from zootools.storage.build_state import ZooFolder

    commit = ZooFolder.commit

    def wait_and_commit(self: ZooFolder, stack: int, record: Any, found: Any) -> None:
        while found.number >= epoch and not release.exists():
            time.sleep(0.005)
        commit(self, stack, record, found)

    return wait_and_commit


HELD = """
import sys
if sys.orig_argv[1:3] == ["-m", "zootools"] or "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    sys.path.insert(0, {servers!r})
    from pathlib import Path
    import crash
    from zootools.storage.build_state import ZooFolder
    ZooFolder.commit = crash.held({epoch}, Path({release!r}))
"""
"""The start-up code of the command and of the local engine's workers (not of Ray's own processes)."""


def held_environment(folder: Path, epoch: int, release: Path) -> dict[str, str]:
    """Return the environment of a command whose build is `held`; ``folder`` is for this alone."""
    folder.mkdir()
    text = HELD.format(servers=str(Path(__file__).parent), epoch=epoch, release=str(release))
    (folder / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


class Build:
    """One build in a process group of its own."""

    def __init__(self, server: "Builders", pid: int) -> None:
        self.server, self.pid = server, pid

    def go(self) -> Self:
        """Start the build that waits since ``wait=True``."""
        self.server.ask("go", pid=self.pid)
        return self

    def wait(self) -> int:
        """Return the exit code, negative for a signal; nothing of the group is left then."""
        return int(self.server.ask("wait", pid=self.pid)["code"])

    def kill(self, after: float = 0) -> int:
        """Kill the whole group after some seconds, if it has not ended by then; return as `wait` does."""
        return int(self.server.ask("kill", pid=self.pid, after=after)["code"])

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.pid, number)


class Builders:
    """The server, as the tests see it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def start(self, spec: Path, out: Path | str, wait: bool = False, **change: Any) -> Build:
        """Start a build; what it prints goes to ``<out>.log``, or ``<spec>.log`` where ``out`` is a URL.

        ``change`` names a `CHANGES` and its argument; ``options`` are those of the build.
        """
        build = Build(self, self.ask("start", spec=str(spec), out=str(out), change=change)["pid"])
        return build if wait else build.go()

    def build(self, spec: Path, out: Path | str, **change: Any) -> int:
        """Build to the end and return the exit code."""
        return self.start(spec, out, **change).wait()


def traced(build: Build, log: Path, *words: str, thread: Path | None = None) -> int:
    """Run a waiting build under strace; return its exit code.

    Traced is the builder's main thread, or the one that announces itself in the file ``thread``.
    """
    if thread is not None:
        build.go()
        deadline = time.monotonic() + 120
        while not thread.exists() or not thread.read_text():
            assert time.monotonic() < deadline, "no thread of this role has begun"
            time.sleep(0.002)
    traced = int(thread.read_text()) if thread else build.pid
    command = ["strace", "-y", "-s", "0", "-o", str(log), "-p", str(traced), *words]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have ended already
            while "TracerPid:\t0" in Path(f"/proc/{traced}/status").read_text():
                assert strace.poll() is None, "strace cannot attach here"
                time.sleep(0.002)
        return (build if thread else build.go()).wait()
    finally:
        strace.wait()


# --- the server's side ---------------------------------------------------------------------------------


def _in_place() -> None:
    """Write files where they are to be, without a temporary one."""
    from contextlib import contextmanager

    from zootools.filesystem import files
    from zootools.storage import build_state

    @contextmanager
    def write(path: Path, root: Path | None = None, fence: Any = None) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            yield file

    files.durable_file = build_state.durable_file = write  # type: ignore[assignment]


def _no_sync() -> None:
    """Never sync anything."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]


def _journal_first() -> None:
    """Write the record of a stack before the shard that it names."""
    from zootools.storage import build_state
    from zootools.storage.shards import shard_name
    from zootools.storage.verified_files import FileInfo

    def commit(self: Any, stack: int, record: Any, epoch: Any) -> None:
        name, data = shard_name(stack, epoch.number), epoch.shard
        record.shards[name] = FileInfo.of(data)
        record.epoch, record.stopped, record.done = epoch.number, epoch.stopped, epoch.done
        self.write_record(stack, record, epoch.state)
        self.write(name, data)

    build_state.ZooFolder.commit = commit  # type: ignore[method-assign]


def _positional() -> None:
    """Number the rows of the index as they come, instead of taking each from the shard that it is in."""
    from zootools.storage import finish

    real = finish.metadata_table

    def metadata_table(*arguments: Any, **options: Any) -> Any:
        table = real(*arguments, **options)
        ids = sorted(table["model_id"].to_pylist())
        return table.set_column(0, "model_id", [ids])

    finish.metadata_table = metadata_table


def _abort(stack: int) -> None:
    """Abort every worker of one stack, as after a segmentation fault."""
    from zootools.engines import worker

    real = worker.train_stack

    def train_stack(folder: Any, number: int, *arguments: Any) -> None:
        if number == stack:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        real(folder, number, *arguments)

    worker.train_stack = train_stack


def _haste(heartbeat: float, expiry: float, pauses: list[float]) -> None:
    """Shorten the heartbeat and expiry of leases, and the pauses before failed calls are retried."""
    from zootools.object_store import client, lease

    lease.HEARTBEAT, lease.EXPIRY, client.PAUSES = heartbeat, expiry, tuple(pauses)


def _held(epoch: int, release: str) -> None:
    """Stop the build at an epoch (`held`)."""
    from zootools.storage.build_state import ZooFolder

    ZooFolder.commit = held(epoch, Path(release))  # type: ignore[method-assign]


def _file_size(limit: int) -> None:
    """Limit the size of every file to ``limit`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _list_modules(folder: str) -> None:
    """Note which modules the builder and its worker have imported in the end."""
    from zootools.building import builder
    from zootools.engines import worker

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            (Path(folder) / f"{os.getpid()}.modules").write_text(" ".join(sys.modules))
            return result

        return run

    worker.train_stack = noting(worker.train_stack)
    builder.finish_zoo = noting(builder.finish_zoo)


def _die_idle() -> None:
    """Kill every worker between two stacks; the builder sends it the next stack before it notices."""
    import select
    from multiprocessing.connection import Connection

    builder, receive, send = os.getpid(), Connection.recv, Connection.send
    received, sent = set[int](), set[int]()

    def recv(self: Any) -> Any:
        if os.getpid() != builder:
            if self.fileno() in received:
                os.kill(os.getpid(), signal.SIGKILL)
            received.add(self.fileno())
        return receive(self)

    def send_to_the_dead(self: Any, value: Any) -> None:
        if os.getpid() == builder and isinstance(value, int):
            if self.fileno() in sent:
                hangup = select.poll()
                hangup.register(self.fileno(), 0)
                hangup.poll()
            sent.add(self.fileno())
        send(self, value)

    Connection.recv, Connection.send = recv, send_to_the_dead  # type: ignore[method-assign]


def _announce(where: str) -> None:
    """Write the number of the first thread that calls this to a file, and wait until it is traced."""
    try:
        note = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    status = os.open(f"/proc/{threading.get_native_id()}/status", os.O_RDONLY)
    os.write(note, b"%d" % threading.get_native_id())
    os.close(note)
    while b"TracerPid:\t0\n" in os.pread(status, 4096, 0):  # no further call that a fault could hit
        time.sleep(0.001)
    os.close(status)


def _hold_worker(where: str) -> None:
    """Stop the first worker until it is traced; kill the builder when that worker dies."""
    from zootools import progress
    from zootools.storage import image_tensors

    real = image_tensors.map_images  # the first thing that a worker does with the zoo

    def map_images(*arguments: Any) -> Any:
        _announce(where)
        return real(*arguments)

    image_tensors.map_images = map_images
    progress.Progress.retried = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def _hold_reader(where: str) -> None:
    """Stop the first thread that reads a shard for the tables until it is traced."""
    from zootools.storage import verified_files

    real = verified_files.VerifiedFiles.reading

    def reading(self: Any, *arguments: Any) -> Any:
        _announce(where)
        return real(self, *arguments)

    verified_files.VerifiedFiles.reading = reading  # type: ignore[method-assign]


def _mischief(command: str, then: str = "go") -> None:
    """Run a shell command after stack 0 has committed epoch 1; then let its worker go, wait for ever, or die."""
    from zootools.storage import build_state

    real = build_state.ZooFolder.commit

    def commit(self: Any, stack: int, record: Any, epoch: Any) -> None:
        real(self, stack, record, epoch)
        if (stack, epoch.number) == (0, 1):
            subprocess.run(command, shell=True, check=True)
            if then == "wait":
                threading.Event().wait()
            elif then == "die":
                os.kill(os.getpid(), signal.SIGKILL)

    build_state.ZooFolder.commit = commit  # type: ignore[method-assign]


def _fail_to_start(how: str) -> None:
    """Make every worker fail while it maps the images: a missing module, too little memory, or another error."""
    from zootools.storage import image_tensors

    real = image_tensors.map_images

    def map_images(*arguments: Any) -> Any:
        if how == "import":
            sys.modules["safetensors"] = None  # type: ignore[assignment]
        elif how == "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used, used))
            bytearray(2**30)
        else:
            raise RuntimeError(how)
        return real(*arguments)

    image_tensors.map_images = map_images


CHANGES: dict[str, Callable[..., None]] = {
    "mischief": lambda words: _mischief(*words),
    "fail_to_start": _fail_to_start,
    "backend": lambda name: globals().update(BACKEND=own_backends.BACKENDS[name]),
    "in_place": lambda _: _in_place(),
    "no_sync": lambda _: _no_sync(),
    "journal_first": lambda _: _journal_first(),
    "positional": lambda _: _positional(),
    "abort": _abort,
    "abort_all": lambda _: _abort_all(),
    "die_idle": lambda _: _die_idle(),
    "hold_worker": _hold_worker,
    "hold_reader": _hold_reader,
    "environment": os.environ.update,
    "held": lambda moment: _held(*moment),
    "haste": lambda times: _haste(*times),
    "list_modules": _list_modules,
    "file_size": _file_size,
}


def _abort_all() -> None:
    """Kill the worker of every stack, always."""
    from zootools.engines import worker

    worker.train_stack = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def _build(spec: str, out: str, change: dict[str, Any]) -> None:
    from zootools import ZooError, build, load_spec

    log = os.open(f"{spec if '://' in out else out}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment,return-value]
    code, options = 1, change.pop("options", {})
    try:
        for name, argument in change.items():
            CHANGES[name](argument)
        build(load_spec(Path(spec)), out, device="cpu", workers=1, backend=BACKEND, quiet=True, **options)
        code = 0
    except ZooError as error:
        os.write(2, f"{error}\n".encode())
        code = error.exit_code
    except OSError as error:  # as the command line does it
        os.write(2, f"{error}\n".encode())
        code = 74
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def _serve() -> None:
    import torch

    import zootools.engines.local
    import zootools.engines.worker
    import zootools.storage.card
    import zootools.storage.manifest
    import zootools.storage.tables  # noqa: F401

    with contextlib.suppress(ImportError):
        import s3fs  # noqa: F401
    torch.set_num_threads(1)
    _import_what_a_build_imports()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the workers of a killed builder become ours
    gates, started = dict[int, int](), set[int]()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["task"] == "start":
            gate, opener = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                os.close(opener)
                for other in gates.values():
                    os.close(other)
                os.read(gate, 1)
                os.close(gate)
                _build(request["spec"], request["out"], request["change"])
            os.setpgid(pid, pid)  # here too, so that the group is there when we return
            os.close(gate)
            started.add(pid)
            gates[pid], answer = opener, {"pid": pid}
        elif request["task"] == "go":
            os.write(gates[request["pid"]], b"x")
            os.close(gates.pop(request["pid"]))
        else:
            started.discard(request["pid"])
            answer = {"code": _reap(request["pid"], request.get("after"))}
        print(json.dumps(answer), flush=True)
    for pid in started:  # the test has failed, and left its builds to us
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _import_what_a_build_imports() -> None:
    """Build a zoo in a child, and import here what builder and worker have imported there."""
    import importlib

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spec.yaml").write_text(TINY)
        pid = os.fork()
        if pid == 0:
            _build(f"{folder}/spec.yaml", f"{folder}/zoo", {"list_modules": folder})
        os.waitpid(pid, 0)
        for path in Path(folder).glob("*.modules"):
            for name in path.read_text().split():
                if name not in sys.modules and not name.startswith("__"):
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)


def _reap(pid: int, after: float | None) -> int:
    """Wait for a builder, or kill its group after some time; then for all that is left of the group."""
    deadline = None if after is None else time.monotonic() + after
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG if deadline is not None else 0)
        if ended or (deadline is not None and time.monotonic() >= deadline):
            break
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    while True:
        try:
            other, code = os.waitpid(-pid, 0)
        except ChildProcessError:
            return os.waitstatus_to_exitcode(status)
        if other == pid:
            status = code


if __name__ == "__main__":
    _serve()
