"""A zoo as a `datasets.Dataset`: the same features and rows as `load_dataset` of its folder."""

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest
from golden import DATA

from zootools import open_zoo
from zootools.storage.build_state import MANIFEST, ZooFolder
from zootools.storage.manifest import read_manifest
from zootools.storage.manifest_checks import stored_spec
from zootools.storage.reopening import reopen
from zootools.storage.tables import SPLITS


@pytest.mark.parametrize(("config", "weights"), [("checkpoints", True), ("metadata", False)])
@pytest.mark.parametrize("name", ["golden_mlp", "golden_cnn"])
def test_a_split_is_what_load_dataset_reads_from_the_folder(
    tmp_path: Path, name: str, config: str, weights: bool
) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(DATA / name), config, cache_dir=str(tmp_path))
    zoo = open_zoo(DATA / name, include_diverged=True)
    assert set(loaded) == set(zoo.metadata["split"].unique().to_pylist()) <= set(SPLITS)
    for split, expected in loaded.items():
        made = zoo.split(split).to_dataset(weights=weights)
        assert made.features == expected.features
        assert made.data.table.schema.remove_metadata() == expected.data.table.schema.remove_metadata()
        assert made[:] == expected[:]


def test_a_part_of_a_zoo_holds_its_own_weights() -> None:
    zoo = open_zoo(DATA / "golden_mlp")
    part = zoo.where((pc.field("epoch") == 2) & (pc.field("split") != "test"))
    made = part.to_dataset().with_format("numpy")
    assert 0 < len(made) == len(part) < len(zoo)
    assert made["weights"][:].tolist() == part.weights().tolist()
    assert made["model_id"][:].tolist() == part.metadata["model_id"].to_pylist()
    assert len(zoo.where(pc.field("epoch") == -1).to_dataset()) == 0


def test_an_unfinished_zoo_gives_the_rows_of_the_finished_one(tmp_path: Path) -> None:
    finished = DATA / "golden_mlp"
    zoo = ZooFolder(shutil.copytree(finished, tmp_path / "zoo"))
    manifest = read_manifest(zoo.path)
    zoo.write_plan(reopen(zoo, manifest, stored_spec(zoo.path, manifest)))
    for name in (MANIFEST, *zoo.names("data"), *zoo.names("metadata")):
        zoo.remove(name)
    opened = open_zoo(zoo.path)
    assert not opened.finished
    assert opened.to_dataset()[:] == open_zoo(finished).to_dataset()[:]
