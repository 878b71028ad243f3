"""Zoos in an object store: a real S3 server on loopback, real clients, and builders that are killed.

The server looks at the whole bucket after every request that changes it (`S3Server.broken`): a record or a manifest
that names what is not there would be found at once.
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from crash import SMALL, TINY, Build, Builders, fault_random, lane, tree
from fsspec.registry import _registry

from zootools import build, load_spec, open_zoo
from zootools.cli import main
from zootools.errors import BusyError, DamagedZooError, SpecError, StorageError, ZooNotFoundError
from zootools.object_store.client import PAUSES, ConflictError, ObjectStore
from zootools.object_store.urls import folder_of
from zootools.storage.build_state import ZooFolder

pytest.importorskip("s3fs", reason="needs pip install 'zootools[s3]'")
from s3_server import BUCKET, SECRET, S3Server, serve_s3

pytestmark = pytest.mark.slow

URL = f"s3://{BUCKET}/zoo"
FAST = [0.2, 1.0, [0.05, 0.1]]
"""Seconds between two renewals of a lease, until it expires, and before a failed call is repeated."""


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server, and this process set up for it."""
    with serve_s3() as server:
        for name, value in {**server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.broken == []


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, Path]:
    """The specification files of a zoo of six models, of one of three, and of the first one grown."""
    texts = {"tiny": TINY, "small": SMALL, "grown": TINY.replace("[1, 3]", "[1, 5]")}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: tmp_path / f"{name}.yaml" for name in texts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, builders: Builders) -> Callable[[str], dict[str, bytes]]:
    """The files that a build into a folder makes of a specification's text."""
    folder, trees = tmp_path_factory.mktemp("built"), dict[str, dict[str, bytes]]()

    def made(text: str) -> dict[str, bytes]:
        if text not in trees:
            out = folder / str(len(trees))
            (folder / "spec.yaml").write_text(text)
            assert builders.build(folder / "spec.yaml", out) == 0, Path(f"{out}.log").read_text()
            trees[text] = tree(out)
        return trees[text]

    return made


class Machine:
    """A machine that builds: a cache folder of its own, and quick about leases and repeated calls."""

    def __init__(self, builders: Builders, server: S3Server, folder: Path) -> None:
        self.builders, self.server, self.cache = builders, server, folder

    @property
    def change(self) -> dict[str, Any]:
        environment = {**self.server.environment, "XDG_CACHE_HOME": str(self.cache)}
        return {"environment": environment, "haste": FAST}

    def start(self, spec: Path, wait: bool = False, **change: Any) -> Build:
        return self.builders.start(spec, URL, wait, **self.change, **change)

    def build(self, spec: Path, **change: Any) -> int:
        return self.start(spec, **change).wait()

    @property
    def working_folder(self) -> Path:
        (folder,) = (self.cache / "zootools" / "builds").iterdir()
        return folder


@pytest.fixture
def machine(tmp_path: Path, builders: Builders, s3: S3Server) -> Callable[[str], Machine]:
    return lambda name: Machine(builders, s3, tmp_path / name)


def stored(server: S3Server) -> dict[str, bytes]:
    """The objects below `URL`, except the one file that may differ."""
    return {name: data for name, data in server.objects("zoo/").items() if name != "build.json"}


def command(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


# --- building ------------------------------------------------------------------------------------------


def test_the_zoo_in_a_store_is_the_one_in_a_folder(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    assert here.build(specs["tiny"]) == 0
    assert stored(s3) == built(TINY)
    # Three requests for each stack and epoch that the store is told of: the lease, the shard, the record.
    puts = [name for method, name in s3.requests if method == "PUT"]
    shards = [name for name in puts if name.startswith("zoo/checkpoints/")]
    records = [name for name in puts if name.endswith(".record")]
    assert len(shards) == len(set(shards)) == 8
    assert len(records) <= len(shards)
    # Besides, the lease is read before the tables, before zoo.json, and when it is given back.
    assert s3.requests.count(("GET", "zoo/.work/lease.json")) <= len(records) + 3
    assert list((here.cache / "zootools" / "builds").iterdir()) == []
    # The same command again has nothing to do: it takes the lease and gives it back.
    s3.requests.clear()
    assert machine("elsewhere").build(specs["tiny"]) == 0
    changed = {name for method, name in s3.requests if method not in ("GET", "HEAD")}
    assert changed == {"zoo/.work/lease.json"}
    assert stored(s3) == built(TINY)


def test_a_zoo_in_a_store_grows_from_another_machine(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    assert machine("here").build(specs["tiny"]) == 0
    elsewhere, puts = machine("elsewhere"), list[str]()

    def kill_once(method: str, name: str) -> None:
        puts.append(name)
        if len(puts) == 9:
            os.killpg(growing.pid, signal.SIGKILL)

    growing = elsewhere.start(specs["grown"], wait=True)
    s3.after = kill_once
    assert growing.go().wait() == -signal.SIGKILL
    s3.after = lambda method, name: None
    assert machine("third").build(specs["grown"]) == 0
    # What was trained first keeps its stacks, so this is what growing a folder gives.
    assert stored(s3) == grown_folder(machine("folder"), specs)
    assert stored(s3) != built(TINY)


def grown_folder(machine: Machine, specs: dict[str, Path]) -> dict[str, bytes]:
    out = machine.cache / "zoo"
    out.parent.mkdir()
    assert machine.builders.build(specs["tiny"], out) == 0
    assert machine.builders.build(specs["grown"], out) == 0
    return tree(out)


def test_a_zoo_in_a_store_is_trained_further_from_its_kept_state(
    s3: S3Server, specs: dict[str, Path], tmp_path: Path, machine: Callable[[str], Machine]
) -> None:
    """On another machine, which is killed, and then on a third one; the shorter zoo keeps an epoch more."""
    text = SMALL.replace("batch_size: 4", "batch_size: 4, checkpoint_every: 3")
    short, long, options = tmp_path / "short.yaml", tmp_path / "long.yaml", {"keep_state": True}
    short.write_text(text)
    long.write_text(text.replace("epochs: 2", "epochs: 4"))
    here = machine("here")
    assert here.builders.build(long, tmp_path / "once") == 0
    assert here.build(short, options=options) == 0
    building, changes = machine("killed").start(long, wait=True, options=options), 0
    last = fault_random("kept state in a store").randrange(4, 20)

    def kill(method: str, name: str) -> None:
        nonlocal changes
        changes += 1
        if changes == last:
            os.killpg(building.pid, signal.SIGKILL)

    s3.after = kill
    assert building.go().wait() == -signal.SIGKILL
    s3.after = lambda method, name: None
    assert machine("third").build(long, options=options) == 0, Path(f"{long}.log").read_text()
    state, found = ".state/stack-00000.record", stored(s3)
    assert {name: data for name, data in found.items() if name != state} == tree(tmp_path / "once")
    assert command("verify", URL).exit_code == 0
    assert here.build(short) == 2
    (changed := tmp_path / "changed.yaml").write_text(text.replace("epochs: 2", "epochs: 5"))
    s3.remove(f"zoo/{state}")
    assert here.build(changed) == 2
    assert "built with --keep-state" in Path(f"{changed}.log").read_text()


@pytest.mark.parametrize("same_machine", [False, True])
def test_a_builder_killed_after_any_put_is_followed_by_one_that_makes_equal_bytes(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine], same_machine: bool
) -> None:
    whole = built(SMALL)
    kills = 0
    while True:
        for name in s3.objects():
            s3.remove(name)
        first = machine(f"first-{kills}")
        building, changes = first.start(specs["small"], wait=True), 0

        def kill(method: str, name: str, building: Build = building, last: int = kills + 1) -> None:
            nonlocal changes
            changes += 1
            if changes == last:
                os.killpg(building.pid, signal.SIGKILL)

        s3.after = kill
        if building.go().wait() == 0:
            break
        s3.after = lambda method, name: None
        second = first if same_machine else machine(f"second-{kills}")
        assert second.build(specs["small"]) == 0, Path(f"{specs['small']}.log").read_text()
        assert stored(s3) == whole, f"killed after change {kills + 1}"
        kills += lane(7 if same_machine else 4, 1)
    # The lease, the plan, three shards and records, six files, zoo.json, and all that is removed in the end.
    assert kills >= 16


def test_what_only_the_working_folder_has_is_put_and_not_trained_again(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    """The network fails in the middle of a build: exit code 74, and the same command resumes training."""
    here = machine("here")
    puts = 0

    def cut(method: str, name: str) -> str | None:
        nonlocal puts
        puts += name.endswith(".record") and method == "PUT"
        return "reset" if puts >= 2 else None

    s3.door = cut
    assert here.build(specs["tiny"]) == 74
    log = Path(f"{specs['tiny']}.log").read_text()
    assert "run the same command again to resume" in log
    assert SECRET not in log
    folder = ZooFolder(here.working_folder)
    record = folder.read_record(0)
    assert record is not None
    assert record.epoch >= 1
    s3.door = lambda method, name: None
    epochs = []

    def watch(method: str, name: str) -> None:
        if name.endswith("stack-00000.record") and method == "PUT":
            epochs.append(json.loads(s3.objects()[name].partition(b"\n")[0])["epoch"])

    s3.after = watch
    assert here.build(specs["tiny"]) == 0
    assert epochs == sorted(epochs)
    assert epochs[0] >= record.epoch
    assert stored(s3) == built(TINY)


def test_the_store_wins_over_a_working_folder_that_was_left_behind(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    here, other = machine("here"), machine("other")
    for killed, last in ((here, "stack-00000.record"), (other, "stack-00001.record")):
        building = killed.start(specs["tiny"], wait=True)

        def kill(method: str, name: str, building: Build = building, last: str = last) -> None:
            if name.endswith(last):
                os.killpg(building.pid, signal.SIGKILL)

        s3.after = kill
        assert building.go().wait() == -signal.SIGKILL
    put: list[str] = []
    s3.after = lambda method, name: put.append(name)
    assert here.build(specs["tiny"]) == 0
    assert not [name for name in put if "stack-00000" in name and not name.endswith(".record")]
    assert stored(s3) == built(TINY)
    # A finished zoo, and a folder that still believes it is being built.
    shutil.copytree(left := other.working_folder, other.cache / "left")
    shutil.rmtree(left)
    assert other.build(specs["tiny"]) == 0
    shutil.copytree(other.cache / "left", left)
    put.clear()
    assert other.build(specs["tiny"]) == 0
    assert set(put) == {"zoo/.work/lease.json"}
    assert not left.exists()
    assert stored(s3) == built(TINY)
    # A folder whose builder was killed while it removed the zoo is not a zoo, and blocks nothing.
    (left / "checkpoints").mkdir(parents=True)
    (left / "checkpoints" / "rest").write_bytes(b"x")
    assert other.build(specs["tiny"]) == 0
    assert not left.exists()


def test_a_builder_killed_while_it_fetches_fetches_the_rest(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    here, there = machine("here"), machine("there")
    building, fetched = here.start(specs["tiny"], wait=True), 0

    def kill(method: str, name: str) -> None:
        if name.endswith("stack-00001.record"):
            os.killpg(building.pid, signal.SIGKILL)

    def kill_reader(method: str, name: str) -> None:
        nonlocal fetched
        fetched += method == "GET" and name.endswith(".safetensors")
        if fetched == 3:
            os.killpg(building.pid, signal.SIGKILL)

    s3.after = kill
    assert building.go().wait() == -signal.SIGKILL
    s3.after = lambda method, name: None
    building = there.start(specs["tiny"], wait=True)
    s3.door = kill_reader
    assert building.go().wait() == -signal.SIGKILL
    s3.door = lambda method, name: None
    assert there.build(specs["tiny"]) == 0
    assert stored(s3) == built(TINY)


@pytest.mark.parametrize("kind", ["500", "reset", "reset after"])
def test_a_store_that_fails_now_and_then_gets_the_same_zoo(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine], kind: str
) -> None:
    random = fault_random(kind)
    lock, faults = threading.Lock(), [0]

    def fail(method: str, name: str) -> str | None:
        with lock:
            if method == "DELETE" or (kind == "reset after" and method != "PUT"):
                return None
            if faults[0] < 4 or random.random() < 0.2:  # chance alone may leave a zoo of so few requests in peace
                faults[0] += 1
                return kind
        return None

    s3.door = fail
    here = machine("here")
    here_change = here.change | {"haste": [*FAST[:2], [0.02] * 5]}
    for _ in range(5):  # a call may fail six times in a row; then the same command resumes
        code = here.builders.build(specs["tiny"], URL, **here_change)
        assert code in (0, 74), Path(f"{specs['tiny']}.log").read_text()
        if code == 0:
            break
    assert faults[0] >= 4
    s3.door = lambda method, name: None
    assert here.build(specs["tiny"]) == 0
    assert stored(s3) == built(TINY)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_request_that_fails_is_sent_again_by_one_layer_only(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    waits: list[float] = []
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", waits.append)
    store = ObjectStore(URL)
    s3.put("zoo/there", b"x")
    assert store.read("there") == b"x"
    s3.requests.clear()
    s3.door = lambda asked, name: "500" if asked == method else None
    call = {
        "GET": lambda: store.read("there"),
        "HEAD": lambda: store.tag("there"),
        "PUT": lambda: store.swap("new", b"y", None),
    }[method]
    with pytest.raises(StorageError, match="run the same command again"):
        call()
    assert len([asked for asked, _ in s3.requests if asked == method]) == 1 + len(PAUSES) == 1 + len(waits)


# --- one builder ---------------------------------------------------------------------------------------


def test_of_many_swaps_of_one_object_one_succeeds(s3: S3Server) -> None:
    clients = [ObjectStore(URL) for _ in range(4)]

    def swap(number: int, old: str | None) -> str | None:
        try:
            return clients[number].swap("lease", f"{number}, after {old}".encode(), old)
        except ConflictError:
            return None

    old: str | None = None
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            tags = list(pool.map(swap, range(4), [old] * 4))
            (winner,) = [number for number, tag in enumerate(tags) if tag is not None]
            assert s3.objects("zoo/")["lease"] == f"{winner}, after {old}".encode()
            old = tags[winner]
            assert clients[0].tag("lease") == old


def test_of_many_builders_one_works_and_the_others_name_it(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    text = specs["tiny"].read_text()
    paths = [specs["tiny"].with_name(f"spec-{number}.yaml") for number in range(5)]
    for path in paths:
        path.write_text(text)
    entered, release = threading.Event(), threading.Event()

    def hold(method: str, name: str) -> str | None:
        if name.endswith(".record"):  # the winner waits here until the others have been refused
            entered.set()
            release.wait(300)
        return None

    s3.door = hold
    builds = [machine(path.stem).start(path, wait=True) for path in paths]
    for building in builds:
        building.go()
    assert entered.wait(300)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        logs = [Path(f"{path}.log").read_text() for path in paths if Path(f"{path}.log").exists()]
        if sum("another process is at work there" in log for log in logs) == 4:
            break
        time.sleep(0.05)
    release.set()
    assert sorted(building.wait() for building in builds) == [0, 75, 75, 75, 75]
    assert stored(s3) == built(TINY)
    assert all("process" in log and "on " in log for log in logs if log)


def test_a_builder_that_has_lost_its_lease_stops_before_its_next_put(
    s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    first, second = machine("first"), machine("second")
    zombie, records = first.start(specs["tiny"], wait=True), 0

    def stop(method: str, name: str) -> None:
        nonlocal records
        records += name.endswith(".record") and method == "PUT"
        if records == 2:
            zombie.signal(signal.SIGSTOP)

    s3.after = stop
    zombie.go()
    while records < 2:
        time.sleep(0.01)
    s3.after = lambda method, name: None
    other = specs["tiny"].with_name("other.yaml")
    other.write_text(TINY)
    patient = {**second.change, "haste": [FAST[0], 600, FAST[2]]}
    assert second.builders.build(other, URL, **patient) == 75, "the holder may only be slow"
    time.sleep(FAST[1])  # else its lease may not have expired yet
    assert second.build(other) == 0, Path(f"{other}.log").read_text()
    assert stored(s3) == built(TINY)
    puts: list[str] = []
    s3.after = lambda method, name: puts.append(name)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 75
    # It says which of the two it found first: the lease, or the record that its next put was to replace.
    assert re.search("another builder has (taken over|written)", Path(f"{specs['tiny']}.log").read_text())
    assert set(puts) <= {"zoo/.work/lease.json"}, "and that renewal has been refused: the lease is gone"
    assert stored(s3) == built(TINY)


# --- reading -------------------------------------------------------------------------------------------


def test_a_zoo_in_a_store_is_read_by_its_url(
    tmp_path: Path, s3: S3Server, specs: dict[str, Path], built: Any, machine: Callable[[str], Machine]
) -> None:
    assert machine("here").build(specs["tiny"]) == 0
    s3.requests.clear()
    zoo = open_zoo(URL)
    assert not [name for _, name in s3.requests if name.endswith(".safetensors")]
    pulled = tmp_path / "pulled"
    assert command("pull", URL, str(pulled)).exit_code == 0
    assert tree(pulled) == built(TINY)
    assert torch.equal(zoo.weights(), open_zoo(pulled).weights())
    # A part of it needs a part of the shards, and what has been fetched is not fetched again.
    shutil.rmtree(tmp_path / "cache")
    s3.requests.clear()
    model = zoo.models[0]
    open_zoo(URL).state_dict(model, 2)
    assert len([name for _, name in s3.requests if name.endswith(".safetensors")]) in (1, 2)  # with its HEAD
    s3.requests.clear()
    open_zoo(URL).state_dict(model, 2)
    assert not [name for _, name in s3.requests if name.endswith((".safetensors", ".parquet"))]
    for words in (["info", URL], ["status", URL], ["show", URL, model], ["verify", URL]):
        result = command(*words)
        assert result.exit_code == 0, result.output
    assert json.loads(command("status", URL, "--json").output)["ok"] == 6


def kill_after_one_stack(s3: S3Server, here: Machine, spec: Path) -> None:
    """Begin a build and kill it when the store has the record of its second stack."""
    building = here.start(spec, wait=True)

    def kill(method: str, name: str) -> None:
        if name.endswith("stack-00001.record"):
            os.killpg(building.pid, signal.SIGKILL)

    s3.after = kill
    building.go().wait()
    s3.after = lambda method, name: None


def test_a_zoo_that_is_being_built_tells_how_far_it_is(
    s3: S3Server, specs: dict[str, Path], machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    kill_after_one_stack(s3, here, specs["tiny"])
    standing = json.loads(command("status", URL, "--json").output)
    assert standing["state"] == "interrupted", "its builder was a process of this machine, and has ended"
    assert standing["resumed_by"].startswith(f"zootools build SPEC --out {URL} ")
    assert (standing["ok"], standing["missing"], standing["stacks_done"]) == (3, 3, 1)
    # Of a builder on another machine only the last renewal of its lease is known.
    for age, state in ((5, "running"), (3600, "unfinished")):
        lease = {"host": "far", "process": 7, "began": time.time() - 7200, "renewed": time.time() - age}
        s3.put("zoo/.work/lease.json", json.dumps(lease).encode())
        standing = json.loads(command("status", URL, "--json").output)
        assert standing["state"] == state
        assert standing["builder" if state == "running" else "last_builder"]["host"] == "far"
        assert ("not_known" in standing) == (state == "unfinished")
        assert "last_heard_of" in standing
    result = command("info", URL)
    assert result.exit_code == 2
    assert f"zootools status {URL}" in result.output


def test_a_damaged_object_is_refused(
    tmp_path: Path, s3: S3Server, specs: dict[str, Path], machine: Callable[[str], Machine]
) -> None:
    here = machine("here")
    kill_after_one_stack(s3, here, specs["tiny"])
    shard = "zoo/checkpoints/stack-00000/epoch-0002.safetensors"
    record = "zoo/.work/stack-00000.record"
    for name in (shard, record):
        intact = s3.objects()[name]
        s3.put(name, intact[:-1] + bytes([intact[-1] ^ 1]) if name == shard else intact.replace(b'"done"', b'"dome"'))
        assert machine(f"fresh-{len(name)}").build(specs["tiny"]) == 3
        assert name.removeprefix("zoo/") in Path(f"{specs['tiny']}.log").read_text()
        s3.put(name, intact)
    s3.broken.clear()  # which we have caused ourselves
    assert here.build(specs["tiny"]) == 0
    intact = s3.objects()[shard]
    s3.put(shard, intact[:-1] + bytes([intact[-1] ^ 1]))
    zoo = open_zoo(URL)
    with pytest.raises(DamagedZooError, match=r"epoch-0002\.safetensors is not what the manifest promises"):
        zoo.weights()
    assert command("verify", URL).exit_code == 3
    s3.remove(shard)
    with pytest.raises(DamagedZooError, match=r"epoch-0002\.safetensors is in the manifest, but is missing there"):
        open_zoo(URL)


# --- refusals ------------------------------------------------------------------------------------------


def test_refusals_say_what_to_do(
    tmp_path: Path, s3: S3Server, specs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(specs["small"])

    def refusal(out: str, error: type[Exception]) -> str:
        with pytest.raises(error) as caught:
            build(spec, out, workers=1, quiet=True)
        text = str(caught.value)
        assert "\n" not in text
        assert SECRET not in text
        return text

    assert "is the bucket's name right?" in refusal("s3://no-such-bucket/zoo", ZooNotFoundError)
    s3.put("notes/important.txt", b"mine")
    assert "holds objects but not a zoo" in refusal(f"s3://{BUCKET}/notes", SpecError)
    assert s3.objects("notes/") == {"important.txt": b"mine"}
    with monkeypatch.context() as gone:
        gone.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        gone.setattr("zootools.object_store.client.PAUSES", (0.01,))
        assert "the store cannot be reached" in refusal(URL, StorageError)
    assert "fsspec knows no such store" in refusal("s33://bucket/zoo", SpecError)
    assert "this URL has credentials in it" in refusal(f"s3://key:{SECRET}@bucket/zoo", SpecError)
    assert "three slashes" in refusal("file://zoo", SpecError)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no credentials; set AWS_ACCESS_KEY_ID" in refusal(URL, SpecError)
    monkeypatch.delitem(_registry, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "pip install 'zootools[s3]'" in refusal(URL, SpecError)


def test_a_dry_run_does_not_touch_the_store(s3: S3Server, specs: dict[str, Path]) -> None:
    result = command("build", str(specs["small"]), "--out", URL, "--dry-run")
    assert result.exit_code == 0, result.output
    assert s3.requests == []


def test_another_zoo_in_the_same_place_is_refused(
    s3: S3Server, specs: dict[str, Path], machine: Callable[[str], Machine]
) -> None:
    assert machine("here").build(specs["small"]) == 0
    before = stored(s3)
    specs["small"].write_text(SMALL.replace("epochs: 2", "epochs: 3"))
    assert machine("there").build(specs["small"]) == 2
    assert "zoo of another specification" in Path(f"{specs['small']}.log").read_text()
    assert stored(s3) == before


def test_a_file_url_is_the_folder_behind_it(
    tmp_path: Path, specs: dict[str, Path], built: Any, builders: Builders
) -> None:
    assert folder_of("file:///nfs/zoo") == Path("/nfs/zoo")
    assert builders.build(specs["small"], f"file://{tmp_path}/zoo") == 0
    assert tree(tmp_path / "zoo") == built(SMALL)
    assert len(open_zoo(f"file://{tmp_path}/zoo")) == 9


def test_any_store_of_fsspec_will_do(tmp_path: Path, specs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One without conditional puts, in the memory of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = load_spec(specs["small"])
    build(spec, "memory://zoos/small", workers=1, quiet=True, backend="torch")
    build(spec, tmp_path / "small", workers=1, quiet=True, backend="torch")
    found = ObjectStore("memory://zoos/small")
    assert {name: found.read(name) for name in found.list() if name != "build.json"} == tree(tmp_path / "small")
    found.swap(".work/lease.json", json.dumps({"renewed": time.time(), "process": 1, "host": "h"}).encode(), None)
    with pytest.raises(BusyError, match="process 1 on h"):
        build(spec, "memory://zoos/small", workers=1, quiet=True)
