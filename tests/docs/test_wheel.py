"""The wheel alone: what is installed is enough, without the checkout it was built from."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, in a folder that has nothing else of ours."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the command from the wheel's content; the environment's packages serve beside it."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = [sys.executable, "-P", "-m", "zootools", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_specifications_come_with_the_wheel_and_build(installed: Path, tmp_path: Path) -> None:
    where = [sys.executable, "-P", "-c", "import zootools; print(zootools.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    imported = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60).stdout
    assert Path(imported.strip()).is_relative_to(installed)
    assert "tetris_seed" in run(installed, tmp_path, "specs")
    run(installed, tmp_path, "build", "tetris_seed", "--models", "2", "--epochs", "1")
    assert (tmp_path / "zoos" / "tetris_seed" / "README.md").is_file()
    assert (installed / "zootools" / "native" / "network.h").is_file()
    assert (installed / "representation" / "recipes" / "default.yaml").is_file()


def test_the_source_distribution_has_what_the_tests_need(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not listed:
        pytest.skip("lacks the git repository")
    left_out = {name for name in listed if not name.startswith(".")} - names
    assert left_out == set()
