"""What a run costs: processor seconds and memory, on one thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from zootools.training.repeatable import one_thread as torch_on_one_thread

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux: the memory of this process, and the file that resets the peak to the present memory."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, of which the last bits depend neither on the machine nor on the engine."""
    with torch_on_one_thread(), threadpool_limits(1):
        yield


@dataclass
class Cost:
    """Processor seconds, and bytes beyond those that were in use before; None where the system does not say."""

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def measured() -> Iterator[Cost]:
    """Yield a cost that is complete when the block ends."""
    cost = Cost()
    before = _memory("VmRSS") if _reset() else None
    begun = time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - begun
        peak = _memory("VmHWM")
        if before is not None and peak is not None:
            cost.peak_bytes = max(0, peak - before)


def _reset() -> bool:
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def _memory(key: str) -> int | None:
    """Return a line of the status of this process in bytes."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
