"""How fast a zoo is verified: bytes per second of one core and of all, on a zoo of a few large shards.

    python benchmarks/verify.py [--gigabytes 2]

Prints the throughput of hashing alone (what `zootools verify` does with every file of a manifest), with one thread and
with all, in processor time and in wall time.
"""

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

from zootools import verify
from zootools.files import write_durably


def main() -> None:
    """Write files, forget them from this process, and hash them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    arguments = parser.parse_args()
    size, files = 32 << 20, {}
    with tempfile.TemporaryDirectory() as folder:
        block = os.urandom(size)
        for number in range(round(arguments.gigabytes * 2**30 / size)):
            data = number.to_bytes(8) + block[8:]
            name = f"checkpoints/stack-00000/epoch-{number:04d}.safetensors"
            write_durably(Path(folder) / name, data)
            files[name] = {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        total = len(files) * size / 1e9
        for threads in (1, os.cpu_count() or 1):
            wall, cpu = time.perf_counter(), time.process_time()
            found = list(verify.file_faults(Path(folder), files, threads=threads))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            assert not found
            print(
                f"{total:.2f} GB, {threads} thread(s): {total / wall:.2f} GB/s of wall time, "
                f"{total / cpu:.2f} GB/s of processor time and core"
            )


if __name__ == "__main__":
    main()
