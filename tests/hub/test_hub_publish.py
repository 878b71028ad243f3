"""Publishing to a Hub that fails: whatever happens, the repository is the zoo or what it was before."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from crash import fault_random, lane
from hub_server import READER, TOKEN, Blob, Fault, Files, HubServer
from samples import SERVERS

from zootools.errors import HubError, SpecError, StorageError, ZooNotFoundError
from zootools.hub import calls, release, upload
from zootools.hub.publish import publish
from zootools.storage.card import render_card
from zootools.storage.manifest import read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.zoo_name import ZooName

NAME = "group/tiny"


def expected(zoo: Path) -> dict[str, bytes]:
    """Return the files that a repository must hold after a zoo is published, with a card that names the repository."""
    files = {path.relative_to(zoo).as_posix(): path.read_bytes() for path in zoo.rglob("*") if path.is_file()}
    manifest = read_manifest(zoo)
    return files | {"README.md": render_card(manifest, stored_spec(zoo, manifest), NAME).encode()}


def held(files: Files) -> dict[str, bytes]:
    """Return the files of a commit, without the Hub's own one."""
    return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}


def check_history(server: HubServer, *zoos: Path) -> None:
    """Every commit that readers could ever see is empty or exactly one of the zoos."""
    repo = server.repos[NAME]
    allowed = [{}, *map(expected, zoos)]
    for commit in repo.refs["main"]:
        assert held(repo.commits[commit]) in allowed
    assert held(repo.head()) == allowed[-1]


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; how long they would have is noted."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def test_a_zoo_is_published_with_one_commit(server: HubServer, tiny_zoo: Path) -> None:
    done = publish(tiny_zoo, NAME, hub=server.url, tag="v1.0")
    check_history(server, tiny_zoo)
    repo = server.repos[NAME]
    assert done.commits == 1
    assert done.changes == ("1 commit", "v1.0 names this version")
    assert done.address == f"{server.url}/datasets/{NAME}/tree/v1.0"
    assert repo.private
    assert repo.refs["main"][1:] == [done.commit] == [repo.tags["v1.0"]]
    again = publish(tiny_zoo, NAME, hub=server.url, tag="v1.0", public=True)
    assert (again.commit, again.commits, again.changes) == (done.commit, 0, ("public",))
    assert not repo.private
    publish(tiny_zoo, NAME, hub=server.url, public=False)
    assert repo.private


def test_an_update_sends_only_what_is_new_and_removes_what_is_gone(
    server: HubServer, tiny_zoo: Path, grown_zoo: Path
) -> None:
    publish(tiny_zoo, NAME, hub=server.url, tag="v1")
    server.requests.clear()
    publish(grown_zoo, NAME, hub=server.url)
    sent = [request for request in server.requests if request.method == "PUT"]
    new = {name for name, data in expected(grown_zoo).items() if expected(tiny_zoo).get(name) != data}
    assert len(sent) == len([name for name in new if name.endswith((".safetensors", ".parquet"))])
    publish(tiny_zoo, NAME, hub=server.url)
    check_history(server, grown_zoo, tiny_zoo)
    with pytest.raises(SpecError, match="a tag never moves"):
        publish(grown_zoo, NAME, hub=server.url, tag="v1")


def test_a_branch_leaves_main_alone(server: HubServer, tiny_zoo: Path, grown_zoo: Path) -> None:
    publish(tiny_zoo, NAME, hub=server.url, revision="first")
    publish(tiny_zoo, NAME, hub=server.url)
    publish(grown_zoo, NAME, hub=server.url, revision="draft")
    check_history(server, tiny_zoo)
    assert held(server.repos[NAME].head("draft")) == expected(grown_zoo)
    assert held(server.repos[NAME].head("first")) == expected(tiny_zoo)


@pytest.mark.parametrize("kind", [429, 500, 503, "reset", "reset-after"])
@pytest.mark.parametrize(
    "request_", ["repos/create", "GET /api/datasets", "preupload", "batch", "PUT /blobs", "commit", "tag"]
)
def test_a_passing_failure_is_survived(
    server: HubServer, tiny_zoo: Path, sleeps: list[float], request_: str, kind: int | str
) -> None:
    server.faults = [Fault(request_, kind, headers={"Retry-After": "17"} if kind == 429 else {})]
    done = publish(tiny_zoo, NAME, hub=server.url, tag="v1")
    assert server.faults[0].times == 0
    assert len(server.repos[NAME].refs["main"]) == 2
    assert server.repos[NAME].tags == {"v1": done.commit}
    check_history(server, tiny_zoo)
    if kind == 429:
        assert max(sleeps) >= 17


@pytest.mark.usefixtures("sleeps")
@pytest.mark.parametrize("request_", ["GET /api/datasets", "preupload", "batch", "PUT /blobs", "commit", "tag"])
def test_a_hub_that_falls_silent_is_asked_again(
    server: HubServer, tiny_zoo: Path, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "SILENCE", 1)
    monkeypatch.setattr(calls, "TIMEOUT", 1)

    def pause() -> None:  # time.sleep is a note only, see above
        threading.Event().wait(2)

    # The request is carried out in the end, when nobody listens any more.
    server.faults = [Fault(request_, "late", call=pause)]
    done = publish(tiny_zoo, NAME, hub=server.url, tag="v1")
    assert server.faults[0].times == 0
    assert server.repos[NAME].tags == {"v1": done.commit}
    assert held(server.repos[NAME].head()) == expected(tiny_zoo)


@pytest.mark.slow
def test_random_failures_never_leave_anything_but_the_zoo(
    server: HubServer, tiny_zoo: Path, grown_zoo: Path, sleeps: list[float]
) -> None:
    draw = fault_random("H1")
    kinds: list[int | str] = [408, 429, 500, 502, 503, 504, "reset", "reset-after", "truncate"]
    # Prepared once: what is under test is the way to the Hub.
    with release.prepare(tiny_zoo, ZooName("group", "tiny")) as tiny, release.prepare(grown_zoo, tiny.name) as grown:
        zoos = (tiny, grown)
    for script in range(lane(60, 1000)):
        server.repos.clear()
        server.blobs.clear()
        server.faults = [
            Fault(draw.choice(["", "/api", "commit", "PUT", "GET", "POST"]), draw.choice(kinds), draw.randint(1, 3))
            for _ in range(draw.randint(1, 3))
        ]
        for zoo in zoos:
            for _ in range(8):
                try:
                    upload.upload(zoo, server.url, public=None, tag=None)
                except (StorageError, HubError):
                    continue
                break
            else:
                pytest.fail(f"script {script}: never published")
        check_history(server, tiny_zoo, grown_zoo)
        assert len(server.repos[NAME].refs["main"]) == 3


@pytest.mark.slow
def test_a_publisher_may_be_killed_at_any_request(server: HubServer, tiny_zoo: Path, grown_zoo: Path) -> None:
    words = [sys.executable, str(SERVERS / "hub_publisher.py"), str(tiny_zoo), NAME, server.url]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    draw = fault_random("H2")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def attempt() -> int:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write("\n")
            parent.stdin.flush()
            pids.append(int(parent.stdout.readline()))
            return int(parent.stdout.readline())

        pids: list[int] = []
        for _ in range(25):
            server.repos.clear()
            server.blobs.clear()
            stored = 0
            for _ in range(2):
                kind = draw.choice(["reset", "reset-after", "killed"])
                # The n-th request from now on kills its sender, before or after it is carried out.
                server.faults = [Fault("", "none", draw.randint(0, 17))]
                server.faults.append(Fault("", kind, 1, call=lambda: os.kill(pids[-1], signal.SIGKILL)))
                attempt()
                server.settle()
                assert len(server.blobs) >= stored
                stored = len(server.blobs)
                if NAME in server.repos:
                    for commit in server.repos[NAME].refs["main"]:
                        assert held(server.repos[NAME].commits[commit]) in ({}, expected(tiny_zoo))
            server.faults = []
            server.requests.clear()
            assert attempt() == 0
            assert sum(request.path.startswith("/blobs") for request in server.requests) == 9 - stored
            check_history(server, tiny_zoo)
            assert len(server.repos[NAME].refs["main"]) == 2


def test_of_two_publishers_one_is_told_about_the_other(server: HubServer, tiny_zoo: Path, grown_zoo: Path) -> None:
    publish(tiny_zoo, NAME, hub=server.url)
    other: Files = {**server.repos[NAME].head(), "README.md": Blob(b"---\nlicense: mit\n---\n", False)}
    server.faults = [Fault("POST .*/commit/main", "none", call=lambda: server.repos[NAME].add("main", other) and None)]
    with pytest.raises(HubError, match="was published by another user or process"):
        publish(grown_zoo, NAME, hub=server.url)
    assert server.repos[NAME].head() is other


def test_many_files_go_through_a_pull_request_that_is_taken_up_again(
    server: HubServer, tiny_zoo: Path, grown_zoo: Path, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    publish(tiny_zoo, NAME, hub=server.url)
    monkeypatch.setattr(upload, "FILES_PER_COMMIT", 4)
    server.faults = [Fault("commit/refs/pr/1", 500, 6)]
    with pytest.raises(StorageError, match="run the same command again"):
        publish(grown_zoo, NAME, hub=server.url)
    repo = server.repos[NAME]
    assert held(repo.head()) == expected(tiny_zoo)
    server.faults = [Fault("commit/refs/pr/1", "reset-after"), Fault("merge", 503), Fault("merge", "reset-after")]
    done = publish(grown_zoo, NAME, hub=server.url)
    assert done.commits >= 3
    assert [request["status"] for request in repo.requests] == ["merged"]
    assert len(repo.refs["main"]) == 3
    check_history(server, tiny_zoo, grown_zoo)
    with pytest.raises(SpecError, match="can only be published to main"):
        publish(tiny_zoo, NAME, hub=server.url, revision="draft")


def test_a_zoo_goes_from_one_hub_to_another(
    server: HubServer, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tiny_zoo, "other/zoo", hub=tmp_path)
    monkeypatch.setenv("ZOOTOOLS_HUB", str(tmp_path))
    publish("other/zoo", NAME, hub=server.url)
    check_history(server, tiny_zoo)


def test_more_files_than_a_hub_takes_are_refused_before_the_first_byte(
    server: HubServer, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "MAX_FILES", 10)
    with pytest.raises(SpecError, match=r"13 files.*checkpoint_epochs"):
        publish(tiny_zoo, NAME, hub=server.url)
    assert [request.method for request in server.requests] == ["GET"]


def test_a_data_set_other_than_a_zoo_is_not_replaced(server: HubServer, tiny_zoo: Path) -> None:
    publish(tiny_zoo, NAME, hub=server.url)
    server.repos[NAME].add("main", {"train.csv": Blob(b"a,b\n", False)})
    with pytest.raises(SpecError, match=r"holds a data set that is not a zoo.*train.csv"):
        publish(tiny_zoo, NAME, hub=server.url)


@pytest.mark.parametrize(
    ("token", "kind", "text"),
    [
        (None, None, "there is no token; run `hf auth login`"),
        ("hf_" + "x" * 34, None, "does not accept the token; log in again"),
        (READER, None, "the token may not do this"),
        (TOKEN, 403, "the token may not do this"),
        (TOKEN, 401, "log in again"),
    ],
)
def test_a_refusal_says_what_to_do_and_is_not_tried_again(
    server: HubServer, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, kind: int | None, text: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    server.faults = [Fault("", kind)] if kind else []
    with pytest.raises((HubError, ZooNotFoundError), match=text) as caught:
        publish(tiny_zoo, NAME, hub=server.url)
    assert len(server.requests) <= 4
    assert server.repos == {}
    assert "\n" not in str(caught.value)
    assert token is None or token not in str(caught.value)


@pytest.mark.slow
def test_large_files_go_through_xet_where_the_hub_has_it(server: HubServer, tiny_zoo: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "zootools", "publish", str(tiny_zoo), NAME]
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "0",
    }
    refused = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert refused.returncode == 2
    assert "HF_HUB_DISABLE_XET=1" in refused.stderr
    assert "Traceback" not in refused.stderr
    # The store of hf_xet is a folder here; its content reaches the commit by a way that only the server knows.
    server.xet = f"local://{tmp_path / 'xet'}"
    server.blobs = {hashlib.sha256(data).hexdigest(): data for data in expected(tiny_zoo).values()}
    server.requests.clear()
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    check_history(server, tiny_zoo)
    assert not [request for request in server.requests if request.path.startswith("/blobs")]
    stored = sum(path.stat().st_size for path in (tmp_path / "xet").rglob("*") if path.is_file())
    assert stored > sum(path.stat().st_size for path in tiny_zoo.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "failing",
    [
        "GET /api/datasets/group/tiny/revision",
        "POST .*/preupload/",
        "POST .*/objects/batch",
        "PUT /blobs/",
        "POST .*/commit/",
        "GET .*/refs",
        "POST .*/tag/",
    ],
)
def test_a_request_that_fails_is_sent_again_by_one_layer_only(
    server: HubServer, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)  # of every library
    server.faults = [Fault(failing, 503, 9999)]
    with pytest.raises(StorageError, match="the Hub failed"):
        publish(tiny_zoo, NAME, hub=server.url, tag="v1")
    sent = Counter((r.method, r.path) for r in server.requests if re.search(failing, f"{r.method} {r.path}"))
    ours, of_the_library = 1 + len(calls.PAUSES), 6
    assert 1 < max(sent.values()) <= max(ours, of_the_library), sent
