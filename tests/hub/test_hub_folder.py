"""A plain folder as the hub: publish, resolve, list, pull, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from samples import TINY_ZOO

from zootools import build, open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.hashing import pretty_json
from zootools.hub.catalog import describe, zoos
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.spec import parse_spec
from zootools.storage.file_rules import check_file_names, check_sizes
from zootools.storage.hashed_json import add_hash
from zootools.storage.manifest import UNHASHED
from zootools.verify import faults, repair
from zootools.zoo_name import parse_name


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    words = [sys.executable, "-m", "zootools", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def another(zoo: Path, out: Path, description: str) -> Path:
    """Copy a zoo and change its description: another manifest, another card."""
    shutil.copytree(zoo, out)
    manifest = json.loads((out / "zoo.json").read_text())
    text = (out / "spec.yaml").read_text().replace("a zoo for tests", description)
    (out / "spec.yaml").write_text(text)
    import hashlib

    manifest["files"]["spec.yaml"] = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (out / "zoo.json").write_bytes(pretty_json(add_hash(manifest)))
    return out


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    """A hub folder with one zoo in two versions: the tag v1, and a newer one."""
    hub = tmp_path_factory.mktemp("hub") / "made-by-publish"
    publish(tiny_zoo, "group/tiny", hub=hub, tag="v1")
    publish(another(tiny_zoo, hub.parent / "second", "the second version"), "group/tiny", hub=hub)
    return hub


def test_a_published_zoo_opens_by_name(hub: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOTOOLS_HUB", str(hub))
    zoo = open_zoo("group/tiny")
    assert torch.equal(zoo.weights(), open_zoo(tiny_zoo).weights())
    assert zoo.spec.description == "the second version"
    assert zoo.place is not None
    old = open_zoo("group/tiny@v1")
    assert old.spec.description == "a zoo for tests"
    assert old.place is not None
    assert len({zoo.place.commit, old.place.commit}) == 2
    pinned = open_zoo("group/tiny", revision=old.place.commit, split="test")
    assert pinned.spec.description == "a zoo for tests"
    with pytest.raises(ZooNotFoundError, match=r"no revision 'v2'; did you mean 'v1'"):
        open_zoo("group/tiny", revision="v2")


def test_a_path_comes_before_a_name(hub: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_zoo, tmp_path / "group" / "tiny")
    assert open_zoo("group/tiny", hub=hub).spec.description == "a zoo for tests"
    with pytest.raises(SpecError, match="only names have revisions"):
        open_zoo("group/tiny", hub=hub, revision="v1")


@pytest.mark.slow
def test_commands_take_names_and_say_where_the_zoo_comes_from(hub: Path, tmp_path: Path) -> None:
    environment = {"ZOOTOOLS_HUB": str(hub)}
    shown = run("info", "group/tiny", "--json", **environment)
    assert json.loads(shown.stdout)["checkpoints"] == 36
    assert f"group/tiny: from the hub folder {hub}" in shown.stderr
    assert run("verify", "group/tiny@v1", **environment).returncode == 0
    listed = json.loads(run("hub", "list", "--json", **environment).stdout)
    assert [(name, entry["description"]) for name, entry in listed.items()] == [("group/tiny", "the second version")]
    assert json.loads(run("hub", "search", "nothing", "--json", **environment).stdout) == {}
    info = json.loads(run("hub", "info", "group/tiny", "--hub", hub, "--json").stdout)
    assert (info["ok"], info["parameters"], list(info["tags"])) == (12, 100, ["v1"])
    pulled = run("pull", "group/tiny", tmp_path / "mine", "--revision", "v1", **environment)
    assert pulled.returncode == 0, pulled.stderr
    assert run("verify", tmp_path / "mine").returncode == 0
    missing = run("pull", "group/nothing", "--hub", hub)
    assert missing.returncode == 2
    assert "has no group/nothing" in missing.stderr


@pytest.mark.slow
def test_load_dataset_reads_the_hub_folder_and_never_takes_one_version_for_another(hub: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path = [p for p in sys.path if 'zootools' not in p]; from datasets import load_dataset\n"
        "for path in sys.argv[1:]:\n"
        "    for config in ('checkpoints', 'metadata'):\n"
        "        data = load_dataset(path, config)\n"
        "        print({s: d.num_rows for s, d in data.items()}, *sorted(data['train']['model_id'])[:1])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", script, str(hub / "group/tiny"), str(hub / "group/tiny@v1")]
    loaded = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert loaded.returncode == 0, loaded.stderr
    assert len(set(loaded.stdout.splitlines())) == 1
    zoo = open_zoo(hub / "group/tiny")
    assert f"'train': {len(zoo.split('train'))}" in loaded.stdout


def test_publishing_again_changes_nothing_and_a_tag_never_moves(hub: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    before = sorted(hub.rglob("*"))
    newest = describe("group/tiny", hub=hub).commit
    again = publish(hub / "group/tiny", "group/tiny", hub=hub)
    assert (again.commit, again.commits, again.changes) == (newest, 0, ())
    assert sorted(hub.rglob("*")) == before
    with pytest.raises(SpecError, match="a tag never moves"):
        publish(hub / "group/tiny", "group/tiny", hub=hub, tag="v1")
    (tmp_path / "group/tiny").mkdir(parents=True)
    with pytest.raises(SpecError, match="was not made by zootools"):
        publish(tiny_zoo, "group/tiny", hub=tmp_path)


def test_a_branch_does_not_move_the_newest_version(tiny_zoo: Path, tmp_path: Path) -> None:
    publish(tiny_zoo, "group/tiny", hub=tmp_path / "hub")
    publish(another(tiny_zoo, tmp_path / "b", "on a branch"), "group/tiny", hub=tmp_path / "hub", revision="draft")
    assert open_zoo("group/tiny", hub=tmp_path / "hub").spec.description == "a zoo for tests"
    assert open_zoo("group/tiny@draft", hub=tmp_path / "hub").spec.description == "on a branch"


def test_a_damaged_zoo_is_not_published(tiny_zoo: Path, tmp_path: Path) -> None:
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    shard = next(zoo.glob("checkpoints/*/epoch-0001.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedZooError, match=r"epoch-0001.safetensors: its bytes have changed"):
        publish(zoo, "group/tiny", hub=tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_pull_is_resumed_and_leaves_other_folders_alone(hub: Path, tmp_path: Path) -> None:
    pull("group/tiny", tmp_path / "zoo", hub=hub)
    assert list(faults(tmp_path / "zoo")) == []
    (tmp_path / "zoo" / "zoo.json").unlink()
    next((tmp_path / "zoo").glob("data/*")).unlink()
    pull("group/tiny", tmp_path / "zoo", hub=hub)
    assert list(faults(tmp_path / "zoo")) == []
    with pytest.raises(SpecError, match="holds something else"):
        pull("group/tiny", tmp_path / "zoo", hub=hub, revision="v1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(SpecError, match="holds something else"):
        pull("group/tiny", tmp_path / "other", hub=hub)


def test_a_partial_zoo_is_published_on_request_and_can_be_finished_after_a_pull(
    grown_zoo: Path, tmp_path: Path
) -> None:
    zoo = shutil.copytree(grown_zoo, tmp_path / "zoo")
    (zoo / "checkpoints/stack-00001/epoch-0001.safetensors").unlink()
    repair(zoo)
    with pytest.raises(SpecError, match="--allow-partial"):
        publish(zoo, "group/part", hub=tmp_path / "hub")
    publish(zoo, "group/part", hub=tmp_path / "hub", allow_partial=True)
    part = open_zoo("group/part", hub=tmp_path / "hub")
    assert (part.counts.ok, part.counts.missing, part.finished) == (12, 4, False)
    assert len(part) == part.weights().shape[0] == 36
    assert "**This zoo is partial**: 4 of its models" in (part.folder / "README.md").read_text()
    assert not list(tmp_path.glob(".zoo-*"))
    pull("group/part", tmp_path / "mine", hub=tmp_path / "hub")
    assert list(faults(tmp_path / "mine")) == []
    with pytest.raises(SpecError, match="--allow-partial"):
        publish(tmp_path / "mine", "group/again", hub=tmp_path / "hub")
    build(parse_spec(TINY_ZOO | {"seeds": {"range": [1, 16]}}, "test"), tmp_path / "mine", workers=1, quiet=True)
    assert list(faults(tmp_path / "mine")) == []
    assert (tmp_path / "mine" / "zoo.json").read_bytes() == (grown_zoo / "zoo.json").read_bytes()


def test_a_dry_run_prints_card_and_files_and_sends_nothing(tiny_zoo: Path, tmp_path: Path) -> None:
    planned = json.loads(
        run("publish", tiny_zoo, "group/tiny", "--hub", tmp_path / "hub", "--dry-run", "--json").stdout
    )
    assert 'open_zoo("group/tiny")' in planned["card"]
    assert planned["bytes"] == sum(planned["files"].values())
    assert planned["files"]["zoo.json"] == (tiny_zoo / "zoo.json").stat().st_size
    assert not (tmp_path / "hub").exists()


def test_what_is_not_a_finished_zoo_is_not_published(tmp_path: Path) -> None:
    """The error for a folder of an encoder names the command that publishes it."""
    refused = run("publish", tmp_path, "group/enc", "--hub", tmp_path / "hub")
    assert (refused.returncode, refused.stderr.count("\n")) == (ZooNotFoundError.exit_code, 1)
    assert "holds no finished zoo (there is no zoo.json)" in refused.stderr
    (tmp_path / "model.safetensors").touch()
    assert f"`hf upload ORG/NAME {tmp_path}`" in run("publish", tmp_path, "group/enc", "--hub", tmp_path / "hub").stderr
    assert not (tmp_path / "hub").exists()


def test_a_listing_survives_a_damaged_zoo(hub: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(hub, tmp_path / "hub", symlinks=True)
    assert [entry.name for entry in zoos("second", hub=copy)] == ["group/tiny"]
    (copy / "group/tiny/zoo.json").write_text("{}")
    assert "damaged" in zoos(hub=copy)[0].description


@pytest.mark.parametrize(
    "text",
    ["tiny", "a/b/c", "../b", "a/..", ".a/b", "a/b@", "a/b@-x", "a/b@x/../y", "a--b/c", "/a/b", "a/b.git", "a/b\n"],
)
def test_invalid_names_are_refused(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.parametrize(
    "name",
    [
        *("../x.json", "/x.json", "a//b.json", "a\\b.json", "C:/x.json", ".hidden.json", "a/.b/c.json", "x.py", "x"),
        *("con.json", "a/LPT1.x.json", "x.json.", "a/b./c.json", "ü.json", "x.json\n", "x.pkl", "x.safetensors.pt"),
        *("a/" * 8 + "x.json", "x" * 200 + ".json"),
    ],
)
def test_a_name_that_could_reach_out_hide_or_run_is_refused(name: str) -> None:
    with pytest.raises(DamagedZooError, match=r"file name|not a kind of file"):
        check_file_names("zoo", [name])


def test_names_that_are_one_on_some_systems_and_sizes_beyond_reason_are_refused() -> None:
    check_file_names("zoo", ["data/a.json", "data/b.json", "-x/y_z.parquet"])
    with pytest.raises(DamagedZooError, match="one file on some systems"):
        check_file_names("zoo", ["data/a.json", "Data/A.json"])
    with pytest.raises(DamagedZooError, match="that a file may have"):
        check_sizes("zoo", {"a": (5 << 30) + 1})
    with pytest.raises(DamagedZooError, match="that a zoo may have"):
        check_sizes("zoo", {str(n): 5 << 30 for n in range(41)})


def test_after_publishing_the_two_lines_load_the_zoo(tiny_zoo: Path, tmp_path: Path) -> None:
    words = ["publish", str(tiny_zoo), "group/tiny", "--hub", str(tmp_path / "hub"), "--tag", "v1"]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 0
    assert "nothing to do" not in first.stderr
    done = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (done["changes"], Path(done["address"]).is_dir()) == ([], True)
    for line in done["load"]:
        assert f"  {line}\n" in first.stdout
        loaded: dict[str, Any] = {}
        exec(line.replace("load_dataset(", f"load_dataset(cache_dir={str(tmp_path / 'cache')!r}, path="), loaded)
        assert len(loaded.get("zoo", [])) == 36 or sum(map(len, loaded["rows"].values())) == 36
    again = CliRunner().invoke(main, words)
    assert (again.exit_code, again.stdout) == (0, first.stdout.replace("1\nfiles", "0\nfiles"))
    assert again.stderr.endswith("nothing to do: this version was already published\n")


def test_a_listing_has_models_size_and_date(hub: Path) -> None:
    (entry,) = zoos(hub=hub)
    files = hub / ".versions" / "group" / "tiny" / entry.commit
    listed = sum(path.stat().st_size for path in files.rglob("*") if path.is_file() and path.name not in UNHASHED)
    assert (entry.models, entry.bytes) == (12, listed)
    assert entry.date == datetime.now(UTC).date().isoformat()
    shown = CliRunner().invoke(main, ["hub", "list", "--hub", str(hub)]).stdout.splitlines()
    assert shown[0].split() == ["name", "models", "bytes", "date", "description"]
    assert shown[1].split()[:2] == ["group/tiny", "12"]
