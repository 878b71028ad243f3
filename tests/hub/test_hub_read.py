"""Reading zoos from the Hub: what is fetched, what is refused, and the same through the command line and `datasets`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from hub_server import READER, TOKEN, Blob, Fault, HubServer

from zootools import open_zoo
from zootools.errors import DamagedZooError, HubError, StorageError, ZooError, ZooNotFoundError
from zootools.hub import calls
from zootools.hub.catalog import describe, zoos
from zootools.hub.locate import locate
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.storage.card import render_card
from zootools.storage.hashed_json import MAX_BYTES
from zootools.storage.manifest import read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.verify import faults, place_faults

NAME = "group/tiny"
MB = 1 << 20


def run(server: HubServer, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with HF_ENDPOINT pointing to the server."""
    words = [sys.executable, "-m", "zootools", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=client(server, **environment), timeout=120)


def client(server: HubServer, **environment: str) -> dict[str, str]:
    """The environment of a process that talks to the server."""
    common = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **common, **environment}


def fetched(server: HubServer) -> list[str]:
    """The files that were downloaded, in order."""
    return [r.path.split("/resolve/")[1][41:] for r in server.requests if r.method == "GET" and "/resolve/" in r.path]


def rewrite(server: HubServer, **changes: Any) -> None:
    """Commit other contents for some files."""
    repo = server.repos[NAME]
    files = dict(repo.head())
    for path, data in changes.items():
        files[path] = Blob(data, path.endswith((".parquet", ".safetensors")))
    repo.add("main", files)


@pytest.fixture
def published(server: HubServer, tiny_zoo: Path) -> HubServer:
    """The server with the tiny zoo on it, tagged v1; its log and the cache are empty."""
    publish(tiny_zoo, NAME, hub=server.url, tag="v1")
    server.requests.clear()
    return server


def test_metadata_comes_first_and_then_only_the_shards_that_are_needed(published: HubServer, tiny_zoo: Path) -> None:
    zoo = open_zoo(NAME, hub=published.url)
    local = open_zoo(tiny_zoo)
    assert zoo.metadata.equals(local.metadata)
    assert set(fetched(published)) == {"zoo.json", "spec.yaml"} | {
        f"metadata/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
    }
    published.requests.clear()
    last = pc.field("epoch") == 2
    assert torch.equal(zoo.where(last).weights(), local.where(last).weights())
    assert fetched(published) == ["checkpoints/stack-00000/epoch-0002.safetensors"]
    published.requests.clear()
    again = open_zoo(NAME, hub=published.url, where=last)
    assert torch.equal(again.weights(), local.where(last).weights())
    assert [request.path for request in published.requests] == [f"/api/datasets/{NAME}"]
    assert zoo.place is not None
    assert zoo.place.commit == published.repos[NAME].refs["main"][-1]


def test_revisions_are_tags_branches_and_commits(published: HubServer, grown_zoo: Path) -> None:
    first = published.repos[NAME].refs["main"][-1]
    publish(grown_zoo, NAME, hub=published.url)
    publish(grown_zoo, NAME, hub=published.url, revision="draft")
    counts = {r: len(open_zoo(NAME, hub=published.url, revision=r)) for r in (None, "main", "v1", "draft", first)}
    assert counts == {None: 48, "main": 48, "v1": 36, "draft": 48, first: 36}
    with pytest.raises(ZooNotFoundError, match="no such revision"):
        open_zoo(f"{NAME}@v9", hub=published.url)


def test_a_repository_that_changes_under_a_reader_is_still_the_one_it_opened(
    published: HubServer, grown_zoo: Path, tiny_zoo: Path
) -> None:
    zoo = open_zoo(NAME, hub=published.url)
    publish(grown_zoo, NAME, hub=published.url)
    assert torch.equal(zoo.weights(), open_zoo(tiny_zoo).weights())
    change = Fault(
        "GET .*/resolve/.*/zoo.json", "none", call=lambda: publish(tiny_zoo, NAME, hub=published.url) and None
    )
    published.faults = [change]
    assert len(open_zoo(NAME, hub=published.url)) == 48
    assert change.times == 0
    assert len(open_zoo(NAME, hub=published.url)) == 36


def test_a_pulled_zoo_is_whole_and_its_card_is_rendered_from_the_manifest(published: HubServer, tmp_path: Path) -> None:
    pull(NAME, tmp_path / "zoo", hub=published.url)
    assert list(faults(tmp_path / "zoo")) == []
    manifest = read_manifest(tmp_path / "zoo")
    card = render_card(manifest, stored_spec(tmp_path / "zoo", manifest), NAME)
    assert (tmp_path / "zoo" / "README.md").read_text() == card


def test_files_beside_a_published_zoo_are_named(published: HubServer) -> None:
    """`load_dataset` would read the table, and believe the hidden file instead of the card."""
    assert list(place_faults(locate(NAME, hub=published.url))) == []
    rewrite(published, **{"data/train-00001-of-00002.parquet": b"x", ".huggingface.yaml": b"x", ".gitattributes": b"x"})
    found = {fault.name for fault in place_faults(locate(NAME, hub=published.url))}
    assert found == {"data/train-00001-of-00002.parquet", ".huggingface.yaml"}


def test_offline_the_cache_is_all_there_is(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    last = pc.field("epoch") == 2
    weights = open_zoo(NAME, hub=published.url, where=last).weights()
    published.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    zoo = open_zoo(NAME, hub=published.url)
    assert torch.equal(zoo.where(last).weights(), weights)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        zoo.weights()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        open_zoo(f"{NAME}@v1", hub=published.url)
    assert published.requests == []


@pytest.mark.parametrize("kind", [429, 500, 503, "reset", "reset-after", "truncate"])
@pytest.mark.parametrize("request_", ["GET /api", "HEAD", "GET .*zoo.json", "GET .*safetensors"])
def test_a_passing_failure_is_survived(
    published: HubServer, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, request_: str, kind: int | str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    published.faults = [Fault(request_, kind, 1)]
    assert torch.equal(open_zoo(NAME, hub=published.url).weights(), open_zoo(tiny_zoo).weights())
    assert published.faults[0].times == 0


@pytest.mark.parametrize("file", ["spec.yaml", "metadata/test-00000-of-00001.parquet", "zoo.json", "epoch-0001"])
def test_wrong_bytes_of_the_right_size_are_refused_and_do_not_stay_in_the_cache(
    published: HubServer, tiny_zoo: Path, file: str
) -> None:
    published.faults = [Fault(f"GET .*{file}", "flip")]
    with pytest.raises(DamagedZooError, match=file):
        open_zoo(NAME, hub=published.url).weights()
    assert torch.equal(open_zoo(NAME, hub=published.url).weights(), open_zoo(tiny_zoo).weights())


def test_what_the_listing_gives_away_is_refused_before_it_is_downloaded(published: HubServer, tmp_path: Path) -> None:
    shard = "checkpoints/stack-00000/epoch-0001.safetensors"
    data = published.repos[NAME].head()[shard].data
    for other, text in ((data + b"\0", "is not the one in the manifest"), (data[:-1] + b"\0", "is not the one")):
        rewrite(published, **{shard: other})
        with pytest.raises(DamagedZooError, match=text):
            open_zoo(NAME, hub=published.url)
    files = {path: blob for path, blob in published.repos[NAME].head().items() if path != shard}
    published.repos[NAME].add("main", files)
    with pytest.raises(DamagedZooError, match="but is missing there"):
        open_zoo(NAME, hub=published.url)
    assert set(fetched(published)) == {"zoo.json"}
    rewrite(published, **{"zoo.json": b" " * (MAX_BYTES + 1)})
    with pytest.raises(DamagedZooError, match=rf"zoo.json has {MAX_BYTES + 1} bytes"):
        open_zoo(NAME, hub=published.url)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < MB


def test_more_bytes_than_announced_are_not_stored(published: HubServer, tmp_path: Path) -> None:
    published.faults = [Fault("GET .*safetensors", "more", 9)]
    with pytest.raises(DamagedZooError, match="has more than"):
        open_zoo(NAME, hub=published.url).weights()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < MB


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"../../escape.json": {"size": 1, "sha256": "0" * 64}}, "is not allowed in a zoo"),
        ({"data/run.py": {"size": 1, "sha256": "0" * 64}}, "not a kind of file"),
        ({"data/weights.pt": {"size": 1, "sha256": "0" * 64}}, "not a kind of file"),
        ({"data/big.parquet": {"size": 6 << 30, "sha256": "0" * 64}}, "more than the"),
        ({"Spec.yaml": {"size": 1, "sha256": "0" * 64}}, "are one file on some systems"),
    ],
)
def test_a_manifest_from_a_stranger_is_read_with_suspicion(
    published: HubServer, tmp_path: Path, files: dict[str, Any], text: str
) -> None:
    from zootools.hashing import pretty_json
    from zootools.storage.hashed_json import add_hash

    manifest = json.loads(published.repos[NAME].head()["zoo.json"].data)
    manifest["files"] |= files
    rewrite(published, **{"zoo.json": pretty_json(add_hash(manifest))})
    before = {path for path in tmp_path.parent.rglob("*") if "cache" not in path.parts}
    with pytest.raises(DamagedZooError, match=text):
        open_zoo(NAME, hub=published.url)
    assert set(fetched(published)) == {"zoo.json"}
    assert {path for path in tmp_path.parent.rglob("*") if "cache" not in path.parts} == before


def test_a_listing_finds_zoos_by_their_tag(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    published.repos["group/other"] = published.repos[NAME].__class__(False)
    published.repos["group/other"].add("main", {"train.csv": Blob(b"a\n", False)})
    published.requests.clear()
    (entry,) = zoos(hub=published.url)
    assert [request.path for request in published.requests] == ["/api/datasets"]
    size = sum(len(blob.data) for blob in published.repos[NAME].head().values())
    assert (entry.name, entry.models, entry.bytes, entry.date) == (NAME, 12, size, "2026-11-26")
    assert zoos("nothing", hub=published.url) == []
    info = describe(NAME, hub=published.url)
    assert info.tags == {"v1": published.repos[NAME].refs["main"][-1]}
    assert (info.counts.ok, info.parameters) == (12, 100)
    with pytest.raises(ZooNotFoundError, match="it is not a zoo"):
        open_zoo("group/other", hub=published.url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "prepare", "name", "text"),
    [
        (None, "private", NAME, "log in with `hf auth login`"),
        ("hf_" + "x" * 34, "", NAME, "log in again"),
        (None, "gated", NAME, "is gated; request access"),
        (READER, "403", NAME, "may not do this"),
        (TOKEN, "", "group/nothing", "no such data set on the Hub"),
        (TOKEN, "offline", NAME, "HF_HUB_OFFLINE is set"),
        (TOKEN, "unreachable", NAME, "the Hub cannot be reached"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    published: HubServer, tmp_path: Path, token: str | None, prepare: str, name: str, text: str
) -> None:
    published.repos[NAME].private = prepare == "private"
    published.repos[NAME].gated = prepare == "gated"
    published.faults = [Fault("", 403, 99)] if prepare == "403" else []
    environment = {"HF_HOME": str(tmp_path), "HF_TOKEN": token or ""}
    if prepare == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    if prepare == "unreachable":
        environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    refused = run(published, "info", name, **environment)
    assert refused.returncode == (74 if prepare == "unreachable" else 2)
    assert text in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert refused.stdout == ""
    assert token is None or token not in refused.stderr
    # Nothing of this gets better by trying again.
    assert len(published.requests) <= 2


def test_a_hub_that_stays_down_is_exit_code_74(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    published.faults = [Fault("", 503, 999)]
    with pytest.raises(StorageError, match=r"HTTP 503.*run the same command again") as caught:
        open_zoo(NAME, hub=published.url)
    assert caught.value.exit_code == 74
    assert waits == sorted(waits)


@pytest.mark.parametrize("kind", [429, 503, "reset"])
@pytest.mark.parametrize("failing", ["HEAD .*zoo.json", "GET .*zoo.json"])
def test_a_request_that_fails_is_sent_again_by_one_layer_only(
    published: HubServer, monkeypatch: pytest.MonkeyPatch, failing: str, kind: int | str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)  # of every library
    published.faults = [Fault(failing, kind, 999)]
    with pytest.raises(StorageError, match=r"zoo\.json: the Hub failed"):
        open_zoo(NAME, hub=published.url)
    sent = [request for request in published.requests if request.path.endswith("zoo.json")]
    # huggingface-hub looks into its cache after a first HEAD, and sends it once more.
    assert len([request for request in sent if request.method == failing.split()[0]]) <= 2 * (1 + len(calls.PAUSES))
    assert waits == list(calls.PAUSES)


def test_waiting_is_bounded_also_where_the_hub_asks_for_more(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    published.faults = [Fault("GET /api", 429, 999, {"Retry-After": "100"})]
    with pytest.raises(StorageError, match="HTTP 429"):
        open_zoo(NAME, hub=published.url)
    assert waits == [100, 100, 100]
    waits.clear()
    published.faults = [Fault("GET /api", 429, 999, {"Retry-After": "86400"})]
    with pytest.raises(StorageError, match="HTTP 429"):
        open_zoo(NAME, hub=published.url)
    assert waits == []


@pytest.mark.parametrize("hub", ["http://no-such-host.invalid", "http://127.0.0.1:9"])
def test_a_hub_that_cannot_be_reached_is_answered_at_once(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: str
) -> None:
    from representation import Encoder

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    ends = (
        lambda: open_zoo("group/typo", hub=hub),
        lambda: zoos(hub=hub),
        lambda: describe("group/typo", hub=hub),
        lambda: pull("group/typo", tmp_path / "x", hub=hub),
        lambda: Encoder.from_pretrained("group/typo", endpoint=hub),
    )
    for end in ends:
        with pytest.raises(StorageError, match=r"cannot be reached.*HF_HUB_OFFLINE=1"):
            end()
    assert waits == []
    assert StorageError.exit_code == 74


def test_a_mistyped_encoder_is_answered_by_one_request_or_none(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from representation import Encoder

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(ZooNotFoundError, match="holds no encoder"):
        Encoder.from_pretrained("group/typo", endpoint=server.url)
    assert len(server.requests) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders" / "tiny").mkdir(parents=True)
    with pytest.raises(ZooNotFoundError, match="did you mean 'encoders/tiny'"):
        Encoder.from_pretrained("encoders/tny", endpoint=server.url)
    assert len(server.requests) == 1
    assert waits == []


@pytest.mark.parametrize("token", ["hf_\u00e9" + "x" * 30, "hf_ab cd", "hf_ab\tcd", "\u202ehf_abcd", "hf_\u0430bcd"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    server: HubServer, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for end in (
        lambda: open_zoo(NAME, hub=server.url),
        lambda: zoos(hub=server.url),
        lambda: publish(tiny_zoo, NAME, hub=server.url),
    ):
        with pytest.raises(HubError, match="has characters that a token cannot have") as caught:
            end()
        assert caught.value.exit_code == 2
        assert token not in str(caught.value)
    assert server.requests == []


@pytest.mark.slow
def test_end_to_end_with_the_real_clients(server: HubServer, tiny_zoo: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home")}
    outputs = [run(server, "publish", tiny_zoo, NAME, "--tag", "v1", "--json", **home)]
    outputs.append(run(server, "verify", f"{NAME}@v1", **home))
    outputs.append(run(server, "hub", "list", "--json", **home))
    outputs.append(run(server, "pull", NAME, tmp_path / "mine", **home))
    model = open_zoo(tiny_zoo).models[0]
    target = tmp_path / "one.safetensors"
    outputs.append(run(server, "export", NAME, "--model", model, "--epoch", "2", "-o", target, **home))
    outputs.append(run(server, "represent", "--zoo", NAME, "--recipe", "smoke", "-o", tmp_path / "out", **home))
    assert [output.returncode for output in outputs] == [0] * len(outputs), [output.stderr for output in outputs]
    assert json.loads(outputs[0].stdout)["commit"] == server.repos[NAME].tags["v1"]
    assert f"{NAME}@v1: from the Hub, commit {server.repos[NAME].tags['v1']}" in outputs[1].stderr
    assert target.exists()
    assert list((tmp_path / "out").glob("*.parquet"))
    # Without a trace of ours in the process that loads it.
    script = """
import sys
sys.modules["zootools"] = sys.modules["representation"] = None
import datasets
for config in sorted(datasets.get_dataset_config_names("group/tiny")):
    loaded = datasets.load_dataset("group/tiny", config)
    print(config, {split: rows.num_rows for split, rows in loaded.items()})
some = datasets.load_dataset("group/tiny", split="train", filters=[("epoch", "==", 2)], revision="v1")
print(sum(some["epoch"]), some.features["weights"])
print(next(iter(datasets.load_dataset("group/tiny", split="test", streaming=True)))["epoch"])
"""
    words = [sys.executable, "-c", script]
    loaded = subprocess.run(
        words, capture_output=True, text=True, env=client(server, **home), cwd=tmp_path, timeout=120
    )
    assert loaded.returncode == 0, loaded.stderr
    zoo = open_zoo(tiny_zoo)
    rows = {split: len(zoo.split(split)) for split in ("train", "validation", "test")}
    lines = loaded.stdout.splitlines()
    assert lines[:2] == [f"checkpoints {rows}", f"metadata {rows}"]
    assert lines[2] == f"{2 * rows['train'] // 3} List(Value('float32'), length=100)"
    everything = "".join(output.stdout + output.stderr for output in outputs) + loaded.stdout + loaded.stderr
    assert TOKEN not in everything
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_error_shows_a_token_not_even_in_a_traceback(published: HubServer, tiny_zoo: Path, tmp_path: Path) -> None:
    published.faults = [Fault("commit", 400, 99)]
    failed = run(published, "--debug", "publish", tiny_zoo, "group/other", HF_HOME=str(tmp_path), HF_DEBUG="1")
    assert failed.returncode == 74
    assert "Traceback" in failed.stderr
    assert TOKEN not in failed.stderr + failed.stdout
    assert issubclass(HubError, ZooError)
