"""The help of every command: whole sentences, and examples that the command accepts."""

import shlex
from collections.abc import Iterator
from inspect import cleandoc

import click
import pytest

from zootools.cli import main


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield the commands of a group that do something, each with its name in words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield (*names, name), command


COMMANDS = [*commands(main)]


def parse(line: str) -> tuple[str, ...]:
    """Return the names of the command that a line calls; nothing is executed. Raises UsageError."""
    program, *words = shlex.split(line)
    words = words[: words.index(">")] if ">" in words else words
    assert program == "zootools"
    command: click.Command = main
    names: tuple[str, ...] = ()
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        names = (*names, words.pop(0))
        if names[-1] not in command.commands:
            raise click.UsageError(f"no command {names}")
        command = command.commands[names[-1]]
    command.make_context(names[-1], words).close()
    return names


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=[" ".join(names) for names, _ in COMMANDS])
def test_every_example_is_a_line_that_the_command_accepts(names: tuple[str, ...], command: click.Command) -> None:
    text, _, examples = cleandoc(command.help or "").partition("\b\nExamples:\n")
    lines = [line.strip() for line in examples.splitlines()]
    assert lines, "a command has a block of examples"
    for line in lines:
        assert parse(line) == names, line
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        assert paragraph.endswith((".", ".)")) or "\b" in paragraph, paragraph
    for option in command.params:
        if isinstance(option, click.Option) and option.help is not None:
            assert option.help.endswith("."), option.help


def test_a_wrong_example_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse("zootools build tetris_seed --modles 3")
    with pytest.raises(click.UsageError):
        parse("zootools hub lists")
