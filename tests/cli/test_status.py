"""The state of a build as `zootools status` tells it, while it runs, after an interruption, and at its end."""

import json
import os
import signal
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from crash import TINY, Builders, tree

from zootools.cli import main
from zootools.errors import BusyError
from zootools.filesystem.lock import FolderLock
from zootools.storage.build_state import ZooFolder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def status_of(out: Path) -> dict[str, Any]:
    result = run("status", out, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_build_runs_is_interrupted_and_finishes(builders: Builders, tmp_path: Path) -> None:
    spec, out, release = tmp_path / "tiny.yaml", tmp_path / "zoo", tmp_path / "release"
    spec.write_text(TINY)
    begun = time.time()
    build = builders.start(spec, out, held=[2, str(release)])
    deadline = time.monotonic() + 120
    while not (out / ".work/plan.json").exists() or status_of(out)["model_epochs_done"] < 3:
        assert time.monotonic() < deadline, "the build never came to its second epoch"
        time.sleep(0.05)
    lock = (out / ".work/lock").read_bytes()
    running = status_of(out)
    assert running["state"] == "running"
    builder = running["builder"]
    assert (builder["process"], builder["host"], builder["engine"]) == (build.pid, socket.gethostname(), "local")
    assert begun - 2 < seconds(builder["since"]) < time.time() + 2
    rate, left = running["model_epochs_per_second"], running["time_left_seconds"]
    assert rate > 0
    missing = running["model_epochs_expected"] - running["model_epochs_done"]
    assert (running["model_epochs_expected"], 0 < missing < 18) == (18, True)
    assert left == pytest.approx(missing / rate, abs=0.1)
    assert "resumed_by" not in running
    text = run("status", out).stdout
    assert f"process  {build.pid}\n" in text
    assert "time left" in text
    # Looking has changed nothing, and the lock is still that of the build.
    assert (out / ".work/lock").read_bytes() == lock
    assert f"process {build.pid} on " in run("build", spec, "--out", out).stderr

    build.signal(signal.SIGKILL)
    build.wait()
    interrupted = status_of(out)
    assert interrupted["state"] == "interrupted"
    assert interrupted["last_builder"] == builder
    assert begun - 2 < seconds(interrupted["last_written"]) < time.time() + 2
    assert interrupted["resumed_by"] == f"zootools build SPEC --out {out} (SPEC: the specification of tiny)"
    assert "model_epochs_per_second" not in interrupted

    release.touch()
    assert builders.build(spec, out) == 0
    assert status_of(out) | {"expected": 6, "ok": 6, "state": "finished", "checkpoints": 24} == status_of(out)
    assert not [name for name in tree(out) if name.startswith(".work")]


def test_a_process_without_a_plan_is_named(tmp_path: Path) -> None:
    with FolderLock(ZooFolder(tmp_path / "zoo").lock):
        refused = run("status", tmp_path / "zoo")
    assert refused.exit_code == 2
    assert f"process {os.getpid()} on {socket.gethostname()}" in refused.output
    assert "has not written a plan yet" in refused.output
    assert "no finished zoo" in run("status", tmp_path / "zoo").output


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"process 3 on an-older-version\n",
        b'{"host": "\x1b]0;x", "process": "x"}',
        b'{"began": 1e300}',
        b"\xff" * 9000,
    ],
)
def test_a_lock_file_may_contain_anything(tmp_path: Path, text: bytes) -> None:
    lock = ZooFolder(tmp_path / "zoo").lock
    with FolderLock(lock):
        lock.write_bytes(text)
        refused = run("status", tmp_path / "zoo")
        assert "a process is at work there, and has not written a plan yet" in refused.output
        with pytest.raises(BusyError, match=r"at work there \(just starting\)"), FolderLock(lock):
            pass
