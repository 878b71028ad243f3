"""Reading a zoo in Python: selections, data sets, columns."""

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import representation
import zootools
from zootools import open_zoo
from zootools.errors import DamagedZooError, SpecError
from zootools.storage import mapped_weights
from zootools.storage.shards import shard_name


def test_a_condition_as_text_selects_checkpoints(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    rows = zoo.metadata.to_pylist()
    expected = [(row["model_id"], 2) for row in rows if row["epoch"] == 2 and row["test_accuracy"] > 0.3]
    assert 0 < len(expected) < len(rows)
    for chosen in (
        zoo.where("test_accuracy > 0.3 and epoch == 2"),
        open_zoo(tiny_zoo, where="0.3 < test_accuracy and 2 == epoch"),
    ):
        table = chosen.metadata
        assert list(zip(table["model_id"].to_pylist(), table["epoch"].to_pylist(), strict=True)) == expected
    with pytest.raises(SpecError, match=r"character 1: found 'acuracy'; .*did you mean 'test_accuracy'"):
        zoo.where("acuracy > 0.5")


def test_a_checkpoint_a_part_and_an_iteration_agree_with_metadata_and_weights(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    weights, rows = zoo.weights(), zoo.metadata.to_pylist()
    assert len(zoo) == len(rows) == 36
    found = list(zoo)
    for item in (*found, zoo[5], zoo[-1]):
        assert item.keys() == {*rows[0], "weights"}
    assert torch.equal(torch.stack([item["weights"] for item in found]), weights)
    assert [{key: item[key] for key in rows[0]} for item in found] == rows
    assert zoo[5]["model_id"] == rows[5]["model_id"]
    assert torch.equal(zoo[5]["weights"], weights[5])
    assert torch.equal(zoo[-1]["weights"], weights[-1])
    assert torch.equal(zoo[30:3:-9].weights(), weights[[30, 21, 12]])
    assert len(zoo[100:]) == 0
    with pytest.raises(IndexError):
        zoo[len(zoo)]


def test_the_text_form_of_a_zoo_is_one_short_line(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    assert repr(zoo) == f"<Zoo tiny: 12 models, 36 checkpoints of {zoo.schema.size:,} weights, in {tiny_zoo}>"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_every_checkpoint_with_its_columns(tiny_zoo: Path, workers: int) -> None:
    zoo = open_zoo(tiny_zoo)
    zoo = zoo.with_column("half", [None if row == 3 else row / 2 for row in range(len(zoo))])
    dataset = zoo.dataset(["epoch", "half", "activation", "test_f1"])
    context = "spawn" if workers else None
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=7, num_workers=workers, multiprocessing_context=context)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["weights"] for batch in batches]), zoo.weights())
    assert torch.cat([batch["epoch"] for batch in batches]).tolist() == zoo.metadata["epoch"].to_pylist()
    half = torch.cat([batch["half"] for batch in batches])
    assert half.isnan().nonzero().flatten().tolist() == [3]
    assert half[35] == 17.5
    assert [text for batch in batches for text in batch["activation"]] == zoo.metadata["activation"].to_pylist()
    assert torch.cat([batch["test_f1"] for batch in batches]).tolist() == zoo.metadata["test_f1"].to_pylist()


def test_a_copy_of_a_dataset_is_small_and_opens_the_files_itself(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_weights, "MAX_OPEN", 2)  # fewer than the shards of the zoo
    zoo = open_zoo(tiny_zoo)
    dataset = zoo.dataset(["test_accuracy"])
    assert torch.equal(dataset[35]["weights"], zoo.weights()[35])
    assert list(dataset[0]) == ["weights", "test_accuracy"]
    assert dataset[-1]["test_accuracy"] == zoo[-1]["test_accuracy"]
    for place in (0, 35, 13, 1, 34):
        assert torch.equal(dataset[place]["weights"], zoo.weights()[place])
    copy = pickle.dumps(dataset)
    assert len(copy) < 4 * zoo.schema.size * len(zoo) / 2
    assert torch.equal(pickle.loads(copy)[35]["weights"], zoo.weights()[35])
    with pytest.raises(IndexError):
        dataset[36]


def test_a_dataset_refuses_damaged_weights(tiny_zoo: Path, tmp_path: Path) -> None:
    zoo = open_zoo(shutil.copytree(tiny_zoo, tmp_path / "zoo"))
    dataset = zoo.dataset()
    shard = tmp_path / "zoo" / shard_name(zoo[0]["stack"], zoo[0]["epoch"])
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedZooError, match="sha256"):
        dataset[0]


def test_a_new_column_is_known_to_conditions(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    norms = zoo.weights().norm(dim=1)
    wider = zoo.with_column("norm", norms).with_column("kind", ["a", "b"] * 18).with_column("early", np.arange(36) < 5)
    assert wider.metadata["norm"].to_pylist() == norms.tolist()
    assert len(wider.where("early and kind == 'a'")) == 3
    assert len(wider.where(f"norm > {float(norms.median())}")) == 18 - int((norms == norms.median()).sum() > 1)
    assert "norm" not in zoo.metadata.column_names
    for name, values, message in [
        ("epoch", norms, "there is a column epoch already"),
        ("weights", norms, "there is a column weights already"),
        ("a b", norms, "found the name 'a b'; expected letters, digits and _"),
        ("short", [1, 2], "found 2 values for 36 checkpoints"),
        ("mixed", [1, "a"] * 18, "with_column: mixed: "),
        ("graph", norms.clone().requires_grad_(), "with_column: graph: "),
    ]:
        with pytest.raises(SpecError, match=re.escape(message)):
            zoo.with_column(name, values)


def test_columns_that_a_loader_cannot_collate_are_refused(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    zoo = zoo.with_column("label", [None, *"ab" * 17, "c"]).with_column("lists", [[1.0]] * 35 + [[1.0, 2.0]])
    for columns, message in [
        (["test_acuracy"], "columns: found 'test_acuracy'; did you mean 'test_accuracy'?"),
        ("epoch", "columns: found the text 'epoch'; expected a list of names, such as ['epoch']"),
        (["label"], '1 of 36 values of type string are not known; zoo.where("label is not null")'),
        (["lists"], "its lists have 1 to 2 elements"),
    ]:
        with pytest.raises(SpecError, match=re.escape(message)):
            zoo.dataset(columns)
    assert len(zoo.where("label is not null").dataset(["label"])) == 35


def test_the_public_names_are_listed() -> None:
    for package in (zootools, representation):
        assert {*package.__all__, "__doc__"} <= {*dir(package)}
