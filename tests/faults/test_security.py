"""Calls that the source must not contain, and secrets that must not leave the process (rows X1-X3, X5)."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from crash import TINY, fault_random, lane
from samples import ROOT, SERVERS
from source_rules import unsafe

from zootools.errors import ZooError
from zootools.filesystem.files import durable_file
from zootools.filesystem.inside import open_inside

SOURCES = sorted([*ROOT.glob("zootools/**/*.py"), *ROOT.glob("representation/**/*.py")])

ALLOWED = {
    # CIFAR-10 was published as pickles: only with the published md5, and only arrays are made of them.
    "zootools/images/sets.py": ["pickle"],
    # Checkpoints of others: in a process with limits, and with weights_only.
    "zootools/importers/unpickle.py": ["torch.load"],
    # Properties that an import of the same user spooled, of bounded size; pyarrow makes no objects of them.
    "zootools/importers/spool.py": ["pa.ipc.open_stream"],
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_x1_no_unsafe_call_in_the_source(path: Path) -> None:
    assert unsafe(path.read_text()) == ALLOWED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "load_dataset(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_x1_the_search_finds_what_it_looks_for(line: str) -> None:
    assert unsafe(line)


# --- X2 ------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "c4NaRy" * 5 + "beef"


def test_x2_a_token_in_the_environment_appears_nowhere(tmp_path: Path) -> None:
    """Through build, verify, repair, a refusal with --debug: not in what is printed, and in no file."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    environment = {**os.environ, "HF_TOKEN": TOKEN, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    zoo = tmp_path / "zoo"
    printed = ""
    for words in (
        ("build", str(tmp_path / "tiny.yaml"), "--out", str(zoo), "--backend", "torch"),
        ("--debug", "verify", str(zoo)),
        ("--debug", "build", str(tmp_path / "tiny.yaml"), "--out", str(zoo), "--set", "training.epochs=4"),
        ("--debug", "repair", str(tmp_path / "nowhere")),
        ("doctor", "--json"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "zootools", *words], capture_output=True, text=True, env=environment
        )
        printed += run.stdout + run.stderr
    assert "Traceback" in printed  # --debug was at work
    assert TOKEN not in printed
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_x2_a_token_in_a_specification_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(f"{TINY}token: {TOKEN}\n")
    words = [sys.executable, "-m", "zootools", "--debug", "check", str(tmp_path / "tiny.yaml")]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 2
    assert "token: unknown key" in run.stderr
    assert TOKEN not in run.stderr + run.stdout


def test_x2_a_token_in_the_wrong_place_is_not_printed(tmp_path: Path) -> None:
    """Given where a name or a number belongs, it would be repeated by the refusal."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    for words in (("build", TOKEN), ("build", "tiny.yaml", "--set", f"training.epochs={TOKEN}"), ("verify", TOKEN)):
        command = [sys.executable, "-m", "zootools", "--debug", *words]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 2
        assert TOKEN not in run.stderr + run.stdout
        assert "hf_***" in run.stderr


# --- X3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_x3_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    script = (
        f"import os, sys; os.umask({umask}); from pathlib import Path; from crash import _build;"
        f"_build({str(tmp_path / 'tiny.yaml')!r}, {str(tmp_path / 'zoo')!r}, {{}})"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=SERVERS)
    assert run.returncode == 0, (tmp_path / "zoo.log").read_text()
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "zoo").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~umask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


def test_x3_the_modes_of_others_files_are_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o2755)
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "theirs").chmod(0o640)
    with durable_file(tmp_path / "sub" / "ours") as file:
        file.write(b"x")
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o640
    assert tmp_path.stat().st_mode & 0o7777 == 0o2755
    assert (tmp_path / "sub").stat().st_mode & 0o2000  # setgid is kept: new files get the folder's group


# --- X5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/stack-00000", "metadata", ".work/plan.json", "zoo.json"])
def test_x5_nothing_is_written_or_read_through_a_link(tmp_path: Path, tiny_zoo: Path, link: str) -> None:
    from zootools import open_zoo
    from zootools.storage.build_state import ZooFolder

    outside = tmp_path / "outside"
    outside.mkdir()
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, zoo)
    (zoo / ".work").mkdir()
    if (zoo / link).exists():
        (zoo / link).rename(outside / "stolen")
    (zoo / link).symlink_to(outside / "stolen")
    with pytest.raises(ZooError):
        open_zoo(zoo).weights()
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    target = f"{link}/new.json" if (outside / "stolen").is_dir() else link
    if "/" in target and link != ".work/plan.json":
        with pytest.raises(ZooError, match="cannot be written"):
            ZooFolder(zoo).write(target, b"x")
    else:
        ZooFolder(zoo).write(target, b"x")  # takes the place of the link
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


def test_x5_a_folder_that_becomes_a_link_at_any_moment_leads_nowhere(tmp_path: Path) -> None:
    """Somebody swaps a folder and a link again and again while files are written and read below it."""
    random = fault_random("X5")
    outside, inside = tmp_path / "outside", tmp_path / "zoo" / "inside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    inside.mkdir(parents=True)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            inside.rename(tmp_path / "aside")
            with contextlib.suppress(OSError):  # a writer has made the folder anew
                inside.symlink_to(outside)
                inside.unlink()
            while (tmp_path / "aside").exists():
                try:
                    (tmp_path / "aside").rename(inside)
                except OSError:  # a writer has made the folder anew
                    shutil.rmtree(inside, ignore_errors=True)

    attacker = threading.Thread(target=swap)
    attacker.start()
    written = refused = rounds = 0
    while rounds < lane(100, 5000) or not (written and refused):
        rounds += 1
        assert rounds < 100_000, f"{written} written, {refused} refused: the folder is never swapped, or always"
        try:
            with durable_file(inside / "file", tmp_path / "zoo") as file:
                file.write(random.randbytes(100))
            written += 1
            with open_inside(tmp_path / "zoo", "inside/file") as read:
                assert read.read() != b"secret"
        except (ZooError, OSError):
            refused += 1
    stop.set()
    attacker.join()
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"secret"
    print(f"X5: {written} files written, {refused} refused, none outside")


def test_actions_and_sources_name_no_secret() -> None:
    """No token was ever pasted into a file of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("lacks the git repository")
    pattern = re.compile(rb"hf_[A-Za-z0-9]{30,}|ghp_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}")
    assert [name for name in listed.stdout.splitlines() if pattern.search((ROOT / name).read_bytes())] == []
