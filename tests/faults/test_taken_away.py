"""Folders, files, disks and rights that are taken away during a build, and workers that cannot start (row G1)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash import TINY, Builders, check_what_is_visible, committed, tree

from zootools.errors import StorageError, WorkerError
from zootools.filesystem.files import durable_file
from zootools.storage.status import status

SERVED = TINY.replace("epochs: 3", "epochs: 12")
"""Six models in two stacks; one worker trains them one after the other."""


@pytest.fixture(scope="module")
def served(folder: Path, builders: Builders) -> dict[str, bytes]:
    (folder / "served.yaml").write_text(SERVED)
    assert builders.build(folder / "served.yaml", folder / "served") == 0
    return tree(folder / "served")


def ended_once(out: Path) -> str:
    """Return the output of a build that ended with one clear error: nothing retried, no traceback."""
    log = Path(f"{out}.log").read_text()
    assert "Traceback" not in log
    assert "died" not in log
    assert len(log.strip().splitlines()) == 1, log
    return log


@pytest.mark.parametrize("then", ["go", "wait"])
@pytest.mark.parametrize(
    ("command", "message", "left"),
    [
        ("mv {out} {out}-moved", "was moved to {out}-moved during the build", "-moved"),
        ("mv {out} {out}-moved; mkdir {out}", "was moved to {out}-moved during the build", "-moved"),
        ("mv {out} {out}-moved; cp -r {out}-moved {out}", "--out {out}-moved resumes it there", "-moved"),
        ("mv {out}/.work/lock {out}/.work/was-lock", ".work/lock was removed during the build", ""),
        ("rm {out}/.work/lock", ".work/lock was removed during the build", ""),
        ("rm -r {out}/.work", "without the records in it the build cannot be resumed", None),
        ("mv {out}/.work {out}/was-work", "without the records in it the build cannot be resumed", None),
        ("rm -r {out}", "is no longer there: it was moved or removed", None),
        ("rm -r {out}; echo > {out}", "is no longer there: it was moved or removed", None),
    ],
)
def test_a_folder_that_is_moved_or_removed_ends_its_build_once(
    tmp_path: Path,
    folder: Path,
    builders: Builders,
    served: dict[str, bytes],
    command: str,
    message: str,
    left: str | None,
    then: str,
) -> None:
    """Noticed by the worker that writes next (go), or by the builder while all workers are busy (wait)."""
    out, spec = tmp_path / "zoo", folder / "served.yaml"
    assert builders.build(spec, out, mischief=[command.format(out=out), then]) == StorageError.exit_code
    assert message.format(out=out) in ended_once(out)
    if "mkdir" in command:
        assert list(out.iterdir()) == []
    elif "cp" not in command and "echo" not in command and left != "":
        assert not out.exists() or not (out / ".work").exists()
    if left is not None:
        kept = Path(f"{out}{left}")
        check_what_is_visible(kept)
        assert committed(kept)
        assert builders.build(spec, kept) == 0, Path(f"{kept}.log").read_text()
        assert tree(kept) == served


@pytest.mark.parametrize(
    ("command", "then", "code", "message", "undo"),
    [
        ("rm {out}/.work/images.safetensors", "die", 3, ".work/images.safetensors", "true"),
        ("truncate -s 100 {out}/.work/images.safetensors", "die", 3, ".work/images.safetensors", "true"),
        ("echo x > {out}/.work/stack-00001.record", "go", 3, "stack-00001.record", "rm {out}/.work/stack-00001.record"),
        ("mkdir {out}/.work/stack-00001.record", "go", 3, "stack-00001.record", "rmdir {out}/.work/stack-00001.record"),
        (
            "cp {out}/.work/stack-00000.record {out}/.work/stack-00001.record",
            "go",
            3,
            "stack-00001.record",
            "rm {out}/.work/stack-00001.record",
        ),
        ("rm -r {out}/checkpoints; echo > {out}/checkpoints", "go", 74, "checkpoints", None),
    ],
)
def test_a_file_that_is_taken_away_or_replaced_ends_the_build_once(
    tmp_path: Path,
    folder: Path,
    builders: Builders,
    served: dict[str, bytes],
    command: str,
    then: str,
    code: int,
    message: str,
    undo: str | None,
) -> None:
    out, spec = tmp_path / "zoo", folder / "served.yaml"
    assert builders.build(spec, out, mischief=[command.format(out=out), then]) == code
    log = Path(f"{out}.log").read_text()
    assert message in log
    assert "Traceback" not in log
    assert "died" not in log
    if undo is not None:
        subprocess.run(undo.format(out=out), shell=True, check=True)
        assert status(out).counts.failed == 0
        assert builders.build(spec, out) == 0, Path(f"{out}.log").read_text()
        assert tree(out) == served


def test_the_state_of_other_models_is_refused(tmp_path: Path, folder: Path, builders: Builders, served: object) -> None:
    """A record that is whole, with a state that is not that of the stack's models."""
    spec, out, other = folder / "served.yaml", tmp_path / "zoo", tmp_path / "other"
    stop = f"mv {out}/.work/lock {out}/.work/was-lock"
    assert builders.build(spec, out, mischief=[stop, "go"]) == 74
    larger = folder / "larger.yaml"
    larger.write_text(SERVED.replace("[5]", "[6]"))
    assert builders.build(larger, other, mischief=[f"mv {other}/.work/lock {other}/.work/was-lock", "go"]) == 74
    shutil.copy(other / ".work/stack-00000.record", out / ".work")
    assert builders.build(spec, out) == 3
    assert "found first_moment torch.float32 [3, 120]" in ended_once(out)


UNMOUNTED = """
set -u
mount -t tmpfs -o size=20M tmpfs "$1" || exit 99
(
  while [ ! -e "$1/zoo/.work/stack-00000.record" ]; do sleep 0.01; done
  umount -l "$1"
) &
"$2" -m zootools build "$3" --out "$1/zoo" --set training.epochs=100000 --set training.checkpoint_every=1000 -q --json
echo "unmounted $?"
wait
ls -A "$1"
"""


def test_a_disk_that_is_unmounted_ends_the_build_once(tmp_path: Path, folder: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["unshare", "-rm", "sh", "-c", UNMOUNTED, "sh", str(disk), sys.executable, str(folder / "tiny.yaml")]
    try:
        run = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("lacks unshare")
    if run.returncode == 99 or "unshare" in run.stderr:
        pytest.skip("lacks the right to mount a small disk (unshare -rm)")
    assert run.stdout == "unmounted 74\n", "no JSON, and nothing is left where the disk was"
    assert "is no longer there" in run.stderr
    assert "its disk was unmounted" in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


def test_a_folder_that_is_gone_just_after_the_fence_is_not_created_again(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    root.mkdir()
    with (
        pytest.raises(StorageError, match="No such file or directory"),
        durable_file(root / "checkpoints" / "shard", root, fence=root.rmdir) as file,
    ):
        file.write(b"")
    assert not root.exists()


@pytest.mark.parametrize("then", ["go", "die"])
@pytest.mark.parametrize("mode", ["a-w", "000"])
def test_a_right_that_is_taken_away_ends_the_build_once(
    tmp_path: Path, folder: Path, builders: Builders, served: dict[str, bytes], mode: str, then: str
) -> None:
    spec, out = folder / "served.yaml", tmp_path / "zoo"
    (tmp_path / "locked").mkdir(0o000)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("lacks a user whom permissions bind (root)")
    folders = f"{out}/checkpoints/* {out}/checkpoints {out}/.work {out}"
    code = builders.build(spec, out, mischief=[f"for folder in {folders}; do chmod {mode} $folder; done", then])
    for path in (out, out / ".work", out / "checkpoints", out / "checkpoints/stack-00000"):  # from the top down
        path.chmod(0o700)
    assert code == 74
    assert "Permission denied" in ended_once(out)
    assert builders.build(spec, out) == 0
    assert tree(out) == served


# --- workers that cannot start or fail -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"fail_to_start": "import"}, 74, "a worker cannot start: ModuleNotFoundError: import of safetensors halted"),
        ({"fail_to_start": "memory"}, 74, "a worker cannot start: MemoryError; fewer --workers take less memory"),
        (
            {"fail_to_start": "broken\nthing"},
            74,
            "a worker cannot start: RuntimeError: broken thing (`zootools --debug",
        ),
        ({"backend": "homesick"}, 74, "a worker cannot start: ModuleNotFoundError: No module named 'only_installed_on"),
        ({"backend": "faulty"}, 74, "stack 0 cannot be trained: ZeroDivisionError: out of order (`zootools --debug"),
        ({"backend": "hungry"}, 74, "stack 0 cannot be trained: MemoryError; fewer --workers take less memory"),
    ],
)
def test_what_a_worker_can_still_report_ends_the_build_at_once(
    tmp_path: Path, folder: Path, builders: Builders, change: dict[str, str], code: int, message: str
) -> None:
    """Trying again cannot help, so nothing is tried again, and no stack is called failed."""
    out = tmp_path / "zoo"
    assert builders.build(folder / "tiny.yaml", out, **change) == code
    assert message in ended_once(out)
    assert (status(out).counts.failed, status(out).counts.missing) == (0, 6)


def test_stacks_are_not_all_tried_where_every_worker_dies_at_once(
    tmp_path: Path, folder: Path, builders: Builders
) -> None:
    spec, out = folder / "twelve.yaml", tmp_path / "zoo"
    grid = "[tanh, relu], init: [uniform], optimizer: [adam]"
    spec.write_text(TINY.replace(grid, "[tanh, relu], init: [uniform], optimizer: [adam, sgd, rmsprop]"))
    assert builders.build(spec, out, abort_all=None) == WorkerError.exit_code
    log = Path(f"{out}.log").read_text()
    assert "the worker of 3 of 6 stacks died 3 times (stack 0 first: killed by SIGKILL (the system does this" in log
    assert "3 more were not tried" in log
    assert (status(out).counts.failed, status(out).counts.missing) == (9, 9)
    assert builders.build(spec, out) == 0
