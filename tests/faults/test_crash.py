"""Builds that are killed, starved and interrupted (rows C1-C3 and C5-C9): nothing committed is lost, nothing half
is visible, and the next build makes the bytes of an undisturbed one.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash import (
    NIGHTLY,
    SMALL,
    TINY,
    Builders,
    check_what_is_visible,
    committed,
    fault_random,
    held_environment,
    lane,
    traced,
    tree,
)
from samples import needs_strace

from zootools import build, load_spec
from zootools.errors import StorageError, WorkerError
from zootools.filesystem.files import TEMPORARY
from zootools.storage.build_state import ZooFolder
from zootools.storage.status import status
from zootools.verify import faults


@pytest.fixture(scope="module")
def tiny(folder: Path, builders: Builders) -> dict[str, bytes]:
    assert builders.build(folder / "tiny.yaml", folder / "tiny") == 0
    return tree(folder / "tiny")


@pytest.fixture(scope="module")
def small(folder: Path, builders: Builders) -> dict[str, bytes]:
    assert builders.build(folder / "small.yaml", folder / "small") == 0
    return tree(folder / "small")


# --- C1 ------------------------------------------------------------------------------------------------


def test_c1_kills_at_random_moments_lose_nothing(
    tmp_path: Path, folder: Path, builders: Builders, tiny: dict[str, bytes]
) -> None:
    random, kills, zoos, wanted = fault_random("C1"), 0, 0, lane(50, 2000)
    begun = time.monotonic()
    builders.build(folder / "tiny.yaml", tmp_path / "timed")
    whole = time.monotonic() - begun
    while kills < wanted:
        out = tmp_path / f"zoo-{zoos}"
        before: dict[str, int] = {}
        while (code := builders.start(folder / "tiny.yaml", out).kill(random.uniform(0, 0.6 * whole))) != 0:
            assert code == -signal.SIGKILL
            kills += 1
            check_what_is_visible(out)
            after = committed(out)
            if ZooFolder(out).plan.exists():
                # Nothing committed is lost, and at most one shard of each stack was written in vain.
                assert set(before) <= set(after)
                assert all(after[name] >= epoch for name, epoch in before.items())
                on_disk = {path.relative_to(out).as_posix() for path in out.glob("checkpoints/*/epoch-*")}
                in_vain = [name.split("/")[1] for name in on_disk - set(after)]
                assert len(in_vain) == len(set(in_vain))
            before = after
        assert tree(out) == tiny
        zoos += 1
        shutil.rmtree(out)
    print(f"C1: {kills} kills over {zoos} zoos: 0 different bytes, 0 lost shards")


def test_c1_a_zoo_with_kept_state_is_killed_and_trained_further_with_the_bytes_of_one_build(
    tmp_path: Path, builders: Builders
) -> None:
    """Killed at random moments of both trainings, which keep the state; the shorter one keeps an epoch more."""
    random, kills, wanted, out = fault_random("C1 kept state"), 0, lane(6, 300), tmp_path / "zoo"
    specs = {epochs: tmp_path / f"{epochs}.yaml" for epochs in (2, 5)}
    for epochs, spec in specs.items():
        spec.write_text(TINY.replace("epochs: 3", f"epochs: {epochs}, checkpoint_every: 3"))
    assert builders.build(specs[5], tmp_path / "once") == 0
    once, begun = tree(tmp_path / "once"), time.monotonic()
    assert builders.build(specs[5], tmp_path / "timed") == 0
    whole = time.monotonic() - begun
    while kills < wanted:
        for spec in specs.values():
            code = -signal.SIGKILL
            while code != 0:
                code = builders.start(spec, out, options={"keep_state": True}).kill(random.uniform(0, 0.7 * whole))
                assert code in (0, -signal.SIGKILL), Path(f"{out}.log").read_text()
                kills += code != 0
                if out.exists():
                    check_what_is_visible(out)
        found = tree(out)
        states = {name for name in found if name.startswith(".state/")}
        assert len(states) == 2
        assert {name: data for name, data in found.items() if name not in states} == once
        shutil.rmtree(out)
    print(f"C1: {kills} kills of zoos with kept state: 0 different bytes")


# --- C2, C3, C5: system calls --------------------------------------------------------------------------


CHANGING = ["write", "renameat", "mkdirat", "unlink", "rmdir", "ftruncate"]
"""The calls that change a zoo on the disk; an openat that creates a file does so too."""


@dataclass(frozen=True)
class Moment:
    """The ``number``-th ``call`` of a thread."""

    call: str
    number: int
    changes: bool


def moments(log: str, zoo: Path) -> list[Moment]:
    """Return the system calls in a thread's log that concern a zoo."""
    counts: Counter[str] = Counter()
    found = []
    inside = re.compile(re.escape(str(zoo)) + r'[/">]')
    for line in log.splitlines():
        call, _, rest = line.partition("(")
        counts[call] += 1
        if inside.search(rest):
            found.append(Moment(call, counts[call], call in CHANGING or "O_CREAT" in rest))
    return found


def disk_of(out: Path) -> str:
    """Return a name for all that a resume finds in a folder: names and bytes, but for random and temporal ones."""
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        name = re.sub(rf"({TEMPORARY}).*", r"\1", path.relative_to(out).as_posix())
        fleeting = name == ".work/lock" or "build.json" in name or path.is_dir()
        digest.update(repr((name, b"" if fleeting else path.read_bytes())).encode())
    return digest.hexdigest()


@needs_strace
@pytest.mark.parametrize("role", ["builder", "worker", "reader"])
def test_c2_a_fault_at_any_system_call_leaves_nothing_invalid(
    memory: Path, folder: Path, builders: Builders, small: dict[str, bytes], role: str
) -> None:
    """At every write, fsync, rename, open, and what else touches a zoo: an error, and a kill where that can matter.

    A kill leaves what the last change has left, so only calls that change or sync are killed at: each of these meets
    either, drawn at random. Most calls only open, and a third of them meets an error. The long lane has every kind at
    all. What a fault leaves is resumed from once: equal disks make equal resumes.
    """
    random, spec, log, thread = fault_random(f"C2 {role}"), folder / "small.yaml", memory / "log", memory / "thread"
    calls = ["openat", "fsync", "fchmod", "flock", *CHANGING]

    def run(out: Path, *words: str) -> int:
        thread.unlink(missing_ok=True)
        if role == "builder":
            return traced(builders.start(spec, out, wait=True), log, *words)
        build = builders.start(spec, out, wait=True, **{f"hold_{role}": str(thread)})
        return traced(build, log, *words, thread=thread)

    run(memory / "counted", "-e", f"trace={','.join(calls)}")
    found = moments(log.read_text(), memory / "counted")
    faults, resumed = Counter[str](), set[str]()
    for moment in found:
        errors = ["error=EIO", "error=ENOSPC", "error=EDQUOT"]
        kinds = ["signal=KILL", *errors]
        if not NIGHTLY:
            if moment.changes or moment.call == "fsync":
                kinds = [random.choice([*errors, *["signal=KILL"] * len(errors)])]
            else:
                kinds = errors[: role == "reader" or random.random() < 1 / 3]
        for kind in kinds:
            out = memory / "zoo"
            inject = f"inject={moment.call}:{kind}:when={moment.number}"
            code = run(out, "-e", f"trace={moment.call}", "-e", inject)
            message = f"{role}, {kind}, {moment}: exit code {code}, {Path(f'{out}.log').read_text()}"
            assert "INJECTED" in log.read_text() or "SIGKILL" in log.read_text(), message
            assert code in (0, 3, 74, -signal.SIGKILL), message
            faults[moment.call] += 1
            if code == 0:
                assert moment.call not in ("write", "fsync", "renameat"), message
                assert tree(out) == small, message
            elif (disk := disk_of(out)) not in resumed:
                if out.exists():
                    check_what_is_visible(out)
                assert builders.build(spec, out) == 0, (message, Path(f"{out}.log").read_text())
                assert tree(out) == small, message
                resumed.add(disk)
            shutil.rmtree(out, ignore_errors=True)
    print(f"C2 {role}: {faults.total()} faults ({dict(faults)}), resumed from {len(resumed)} disks: 0 differences")
    assert faults.total() >= {"builder": 120, "worker": 50, "reader": 4}[role]


def order_faults(log: str, root: Path) -> list[str]:
    """Return every commit in a strace log that breaks the order write, fsync, rename, fsync of the folder.

    Also every record that became visible before a shard that was written after it; the record must come second.
    """
    unsynced: set[str] = set()
    pending: dict[str, str] = {}
    found = []
    for line in log.splitlines():
        call, _, rest = line.partition(" ")[2].strip().partition("(")
        paths = re.findall(r"<([^>]*)>", rest)
        if "= -1" in line or not paths:
            continue
        if call == "write" and paths[0].startswith(str(root)):
            unsynced.add(paths[0])
            if TEMPORARY not in paths[0] and not paths[0].endswith("/lock"):
                found.append(f"{paths[0]} is written where readers see it")
        elif call == "fsync":
            unsynced.discard(paths[0])
            pending.pop(paths[0], None)
        elif call.startswith("rename"):
            old, new = re.findall(r'"([^"]*)"', rest)
            if f"{paths[0]}/{old}" in unsynced:
                found.append(f"{new} is renamed before it is synced")
            for other in pending.values():
                found.append(f"{new} is renamed before the folder of {other} is synced")
            pending[paths[0]] = new
    return found + [f"the folder of {name} is never synced" for name in pending.values()]


def trace_of(builders: Builders, spec: Path, out: Path, **change: object) -> str:
    log = out.with_suffix(".trace")
    words = ["-f", "-s", "300", "-e", "trace=write,fsync,rename,renameat,renameat2"]
    assert traced(builders.start(spec, out, wait=True, **change), log, *words) == 0
    return log.read_text()


@needs_strace
def test_c3_every_commit_is_written_synced_renamed_and_its_folder_synced(
    tmp_path: Path, folder: Path, builders: Builders
) -> None:
    log = trace_of(builders, folder / "small.yaml", tmp_path / "zoo")
    assert log.count("renameat(") > 15
    assert order_faults(log, tmp_path / "zoo") == []


@needs_strace
@pytest.mark.parametrize(
    ("change", "complaint"), [("no_sync", "before it is synced"), ("in_place", "where readers see it")]
)
def test_c5_the_proof_of_order_goes_red_for_a_broken_writer(
    tmp_path: Path, folder: Path, builders: Builders, change: str, complaint: str
) -> None:
    log = trace_of(builders, folder / "small.yaml", tmp_path / "zoo", **{change: None})
    assert complaint in "\n".join(order_faults(log, tmp_path / "zoo"))


@needs_strace
@pytest.mark.parametrize("change", ["in_place", "journal_first"])
def test_c5_the_kills_go_red_for_a_broken_writer(tmp_path: Path, folder: Path, builders: Builders, change: str) -> None:
    """Killed at each of its writes, a writer in place (or of the journal first) leaves something invalid."""
    caught = []
    for moment in range(2, 14):
        out = tmp_path / f"zoo-{moment}"
        words = ["-f", "-e", "trace=write", "-e", f"inject=write:signal=KILL:when={moment}"]
        traced(builders.start(folder / "small.yaml", out, wait=True, **{change: None}), tmp_path / "log", *words)
        try:
            check_what_is_visible(out)
        except (AssertionError, Exception) as error:
            caught.append(str(error))
    assert caught


def test_c5_verification_goes_red_for_a_positional_index(tmp_path: Path, folder: Path, builders: Builders) -> None:
    assert builders.build(folder / "tiny.yaml", tmp_path / "zoo", positional=None) == 0
    assert any("model_id" in str(fault) for fault in faults(tmp_path / "zoo"))


# --- C6 ------------------------------------------------------------------------------------------------


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zootools", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 3])
def test_c6_a_signal_stops_a_build_cleanly_and_a_second_one_at_once(
    tmp_path: Path, folder: Path, signals: list[signal.Signals]
) -> None:
    out = tmp_path / "zoo"
    process = start("build", str(folder / "tiny.yaml"), "--out", str(out), "--set", "training.epochs=20000")
    while not list(out.glob(".work/*.record")) and process.poll() is None:
        time.sleep(0.01)
    begun = time.monotonic()
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate()
    print(f"C6: {[number.name for number in signals]}: stopped after {time.monotonic() - begun:.2f} s")
    if len(signals) == 1:
        assert process.returncode == 130, errors
        assert "the same command resumes" in errors
        assert "Traceback" not in errors
    assert process.returncode in (130, -signal.SIGINT)
    check_what_is_visible(out)
    assert status(out).counts.missing == 6


# --- C7 ------------------------------------------------------------------------------------------------


def test_c7_a_full_disk_is_one_clear_error_and_the_next_build_resumes(
    tmp_path: Path, folder: Path, builders: Builders, tiny: dict[str, bytes]
) -> None:
    sizes = sorted({len(data) for data in tiny.values()})
    limits = [max(1, size - 1) for size in sizes][:10] + list(range(1000, 11000, 1000))
    stopped = 0
    for limit in limits:
        out = tmp_path / "zoo"
        code = builders.build(folder / "tiny.yaml", out, file_size=limit)
        message = Path(f"{out}.log").read_text()
        if code == 0:
            continue
        stopped += 1
        assert code == StorageError.exit_code, (limit, message)
        assert "File too large" in message
        assert "free some space" in message
        assert not list(out.rglob(f"*{TEMPORARY}*"))
        check_what_is_visible(out)
        assert builders.build(folder / "tiny.yaml", out) == 0
        assert tree(out) == tiny
        shutil.rmtree(out)
    print(f"C7: {stopped} of {len(limits)} limits of the size of files stopped a build")
    assert stopped >= 10


FILL = """
set -u
mount -t tmpfs -o size=2M tmpfs "$1" || exit 99
(
  while [ ! -e "$1/zoo/.work/stack-00000.record" ]; do sleep 0.01; done
  head -c 2M /dev/zero > "$1/filler"
  touch "$4"
) 2>/dev/null &
PYTHONPATH="$5" "$2" -m zootools build "$3" --out "$1/zoo" --set training.epochs=300 --set training.checkpoint_every=300
echo "full $?"
wait
rm "$1/filler"
"$2" -m zootools build "$3" --out "$1/zoo" --set training.epochs=300 --set training.checkpoint_every=300
echo "freed $?"
"$2" -m zootools verify "$1/zoo"
echo "verified $?"
"""


def test_c7_a_build_on_a_disk_that_fills_up_resumes_when_there_is_space(tmp_path: Path, folder: Path) -> None:
    disk, full = tmp_path / "disk", tmp_path / "full"
    disk.mkdir()
    path = held_environment(tmp_path / "held", 1, full)["PYTHONPATH"]
    arguments = [disk, sys.executable, folder / "tiny.yaml", full, path]
    words = ["unshare", "-rm", "sh", "-c", FILL, "sh", *map(str, arguments)]
    try:
        run = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("lacks unshare")
    if run.returncode == 99 or "unshare" in run.stderr:
        pytest.skip("lacks the right to mount a small disk (unshare -rm)")
    assert "full 74" in run.stdout, run.stderr
    assert "No space left on device" in run.stderr
    assert "freed 0" in run.stdout, run.stderr
    assert "verified 0" in run.stdout, run.stderr


# --- C8 ------------------------------------------------------------------------------------------------


def test_c8_a_stack_that_kills_its_worker_is_marked_failed_and_the_others_finish(
    tmp_path: Path, folder: Path, builders: Builders, tiny: dict[str, bytes]
) -> None:
    out = tmp_path / "zoo"
    assert builders.build(folder / "tiny.yaml", out, abort=0) == 74
    assert "died 3 times" in Path(f"{out}.log").read_text()
    counts = status(out).counts
    assert (counts.expected, counts.ok, counts.failed, counts.missing) == (6, 3, 3, 0)
    check_what_is_visible(out)
    assert builders.build(folder / "tiny.yaml", out) == 0
    assert tree(out) == tiny


def test_c8_a_worker_that_runs_out_of_memory_is_replaced(
    tmp_path: Path, folder: Path, builders: Builders, tiny: dict[str, bytes]
) -> None:
    """The system's way to free memory is SIGKILL, so that is what the worker gets, at the worst moment."""
    out = tmp_path / "zoo"
    build = builders.start(folder / "tiny.yaml", out)
    killed = 0
    while not (out / "zoo.json").exists() and killed < 2:
        children = Path(f"/proc/{build.pid}/task/{build.pid}/children")
        workers = children.read_text().split() if children.exists() else []
        if workers and list(out.glob(f".work/.stack-*{TEMPORARY}*")):
            os.kill(int(workers[0]), signal.SIGKILL)
            killed += 1
    assert build.wait() == 0, Path(f"{out}.log").read_text()
    assert killed
    assert tree(out) == tiny


def test_c8_a_worker_that_dies_between_two_stacks_is_replaced(
    tmp_path: Path, folder: Path, builders: Builders, tiny: dict[str, bytes]
) -> None:
    out = tmp_path / "zoo"
    assert builders.build(folder / "tiny.yaml", out, die_idle=None) == 0, Path(f"{out}.log").read_text()
    assert tree(out) == tiny


def test_c8_workers_that_are_killed_while_they_start_are_counted(
    memory: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed at any moment from their fork on, also before they have read what they are to do."""
    random, rounds, kills, stop = fault_random("C8"), lane(10, 1000), 0, threading.Event()
    spec = load_spec(folder / "tiny.yaml", ["training.epochs=20000", "models=3"])

    def children(process: str) -> list[str]:
        found = []
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += (task / "children").read_text().split()
        return found

    def kill() -> None:
        nonlocal kills
        while not stop.is_set():
            for server in children(str(os.getpid())):
                for worker in children(server):
                    time.sleep(random.choice([0, 0, 0.001, 0.01]))
                    with suppress(OSError):
                        if b"forkserver" in Path(f"/proc/{worker}/cmdline").read_bytes():
                            os.kill(int(worker), signal.SIGKILL)
                            kills += 1
            time.sleep(0.0005)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for number in range(rounds):
            with pytest.raises(WorkerError, match="died 3 times"):
                build(spec, memory / f"zoo-{number}", workers=1, backend="torch", quiet=True)
    finally:
        stop.set()
        killer.join()
    assert "Traceback" not in capfd.readouterr().err
    print(f"C8: {rounds} builds whose workers were killed {kills} times: each reported, none hung")


# --- C9 ------------------------------------------------------------------------------------------------


def test_c9_the_first_write_that_fails_stops_the_build_with_its_error(
    tmp_path: Path, folder: Path, builders: Builders
) -> None:
    """Nothing is written in the background: a folder in the place of the k-th shard stops the build right there."""
    spec, out = folder / "twenty.yaml", tmp_path / "zoo"
    spec.write_text(SMALL.replace("epochs: 2", "epochs: 20"))
    shards = [out / f"checkpoints/stack-00000/epoch-{epoch:04d}.safetensors" for epoch in range(21)]
    (out / ".work").mkdir(parents=True)
    for number, shard in enumerate(shards):
        (shard / "in the way").mkdir(parents=True)
        assert builders.build(spec, out) == 74
        message = Path(f"{out}.log").read_text()
        assert f"{shard}: cannot be written" in message
        assert sorted(committed(out)) == [path.relative_to(out).as_posix() for path in shards[:number]]
        shutil.rmtree(shard)
    assert builders.build(spec, out) == 0
    assert builders.build(spec, tmp_path / "undisturbed") == 0
    assert tree(out) == tree(tmp_path / "undisturbed")
