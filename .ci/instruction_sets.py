"""Runs the tests of the kernel, of training and of builds once for every smaller instruction set.

The whole suite has run before with the widest one that the processor offers. Those that it does not offer are named.
"""

import os
import subprocess
import sys

from zootools.native.compiler import INSTRUCTION_SETS, ISA, missing_instructions

FILES = ("tests/unit/test_native.py", "tests/unit/test_training.py", "tests/build/test_build.py")
SELECTED = (
    "gradients or one_step or cannot_index or (test_training and native) "
    "or stored_scores or reference_trainer or equal_bytes or smaller_zoo or grown_zoo"
)
"""The tests of the values that the kernel computes and of zoos that it trains: half a minute of two cores for each
instruction set, and compiling. Nothing else in these files, and no kill, depends on the instruction set."""
TORCH = {"avx512": "avx512", "avx2": "avx2"}
"""What PyTorch calls them, for the backend `torch` beside the kernel; every smaller one is its default."""


def main() -> None:
    """Leave with the names of the instruction sets with which tests have failed."""
    missing = {name: missing_instructions(name) for name in INSTRUCTION_SETS}
    offered = [name for name, lacking in missing.items() if not lacking]
    for name, lacking in missing.items():
        if lacking:
            print(f"{name}: NOT TESTED, this processor lacks {', '.join(lacking)}", flush=True)
    failed = []
    for name in offered[1:]:
        print(f"+ {ISA}={name} pytest {' '.join(FILES)} -k '{SELECTED}'", flush=True)
        environment = {**os.environ, ISA: name, "ATEN_CPU_CAPABILITY": TORCH.get(name, "default")}
        words = ["-q", "-n", "2", "-o", f"cache_dir=.pytest_cache/{name}", "--durations=5", *FILES, "-k", SELECTED]
        command = [sys.executable, "-m", "pytest", *words]
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(name)
    sys.exit(f"tests fail with {ISA}={' and '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
