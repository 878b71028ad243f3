"""Completion in the shell, by the protocol that the scripts of bash, zsh and fish use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_bash_completes_a_command_with_the_script_of_the_documentation(folder: Path, tmp_path: Path) -> None:
    command = tmp_path / "zootools"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m zootools "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_ZOOTOOLS_COMPLETE=bash_source zootools)"\n'
        "COMP_WORDS=(zootools info zoos/) COMP_CWORD=2\n"
        "_zootools_completion zootools\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("zoos/mine\n", "")
