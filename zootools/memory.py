"""Total and available memory, within the limits of the machine, of control groups and of this process."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int:
    """Return the bytes of memory that the processes of a build can use together; memory in use is not subtracted.

    It is the memory of the machine, or the smaller limit of a batch system or a container.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, limit, _ in _groups():
        with suppress(OSError, ValueError):  # ValueError: "max" means no limit
            limits.append(int((group / limit).read_text()))
    return min(limits)


def available_memory() -> int:
    """Return the bytes that this process can allocate now without being killed or refused; swap space is included."""
    limits = [_free_of_machine()]
    for group, limit, used in _groups():
        with suppress(OSError, ValueError):
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Cached pages of files count as used, but the system frees them when memory is needed.
            cached = int(statistics.get("inactive_file", 0))
            limits.append(int((group / limit).read_text()) - int((group / used).read_text()) + cached)
    for kind, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - _in_use(column))
    return max(0, min(limits))


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB (10^9 bytes), with one decimal, or two below one GB."""
    return f"{count / 1e9:,.{1 if count >= 1e9 else 2}f} GB"


def _groups() -> Iterator[tuple[Path, str, str]]:
    """Yield the control groups of this process (versions 2 and 1), innermost first, with their files: limit, usage."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, files = _GROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield folder, *files


def _free_of_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _in_use(column: int) -> int:
    """Return the bytes in a column of /proc/self/statm: 0 for the address space, 5 for data."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()
    except OSError:
        return 0
