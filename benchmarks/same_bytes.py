"""Whether this checkout makes the same zoos and encoders, byte for byte, as another commit.

    python benchmarks/same_bytes.py [COMMIT] [--only NAME ...] [--keep FOLDER]

A copy of the other commit (by default the one before) is unpacked into a temporary folder. Then both trees, each in a
process of its own and by its own command line, build every bundled specification at smoke size, the golden zoos of
`tests/data` and one smoke encoder. Prints for each how many files there are and which of them differ; exits with 1 when
any does. Nothing is downloaded: where the images of a specification are not made here, scikit-learn's digits take their
place, at the same size. With ``--keep`` the zoos of the other commit are left in a folder, and the next run builds only
those of this checkout.

Not compared: ``build.json``, which says when and how long a zoo was built, and the seconds in the records and results
of an encoder.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from zootools.bundled import bundled_specs
from zootools.images.shapes import image_shape
from zootools.spec import DatasetImages, load_spec

ROOT = Path(__file__).parents[1]
ZOO, ENCODER = "tetris_seed", "encoder"
"""The zoo on which the encoder is trained, and the folder of the encoder."""

TREE = """
import json, sys
from pathlib import Path
import click
import zootools
from zootools.cli import main
tree = sys.argv[1]
assert Path(zootools.__file__).is_relative_to(tree), f"{zootools.__file__} is not in {tree}"
for words in json.load(sys.stdin):
    click.Group.main(main, words, standalone_mode=False)  # the group's own main ends the process
"""
"""What runs in the process of one tree."""

SECONDS = re.compile(rb'("seconds": ?)[0-9.e+-]+')


def main() -> None:
    """Build with both trees, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD~1")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="compare these only, such as tetris_seed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the zoos of the other commit there")
    arguments = parser.parse_args()
    commands = {
        name: words for name, words in all_commands().items() if arguments.only is None or name in arguments.only
    }
    with tempfile.TemporaryDirectory() as temporary:
        here, there = Path(temporary) / "here", arguments.keep or Path(temporary) / "there"
        run(unpack(arguments.commit, Path(temporary) / "tree"), there, commands)
        run(ROOT, here, commands)
        print(f"{'':<20} files  equal to those of {arguments.commit}")
        different = 0
        for name in commands:
            count, differing = compare(here / name, there / name)
            different += bool(differing)
            print(f"{name:<20} {count:>5}  {'no: ' + ', '.join(differing) if differing else 'yes'}")
    sys.exit(1 if different else 0)


def all_commands() -> dict[str, list[list[str]]]:
    """Return the commands that make each zoo, and the encoder, by the folder that they write."""
    commands = {}
    for name, path in bundled_specs().items():
        models = 20 if name == ZOO else 5
        changes: dict[str, object] = {"models": models, "training.epochs": 2, "images.train": 120, "images.test": 60}
        if isinstance((images := load_spec(path).images), DatasetImages):
            (_, side, _), _ = image_shape(images)
            changes |= {"images.name": "digits", "images.crop": "null", "images.size": side, "images.greyscale": "true"}
        commands[name] = [build(path, name, changes)]
    for folder in sorted((ROOT / "tests" / "data").glob("golden_*")):
        # The grown zoo was built with half of its seeds first.
        steps = ["[1, 2]", "[1, 4]"] if folder.name == "golden_grown" else [None]
        commands[folder.name] = [
            build(folder / "spec.yaml", folder.name, {"seeds.range": seeds} if seeds else {}, "torch")
            for seeds in steps
        ]
    commands[ENCODER] = [
        ["represent", "--zoo", ZOO, "--recipe", "smoke", "--set", "encoder.latent=4", "--out", ENCODER, "--json"]
    ]
    return commands


def build(spec: Path, out: str, changes: dict[str, object], backend: str = "auto") -> list[str]:
    """Return the command that builds one zoo."""
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    return [
        "build",
        str(spec),
        "--out",
        out,
        "--device",
        "cpu",
        "--backend",
        backend,
        "--workers",
        "1",
        "--json",
        *sets,
    ]


def unpack(commit: str, folder: Path) -> Path:
    """Return the folder into which the files of a commit of this repository have been written."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def run(tree: Path, folder: Path, commands: dict[str, list[list[str]]]) -> None:
    """Run the commands of the zootools in ``tree`` that make what is not in a folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [command for name, each in commands.items() if not (folder / name).exists() for command in each]
    subprocess.run(
        [sys.executable, "-c", TREE, str(tree)],
        input=json.dumps(missing),
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def compare(here: Path, there: Path) -> tuple[int, list[str]]:
    """Return how many files two folders have together, and which of them are not in both with the same bytes."""
    ours, theirs = contents(here), contents(there)
    for folder, found in ((here, ours), (there, theirs)):
        assert found, f"{folder} is empty"
    names = sorted({*ours, *theirs})
    return len(names), [name for name in names if ours.get(name) != theirs.get(name)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder that are compared, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): SECONDS.sub(rb"\1", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "build.json"
    }


if __name__ == "__main__":
    main()
