"""Completion in the shell, by the protocol that the scripts of bash, zsh and fish use."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pexpect
import pytest
from samples import ROOT

from zootools.cli.completion import FIGURES


def press_tab(words: str, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as bash does to complete the last one of some words."""
    line = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {**os.environ, "_ZOOTOOLS_COMPLETE": "bash_complete", **line}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120
    )


def completions(words: str, cwd: Path) -> list[str]:
    """Return what bash receives."""
    done = press_tab(words, cwd, "-m", "zootools")
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a zoo, a specification, and what a completion must leave out."""
    folder = tmp_path_factory.mktemp("completion")
    shutil.copytree(Path(__file__).parents[1] / "data" / "golden_mlp", folder / "zoos" / "mine")
    for name in (
        "unfinished/.work/plan.json",
        "zoos/a $(reboot)/zoo.json",
        ".hidden/zoo.json",
        "encoders/e/config.json",
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{")
    (folder / "encoders/e/model.safetensors").touch()
    (folder / "zoos/linked").mkdir()
    (folder / "zoos/linked/zoo.json").symlink_to(folder / "zoos/mine/zoo.json")
    (folder / "mine.yaml").touch()
    (folder / "notes.txt").touch()
    return folder


def test_names_paths_and_models_are_completed(folder: Path) -> None:
    from representation.recipes import bundled_recipes
    from zootools import open_zoo
    from zootools.bundled import bundled_specs

    models = open_zoo(folder / "zoos" / "mine", include_diverged=True).models
    for words, expected in {
        "zootools bu": ["build"],
        "zootools build m": [*(name for name in bundled_specs() if name.startswith("m")), "mine.yaml"],
        "zootools represent --zoo zoos/mine --recipe ": [*bundled_recipes(), "mine.yaml"],
        "zootools reproduce table1 table1": [f"table{number}" for number in range(10, 14)],
        "zootools info ": ["unfinished", "zoos/mine"],
        "zootools plot zoos/mine --encoder ": ["encoders/e"],
        "zootools show zoos/mine ": sorted(models),
        f"zootools export zoos/mine --model {models[0][:3]}": [
            model for model in sorted(models) if model.startswith(models[0][:3])
        ],
    }.items():
        assert completions(words, folder) == [f"plain,{word}" for word in expected], words
    # Without a zoo the shell completes folders; a broken manifest has no models.
    assert completions("zootools info encoders", folder) == ["dir,encoders"]
    assert completions("zootools show unfinished ", folder) == []
    assert completions("zootools show zoos/linked ", folder) == []


def test_reproduce_completes_what_it_accepts() -> None:
    from representation.reproduction.items import ITEMS

    assert [*FIGURES] == ["all", *ITEMS]


def test_completion_imports_no_library_of_arrays(folder: Path) -> None:
    script = (
        "import os, sys; from zootools.cli import main\n"
        "try: main(prog_name='zootools')\n"
        "except SystemExit: pass\n"
        "names = ('torch', 'pyarrow', 'numpy', 'pydantic', 'datasets', 'huggingface_hub')\n"
        "print(*[name for name in names if name in sys.modules], file=sys.stderr)"
    )
    for words in ("zootools info ", "zootools show zoos/mine ", "zootools represent --recipe d"):
        done = press_tab(words, folder, "-c", script)
        assert done.stderr.strip() == ""
        assert done.stdout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder whose start-up files have the lines of docs/command-line.md, and ``zootools`` on the path."""
    command = tmp_path / "bin" / "zootools"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m zootools "$@"\n')
    command.chmod(0o755)
    (tmp_path / ".config" / "fish").mkdir(parents=True)
    (tmp_path / ".zshrc").write_text("autoload -Uz compinit && compinit -u\nPS1='ready> '\n")
    for name, value in {"HOME": tmp_path, "XDG_CONFIG_HOME": tmp_path / ".config", "ZDOTDIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    page = (ROOT / "docs" / "command-line.md").read_text()
    (lines,) = re.findall(r"```sh\n(echo '[^`]*_ZOOTOOLS_COMPLETE=[^`]*)```", page)
    subprocess.run(["bash", "-c", lines], check=True, timeout=60)
    return tmp_path


def in_bash(words: str, cwd: Path, expected: Iterable[str]) -> set[str]:
    """Return the completions of the last word in bash."""
    script = (
        f"source ~/.bashrc; COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1}; "
        '_zootools_completion zootools; printf "%s\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return set(done.stdout.split())


def in_fish(words: str, cwd: Path, expected: Iterable[str]) -> set[str]:
    """Return the completions of the last word in fish, which prints a description after some."""
    done = subprocess.run(["fish", "-c", f"complete -C '{words}'"], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


def in_zsh(words: str, cwd: Path, expected: Iterable[str]) -> set[str]:
    """Return the expected completions that zsh shows in a terminal, in this order, when the tab key is pressed."""
    shell = pexpect.spawn("zsh", ["-d", "-i"], cwd=str(cwd), encoding="utf-8", dimensions=(50, 200), timeout=60)
    shell.expect_exact("ready> ")
    shell.send(f"{words}\t")
    try:
        return {word for word in expected if shell.expect_exact(word) == 0}
    finally:
        shell.close(force=True)


@pytest.mark.slow
@pytest.mark.parametrize("shell", [in_bash, in_zsh, in_fish], ids=["bash", "zsh", "fish"])
def test_shells_complete_with_the_lines_of_the_documentation(
    shell: Callable[[str, Path, Iterable[str]], set[str]], folder: Path, home: Path
) -> None:
    if shutil.which(name := shell.__name__.removeprefix("in_")) is None:
        pytest.skip(f"lacks {name} (apt-get install {name})")
    for words, expected in {
        "zootools build mnist_hyp_5_": ["mnist_hyp_5_fix", "mnist_hyp_5_rand"],
        "zootools represent zoos/mine --recipe de": ["default"],
        "zootools info zoos/": ["zoos/mine"],
        "zootools show zoos/mine 0f": ["0fc206b9defea972"],
    }.items():
        assert shell(words, folder, expected) == {*expected}, words
