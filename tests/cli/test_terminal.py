"""Output on the terminal: text of strangers is escaped, one message per error, no line that imitates another."""

import ast
import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hostile import copy_zoo, replace_file, rewrite_manifest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from zootools.architectures import Layer, Schema
from zootools.cli import main
from zootools.errors import SpecError, ZooError, did_you_mean
from zootools.text import LONGEST, printable, tame_libraries

ROOT = Path(__file__).parents[2]
FAKE = "zoo: no faults"
PIECES = [
    "\x1b[2J",
    "\x1b]0;title\a",
    "\x9b31m",
    "\r",
    "\n",
    "\r\n",
    "\x0b",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200b",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ue000",
    "\U000e0041",
    "\udcff",
    "\x85",
    "ä",
    "漢字",
    "ن",
    "🙂",
    f"\n{FAKE}\n",
]
hostile_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=6).map("".join)
few = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def unseen(text: str) -> list[str]:
    """The characters of an output that a terminal would obey, or not show."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return [character for character in text if unicodedata.category(character) in hidden and character != "\n"]


def command(*words: str | Path) -> Result:
    """Run a command in this process; whatever it prints must be visible, and no line of it the fake."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert unseen(done.output) == []
    assert FAKE not in done.output.splitlines()
    assert f"zootools: {FAKE}" not in done.output.splitlines()
    assert "Traceback" not in done.output
    return done


# --- the function ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(hostile_text | st.text(st.characters(), max_size=200), st.integers(20, 100))
def test_printable_text_is_one_visible_line_of_bounded_length(text: str, limit: int) -> None:
    shown = printable(text)
    assert unseen(shown) == []
    assert "\n" not in shown
    assert printable(shown) == shown
    assert len(printable(text, limit)) <= 12 * limit + 40


def test_letters_of_every_script_stay_and_the_rest_is_escaped() -> None:
    kept = "ä é ü 漢字 かな עברית العربية ไทย हिन्दी 🙂 e\u0301 ×±€ \u3000"
    assert printable(kept) == kept
    assert printable("\x1b[2J\a\r\n\u202e\udcff\u200b") == r"\x1b[2J\x07\r\n\u202e\udcff\u200b"
    assert printable("a" * LONGEST) == "a" * LONGEST
    cut = printable("a" * 12345 + " the reason", 1000)
    assert "(11,356 more characters)" in cut
    assert cut.endswith(" the reason")


def test_a_message_has_the_line_breaks_that_its_author_meant_and_no_other() -> None:
    error = SpecError(f"a.yaml: found 'x\n{FAKE}'", "  second\x1bline")
    assert str(error) == f"a.yaml: found 'x\\n{FAKE}'\n  second\\x1bline"
    assert str(SpecError(f"{error} (again)")).count("\n") == 0
    many = str(ZooError(*(f"line {number}" for number in range(5000)))).splitlines()
    assert len(many) < 200
    assert many[-1] == "  ... and 4,900 more"
    assert len(did_you_mean("x" * 10**6, (f"choice-{number}" for number in range(10**5)))) < 5000


def test_log_records_and_warnings_of_any_library_are_one_visible_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    log, shown = logging.getLogger("another.library"), io.StringIO()
    handler = logging.StreamHandler(shown)
    log.addHandler(handler)
    try:
        tame_libraries()
        log.warning("found %s", f"\x1b[2J\n{FAKE}")
        said = warnings.formatwarning(UserWarning(f"found \x1b[2J\n{FAKE}"), UserWarning, "a\n.py", 3)
    finally:
        log.removeHandler(handler)
        logging.setLogRecordFactory(factory)
    for text in (shown.getvalue(), said):
        assert unseen(text) == []
        assert text.endswith("\n")
        assert text.count("\n") == 1


def prints(source: str) -> Iterator[int]:
    """The lines of a module that print by themselves."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "pprint", "input") or called.endswith(
                ("click.echo", "click.secho", "click.style", "stdout.write", "stderr.write", "traceback.print_exc")
            ):
                yield node.lineno


def test_nothing_is_printed_but_by_the_one_function() -> None:
    modules = [path for package in ("zootools", "representation") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 80
    found = {f"{path.relative_to(ROOT)}:{line}" for path in modules for line in prints(path.read_text())}
    assert {place.partition(":")[0] for place in found} == {"zootools/text.py"}
    assert list(prints("import click\nclick.echo('x')\nprint(1)\nsys.stderr.write('x')")) == [2, 3, 4]


# --- what strangers name -------------------------------------------------------------------------------------------


@few
@example(text=f"\x1b[2J\u202e\n{FAKE}\n")
@given(text=hostile_text)
def test_a_description_is_shown_but_not_obeyed(tiny_zoo: Path, tmp_path: Path, text: str) -> None:
    zoo = copy_zoo(tiny_zoo, tmp_path / "hub" / "me" / "tiny")
    changed = (zoo / "spec.yaml").read_text().replace("a zoo for tests", json.dumps(text))
    replace_file(zoo, "spec.yaml", changed.encode())
    for words in (["list"], ["info", "me/tiny"]):
        done = command("hub", *words, "--hub", tmp_path / "hub")
        assert done.exit_code in (0, 2, 3)
        assert len(done.output) < 10 * LONGEST
    assert command("publish", zoo, "me/tiny", "--dry-run").exit_code in (0, 2, 3)


@pytest.mark.slow
@few
@example(text=f"\x1b[2J\u202e\n{FAKE}\n")
@given(text=hostile_text)
def test_a_file_cannot_be_named_so_that_a_damaged_zoo_reads_as_intact(
    tiny_zoo: Path, tmp_path: Path, text: str
) -> None:
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    name = text.replace("/", "|").replace("\0", "|").strip(".") or "x"
    name = os.fsdecode(name.encode("utf-8", "surrogateescape" if "\udcff" in name else "replace")[:250])
    try:
        (zoo / name).write_text("not of the zoo")
    except UnicodeError:
        return
    done = command("verify", zoo)
    assert done.exit_code == 3
    assert len(done.output.splitlines()) == 2
    assert command("verify", zoo, "--json").exit_code == 3
    repaired = command("repair", zoo)
    assert repaired.exit_code == 0
    assert len(repaired.output.splitlines()) == 2
    # The same with the name of the folder itself.
    zoo.rename(tmp_path / name)
    assert command("verify", tmp_path / name).exit_code == 3


@few
@example(text=f"\x1b[2J\u202e\n{FAKE}\n")
@given(text=hostile_text)
def test_keys_and_names_in_specifications_and_manifests(tiny_zoo: Path, tmp_path: Path, text: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({"name": "x", text: 1, "images": {"name": text}}))
    assert command("check", spec).exit_code == 2
    assert command("check", ROOT / "zoo_specs" / "tetris_seed.yaml", "--set", f"{text}=1").exit_code == 2
    assert command("build", text).exit_code == 2
    assert command("represent", "--zoo", tiny_zoo, "--recipe", text, "--baselines-only").exit_code == 2
    zoo = copy_zoo(tiny_zoo, tmp_path / "zoo")
    rewrite_manifest(zoo, lambda manifest: manifest["schema"].update(name=text))
    for words in (["info"], ["verify"], ["show"], ["status"]):
        done = command(*words, zoo, *(["x"] if words == ["show"] else []))
        assert done.exit_code in (0, 2, 3)
    rewrite_manifest(zoo, lambda manifest: manifest["files"].update({text: {"size": 1, "sha256": "0" * 64}}))
    for words in (["info"], ["verify"]):
        assert command(*words, zoo).exit_code == 3


@few
@example(text=f"\x1b[2J\u202e\n{FAKE}\n")
@given(text=hostile_text)
def test_words_on_the_command_line_are_repeated_visibly(text: str) -> None:
    if text.startswith("-"):
        return
    for words in ([text], ["info", f"--{text}x", "zoo"], ["build", "x", "--device", text], ["hub", text]):
        assert command(*words).exit_code == 2


@few
@example(text=f"\x1b[2J\u202e\n{FAKE}\n")
@given(text=hostile_text)
def test_names_of_columns(tmp_path: Path, text: str) -> None:
    from representation.evaluation.results import Results, Score

    name = text.encode("utf-8", "replace").decode()
    layers = (Layer("fc1", "linear", 2, 2, bias=False, activation=False),)
    (tmp_path / "schema.json").write_text(json.dumps(Schema("one", (2, 1, 1), layers).to_json()))
    (tmp_path / "files").mkdir(exist_ok=True)
    columns = {"weights": pa.array([[0.0] * 4] * 3), name: pa.array([1.0, 2.0, 3.0])}
    pq.write_table(pa.table(columns), tmp_path / "files" / "a.parquet")
    done = command("info", tmp_path / "files", "--schema", tmp_path / "schema.json")
    assert done.exit_code in (0, 2, 3)
    assert command("show", tmp_path / "files", name).exit_code == 2
    row = {"evaluated_on": "zoo", "method": "W", "probe": "paper", "split": "test", "metric": "r2", "value": 0.5}
    score = Score(**row, target=name, seed=0, rows=3)
    counts = {f"{split}_models": 3 for split in ("train", "validation", "test")}
    results = Results.of([score], "zoo", "recipe", counts, [f"note {text}"], {text: text})
    shown = results.render()
    assert unseen(shown) == []
    assert FAKE not in shown.splitlines()


# --- the ends of a command -----------------------------------------------------------------------------------------


def test_a_terminal_without_the_letters_shows_escapes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    words = [sys.executable, "-m", "zootools", "check", "zoo-ä.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert r"zoo-\xe4.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_of_zootools_is_one_line_and_its_traceback_is_for_debug(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zootools.storage.tables", None)  # the import in `info` fails
    done = command("info", tiny_zoo)
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "please report it" in done.output
    assert "ModuleNotFoundError" in done.output
    debugged = CliRunner().invoke(main, ["--debug", "info", str(tiny_zoo)])
    assert debugged.exit_code == 1
    assert "Traceback" in debugged.output


def test_a_traceback_is_visible_too(tmp_path: Path) -> None:
    debugged = CliRunner().invoke(main, ["--debug", "check", f"{tmp_path}/\x1b[2J\n{FAKE}\n"])
    assert "Traceback" in debugged.output
    assert unseen(debugged.output) == []
    assert FAKE not in debugged.output.splitlines()


SWALLOWS = """
import os, signal, time
from zootools.cli import main

@main.command()
def swallow():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("a library's own error") from interrupt

main(["swallow"])
"""


def test_ctrl_c_that_a_library_turns_into_an_error_of_its_own_is_an_interruption() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "zootools: interrupted; the same command resumes\n")


DISCARDS = """
import os, signal, time
from zootools.cli import main

class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

@main.command()
def discard():
    Library()
    time.sleep(60)

main(["discard"])
"""


def test_ctrl_c_that_a_library_discards_is_an_interruption() -> None:
    """Python prints an exception of a finalizer, and continues; so does pydantic with one of its callbacks."""
    done = subprocess.run([sys.executable, "-c", DISCARDS], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "zootools: interrupted; the same command resumes\n")


def test_usage_errors_look_as_before() -> None:
    done = command("biuld", "x")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: No such command 'biuld'. Did you mean 'build'?"
    assert done.stderr.startswith("Usage: ")
    assert "Try 'main --help' for help." in done.stderr
    assert command("info").stderr.splitlines()[-1] == "Error: Missing argument 'ZOO'."
    assert command("--version").exit_code == 0
    assert command("--help").output.startswith("Usage: ")
    assert command("hub").exit_code == 2
