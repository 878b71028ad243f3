"""The documentation: complete, linked, and true as far as its examples say something."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner
from examples import Example, Reader, examples
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from pydantic import BaseModel
from source_rules import unsafe

import representation
import zootools
from representation.benchmark.methods.table import METHODS
from representation.benchmark.results import read_rows, write_row
from representation.benchmark.run import code_sha256
from representation.benchmark.tasks import load_task
from representation.recipes import Recipe
from representation.search.space import Space
from zootools.cli import main
from zootools.spec import Draw, ZooSpec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
NOTEBOOKS = ["build.py", "explore.py", "represent.py", "sample.py"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- examples ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo of the pages' examples, built by the command that they give."""
    out = tmp_path_factory.mktemp("docs") / "digits_seed"
    done = CliRunner().invoke(main, ["build", "digits_seed", "--models", "32", "--epochs", "10", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_of_a_page_run(page: Path, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(examples(page))
    if not any(example.language in ("sh", "python") for example in found):
        return
    import datasets

    shutil.copytree(zoo, tmp_path / "zoos" / "digits_seed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    reader = Reader(page, monkeypatch)
    for example in found:
        reader.follow(example)


def test_an_encoder_of_ones_own_needs_forty_lines_and_public_names_only() -> None:
    found = [
        example.text for example in examples(ROOT / "docs" / "your-own-encoder.md") if example.language == "python"
    ]
    lines = [line for text in found for line in text.splitlines() if line.strip()]
    assert 20 < len(lines) <= 40
    imports = [node for node in ast.walk(ast.parse("\n".join(found))) if isinstance(node, ast.ImportFrom)]
    ours = {node.module: {alias.name for alias in node.names} for node in imports}
    assert {module for module in ours if module and module.startswith(("zootools", "representation"))} == {
        "zootools",
        "representation",
    }
    assert ours["zootools"] <= {*zootools.__all__}
    assert ours["representation"] <= {*representation.__all__}


def test_a_method_of_ones_own_needs_twenty_lines() -> None:
    (found,) = [example.text for example in examples(ROOT / "docs" / "benchmark.md") if example.language == "python"]
    assert 10 < len([line for line in found.splitlines() if line.strip()]) <= 20


WRONG = """\
<!-- file: one.txt -->
```
1
```

```python
from pathlib import Path
x = int(Path("one.txt").read_text())
assert x == 2
```
```sh
zootools check nowhere.yaml  # not there
```
<!-- not run: hours -->
```sh
zootools buidl it
```
"""


def test_an_example_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    reader = Reader(page, monkeypatch)
    file, python, shell, not_run = examples(page)
    reader.follow(file)
    with pytest.raises(AssertionError) as raised:
        reader.follow(python)
    assert raised.traceback[-1].lineno == 8  # counted from 0
    with pytest.raises(AssertionError, match=r"page.md, line 11: zootools check nowhere.yaml"):
        reader.follow(shell)
    assert not_run.not_run == "hours"
    with pytest.raises(click.UsageError, match="buidl"):
        reader.follow(not_run)


def test_commands_end_where_the_shell_ends_them() -> None:
    text = "zootools specs  # all\n\nzootools build x \\\n  --epochs 3\nsh -c 'a\nb'\n# the end\n"
    assert Example("sh", text, 1).commands == [
        "zootools specs  # all",
        "zootools build x \\\n  --epochs 3",
        "sh -c 'a\nb'",
    ]
    with pytest.raises(AssertionError, match="does not end"):
        _ = Example("sh", "echo 'a", 1).commands


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that does something, with its words."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))
    else:
        yield path, command


# --- what must be documented ---------------------------------------------------------------------------


def test_generated_parts_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_of_the_benchmark_are_collected_if_they_are_current(tmp_path: Path) -> None:
    recorded = read_rows(ROOT / "docs" / "benchmark.json")
    hashes = {name: load_task(name).sha256 for name in {row.task for row in recorded}}
    assert all(row.task_sha256 == hashes[row.task] for row in recorded)
    seeds = Counter((row.task, row.method) for row in recorded)
    for task, (name, kind) in itertools.product(hashes, METHODS.items()):
        assert seeds[task, name] == (3 if kind.trains else 1)
    rows = [
        row.model_copy(update={"code_sha256": code_sha256(METHODS[row.method])})
        for row in recorded
        if row.task == "tetris_seed_gap"
    ]
    kept = [row for row in rows if row.method not in ("StatNN", "DeepSets")]
    too_few = [row for row in rows if row.method == "StatNN" and row.seed < 2]
    stale = [row.model_copy(update={"code_sha256": "0"}) for row in rows if row.method == "DeepSets"]
    for folder, found in {"one": [*kept[::2], *stale], "two": [*kept[1::2], *too_few]}.items():
        for row in found:
            write_row(tmp_path / folder, row)
    script = shutil.copy(ROOT / "docs" / "collect_rows.py", tmp_path)
    words = [sys.executable, script, tmp_path / "one", tmp_path / "two"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert read_rows(tmp_path / "benchmark.json") == kept
    assert "tetris_seed_gap: no rows of StatNN, DeepSets\n" in done.stdout
    assert f"benchmark.json: {len(kept)} rows" in done.stdout


def test_every_command_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (zootools [\w -]+)\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = list(walk(main))
    assert len(commands) > 15
    for path, command in commands:
        section = sections[" ".join(("zootools", *path))]
        for parameter in command.params:
            spelled = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(_context())
            assert spelled in section, f"{path}: {spelled}"


def _context() -> click.Context:
    return click.Context(main)


def keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every key of a document, dotted."""
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        yield key
        for inner in sections_in(field.annotation):
            if not issubclass(inner, Draw):  # of which there is one for every axis, or key
                yield from keys(inner, f"{key}.")


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for part in get_args(annotation) for section in sections_in(part)]


@pytest.mark.parametrize(
    ("page", "model", "least"), [("specs.md", ZooSpec, 70), ("recipes.md", Recipe, 40), ("recipes.md", Space, 9)]
)
def test_every_key_is_documented(page: str, model: type[BaseModel], least: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    expected = list(keys(model))
    assert len(expected) >= least
    assert [key for key in expected if f"`{key}`" not in text] == []


def test_the_reference_has_every_exported_name() -> None:
    headings = re.findall(r"^### (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    for package in (zootools, representation):
        exported = {f"{package.__name__}.{name}" for name in package.__all__ if not name.startswith("_")}
        assert exported <= {*headings}
    assert len(headings) == len({*headings}) > 60


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_layout_of_the_code_is_described(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = [
        path.parent.name for package in ("zootools", "representation") for path in ROOT.glob(f"{package}/*/*.py")
    ]
    assert len({*folders}) > 15
    assert {folder for folder in folders if not re.search(rf"\b{folder}\b", text)} == set()


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in PAGES if page.name != "README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


# --- links -----------------------------------------------------------------------------------------------


def parsed(page: Path) -> tuple[set[str], list[str]]:
    """Return the anchors of a page, and where its links and pictures lead."""
    tokens = MarkdownIt().enable("table").use(anchors_plugin, max_level=6).parse(page.read_text(encoding="utf-8"))
    anchors = {str(token.attrs["id"]) for token in tokens if token.type == "heading_open"}
    inline = [child for token in tokens for child in token.children or ()]
    links = [
        str(token.attrs.get("href") or token.attrs["src"]) for token in inline if token.type in ("link_open", "image")
    ]
    return anchors, links


def test_links_are_found() -> None:
    assert sum(len(parsed(page)[1]) for page in PAGES) > 60


@pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES], ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in parsed(page)[1]:
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if anchor:
            assert anchor in parsed(target)[0], f"{page.name}: {link}"


# --- nothing unsafe is taught ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_example_runs_what_somebody_else_wrote(page: Path) -> None:
    for example in examples(page):
        assert example.language in ("sh", "python", "yaml", "json", "toml", "text", "mermaid", ""), (
            f"{page.name}, line {example.line}"
        )
        if example.language == "python":
            assert unsafe(example.text) == [], f"{page.name}, line {example.line}"
        assert not re.search(r"\bpickle\b|trust_remote_code|curl .*\| *(ba)?sh", example.text)


# --- notebooks ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")  # there is no display here
def test_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in the order in which one reads them; the second as a notebook, with a kernel of its own."""
    import jupytext
    import matplotlib
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # networks this small are slower on two
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    build, explore, represent, sample = (jupytext.read(ROOT / "notebooks" / name) for name in NOTEBOOKS)
    run_cells(build, monkeypatch)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(explore, timeout=300, startup_timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in explore.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    run_cells(represent, monkeypatch)
    run_cells(sample, monkeypatch)


def run_cells(notebook: Any, patch: pytest.MonkeyPatch) -> None:
    """Run the code of a notebook in this process."""
    reader = Reader(ROOT / "notebooks", patch)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            reader.follow(Example("python", cell.source, 0))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_text_and_teach_nothing_unsafe(name: str) -> None:
    import jupytext

    path = ROOT / "notebooks" / name
    notebook = jupytext.read(path)
    assert notebook.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    text = jupytext.writes(notebook, fmt="py:percent")
    versions = re.compile(r"# +(format|jupytext)_version: .*\n")
    assert versions.sub("", text) == versions.sub("", path.read_text(encoding="utf-8"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert unsafe(cell.source) == []


def test_no_notebook_is_committed_with_its_outputs() -> None:
    assert sorted(path.name for path in (ROOT / "notebooks").iterdir() if path.suffix != ".ipynb") == NOTEBOOKS
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout == ""
