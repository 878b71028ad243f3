"""The batch script of docs/cluster.md: its Ray and its command, on loopback, with an `srun` that starts them here."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm" / "zootools.sbatch"
PROGRAMS = {
    "python": f'exec {sys.executable} "$@"',
    "ray": f'exec {sys.executable} -m ray.scripts.scripts "$@"',
    "zootools": f'exec {sys.executable} -m zootools "$@"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that Slurm gives a job of two nodes, and a place for Ray whose sockets have short names."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"CPUS_ON_NODE": "1", "JOB_NUM_NODES": "2", "JOB_ID": str(os.getpid())}
    ray = tempfile.mkdtemp(prefix="zt-")
    yield {
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        "SLURMD_NODENAME": "first",
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAY_TMPDIR": ray,
        "OMP_NUM_THREADS": "1",
    }
    shutil.rmtree(ray)


def test_the_batch_script_runs_a_command_on_all_nodes_and_takes_ray_down(
    tiny_zoo: Path, tmp_path: Path, node: dict[str, str]
) -> None:
    out = tmp_path / "out"
    words = ["represent", "--zoo", str(tiny_zoo), "--recipe", "smoke", "--epochs", "1", "--out", str(out), "--json"]
    # Were it to hang, it would be stopped as Slurm stops it, and nothing of it would stay.
    command = ["timeout", "400", "bash", SCRIPT, *words]
    done = subprocess.run(command, env=node, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "results.parquet").exists()
    assert (out / "seed-0" / "model.safetensors").exists()
    assert (done.stdout + done.stderr).count("Ray runtime started") == 2
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
    assert not [words for words in left if node["RAY_TMPDIR"] in " ".join(words)]
