"""Parts of published zoos: what a filtered pull fetches, what readers make of it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hub_server import HubServer

from zootools import build, open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.storage.part import PART, Selection, parse_epochs
from zootools.verify import faults, repair

NAME = "group/tiny"
LAST = Selection("test_accuracy >= 0 and epoch == 2")


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    hub = tmp_path_factory.mktemp("hub") / "hub"
    publish(tiny_zoo, NAME, hub=hub)
    return hub


@pytest.fixture
def part(hub: Path, tmp_path: Path) -> Path:
    """The last epoch of the tiny zoo."""
    pull(NAME, tmp_path / "part", hub=hub, only=LAST)
    return tmp_path / "part"


def test_a_part_of_a_zoo_on_the_hub_is_fetched_alone(server: HubServer, tiny_zoo: Path, tmp_path: Path) -> None:
    publish(tiny_zoo, NAME, hub=server.url)
    server.requests.clear()
    words = ["pull", NAME, tmp_path / "part", "--hub", server.url, "--where", "epoch == 2", "--epochs", "1-2"]
    assert command(*words).exit_code == 0
    sent = [request.path for request in server.requests if request.method == "GET" and "/resolve/" in request.path]
    assert [path for path in sent if path.endswith(".safetensors")] == [
        path for path in sent if path.endswith("checkpoints/stack-00000/epoch-0002.safetensors")
    ]
    assert not [path for path in sent if "/data/" in path]
    assert len(open_zoo(tmp_path / "part")) == 12
    assert list(faults(tmp_path / "part")) == []
    assert command("verify", tmp_path / "part").exit_code == 0
    server.requests.clear()
    assert command(*words).exit_code == 0
    assert len(server.requests) == 1  # nothing is missing


def test_readers_of_a_part_see_the_chosen_checkpoints(part: Path, tiny_zoo: Path) -> None:
    shards = {name for name in files(part) if name.startswith("checkpoints/")}
    assert shards == {"checkpoints/stack-00000/epoch-0002.safetensors"}
    assert not any(name.startswith("data/") for name in files(part))
    zoo, whole = open_zoo(part), open_zoo(tiny_zoo, where="epoch == 2")
    assert zoo.metadata.equals(whole.metadata)
    assert torch.equal(zoo.weights(), whole.weights())
    assert zoo.notes == [f"is a part of {NAME}: where {LAST.where}"]
    assert json.loads(command("info", part, "--json").stdout)["checkpoints"] == 12
    assert list(faults(part)) == []


def test_damage_of_a_part_is_found_and_mended_by_the_same_pull(part: Path, hub: Path) -> None:
    shard = part / "checkpoints" / "stack-00000" / "epoch-0002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (part / "checkpoints" / "stack-00000" / "epoch-0001.safetensors").write_bytes(b"x")
    assert {fault.name for fault in faults(part)} == {
        f"checkpoints/stack-00000/epoch-000{n}.safetensors" for n in (1, 2)
    }
    (part / "checkpoints" / "stack-00000" / "epoch-0001.safetensors").unlink()
    pull(NAME, part, hub=hub, only=LAST)
    assert list(faults(part)) == []
    shard.unlink()
    assert [str(fault) for fault in faults(part)] == [f"{shard.relative_to(part)}: is missing"]
    text = (part / PART).read_text()
    (part / PART).write_text(text.replace("epoch == 2", "epoch == 1"))
    with pytest.raises(DamagedZooError, match=r"part\.json"):
        open_zoo(part)
    assert [fault.name for fault in faults(part)] == [PART]


def test_a_pull_without_conditions_completes_a_part(part: Path, hub: Path, tiny_zoo: Path) -> None:
    with pytest.raises(SpecError, match="holds another part"):
        pull(NAME, part, hub=hub, only=Selection(epochs=(0,)))
    pull(NAME, part, hub=hub)
    assert files(part) == files(tiny_zoo)
    assert list(faults(part)) == []
    with pytest.raises(SpecError, match="holds the whole zoo already"):
        pull(NAME, part, hub=hub, only=LAST)


def test_a_part_is_not_published_repaired_built_or_copied(
    part: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(part)
    told = f"is a part of {NAME} .*zootools pull {NAME} .* fetches the rest"
    with pytest.raises(SpecError, match=told):
        publish(part, "group/other", hub=tmp_path / "other")
    with pytest.raises(SpecError, match=told):
        repair(part)
    with pytest.raises(SpecError, match=told):
        build(open_zoo(tiny_zoo).spec, part, workers=1, quiet=True)
    (tmp_path / "group").mkdir()
    shutil.copytree(part, tmp_path / "group" / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=told):
        pull("group/tiny", tmp_path / "copy")
    assert files(part) - {".work/lock"} == before


def test_metadata_alone_has_no_weights_and_says_how_to_get_them(hub: Path, tmp_path: Path) -> None:
    assert command("pull", NAME, tmp_path / "part", "--hub", hub, "--metadata-only").exit_code == 0
    assert not (tmp_path / "part" / "checkpoints").exists()
    assert list(faults(tmp_path / "part")) == []
    zoo = open_zoo(tmp_path / "part")
    assert len(zoo) == 36
    with pytest.raises(SpecError, match=f"metadata of {NAME} only; `zootools pull {NAME} .*` fetches the weights"):
        zoo.weights()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--where", "epch == 2"], "epoch"),
        (["--where", "epoch == 77"], "no checkpoint is chosen by where epoch == 77; there are 36 in all"),
        (["--epochs", "7,8"], "epochs: found 7, 8; stored: 0, 1, 2"),
        (["--epochs", "1-x"], "epochs: found '1-x'; expected numbers and ranges"),
        (["--epochs", "3-1"], "epochs: found '3-1'"),
        (["--epochs", "1-99999999999"], "epochs: found"),
    ],
)
def test_a_choice_of_nothing_is_refused_before_anything_is_written(
    hub: Path, tmp_path: Path, words: list[str], text: str
) -> None:
    refused = command("pull", NAME, tmp_path / "part", "--hub", hub, *words)
    assert (refused.exit_code, text in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "part").exists()


def test_epochs_are_numbers_and_ranges() -> None:
    assert parse_epochs("20-22, 0,10") == (0, 10, 20, 21, 22)
