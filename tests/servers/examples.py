"""The examples in a Markdown page, run as a reader would run them from top to bottom.

A page's examples run in order in a folder of their own, Python in one namespace. Before a fence there may be

- ``<!-- not run: REASON -->``: the example is only looked over for commands and options that do not exist;
- ``<!-- file: NAME -->``: the example is a file, which the later ones find.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from zootools.cli import main

COMMENT = re.compile(r"<!-- (not run|file): (\S.*) -->\s*")


@dataclass(frozen=True)
class Example:
    """One fenced block: its language and text, the line where the text starts, and its comments."""

    language: str
    text: str
    line: int
    file: str | None = None
    not_run: str | None = None

    @property
    def commands(self) -> list[str]:
        """The commands of a shell example: its lines, joined where a quotation or a backslash continues in the next."""
        found, command = [], ""
        for line in self.text.splitlines():
            command = f"{command}\n{line}" if command else line
            try:
                words = shlex.split(command, comments=True)
            except ValueError:
                continue
            if words:
                found.append(command)
            command = ""
        assert not command, f"line {self.line}: {command} does not end"
        return found


def examples(page: Path) -> Iterator[Example]:
    """Yield the fenced blocks of a page, each with the comments directly before it."""
    said: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            said |= dict(COMMENT.findall(token.content))
        elif token.type == "fence":
            assert token.map is not None
            yield Example(token.info, token.content, token.map[0] + 1, said.get("file"), said.get("not run"))
            said = {}
        else:
            said = {}


class Reader:
    """Does what a page says, in the working folder of this process."""

    def __init__(self, page: Path, patch: pytest.MonkeyPatch) -> None:
        self.page, self.patch = page, patch
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, example: Example) -> None:
        """Run an example, or write its file. Fails with what went wrong, and where in the page."""
        where = f"{self.page.name}, line {example.line}"
        if example.file is not None:
            Path(example.file).write_text(example.text, encoding="utf-8")
        elif example.not_run is not None:
            for command in example.commands if example.language == "sh" else ():
                parse_command(shlex.split(command, comments=True))
        elif example.language == "sh":
            for command in example.commands:
                self._shell(command, where)
        elif example.language == "python":
            # Empty lines before it, so that a traceback shows the line in the page.
            code = compile("\n" * example.line + example.text, str(self.page), "exec")
            exec(code, self.names)

    def _shell(self, command: str, where: str) -> None:
        """Run one line; `zootools` in this process, which has imported torch already."""
        words = shlex.split(os.path.expandvars(command), comments=True)
        print("$", *words)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.patch.setenv(name, value)
        elif words[0] == "zootools":
            words, file = redirection(words)
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
            done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            print(done.output)
            assert done.exit_code == 0, f"{where}: {command}: {done.output}"
            if file is not None:
                Path(file).write_text(done.stdout, encoding="utf-8")
        else:
            shell = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=120)
            assert shell.returncode == 0, f"{where}: {command}: {shell.stderr}"


def redirection(words: list[str]) -> tuple[list[str], str | None]:
    """Divide the words of a command into the command and the file that its output is written to (``> FILE``)."""
    return (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, None)


def parse_command(words: list[str]) -> None:
    """Raise click.UsageError unless the words are a `zootools` command with arguments and options that it has."""
    if not words or words[0] != "zootools":
        return
    words, _ = redirection(words)
    context, rest = main.make_context("zootools", words[1:]), words[1:]
    while isinstance(command := context.command, click.Group):
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        context = inner.make_context(name, rest, parent=context)
