"""The command `zootools cache`: its counts are right, and it removes nothing outside of the cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zootools.cli import main
from zootools.filesystem.lock import FolderLock


def command(*words: str) -> Result:
    return CliRunner().invoke(main, ["cache", *words])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two kernels, a link to a folder outside, and the working folder of a build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("ZOOTOOLS_DATA", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    cache = tmp_path / "cache" / "zootools"
    for name, size in (
        ("native/a.so", 1000),
        ("native/b.so", 500),
        ("builds/x/.work/plan", 70),
        ("verified/n.json", 5),
    ):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(size))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    (cache / "native" / "out").symlink_to(tmp_path / "outside")
    (cache / "images").symlink_to(tmp_path / "outside")
    blob = tmp_path / "hf" / "hub" / "datasets--group--tiny" / "zootools" / "commit" / "zoo.json"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(300))
    return cache


def test_kinds_are_counted_without_following_links(cache: Path, tmp_path: Path) -> None:
    found = json.loads(command("--json").stdout)
    link = len(str(tmp_path / "outside"))
    assert {kind: entry["bytes"] for kind, entry in found.items()} == {
        "builds": 70,
        "hub": 300,
        "images": link,
        "native": 1500 + link,
        "verified": 5,
    }
    assert found["native"]["folder"] == str(cache / "native")
    shown = command().stdout.splitlines()
    assert shown[0].split() == ["kind", "files", "bytes", "description", "folder"]


def test_cleaning_prints_what_it_removes_and_stays_inside(cache: Path, tmp_path: Path) -> None:
    done = command("clean", "native")
    assert done.exit_code == 0
    assert f"removed {cache / 'native' / 'a.so'}, 1.00 kB\n" in done.stdout
    assert list((cache / "native").iterdir()) == []
    assert (cache / "verified" / "n.json").exists()
    everything = command("clean", "--json")
    assert everything.exit_code == 0
    assert {Path(entry["path"]).name for entry in json.loads(everything.stdout)["removed"]} == {"x", "images", "n.json"}
    assert not (cache / "images").is_symlink()
    assert (tmp_path / "outside" / "precious").read_text() == "x"
    assert (tmp_path / "hf" / "hub" / "datasets--group--tiny").is_dir()
    assert command("clean").stdout == "removed 0 bytes in all\n"


def test_the_folder_of_a_running_build_is_kept(cache: Path) -> None:
    with FolderLock(cache / "builds" / "x" / ".work" / "lock"):
        kept = command("clean", "builds")
    assert (kept.exit_code, (cache / "builds" / "x" / ".work" / "plan").exists()) == (0, True)
    assert kept.stdout.startswith(f"kept {cache / 'builds' / 'x'}: a build is running there\n")
    assert command("clean", "builds").exit_code == 0
    assert not (cache / "builds" / "x").exists()


@pytest.mark.parametrize(
    ("kind", "text"), [("natve", "did you mean 'native'"), ("hub", "hf cache"), ("../x", "allowed")]
)
def test_an_unknown_kind_is_refused(cache: Path, kind: str, text: str) -> None:
    refused = command("clean", kind)
    assert (refused.exit_code, text in refused.stderr) == (2, True)


def test_the_cache_that_is_shown_is_the_one_that_is_used(cache: Path) -> None:
    script = "import sys; from huggingface_hub import constants; sys.stdout.write(constants.HF_HUB_CACHE)"
    used = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(command("--json").stdout)["hub"]["folder"] == used
