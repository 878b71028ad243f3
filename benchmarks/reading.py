"""Measure the first `weights()` of a zoo, which hashes every shard, relative to a plain copy of the same files.

    python benchmarks/reading.py zoos/tetris_seed [ZOO ...]

Prints for each zoo, and for a made-up one with shards of 2.5 MB, the processor and wall-clock milliseconds of a plain
copy (each file read into one array in memory), of SHA-256 of bytes that are in memory, of the first `weights()` and of
a later one: the minimum of several rounds, in each of which all are timed in turn. The bound is what the first
`weights()` would take if it only copied and hashed: the sum of both, divided by the copy. All files are in the
system's cache.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from verify import make_zoo

from zootools import open_zoo

Result = TypeVar("Result")
Times = tuple[float, float]
"""Processor and wall-clock seconds."""


def main() -> None:
    """Measure the zoos that were named, and a made-up one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_zoo(Path(folder), 48)
        for zoo in (*arguments.zoos, Path(folder)):
            show(zoo, arguments.rounds)


def show(zoo: Path, rounds: int) -> None:
    """Measure one zoo, and print a table of the milliseconds."""
    shards = sorted(zoo.glob("checkpoints/*/*.safetensors"))
    size = sum(path.stat().st_size for path in shards)
    measured = [one_round(zoo, shards, size) for _ in range(rounds)]
    best = {
        what: (min(times[what][0] for times in measured), min(times[what][1] for times in measured))
        for what in measured[0]
    }
    plain = best["plain copy"]
    print(
        f"\n{open_zoo(zoo).name}: {len(shards):,} shards of {size / len(shards) / 1e3:.0f} KB, {size / 1e6:.0f} MB\n\n"
        "| | processor ms | of a copy | microseconds per shard | wall-clock ms | of a copy |\n|---|--:|--:|--:|--:|--:|"
    )
    bound = (plain[0] + best["SHA-256"][0], plain[1] + best["SHA-256"][1] / (os.cpu_count() or 1))
    for what, (processor, wall) in {**best, "bound: copy and SHA-256": bound}.items():
        print(
            f"| {what} | {1e3 * processor:.0f} | {processor / plain[0]:.1f} | {1e6 * processor / len(shards):.0f} "
            f"| {1e3 * wall:.0f} | {wall / plain[1]:.1f} |"
        )
    print(f"\nSHA-256: {size / best['SHA-256'][0] / 1e9:.2f} GB/s, copy: {size / plain[0] / 1e9:.2f} GB/s of a core")


def one_round(zoo: Path, shards: list[Path], size: int) -> dict[str, Times]:
    """Time everything once, in turn."""
    opened = open_zoo(zoo, include_diverged=True)
    copied, of_copy = timed(lambda: copy(shards, size))
    _, of_hash = timed(lambda: [hashlib.sha256(file) for file in copied])
    _, first = timed(opened.weights)
    _, again = timed(opened.weights)
    return {"plain copy": of_copy, "SHA-256": of_hash, "first weights(), hashing": first, "weights() again": again}


def copy(shards: list[Path], size: int) -> list[memoryview]:
    """Read files one behind the other into one new array; return the part of each."""
    target, parts, position = np.empty(size, np.uint8).data, [], 0
    for path in shards:
        with path.open("rb") as file:
            parts.append(target[position : position + os.fstat(file.fileno()).st_size])
            position += file.readinto(parts[-1])
    assert position == size
    return parts


def timed(call: Callable[[], Result]) -> tuple[Result, Times]:
    """Return the result of a call, and its processor and wall-clock seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.process_time() - processor, time.perf_counter() - wall)


if __name__ == "__main__":
    main()
