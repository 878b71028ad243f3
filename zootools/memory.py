"""How much memory this process may still take: by the machine, its control group, and the limits of the process."""

import os
import resource
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return bytes that this process may take now without being ended or refused; swap space counts."""
    limits = [_of_machine(), *_of_group()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - _address_space())
    return max(0, min(limits))


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB (of 10^9 bytes), with one digit after the point, or two below one GB."""
    return f"{count / 1e9:,.{1 if count >= 1e9 else 2}f} GB"


def _of_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_group() -> list[int]:
    """Return what the control group (version 2) of a container or a job leaves; nothing where it has no limit."""
    try:
        name = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = _GROUPS / name.strip("/")
        folder = folder if folder.is_dir() else _GROUPS
        most, used = ((folder / f"memory.{what}").read_text().strip() for what in ("max", "current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Pages of files that were read count as used, but are given back when they are needed.
        return [int(most) - int(used) + int(stat.get("inactive_file", 0))]
    except (OSError, ValueError, StopIteration):
        return []


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
