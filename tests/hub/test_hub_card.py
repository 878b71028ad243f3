"""The card: what it says, that Hugging Face's tools read it, and that `datasets` never serves one zoo for another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zootools import build
from zootools.hub.publish import publish
from zootools.storage.card import accuracy_picture, render_card
from zootools.storage.manifest import Manifest, read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.verify import faults

LOAD = """
import sys
from datasets import get_dataset_config_names, load_dataset
for path in sys.argv[1:]:
    rows = {name: sum(len(d) for d in load_dataset(path, name).values()) for name in get_dataset_config_names(path)}
    some = load_dataset(path, split="train", filters=[("epoch", "==", 1)])
    print(sorted(rows.items()), set(some["epoch"]), sum(some["seed"]))
"""


def load(home: Path, *folders: Path) -> list[str]:
    """Load all configurations of some folders in one process, and print their rows."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=home.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_card_is_valid_metadata_and_names_every_file(tiny_zoo: Path) -> None:
    from huggingface_hub import DatasetCard

    manifest = read_manifest(tiny_zoo)
    card = DatasetCard(render_card(manifest, stored_spec(tiny_zoo, manifest), "group/tiny"))
    data = card.data.to_dict()
    assert data["tags"][:2] == ["model-zoo", "zootools"]
    assert (data["license"], data["pretty_name"], data["size_categories"]) == ("cc-by-4.0", "tiny", "n<1K")
    configs = {config["config_name"]: config for config in data["configs"]}
    assert configs["checkpoints"]["default"]
    for config in configs.values():
        for split in config["data_files"]:
            folder, _, pattern = split["path"].partition("/")
            assert list((tiny_zoo / folder).glob(pattern))
    assert not any("splits" in info for info in data["dataset_info"])
    for text in (
        "12 neural networks",
        "36 checkpoints",
        'load_dataset("group/tiny"',
        "| ok | 12 |",
        "@inproceedings",
    ):
        assert text in card.text
    assert len(re.findall(r"^epoch +[0-2] \|[ =-]*#[ =-]*\|$", card.text, re.MULTILINE)) == 3


def with_counts(manifest: Manifest, **counts: int) -> Manifest:
    return manifest.model_copy(update={"counts": manifest.counts.model_copy(update=counts)})


def test_a_card_says_when_a_zoo_is_partial(tiny_zoo: Path) -> None:
    manifest = read_manifest(tiny_zoo)
    spec = stored_spec(tiny_zoo, manifest)
    assert "partial" not in render_card(manifest, spec)
    card = render_card(with_counts(manifest, ok=10, missing=2), spec)
    assert "**This zoo is partial**: 2 of its models" in card


def test_a_card_says_when_a_zoo_is_a_part_of_its_grid(tiny_zoo: Path, tmp_path: Path) -> None:
    """A card that does not say so, as older versions made it, is still the card of the zoo."""
    spec = stored_spec(tiny_zoo, read_manifest(tiny_zoo)).model_copy(update={"models": 5})
    manifest = build(spec, tmp_path / "part", workers=1, quiet=True)
    text = "**This zoo is a part of its grid**: its 5 models are those with the smallest ids of 12."
    card = tmp_path / "part" / "README.md"
    assert text in card.read_text()
    assert text not in render_card(manifest, spec, form=2)
    card.write_text(render_card(manifest, spec, form=2))
    assert list(faults(tmp_path / "part")) == []
    build(spec.model_copy(update={"models": 12}), tmp_path / "part", workers=1, quiet=True)
    assert "part of its grid" not in card.read_text()


def test_the_picture_shows_the_quartiles() -> None:
    picture = accuracy_picture({"0": [0.0, 0.1, 0.2, 0.3, 0.4], "5": [1.0] * 5}).splitlines()
    assert picture[0] == f"epoch     0 |{'-' * 6}{'=' * 6}#{'=' * 6}{'-' * 6}{' ' * 35}|"
    assert picture[1] == f"epoch     5 |{' ' * 59}#|"


@pytest.mark.slow
def test_datasets_never_takes_one_zoo_for_another(tiny_zoo: Path, grown_zoo: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "group" / "tiny", tmp_path / "b" / "group" / "tiny"
    publish(tiny_zoo, "group/tiny", hub=tmp_path / "a")
    publish(grown_zoo, "group/tiny", hub=tmp_path / "b")
    # Equal names and equal last parts of the path, in one cache.
    small, large = load(tmp_path / "home", first, second)
    assert "('checkpoints', 36), ('metadata', 36)" in small
    assert "('checkpoints', 48), ('metadata', 48)" in large
    # The same path with other contents.
    publish(grown_zoo, "group/tiny", hub=tmp_path / "a")
    assert load(tmp_path / "home", first) == [large]


@pytest.mark.parametrize("change", [{"checkpoints": 10**6}, {"diverged": 3}])
def test_a_card_depends_on_the_manifest_alone(tiny_zoo: Path, change: dict[str, int]) -> None:
    manifest = read_manifest(tiny_zoo)
    spec = stored_spec(tiny_zoo, manifest)
    assert render_card(manifest, spec) == (tiny_zoo / "README.md").read_text()
    assert render_card(with_counts(manifest, **change), spec) != render_card(manifest, spec)
