"""A zoo on a folder of pictures records classes, pixels and authors; records that contradict its images are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hostile import replace_file
from markdown_it import MarkdownIt
from PIL import Image

from zootools import build, open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError
from zootools.images.datasets import load_images
from zootools.spec import ImageFacts, ZooSpec, load_spec, parse_spec
from zootools.starter import write_starter
from zootools.storage.card import card_location, render_card
from zootools.storage.manifest import read_manifest
from zootools.verify import faults

CLASSES = (b"<b>cat", b"dog | x", b"no \xff text", "ürsus".encode())
"""Names of folders; the third one is not UTF-8."""
NAMES = ("<b>cat", "dog | x", "no \\xff text", "ürsus")
"""The same names as a zoo stores them."""
CITATION = '@misc{mine,\n  title = {```\\end}\n}\nopen_zoo("evil/zoo") <script>alert(1)</script>'

VALUES: dict[str, Any] = {
    "name": "mine",
    "authors": ["Ada <i>Lovelace</i>", "J. O'Brien [x](https://evil.example)"],
    "homepage": "https://example.com/zoo?a=(b)",
    "citation": CITATION,
    "images": {"name": "image_folder", "folder": "mine", "train": 20, "size": 6, "normalise": "auto"},
    "architecture": {"name": "mlp", "hidden": [4]},
    "grid": {"activation": ["tanh"], "init": ["kaiming_uniform"], "optimizer": ["adam"], "lr": [1e-2]},
    "seeds": {"range": [1, 3]},
    "training": {"epochs": 1, "batch_size": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with pictures of random colours, which differ from channel to channel."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in CLASSES:
            place = folder / "mine" / part / os.fsdecode(name)
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, [50, 150, 256], (6, 6, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def spec() -> ZooSpec:
    return parse_spec(VALUES, "test")


@pytest.fixture(scope="module")
def zoo(data: Path, spec: ZooSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoos") / "mine"
    build(spec, out, data=data, workers=1, backend="torch", quiet=True)
    return out


def test_auto_normalises_by_the_training_images_and_records_the_numbers(data: Path, spec: ZooSpec, zoo: Path) -> None:
    """Not by the validation images, which follow the training images."""
    raw = load_images(spec.images.model_copy(update={"normalise": None}), data)
    pixels = raw.train.images.double().numpy()
    mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
    facts = open_zoo(zoo).image_facts
    assert np.allclose(facts.mean, mean, rtol=1e-5)
    assert np.allclose(facts.std, std, rtol=1e-5)
    assert len(set(facts.mean)) == 3
    expected = (raw.test.images.numpy() - np.array(facts.mean, np.float32)[:, None, None]) / np.array(
        facts.std, np.float32
    )[:, None, None]
    assert np.array_equal(load_images(spec.images, data).test.images.numpy(), expected)
    more = load_images(spec.images.model_copy(update={"train": 14, "validation": 6}), data)
    assert more.facts.mean != facts.mean


def test_a_grown_zoo_keeps_its_facts(data: Path, zoo: Path, tmp_path: Path) -> None:
    small = parse_spec(VALUES | {"seeds": {"range": [1, 2]}}, "test")
    out = tmp_path / "mine"
    options: dict[str, Any] = {"data": data, "workers": 1, "backend": "torch", "quiet": True}
    build(small, out, **options)
    build(parse_spec(VALUES, "test"), out, **options)
    assert read_manifest(out).images == read_manifest(zoo).images
    assert sorted(open_zoo(out).models) == sorted(open_zoo(zoo).models)


def test_a_starter_for_a_folder_of_pictures_is_valid_and_builds(data: Path, tmp_path: Path) -> None:
    path = write_starter("flowers", "mine", data, tmp_path)
    spec = load_spec(path, ["models=1", "training.epochs=1"])
    assert (spec.name, spec.images.train, spec.images.name) == ("flowers", 24, "image_folder")
    manifest = build(spec, tmp_path / "zoo", data=data, workers=1, backend="torch", quiet=True)
    assert (manifest.counts.ok, manifest.images.class_names) == (1, list(NAMES))


def test_the_names_of_the_folders_are_those_of_the_classes(zoo: Path) -> None:
    assert open_zoo(zoo).class_names == NAMES
    assert list(faults(zoo)) == []
    result = CliRunner().invoke(main, ["info", str(zoo), "--json"])
    value = json.loads(result.stdout)
    assert value["classes"] == list(NAMES)
    assert value["authors"] == VALUES["authors"]
    assert (value["homepage"], value["citation"]) == (VALUES["homepage"], CITATION)
    assert value["mean"] == open_zoo(zoo).image_facts.mean


def test_tables_describe_the_f_scores_by_the_names_of_the_classes(zoo: Path, tmp_path: Path) -> None:
    """The description is that of the zoo, or missing, as in a table of an older version; another one is refused."""
    described = open_zoo(zoo).metadata.schema.field("test_f1").metadata
    assert json.loads(described[b"description"].decode().removeprefix("one F score for each of the classes ")) == [
        *NAMES
    ]
    tables = sorted(path.relative_to(zoo) for path in zoo.glob("*/*.parquet"))
    assert {path.parts[0] for path in tables} == {"data", "metadata"}
    for name in tables:
        schema = pq.read_schema(zoo / name)
        assert schema.field("test_f1").metadata[b"description"] == described[b"description"]
    copy, name = shutil.copytree(zoo, tmp_path / "mine"), str(tables[-1])
    table = pq.read_table(zoo / name)
    number = table.schema.get_field_index("test_f1")
    for description, accepted in ((None, True), ({"description": "one F score for each of the dogs"}, False)):
        field = table.schema.field(number).with_metadata(description)
        buffer = pa.BufferOutputStream()
        strings = [column.name for column in table.schema if pa.types.is_string(column.type)]
        pq.write_table(table.cast(table.schema.set(number, field)), buffer, compression="zstd", use_dictionary=strings)
        replace_file(copy, name, buffer.getvalue().to_pybytes())
        found = [fault for fault in faults(copy) if fault.name != "README.md"]  # whose card names other hashes
        assert [fault.name for fault in found] == ([] if accepted else [name])
        if accepted:
            assert open_zoo(copy).metadata.equals(open_zoo(zoo).metadata, check_metadata=True)
        else:
            with pytest.raises(DamagedZooError, match="metadata that no builder writes"):
                open_zoo(copy)


@pytest.mark.slow
def test_datasets_loads_tables_with_a_description(zoo: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    for configuration in ("checkpoints", "metadata"):
        loaded = load_dataset(str(zoo), configuration, cache_dir=str(tmp_path))
        for split, rows in loaded.items():
            own = open_zoo(zoo, split=split, include_diverged=True).to_dataset(weights=configuration == "checkpoints")
            assert rows.features == own.features
            assert rows["test_f1"] == own["test_f1"]


def test_the_card_shows_names_and_citation_as_text(zoo: Path) -> None:
    """No markup of a name or a citation works in the card, and none of it is taken for the card's own repository."""
    card = (zoo / "README.md").read_text()
    html = MarkdownIt("commonmark").render(card.partition("\n---\n")[2])
    for text in ("Ada &lt;i&gt;Lovelace&lt;/i&gt;", "[x](https://evil.example)", "0 &lt;b&gt;cat", "2 no \\xff"):
        assert text in html, text
    assert "<i>" not in html
    assert "<script>" not in html
    assert 'href="https://evil.example"' not in html
    assert 'href="https://example.com/zoo?a=(b)"' in html
    (block,) = [token for token in MarkdownIt("commonmark").parse(card) if token.content.startswith("@misc")]
    assert block.content == f"{CITATION}\n"
    assert block.info == "bibtex"
    assert [f"mean {mean}" in html for mean in open_zoo(zoo).image_facts.mean] == [True] * 3
    assert card_location(card.encode()) == "mine"


def test_a_card_without_names_of_classes_is_one_of_an_older_version(zoo: Path, spec: ZooSpec, tmp_path: Path) -> None:
    copy = shutil.copytree(zoo, tmp_path / "mine")
    old = render_card(read_manifest(copy), spec, form=1)
    assert old != (copy / "README.md").read_text()
    (copy / "README.md").write_text(old)
    assert list(faults(copy)) == []
    (copy / "README.md").write_text(old.replace("dog", "cat").replace("mine", "mane"))
    assert [fault.name for fault in faults(copy)] == ["README.md"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: {"class_names": facts.class_names[:3]}, "images.class_names: found 3 names of 4 classes"),
        (lambda facts: {"mean": []}, "images.mean: found 0 numbers, expected 3"),
        (lambda facts: {"std": [1.0]}, "images.std: found 1 numbers, expected 3"),
    ],
)
def test_facts_that_contradict_the_specification_are_refused(
    zoo: Path, tmp_path: Path, change: Callable[[ImageFacts], dict[str, Any]], message: str
) -> None:
    copy = shutil.copytree(zoo, tmp_path / "mine")
    manifest = read_manifest(copy)
    facts = manifest.images.model_copy(update=change(manifest.images))
    (copy / "zoo.json").write_bytes(manifest.model_copy(update={"images": facts}).with_hash().to_bytes())
    with pytest.raises(DamagedZooError) as caught:
        open_zoo(copy)
    assert message in str(caught.value)
