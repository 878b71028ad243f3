"""Several builders and readers of one folder (rows K1-K3): one works, a zombie is fenced, no reader sees half a zoo."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from crash import SMALL, TINY, Build, Builders, lane, traced, tree
from samples import needs_strace

from zootools import open_zoo
from zootools.errors import BusyError, StorageError, ZooNotFoundError
from zootools.storage.build_state import ZooFolder
from zootools.verify import faults


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specification whose build takes longer than any test."""
    path = tmp_path_factory.mktemp("spec") / "endless.yaml"
    path.write_text(SMALL.replace("epochs: 2", "epochs: 50000"))
    return path


def epoch_of(out: Path) -> int:
    record = ZooFolder(out).read_record(0)
    return record.epoch if record else -1


def wait_for_epoch(out: Path, epoch: int) -> None:
    while epoch_of(out) < epoch:
        time.sleep(0.005)


def check_rows(out: Path) -> None:
    """No fault, and no checkpoint twice."""
    assert [str(fault) for fault in faults(out)] == []
    rows = open_zoo(out, verify=False).metadata.select(["model_id", "epoch"]).to_pylist()
    assert len({(row["model_id"], row["epoch"]) for row in rows}) == len(rows)


def test_k1_of_eight_builders_one_works_and_seven_leave_with_75(
    tmp_path: Path, builders: Builders, endless: Path
) -> None:
    """In every round the holder is killed at the end, so every round but the first is a takeover as well."""
    out, rounds, reached = tmp_path / "zoo", lane(8, 500), -1
    slowest = 0.0
    for _ in range(rounds):
        rivals = [builders.start(endless, out, wait=True) for _ in range(8)]
        begun = time.monotonic()
        for rival in rivals:
            rival.go()
        holder = busy_out(rivals)
        slowest = max(slowest, time.monotonic() - begun)
        wait_for_epoch(out, reached + 1)
        assert holder.kill() == -signal.SIGKILL
        reached = epoch_of(out)
    check_rows(out)
    print(f"K1: {rounds} rounds: 1 worked, 7 left with 75, the slowest round took {slowest:.2f} s; epoch {reached}")


def busy_out(rivals: list[Build]) -> Build:
    """Wait until seven of eight builders have left with exit code 75; return the eighth."""
    left = list(rivals)
    while len(left) > 1:
        for rival in list(left):
            state = Path(f"/proc/{rival.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                assert rival.wait() == BusyError.exit_code
                left.remove(rival)
        time.sleep(0.002)
    return left[0]


def test_k1_the_refusal_names_the_holder_and_does_not_wait_for_torch(
    tmp_path: Path, builders: Builders, endless: Path
) -> None:
    out = tmp_path / "zoo"
    holder = builders.start(endless, out)
    wait_for_epoch(out, 0)
    script = "import sys; sys.modules['torch'] = None; from zootools.cli import main; main(prog_name='zootools')"
    words = [sys.executable, "-c", script, "build", str(endless), "--out", str(out)]
    begun = time.monotonic()
    refused = subprocess.run(words, capture_output=True, text=True)
    print(f"K1: the command was refused after {time.monotonic() - begun:.2f} s")
    assert refused.returncode == 75, refused.stderr
    assert f"(process {holder.pid} on" in refused.stderr
    holder.kill()


@needs_strace
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks_is_named_with_what_helps(
    tmp_path: Path, builders: Builders, endless: Path, error: str
) -> None:
    out = tmp_path / "zoo"
    words = ["-e", "trace=flock", "-e", f"inject=flock:error={error}"]
    assert traced(builders.start(endless, out, wait=True), tmp_path / "log", *words) == StorageError.exit_code
    message = Path(f"{out}.log").read_text()
    assert f"{out}/.work/lock: this file system has no locks (flock: {os.strerror(getattr(errno, error))})" in message
    assert "build on a local disk, or mount this one with locks" in message
    assert [path.name for path in out.rglob("*")] == [".work", "lock"]


def test_k2_a_zombie_is_fenced_off(tmp_path: Path, builders: Builders, endless: Path) -> None:
    """A stopped builder loses its lock file to a second one, wakes, and must not write any more."""
    out, rounds = tmp_path / "zoo", lane(10, 200)
    holder = builders.start(endless, out)
    for _ in range(rounds):
        wait_for_epoch(out, epoch_of(out) + 2)
        holder.signal(signal.SIGSTOP)
        (out / ".work/lock").unlink()
        successor = builders.start(endless, out)
        wait_for_epoch(out, epoch_of(out) + 2)
        holder.signal(signal.SIGCONT)
        assert holder.wait() == BusyError.exit_code
        assert "has taken over this zoo" in Path(f"{out}.log").read_text()
        holder = successor
    holder.kill()
    check_rows(out)
    print(f"K2: {rounds} of {rounds} zombies fenced off")
    # The shards are those of an undisturbed build, whichever builder wrote them.
    short = endless.parent / "short.yaml"
    short.write_text(SMALL.replace("epochs: 2", "epochs: 40"))
    assert builders.build(short, tmp_path / "short") == 0
    for name, data in tree(tmp_path / "short").items():
        if name.startswith("checkpoints/"):
            assert (out / name).read_bytes() == data


def test_k3_a_reader_sees_a_valid_prefix_at_any_moment(tmp_path: Path, builders: Builders) -> None:
    """While zoos are built, finished, grown, and finished again."""
    specs = [tmp_path / f"{last}.yaml" for last in (3, 5, 8)]
    for spec in specs:
        spec.write_text(TINY.replace("range: [1, 3]", f"range: [1, {spec.stem}]"))
    zoos, opens, wanted, problems = [tmp_path / "zoo-0"], 0, lane(400, 10_000), list[str]()
    stop = threading.Event()

    def read() -> None:
        nonlocal opens
        last, seen = zoos[0], 0
        while not stop.is_set():
            out = zoos[-1]
            last, seen = out, seen if out == last else 0
            try:
                zoo = open_zoo(out, include_diverged=True)
                zoo.weights()
            except ZooNotFoundError:
                assert not seen
                continue  # there is nothing yet
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
                return
            opens += 1
            if len(zoo) < seen:
                problems.append(f"{len(zoo)} checkpoints after {seen}")
            seen = len(zoo)

    reader = threading.Thread(target=read)
    reader.start()
    while opens < wanted and not problems:
        for spec in specs:
            assert builders.build(spec, zoos[-1]) == 0
        zoos.append(tmp_path / f"zoo-{len(zoos)}")
    stop.set()
    reader.join()
    assert problems == []
    print(f"K3: {opens} opens while {len(zoos) - 1} zoos were built and grown twice: 0 errors")
