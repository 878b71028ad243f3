"""The style of output for people: `zootools.cli.output`, and the lists of commands."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from zootools.cli import main
from zootools.cli.output import in_words, show_pairs, show_table, size, width


@pytest.mark.parametrize(
    ("value", "key", "shown"),
    [
        (True, "finished", "yes"),
        (False, "finished", "no"),
        (None, "images", "none"),
        (["tanh", "relu"], "activation", "tanh, relu"),
        ((), "layers", "none"),
        ({"train": 0.7, "test": 0.3}, "split", "train 0.7, test 0.3"),
        (1234567, "models", "1,234,567"),
        (1234567, "seed", "1234567"),
        (0.1 + 0.2, "lr", "0.3"),
        (1.0e-5, "lr", "1e-05"),
        (23_456_789, "bytes", "23.5 MB"),
        (1, "free_bytes", "1 byte"),
        (200.4, "estimated_seconds", "3m20s"),
        ("mnist", "images", "mnist"),
    ],
)
def test_values_are_written_as_people_write_them(value: object, key: str, shown: str) -> None:
    assert in_words(value, key) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (12_345_678_901, "12.3 GB"),
        (5e15, "5,000 TB"),
    ],
)
def test_sizes_have_three_digits(count: float, shown: str) -> None:
    assert size(count) == shown


def test_pairs_are_aligned_also_when_text_is_wide(capsys: pytest.CaptureFixture[str]) -> None:
    show_pairs({"name": "tiny", "\u6f22\u5b57": 5, "axes": {"activation": ["tanh"], "lr": [0.1, 0.01]}, "e\x1b": True})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "name   tiny",
        "\u6f22\u5b57   5",
        "axes",
        "  activation  tanh",
        "  lr          0.1, 0.01",
        "e\\x1b  yes",
    ]


def test_tables_align_numbers_to_the_right_and_text_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["a", 7, 0.25, 1234, "x y"], ["long \x1b[2J", 12345, 0.123456789, None, None]]
    show_table(["model", "seed", "test_loss", "file_bytes", "note"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "model          seed  test_loss  file_bytes  note",
        "a                 7     0.2500     1.23 kB  x y",
        "long \\x1b[2J  12345     0.1235",
    ]
    show_table(["model"], [])
    assert capsys.readouterr().out == ""
    assert width("e\u0301\u6f22") == 3


def test_help_lists_every_command_under_a_heading_in_whole_sentences() -> None:
    for group in ((), ("hub",)):
        listed = CliRunner().invoke(main, [*group, "--help"], terminal_width=1000).stdout
        command = main if not group else main.commands["hub"]
        assert "..." not in listed.partition("\n\n")[2]
        for name, below in command.commands.items():  # type: ignore[attr-defined]  # both are groups
            (line,) = (line for line in listed.splitlines() if line.split()[:1] == [name])
            assert line.endswith("."), line
            assert below.get_short_help_str(limit=1000) in line


def test_info_of_a_local_zoo_imports_no_package_that_takes_long(tiny_zoo: Path) -> None:
    script = """
import sys, zootools.cli
try:
    zootools.cli.main(["info", sys.argv[1]])
except SystemExit as end:
    assert not end.code
print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script, tiny_zoo], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("name"), done.stderr
    imported = set(ast.literal_eval(done.stderr))
    assert {"pyarrow", "numpy"} <= imported
    assert not {"torch", "torchvision", "scipy", "sklearn", "pandas", "datasets", "jinja2", "PIL", "fsspec"} & imported
