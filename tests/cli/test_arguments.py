"""Every command with the wrong kind of thing: a file for a folder, a folder for a file, nothing, a pipe, an address."""

import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hub_server import HubServer

from zootools.cli import main
from zootools.errors import nearest_path
from zootools.hub.locate import looks_like_a_path
from zootools.object_store.urls import folder_of
from zootools.text import printable

Words = Callable[[str], list[str]]

ZOO_COMMANDS: dict[str, Words] = {
    "info": lambda zoo: ["info", zoo],
    "status": lambda zoo: ["status", zoo],
    "show": lambda zoo: ["show", zoo, "a-model"],
    "export": lambda zoo: ["export", zoo, "--model", "a-model", "--epoch", "1", "-o", "one.safetensors"],
    "verify": lambda zoo: ["verify", zoo],
    "publish": lambda zoo: ["publish", zoo, "me/zoo", "--hub", "hub"],
    "plan": lambda zoo: ["publish", zoo, "me/zoo", "--dry-run"],
    "represent": lambda zoo: ["represent", "--zoo", zoo, "--baselines-only"],
    "plot": lambda zoo: ["plot", zoo],
    "view": lambda zoo: ["view", zoo, "--no-open"],
}
COMMANDS: dict[str, Words] = ZOO_COMMANDS | {
    "repair": lambda zoo: ["repair", zoo],
    "build": lambda spec: ["build", spec, "--out", "out"],
    "check": lambda spec: ["check", spec],
    "pull": lambda name: ["pull", name, "pulled"],
    "hub info": lambda name: ["hub", "info", name],
    "hub list": lambda hub: ["hub", "list", "--hub", hub],
    "hub search": lambda hub: ["hub", "search", "x", "--hub", hub],
    "info --hub": lambda hub: ["hub", "info", "me/zoo", "--hub", hub],
    "reproduce": lambda what: ["reproduce", what],
}
HUB_COMMANDS = ("hub list", "hub search", "info --hub")
THINGS = [
    "./nothing",
    "nothing",
    "here/nothing",
    "/nothing/at/all",
    "~/nothing-at-all",
    "a b",
    "",
    " ",
    "a-text.txt",
    "a-text.txt/below",
    "empty",
    "binary.yaml",
    "a-pipe",
    "a-link-to-nothing",
    "/dev/zero",
    "https://example.com/zoo",
    "hf://datasets/me/zoo",
    "x" * 300,
    "caf\u00e9 \u202e\n\x1b[2J",
    "\udcff",
]


def command(*words: str | Path) -> tuple[int, str]:
    """Run a command in this process; return its exit code and everything that it printed."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert "Traceback" not in done.output
    return done.exit_code, done.output


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with everything that `THINGS` names and that is there."""
    folder = tmp_path / "work"
    (folder / "here").mkdir(parents=True)
    (folder / "a-text.txt").write_text("hello\n")
    (folder / "empty").write_text("")
    (folder / "binary.yaml").write_bytes(bytes(range(256)) * 10)
    (folder / "a-link-to-nothing").symlink_to("nowhere")
    os.mkfifo(folder / "a-pipe")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_wrong_kind_of_thing_is_one_message_that_names_it(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ZOOTOOLS_HUB", server.url)
    for thing in THINGS:
        if thing.startswith("https://") and name in HUB_COMMANDS:
            continue  # which may be a Hub
        code, output = command(*COMMANDS[name](thing))
        where = f"{name} {thing!r}: {output}"
        assert code == 2, where
        messages = [line for line in output.splitlines() if line.startswith(("zootools: ", "Error: "))]
        assert len(messages) == 1, where
        known = printable(thing.strip("~/ .")) or "empty"
        assert known in messages[0] or repr(thing) in messages[0], where
    # A name such as here/nothing goes to the hub only where a name is asked for.
    asked = {request.path for request in server.requests}
    assert not asked if name in ZOO_COMMANDS else all("here/nothing" in path or "a-text.txt" in path for path in asked)


@pytest.mark.skipif(os.geteuid() == 0, reason="lacks a user whom permissions bind (root)")
def test_what_may_not_be_read_is_said_to_be_so(things: Path) -> None:
    (things / "closed").mkdir(mode=0)
    for name, words in ZOO_COMMANDS.items():
        code, output = command(*words("closed/zoo"))
        assert code in (2, 3, 74), f"{name}: {output}"
        assert "closed" in output
        assert "ermission denied" in output


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("out", ["a-text.txt/zoo", "a-text.txt/a/b", "a-pipe/zoo", "a-link-to-nothing/zoo"])
def test_an_output_below_a_file_is_refused_before_anything_is_done(tiny_zoo: Path, out: str) -> None:
    blocking = out.partition("/")[0]
    for words in (
        ["build", "tetris_seed", "--models", "1", "--epochs", "1", "--out", out],
        ["pull", "me/zoo", out],
        ["plot", tiny_zoo, "--out", out],
        ["view", tiny_zoo, "--no-open", "--out", out],
        ["represent", "--zoo", tiny_zoo, "--out", out],
        ["reproduce", "table1", "--out", out],
    ):
        code, output = command(*words)
        assert code == 2, output
        assert f"{blocking} is not a folder" in output


def test_a_mistyped_path_is_answered_with_the_nearest_one_and_never_asks_the_hub(
    things: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOTOOLS_HUB", server.url)
    (things / "zoos" / "tetris_seed").mkdir(parents=True)
    for typed in ("zoos/tetris_sed", "./zoos/tetris_sed", "zoo/tetris_seed/x", f"{things}/zoos/tetris_sed"):
        code, output = command("info", typed)
        assert code == 2
        assert "did you mean 'zoos" in output, output
    assert "tetris_seed'" in command("represent", "--zoo", "zoos/tetris_sed")[1]
    assert "did you mean 'a-text.txt'" in command("info", "a-txt.txt")[1]
    assert "is a link to 'nowhere', where nothing is" in command("info", "a-link-to-nothing")[1]
    assert command("info", "me/zoo.parquet")[0] == 2
    # Both parts may be mistyped, and zoos are built in zoos/.
    assert "did you mean 'zoos/tetris_seed'" in command("info", "zoo/tetris_sed")[1]
    assert "did you mean 'zoos/tetris_seed'" in command("verify", "tetris_sed")[1]
    assert server.requests == []
    # A name on the hub that starts like a folder here can still be given, with its revision.
    code, output = command("info", "zoos/tetris_sed")
    assert "zoos/tetris_sed@main" in output
    assert "no such data set on the Hub" in command("info", "zoos/tetris_sed@main")[1]
    assert "no such data set on the Hub" in command("info", "me/zoo")[1]
    assert len(server.requests) == 2


def test_every_command_that_takes_a_zoo_takes_its_hub_and_revision(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zootools.hub.publish import publish

    publish(tiny_zoo, "group/tiny", hub=tmp_path / "hub", tag="v1")
    monkeypatch.chdir(tmp_path)
    taking = [words for words in commands() if any(parameter.name == "zoo" for parameter in words[1].params)]
    assert len(taking) > 6
    for name, found in taking:
        options = {option for parameter in found.params for option in parameter.opts}
        assert name == "repair" or {"--hub", "--revision"} <= options, name
    for words in (["info"], ["verify"], ["status"]):
        assert command(*words, "group/tiny", "--hub", tmp_path / "hub", "--revision", "v1")[0] == 0
        assert "no revision 'v2'" in command(*words, "group/tiny", "--hub", tmp_path / "hub", "--revision", "v2")[1]
    code, output = command("info", tiny_zoo, "--revision", "v1")
    assert (code, "only names have revisions" in output) == (2, True)


def commands() -> list[tuple[str, click.Command]]:
    return list(main.commands.items())


def test_names_and_paths_are_told_apart(things: Path) -> None:
    assert not looks_like_a_path(Path("me/zoo-1.0"))
    assert not looks_like_a_path(Path("me/mnist_v2.1"))
    assert looks_like_a_path(Path("here/zoo"))
    assert looks_like_a_path(Path("me/zoo.parquet"))
    assert nearest_path(things / "her") == "; did you mean 'here'?"
    assert nearest_path(things / "completely-different") == ""


def test_the_home_folder_may_be_written_as_a_tilde(
    things: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(things))
    (things / "zoo").symlink_to(tiny_zoo)
    assert command("info", "~/zoo")[0] == 0
    assert folder_of("~/zoo") == things / "zoo"
    assert folder_of("~no-such-user-here/zoo") == Path("~no-such-user-here/zoo")
    assert command("view", tiny_zoo, "--no-open", "--out=~/page.html")[0] == 0
    assert (things / "page.html").is_file()


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("hf://datasets/me/td", "give its name instead: me/td"),
        ("hf://datasets/me/td@v1/data/a.parquet", "give its name instead: me/td@v1"),
        ("HF://me/td", "give its name instead: me/td"),
        ("https://huggingface.co/datasets/me/td", "give its name instead: me/td"),
        ("https://huggingface.co/datasets/me/td/tree/v1.0", "give its name instead: me/td@v1.0"),
        ("http://hf.co/datasets/me/td.git", "give its name instead: me/td"),
        ("https://example.com/zoo", "is not the address of an object store"),
        ("http://localhost:1/zoo", "is not the address of an object store"),
        ("hf://", "is not the address of an object store"),
        ("no-such-protocol://x/y", "fsspec knows no such store"),
        ("hf://user:secret@datasets/me/td", "this URL has credentials in it"),
    ],
)
def test_addresses_that_lead_to_no_store_are_refused_without_a_request(url: str, instead: str) -> None:
    for words in (["info", url], ["status", url], ["verify", url], ["pull", url], ["build", "tetris_seed", "-o", url]):
        code, output = command(*words)
        assert code == 2, output
        assert instead in output
        assert "secret" not in output
    assert instead in command("represent", "--zoo", url, "--baselines-only")[1]


def test_an_empty_hub_says_so_and_a_missing_one_is_refused(things: Path) -> None:
    code, output = command("hub", "list", "--hub", "here")
    assert (code, output) == (0, "no zoo found\n")
    assert command("hub", "list", "--hub", "here", "--json")[1].startswith("{}\n")
    code, output = command("hub", "list", "--hub", "her")
    assert code == 2
    assert "there is no such folder for the hub" in output
    assert "did you mean 'here'" in output
    assert "is a file" in command("hub", "list", "--hub", "empty")[1]
    assert command("hub", "list", "--hub", "https://")[0] == 2
    assert sorted(path.name for path in things.iterdir()) == [
        "a-link-to-nothing",
        "a-pipe",
        "a-text.txt",
        "binary.yaml",
        "empty",
        "here",
    ]
