"""Links, hard links, pipes and devices in a zoo folder: nothing outside is read, changed or published (row X5)."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from crash import lane
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import TINY_ZOO, needs_strace

from zootools import open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError, StorageError, ZooError
from zootools.filesystem.files import write_output
from zootools.filesystem.inside import names_inside, open_inside
from zootools.filesystem.lock import FolderLock
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.storage.finish import add_page
from zootools.verify import faults, repair

SECRET = b"hunter2-do-not-publish"
TABLE = "data/train-00000-of-00001.parquet"
SHARD = "checkpoints/stack-00000/epoch-0001.safetensors"
NAME = "group/tiny"

State = dict[str, tuple[int, int, bytes]]


def state_of(folder: Path) -> State:
    """Return mode, time of change and content of everything below a folder, links by what they say."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        info = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (info.st_mode, info.st_mtime_ns, content)
    return found


def run(*words: object) -> Result:
    """Run a command in this process. Fails unless it ends as a command may end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    done = CliRunner().invoke(main, list(map(str, words)))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 2, 3, 74, 75), done.output
    return done


@pytest.fixture
def zoo(tiny_zoo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_zoo, tmp_path / "zoo"))


@pytest.fixture
def outside(tiny_zoo: Path, tmp_path: Path) -> Path:
    """A folder of somebody else's: all that a zoo has, finished and unfinished, with a secret in the files that may."""
    return make_outside(tiny_zoo, tmp_path / "outside")


def make_outside(zoo: Path, outside: Path) -> Path:
    shutil.copytree(zoo, outside)
    (outside / ".work").mkdir()
    for folder in (outside, outside / ".work", outside / "data", outside / "metadata", outside / "checkpoints"):
        for name in ("lock", "plan.json", "stack-00000.record", "stack-mine", "mine.parquet", "mine.txt", "token"):
            (folder / name).write_bytes(SECRET)
    for name in ("README.md", "build.json"):
        (outside / name).write_bytes(json.dumps({"token": SECRET.decode()}).encode())
    return outside


@pytest.fixture(scope="module")
def grow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specification with one model more."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_ZOO | {"seeds": {"range": [1, 13]}}))
    return path


# --- any hostile thing in any place, whatever is done ---------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_bytes(b"mine")


def make_device(path: Path) -> None:
    if os.getuid() == 0:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        os.mkfifo(path)


def look_alike(outside: Path, name: str) -> Path:
    """Return the file outside that has the name of one inside, else the one with the secret."""
    path = outside / name
    return path if path.is_file() else outside / "token"


HOSTILE: dict[str, Callable[[Path, Path, str], None]] = {
    "link to the folder of that name": lambda path, outside, name: path.symlink_to(outside / name),
    "link to a folder": lambda path, outside, name: path.symlink_to(outside / "data"),
    "link to a file": lambda path, outside, name: path.symlink_to(look_alike(outside, name)),
    "link to the secret": lambda path, outside, name: path.symlink_to(outside / "token"),
    "dangling link": lambda path, outside, name: path.symlink_to(outside / "new"),
    "link to itself": lambda path, outside, name: path.symlink_to(path.name),
    "hard link": lambda path, outside, name: os.link(look_alike(outside, name), path),
    "hard link to the secret": lambda path, outside, name: os.link(outside / "token", path),
    "pipe": lambda path, outside, name: os.mkfifo(path),
    "socket": lambda path, outside, name: make_socket(path),
    "device": lambda path, outside, name: make_device(path),
    "folder": lambda path, outside, name: make_folder(path),
}

PLACES = [
    *(".work", ".work/lock", ".work/plan.json", ".work/stack-00000.record", ".work/images.safetensors"),
    *("checkpoints", "checkpoints/stack-00000", SHARD, "checkpoints/stack-00001"),
    *("data", TABLE, "data/extra.parquet", "metadata", "metadata/test-00000-of-00001.parquet"),
    *("README.md", "build.json", "spec.yaml", "view.html", "zoo.json"),
]

Command = Callable[[Path, Path, Path], object]
"""Given the zoo, a folder for what is made, and the specification to grow by."""

COMMANDS: dict[str, Command] = {
    "info": lambda zoo, made, spec: run("info", zoo),
    "status": lambda zoo, made, spec: run("status", zoo),
    "verify": lambda zoo, made, spec: run("verify", zoo),
    "repair": lambda zoo, made, spec: run("repair", zoo),
    "publish": lambda zoo, made, spec: run("publish", zoo, NAME, "--hub", made / "hub", "--allow-partial"),
    "export": lambda zoo, made, spec: run(
        "export", zoo, "--model", open_zoo_or_none(zoo), "--epoch", 1, "-o", made / "one.safetensors"
    ),
    "add a page": lambda zoo, made, spec: add_page_or_not(zoo),
    "pull into it": lambda zoo, made, spec: run("pull", NAME, zoo, "--hub", made / "good"),
    "build": lambda zoo, made, spec: run("build", spec, "-o", zoo, "--workers", 1, "--device", "cpu", "--json"),
}


def add_page_or_not(zoo: Path) -> None:
    with contextlib.suppress(ZooError):
        add_page(zoo, b"<html>")


def open_zoo_or_none(zoo: Path) -> str:
    try:
        return open_zoo(zoo).models[0]
    except (ZooError, OSError):
        return "none"


@pytest.fixture(scope="module")
def stages(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny zoo finished, and unfinished as `repair` leaves it; and a hub folder with it."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(tiny_zoo, folder / "finished")
    shutil.copytree(tiny_zoo, folder / "unfinished")
    (folder / "unfinished" / "README.md").unlink()
    repair(folder / "unfinished")
    (folder / "unfinished/.work/images.safetensors").write_bytes(b"not images")
    publish(tiny_zoo, NAME, hub=folder / "good")
    return folder


def put(hostile: str, place: Path, outside: Path, name: str) -> None:
    """Put a hostile thing in a place, instead of what is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    HOSTILE[hostile](place, outside, name)


@pytest.mark.timeout(500)
@settings(
    max_examples=lane(40, 3000),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    stage=st.sampled_from(["finished", "unfinished"]),
    name=st.sampled_from(PLACES),
    hostile=st.sampled_from(sorted(HOSTILE)),
    # A build starts processes, which takes seconds: it has examples of its own below.
    command=st.sampled_from([name for name in COMMANDS if name != "build" or lane(0, 1)]),
)
@example("finished", ".work", "link to the folder of that name", "repair")
@example("unfinished", ".work/lock", "hard link", "repair")
@example("unfinished", ".work/images.safetensors", "pipe", "verify")
@example("unfinished", ".work/images.safetensors", "pipe", "repair")
@example("finished", "build.json", "link to a file", "publish")
@example("finished", "build.json", "hard link", "publish")
@example("finished", "README.md", "hard link", "pull into it")
@example("finished", "data", "link to the folder of that name", "pull into it")
@example("finished", "data", "link to the folder of that name", "build")
@example("finished", "metadata", "link to a folder", "build")
@example("unfinished", "checkpoints", "link to the folder of that name", "build")
@example("unfinished", ".work/images.safetensors", "link to the secret", "build")
def test_x5_nothing_outside_is_read_or_changed(
    stages: Path, tiny_zoo: Path, grow: Path, stage: str, name: str, hostile: str, command: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        outside = make_outside(tiny_zoo, folder / "outside")
        zoo, made = folder / "zoo", folder / "made"
        shutil.copytree(stages / stage, zoo)
        shutil.copytree(stages / "good", made / "good", symlinks=True)
        put(hostile, zoo / name, outside, name)
        before = state_of(outside)
        COMMANDS[command](zoo, made, grow)
        assert state_of(outside) == before
        published = [path for path in made.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
        assert published == []


EVERYTHING = """
import sys
from pathlib import Path
from zootools import build, load_spec, open_zoo
from zootools.storage.status import status
from zootools.hub.pull import pull
from zootools.hub.publish import publish
from zootools.storage.finish import add_page
from zootools.hub.publish import publish
from zootools.storage.finish import add_page
from zootools.verify import faults, repair

zoo, unfinished, made, spec = map(Path, sys.argv[1:])
for folder in (zoo, unfinished):
    status(folder), open_zoo(folder).weights(), list(faults(folder)), repair(folder)
(made / "cut").symlink_to(zoo)  # the folder itself may be a link
add_page(made / "cut", b"<html>")
publish(zoo, "group/tiny", hub=made / "hub", tag="v1")
publish(unfinished, "group/part", hub=made / "hub", allow_partial=True)
pull("group/tiny", made / "pulled", hub=made / "hub")
pull("group/tiny", made / "pulled", hub=made / "hub")
build(load_spec(spec), zoo, device="cpu", workers=1, quiet=True)
"""


@needs_strace
def test_x5_no_system_call_names_a_path_inside_a_zoo(stages: Path, grow: Path, tmp_path: Path) -> None:
    """The system is asked for names relative to folders that are open; libraries and workers included."""
    zoo, unfinished, made = tmp_path / "zoo", tmp_path / "unfinished", tmp_path / "made"
    shutil.copytree(stages / "finished", zoo)
    shutil.copytree(stages / "unfinished", unfinished)
    made.mkdir()
    log = tmp_path / "log"
    trace = ["strace", "-f", "--seccomp-bpf", "-s", "4096", "-o", str(log), "-e", "trace=%file"]
    words = [sys.executable, "-c", EVERYTHING, *map(str, (zoo, unfinished, made, grow))]
    ran = subprocess.run([*trace, *words], capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    folders = "|".join(re.escape(str(folder)) for folder in (zoo, unfinished, made / "pulled", made / "cut"))
    lines = log.read_text(errors="replace").splitlines()
    assert [line for line in lines if re.search(rf'"({folders})/[^"]', line)] == []
    assert sum(f'"{zoo}"' in line for line in lines) > 100
    assert any('"train-00000-of-00001.parquet"' in line and "openat" in line for line in lines)


# --- each thing that was found ----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["data", "metadata", "checkpoints", ".work"])
def test_x5_a_zoo_with_a_link_for_a_folder_does_not_grow(zoo: Path, outside: Path, grow: Path, folder: str) -> None:
    """It is refused by name before anything is trained, and the manifest stays."""
    put("link to the folder of that name", zoo / folder, outside, folder)
    before, manifest = state_of(outside), (zoo / "zoo.json").read_bytes()
    done = run("build", grow, "-o", zoo, "--workers", 1)
    assert done.exit_code == 3
    assert folder in done.output
    assert "is a link" in done.output
    assert "backend" not in done.output  # nothing has been started
    assert (zoo / "zoo.json").read_bytes() == manifest
    assert state_of(outside) == before


def test_x5_a_users_own_tables_further_down_stay_when_a_zoo_grows(zoo: Path, grow: Path) -> None:
    (zoo / "data/mine").mkdir()
    (zoo / "data/mine/own.parquet").write_bytes(b"mine")
    assert run("build", grow, "-o", zoo, "--workers", 1, "--json").exit_code == 0
    assert (zoo / "data/mine/own.parquet").read_bytes() == b"mine"


def test_x5_a_repair_refuses_a_work_folder_that_is_a_link(zoo: Path, outside: Path) -> None:
    put("link to the folder of that name", zoo / ".work", outside, ".work")
    before, inside = state_of(outside), state_of(zoo)
    with pytest.raises(DamagedZooError, match=r"\.work.*is a link"):
        repair(zoo)
    assert state_of(outside) == before
    assert state_of(zoo) == inside


@pytest.mark.parametrize(
    "hostile", ["hard link", "link to a file", "dangling link", "pipe", "socket", "device", "folder"]
)
def test_x5_a_lock_that_is_not_a_file_of_its_own_is_refused(zoo: Path, outside: Path, hostile: str) -> None:
    put(hostile, zoo / ".work/lock", outside, ".work/lock")
    before, inside = state_of(outside), state_of(zoo)
    with pytest.raises(DamagedZooError, match=r"lock: is a .*remove it"), FolderLock(zoo / ".work/lock"):
        pass
    assert state_of(outside) == before
    assert state_of(zoo) == inside


def test_x5_a_repair_drops_the_link_and_not_what_it_leads_to(zoo: Path, outside: Path) -> None:
    put("link to a folder", zoo / "checkpoints/stack-00000", outside, "data")
    put("pipe", zoo / "metadata/test-00000-of-00001.parquet", outside, "")
    before = state_of(outside)
    repair(zoo)
    assert state_of(outside) == before
    assert not (zoo / "checkpoints/stack-00000").is_symlink()
    assert not (zoo / "metadata/test-00000-of-00001.parquet").exists()


def test_x5_a_repair_leaves_a_folder_in_the_place_of_a_file(zoo: Path, outside: Path) -> None:
    put("folder", zoo / TABLE, outside, TABLE)
    before = state_of(zoo)
    with pytest.raises(DamagedZooError, match=f"{TABLE}: is a folder, expected a file; move it away"):
        repair(zoo)
    after = state_of(zoo)
    assert {**after, ".": before["."]} == before  # but for the time at which the lock came and went


@pytest.mark.parametrize("name", [SHARD, TABLE, "README.md", "build.json", "spec.yaml", "zoo.json"])
@pytest.mark.parametrize("hostile", ["pipe", "device", "socket", "folder", "link to the secret"])
def test_x5_what_is_not_a_plain_file_is_named_and_never_waited_for(
    zoo: Path, outside: Path, name: str, hostile: str
) -> None:
    put(hostile, zoo / name, outside, name)
    found = {fault.name: fault.what for fault in faults(zoo)}
    assert name in found or f"{name}/mine.txt" in found, found


# --- publishing and pulling ----------------------------------------------------------------------------------------


NOTES = {
    "a token": b"hf_" + b"x" * 34,
    "a key": b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
    "an object": json.dumps({"token": "x"}).encode(),
    "a list": b"[]",
    "sessions and more": json.dumps({"sessions": [], "token": "x"}).encode(),
    "a session with a long text": json.dumps({"sessions": [{"device": "x" * 10_000}]}).encode(),
    "nested": b"[" * 100_000,
    "too large": b'{"sessions": []}' + b" " * (17 << 20),
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("note", sorted(NOTES))
def test_x5_a_build_json_that_is_something_else_is_not_published(zoo: Path, tmp_path: Path, note: str) -> None:
    (zoo / "build.json").write_bytes(NOTES[note])
    with pytest.raises(DamagedZooError, match=r"build\.json: (is not a log of builds|has \d+ bytes)") as caught:
        publish(zoo, NAME, hub=tmp_path / "hub")
    assert NOTES[note][:100].decode(errors="replace") not in str(caught.value)
    assert not (tmp_path / "hub" / NAME).exists()


def test_x5_notes_of_other_versions_are_published(zoo: Path, tmp_path: Path) -> None:
    note = {"sessions": [{"began": "2024-01-01T00:00:00Z", "seconds": 1.5, "cores": None, "gpu": "none", "workers": 4}]}
    (zoo / "build.json").write_text(json.dumps(note))
    publish(zoo, NAME, hub=tmp_path / "hub")
    assert json.loads((tmp_path / "hub" / NAME / "build.json").read_text()) == note


@pytest.mark.parametrize("name", ["build.json", "README.md", "zoo.json", "spec.yaml", TABLE])
@pytest.mark.parametrize("hostile", ["link to a file", "link to the secret", "hard link to the secret", "pipe"])
def test_x5_a_pull_takes_nothing_from_outside_the_hub(
    stages: Path, outside: Path, tmp_path: Path, name: str, hostile: str
) -> None:
    hub = Path(shutil.copytree(stages / "good", tmp_path / "hub", symlinks=True))
    version = (hub / NAME).resolve()
    put(hostile, version / name, outside, name)
    with pytest.raises(ZooError):
        pull(NAME, tmp_path / "mine", hub=hub)
    assert not [path for path in (tmp_path / "mine").rglob("*") if path.is_file() and SECRET in path.read_bytes()]


@pytest.mark.parametrize("place", [".versions", ".versions/group", f".versions/{NAME}", "group"])
def test_x5_a_hub_with_a_link_for_a_folder_is_neither_read_nor_written(
    stages: Path, tiny_zoo: Path, outside: Path, tmp_path: Path, place: str
) -> None:
    hub = Path(shutil.copytree(stages / "good", tmp_path / "hub", symlinks=True))
    (hub / place).rename(outside / "theirs")
    (hub / place).symlink_to(outside / "theirs")
    before = state_of(outside)
    with pytest.raises(ZooError):
        pull(NAME, tmp_path / "mine", hub=hub)
    with pytest.raises(ZooError):
        publish(tiny_zoo, NAME, hub=hub, tag="v2")
    assert json.loads(run("hub", "list", "--hub", hub, "--json").stdout) == {}
    assert state_of(outside) == before


@pytest.mark.parametrize("shown", [NAME, f"{NAME}@v1"])
@pytest.mark.parametrize(
    "target", ["{outside}", "../../outside", "../.versions/group/other/x", "../.versions/group/tiny/.."]
)
def test_x5_a_name_in_a_hub_that_leads_elsewhere_is_refused(
    stages: Path, tiny_zoo: Path, outside: Path, tmp_path: Path, shown: str, target: str
) -> None:
    hub = Path(shutil.copytree(stages / "good", tmp_path / "hub", symlinks=True))
    publish(tiny_zoo, NAME, hub=hub, tag="v1")
    (hub / shown).unlink()
    (hub / shown).symlink_to(target.format(outside=outside))
    with pytest.raises(DamagedZooError, match="is a link that `zootools publish` did not make"):
        pull(NAME, tmp_path / "mine", hub=hub, revision=shown.partition("@")[2] or None)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["README.md", "build.json", SHARD, TABLE])
def test_x5_a_pull_replaces_a_link_in_its_folder_and_writes_nothing_through_it(
    stages: Path, zoo: Path, outside: Path, name: str
) -> None:
    put("link to a file", zoo / name, outside, name)
    before = state_of(outside)
    pull(NAME, zoo, hub=stages / "good")
    assert state_of(outside) == before
    assert list(faults(zoo)) == []


@pytest.mark.parametrize("folder", ["data", "metadata", "checkpoints", "checkpoints/stack-00000"])
def test_x5_a_pull_refuses_a_folder_that_is_a_link(stages: Path, zoo: Path, outside: Path, folder: str) -> None:
    put("link to the folder of that name", zoo / folder, outside, folder)
    before = state_of(outside)
    with pytest.raises(SpecError, match="holds something else"):
        pull(NAME, zoo, hub=stages / "good")
    assert state_of(outside) == before


# --- snapshots of the Hub's cache -----------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tiny_zoo: Path, tmp_path: Path) -> Path:
    """The folder that `huggingface_hub.snapshot_download` returns: links into the blobs of the repository."""
    cache = tmp_path / "cache/datasets--group--tiny"
    (cache / "blobs").mkdir(parents=True)
    for path in tiny_zoo.rglob("*"):
        if path.is_file():
            blob = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            link = cache / "snapshots" / ("a" * 40) / path.relative_to(tiny_zoo)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return cache / "snapshots" / ("a" * 40)


def test_a_snapshot_of_the_hubs_cache_is_read_and_published_and_never_changed(
    snapshot: Path, tiny_zoo: Path, grow: Path, tmp_path: Path
) -> None:
    cache = snapshot.parents[1]
    before = state_of(cache)
    zoo, expected = open_zoo(snapshot), open_zoo(tiny_zoo)
    assert (zoo.weights() == expected.weights()).all()
    assert list(faults(snapshot)) == []
    for command in ("info", "status", "verify"):
        assert run(command, snapshot).exit_code == 0
    for refused in (run("repair", snapshot), run("build", grow, "-o", snapshot, "--workers", 1)):
        assert refused.exit_code == 2
        assert "snapshot in the Hub's cache" in refused.output
        assert "zootools pull" in refused.output
    publish(snapshot, NAME, hub=tmp_path / "hub")
    with pytest.raises(SpecError, match="snapshot in the Hub's cache"):
        pull(NAME, snapshot, hub=tmp_path / "hub")
    pull(NAME, tmp_path / "mine", hub=tmp_path / "hub")
    assert list(faults(tmp_path / "mine")) == []
    assert not any(path.is_symlink() for path in (tmp_path / "hub/.versions").rglob("*"))
    assert state_of(cache) == before


@pytest.mark.parametrize("target", ["../../../secret", "{tmp}/secret", "../../blobs/../../secret", "../../blobs/link"])
def test_a_link_in_a_snapshot_leads_to_a_blob_of_its_repository_or_nowhere(
    snapshot: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "cache/secret").write_bytes(SECRET)
    (snapshot.parents[1] / "blobs/link").symlink_to(tmp_path / "secret")
    (snapshot / "build.json").unlink()
    (snapshot / "build.json").symlink_to(target.format(tmp=tmp_path))
    with pytest.raises(OSError, match=r"is a link|Too many levels"):
        open_inside(snapshot, "build.json")
    with pytest.raises(DamagedZooError):
        publish(snapshot, NAME, hub=tmp_path / "hub")


def test_a_link_into_blobs_is_followed_in_a_snapshot_only(snapshot: Path) -> None:
    elsewhere = snapshot.parents[1] / "elsewhere"
    snapshot.parent.rename(elsewhere)
    with pytest.raises(DamagedZooError, match="is a link"):
        open_zoo(elsewhere / snapshot.name)


# --- outputs that a user has named ----------------------------------------------------------------------------------


def test_an_output_goes_into_a_device_and_leaves_it_one(tmp_path: Path) -> None:
    device = tmp_path / "null"
    if os.getuid() == 0:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        device = Path("/dev/null")
    write_output(device, b"data", "x")
    assert stat.S_ISCHR(device.lstat().st_mode)


def test_an_output_goes_into_a_pipe_to_its_last_byte(tmp_path: Path) -> None:
    pipe, data, read = tmp_path / "pipe", os.urandom(1 << 20), bytearray()
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDWR)  # so that the pipe has a reader whenever it is opened

    def reader() -> None:
        while len(read) < len(data):
            read.extend(os.read(descriptor, 1 << 16))

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    write_output(pipe, data, "x")
    thread.join(60)
    os.close(descriptor)
    assert read == data
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="is a pipe without a reader"):
        write_output(tmp_path / "pipe", b"data", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_an_output_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to("far/real")
    for data in (b"first", b"second"):  # a link that dangles, then one that does not
        write_output(link, data, "x")
        assert link.is_symlink()
        assert (tmp_path / "far/real").read_bytes() == data
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["real"]
    link.unlink()
    link.symlink_to("link")
    with pytest.raises(StorageError):
        write_output(link, b"data", "x")


def test_an_output_keeps_permissions_and_spares_read_only_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_output(path, b"new", "x")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    path.chmod(0o444)
    with pytest.raises(StorageError, match="is read-only"):
        write_output(path, b"newer", "x")
    assert path.read_bytes() == b"new"
    with pytest.raises(SpecError, match=rf"is a folder; expected a file, such as {tmp_path}/page\.html"):
        write_output(tmp_path, b"data", "page.html")


def test_export_writes_to_its_own_output_and_to_a_file_in_its_place(tiny_zoo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, load_file

    model = open_zoo(tiny_zoo).models[0]
    words = [sys.executable, "-m", "zootools", "export", str(tiny_zoo), "--model", model, "--epoch", "1", "-o"]
    piped = subprocess.run([*words, "/dev/stdout"], capture_output=True)
    assert piped.returncode == 0, piped.stderr
    with (tmp_path / "redirected").open("wb") as file:
        file.write(b"")
        assert subprocess.run([*words, "/dev/stdout"], stdout=file).returncode == 0
    assert (tmp_path / "redirected").read_bytes() == piped.stdout
    load(piped.stdout)
    assert run("export", tiny_zoo, "--model", model, "--epoch", 1, "-o", tmp_path / "a.safetensors").exit_code == 0
    assert set(load_file(tmp_path / "a.safetensors")) == set(load(piped.stdout))
    refused = run("export", tiny_zoo, "--model", model, "--epoch", 1, "-o", tmp_path)
    assert refused.exit_code == 2
    assert f"{tmp_path}/{model}-epoch-1.safetensors" in refused.output


@pytest.mark.parametrize("command", ["plot", "view"])
def test_pictures_and_pages_are_written_to_what_links_lead_to(tiny_zoo: Path, tmp_path: Path, command: str) -> None:
    pytest.importorskip({"plot": "matplotlib", "view": "plotly"}[command])
    (tmp_path / "far").mkdir()
    (tmp_path / "out").mkdir()
    name = {"plot": "accuracy.svg", "view": "page.html"}[command]
    (tmp_path / "out" / name).symlink_to(tmp_path / "far/real")
    out = tmp_path / "out" if command == "plot" else tmp_path / "out" / name
    assert run(command, tiny_zoo, "-o", out, *(["--no-open"] if command == "view" else [])).exit_code == 0
    assert (tmp_path / "out" / name).is_symlink()
    assert (tmp_path / "far/real").stat().st_size > 0


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_are_listed_without_going_through_links_and_not_without_end(zoo: Path, outside: Path) -> None:
    (zoo / "data/link").symlink_to(outside)
    names = names_inside(zoo)
    assert "data/link" in names
    assert not [name for name in names if name.startswith("data/link/")]
    deep = zoo
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    assert [name for name in names_inside(zoo) if name.startswith("d/")] == ["/".join("d" * 33)]
