"""Three users follow the documentation: with own pictures, with an encoder of their own, publishing a zoo.

The commands are those of the pages, so a change of a page changes the test. Each journey is made twice in a working
folder of its own: typed in a terminal, and as a script whose output goes through a pipe. There is no network.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner
from examples import Example, examples

from zootools.cli import main

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parents[2] / "docs"
PROMPT = r"<(\d+)>next "
PYTHON_SYNTAX = re.compile(r"\[(['\"]|-?[\d.]+[,\]])|\{['\"]|\b(True|False|None)\b")
"""Lists, dictionaries, booleans: what output for people does not contain."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Journey:
    """What a user reads: sections of a page, from top to bottom."""

    page: str
    headings: tuple[str, ...]

    @property
    def examples(self) -> list[Example]:
        """The examples of the sections."""
        lines = (DOCS / self.page).read_text().splitlines()
        titles = [number for number, line in enumerate(lines) if re.match(r"##? ", line)]
        found: list[Example] = []
        for heading in self.headings:
            first = lines.index(f"## {heading}")
            last = next((number for number in titles if number > first), len(lines))
            found += [example for example in examples(DOCS / self.page) if first < example.line <= last]
        return found


JOURNEYS = {
    "student": Journey("own-images-and-architectures.md", ("Own images",)),
    "researcher": Journey("your-own-encoder.md", ("Data", "Network, views and loss", "Saving and comparing")),
    "publisher": Journey("getting-started.md", ("Build a zoo", "Publish it")),
}


def follow(journey: Journey, folder: Path) -> Iterator[str]:
    """Yield the commands of a journey; files are written on the way, and Python is a script that a command runs."""
    for kind, group in groupby(journey.examples, lambda example: (example.language, example.file, example.not_run)):
        language, file, not_run = kind
        found = list(group)
        if file is not None:
            (folder / file).write_text(found[-1].text)
        elif language == "python" and not_run is None:
            script = f"lines_{found[0].line}.py"
            (folder / script).write_text("\n".join(example.text for example in found))
            yield f"python {script} > {script}.txt"
        elif language == "sh" and not_run is None:
            yield from (command for example in found for command in example.commands)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo of the pages, built by the first command of docs/getting-started.md."""
    words = JOURNEYS["publisher"].examples[0].commands[0].split()
    out = tmp_path_factory.mktemp("journeys") / "digits_seed"
    done = CliRunner().invoke(main, [*words[1:], "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def folder(tmp_path: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with that zoo; `zootools` and `python` are those of this test, and nothing answers outside."""
    (tmp_path / "bin").mkdir()
    for name, words in (("zootools", "-m zootools"), ("python", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("ZOOTOOLS_HUB", raising=False)
    work = tmp_path / "work"
    shutil.copytree(zoo, work / "zoos" / "digits_seed")
    return work


def check_style(command: str, output: str) -> None:
    """Fail for the syntax of Python in the output of a command."""
    if command.startswith("zootools "):
        assert not PYTHON_SYNTAX.search(output), f"{command}\n{output}"
    assert "Traceback" not in output, f"{command}\n{output}"


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_in_a_terminal(name: str, folder: Path) -> None:
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile"],
        cwd=str(folder),
        env={**os.environ, "TERM": "dumb"},
        dimensions=(40, 120),
        encoding="utf-8",
        timeout=300,
        echo=False,
    )
    shell.sendline("PS1='<$?>next ' PS2=''")
    shell.expect(PROMPT)
    bars = 0
    for command in follow(JOURNEYS[name], folder):
        shell.sendline(command)
        shell.expect(PROMPT)
        output = str(shell.before)
        assert shell.match is not None
        assert shell.match[1] == "0", f"{command}\n{output}"
        check_style(command, output)
        bars += "%|" in output
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    assert bars or name != "student", "a build shows a bar on a terminal"


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_in_a_pipe(name: str, folder: Path) -> None:
    exports = ""
    for command in follow(JOURNEYS[name], folder):
        if command.startswith("export "):
            exports += f"{command}\n"
        words = ["bash", "-euo", "pipefail", "-c", exports + command]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        check_style(command, done.stdout)
        assert not CONTROL.search(done.stdout + done.stderr), f"{command}\n{done.stdout}{done.stderr}"
