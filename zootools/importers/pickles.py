"""State dicts of files: safetensors, and pickles of torch, which another process reads within limits.

A pickle can contain code. torch refuses to run it (``weights_only``), and in case that it fails to, the process has no
more memory and time than it needs; many files are read by one process, because starting it takes seconds.
"""

import fcntl
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from zootools.errors import WorkerError
from zootools.filesystem.files import open_regular
from zootools.storage.verified_files import unreadable

Array = npt.NDArray[Any]

# -P, because a module in the current folder, which may be one that was downloaded, must not be imported.
_COMMAND = (sys.executable, "-P", "-m", "zootools.importers.unpickle")

MAX_FILE = 1 << 30
"""Bytes of a file with one checkpoint."""
AHEAD_BYTES = 32 << 10
"""Bytes of requests without an answer at most: they fit into the buffer of a pipe, so that neither side blocks."""
ANSWER_BYTES = 1 << 20
"""Size of the pipe of the answers: the process works on while this one is busy with earlier files."""


@dataclass(frozen=True)
class Limits:
    """What the process that reads pickles may take."""

    memory: int = 3 << 30
    """Bytes beside those of torch itself."""
    seconds: float = 60.0
    """For one file, and for the start."""


def read_states(paths: Sequence[Path], limits: Limits = Limits()) -> Generator[dict[str, Array] | str, None, None]:
    """Yield the tensors of each file by name, or the reason why it cannot be read, in the order of ``paths``.

    Files that end in ``.safetensors`` are read here, all others by a process. bfloat16 becomes float32.
    Raises WorkerError if the process cannot be started.
    """
    pickles = [path for path in paths if path.suffix != ".safetensors"]
    with _Reader(pickles, limits) as reader:
        for path in paths:
            yield _read_safetensors(path) if path.suffix == ".safetensors" else reader.next()


def _read_safetensors(path: Path) -> dict[str, Array] | str:
    data = _bytes(path)
    if isinstance(data, str):
        return data
    return _loaded(data) or "is not a file of safetensors (is truncated or damaged)"


def _loaded(data: bytes) -> dict[str, Array] | None:
    try:
        return _plain(load(data))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        pass
    try:  # numpy has no bfloat16
        from safetensors.torch import load as load_torch

        return {name: tensor.float().numpy() for name, tensor in load_torch(data).items()}
    except Exception:  # safetensors raises many types for damaged files
        return None


def _plain(state: dict[str, Array]) -> dict[str, Array]:
    if any(values.dtype.kind not in "fiub" for values in state.values()):
        raise TypeError
    return state


def _bytes(path: Path) -> bytes | str:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read() if size <= MAX_FILE else "is larger than a file with one checkpoint may be"
    except OSError as error:
        return unreadable(error)


def _environment() -> dict[str, str]:
    """Return the environment of the process: this one's, without secrets."""
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
    kept = {name: value for name, value in os.environ.items() if name not in secrets}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class _Reader:
    """The process that reads pickles; it is started again if it dies or is ended for a file."""

    def __init__(self, paths: Sequence[Path], limits: Limits) -> None:
        self._paths, self._limits = paths, limits
        self._answered = 0
        self._waiting: deque[int] = deque()
        """The bytes of every request that was sent and not answered."""
        self._proved = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def next(self) -> dict[str, Array] | str:
        """Return the answer for the next file."""
        if self._process is None:
            self._start()
        self._ask()
        data = self._frame()
        self._waiting.popleft()
        self._answered += 1
        if isinstance(data, str):  # the process is of no use any more; what was asked for is asked for again
            self._stop()
            return data
        if data[:1] == b'"':
            return str(json.loads(data))
        return _loaded(data) or "holds tensors of a kind that is not read"

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [*_COMMAND, str(self._limits.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._waiting.clear()
        with suppress(OSError):  # more than this user may have
            fcntl.fcntl(self._pipe("stdout"), fcntl.F_SETPIPE_SZ, ANSWER_BYTES)

    def _ask(self) -> None:
        requests = self._pipe("stdin")
        with suppress(BrokenPipeError):
            while (position := self._answered + len(self._waiting)) < len(self._paths):
                line = json.dumps(os.path.realpath(self._paths[position])).encode() + b"\n"
                if self._waiting and sum(self._waiting) + len(line) > AHEAD_BYTES:
                    break
                requests.write(line)
                self._waiting.append(len(line))
            requests.flush()

    def _frame(self) -> bytes | str:
        """Return the bytes of the next answer, or why there is none."""
        deadline = time.monotonic() + self._limits.seconds
        head = self._read(8, deadline)
        if isinstance(head, bytes):
            self._proved = True
            size = int.from_bytes(head, "little")
            return self._read(size, deadline) if size <= self._limits.memory else "makes its reader answer nonsense"
        self._prove()
        return head

    def _prove(self) -> None:
        """Raise WorkerError if the process ends because it cannot start here, not because of a file."""
        if self._proved:
            return
        probe = subprocess.run(
            [*_COMMAND, str(self._limits.memory)], stdin=subprocess.DEVNULL, capture_output=True, env=_environment()
        )
        if probe.returncode:
            last = probe.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise WorkerError(f"the process that reads pickles cannot be started ({last:.300})")
        self._proved = True

    def _read(self, size: int, deadline: float) -> bytes | str:
        descriptor, parts, left = self._pipe("stdout").fileno(), list[bytes](), size
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return f"takes its reader more than {self._limits.seconds:g} seconds"
                part = os.read(descriptor, min(left, 1 << 20))
                if not part:
                    return "ends its reader (needs too much memory, or is damaged)"
                parts.append(part)
                left -= len(part)
        return b"".join(parts)

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] | None = getattr(self._process, name)
        assert pipe is not None
        return pipe

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.wait()
