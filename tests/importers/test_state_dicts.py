"""Files with one state dict each: what becomes of them, and of those that are damaged, odd or hostile."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from populations import IMAGES, PATTERN, SCHEMA, Checkpoint, write_schema
from safetensors.torch import save_file

from zootools import import_zoo, open_zoo
from zootools.errors import SpecError, ZooNotFoundError
from zootools.storage.manifest import Manifest
from zootools.verify import faults

Import = Callable[..., Manifest]


def left_out(manifest: Manifest) -> dict[str, list[str]]:
    """The first names of what was left out, by reason."""
    assert manifest.imported is not None
    return {row.why: row.examples for row in manifest.imported.left_out}


def test_every_weight_and_property_arrives(
    import_files: Import, scores: Path, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    manifest = import_files(properties=scores, images=IMAGES)
    assert manifest.counts.expected == 6
    assert manifest.counts.checkpoints == len(checkpoints)
    assert list(faults(tmp_path / "zoo")) == []
    zoo = open_zoo(tmp_path / "zoo")
    rows = {
        (row["seed"], row["epoch"]): (row, flat)
        for row, flat in zip(zoo.metadata.to_pylist(), zoo.weights(), strict=True)
    }
    for checkpoint in checkpoints:
        row, flat = rows[checkpoint.seed, checkpoint.epoch]
        assert torch.equal(flat, checkpoint.flat)
        assert (row["train_accuracy"], row["test_accuracy"]) == (checkpoint.train_accuracy, checkpoint.test_accuracy)
        assert row["generalization_gap"] == checkpoint.train_accuracy - checkpoint.test_accuracy
        assert row["source_model"] == f"seed{checkpoint.seed}/epoch*.safetensors"
        assert row["activation"] == "tanh"
    assert manifest.imported is not None
    assert manifest.imported.check.column == "test_accuracy"
    assert manifest.imported.check.largest_difference == 0
    assert manifest.imported.source.count == len(checkpoints) + 1


def test_the_same_import_gives_the_same_bytes_and_is_not_repeated(import_files: Import, tmp_path: Path) -> None:
    first = import_files()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "zoo").rglob("*")}
    assert import_files() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "zoo").rglob("*")} == written
    (tmp_path / "zoo").rename(tmp_path / "before")
    assert import_files() == first
    for name in first.files:
        assert (tmp_path / "zoo" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_another_import_does_not_replace_a_zoo(import_files: Import, tmp_path: Path) -> None:
    manifest = import_files()
    with pytest.raises(SpecError, match="holds another zoo"):
        import_files(constants={"activation": "relu"})
    assert (tmp_path / "zoo" / "zoo.json").read_bytes() == manifest.to_bytes()


def test_a_table_gives_model_epoch_and_split(tmp_path: Path, checkpoints: list[Checkpoint], files: Path) -> None:
    rows = [
        {
            "file": f"seed{c.seed}/epoch{c.epoch}.safetensors",
            "model": f"m{c.seed}",
            "epoch": 10 * c.epoch,
            "split": "testing",
        }
        for c in checkpoints
    ]
    tables = {
        "csv": "file,model,epoch,split\n" + "".join(f"{','.join(map(str, row.values()))}\n" for row in rows),
        "jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
    }
    for ending, text in tables.items():
        (tmp_path / f"table.{ending}").write_text(text)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"zoo-{ending}"
        import_zoo("state-dicts", files, out, model_schema=SCHEMA, properties=tmp_path / f"table.{ending}", quiet=True)
        zoo = open_zoo(out)
        assert set(zoo.metadata["source_model"].to_pylist()) == {f"m{seed}" for seed in range(6)}
        assert set(zoo.metadata["epoch"].to_pylist()) == {0, 10, 20, 30}
        assert set(zoo.metadata["split"].to_pylist()) == {"test"}


def test_paths_name_the_models_of_folders_of_images(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    """As in published sets of networks that each show one picture: split, label and number are in the path."""
    for number, checkpoint in enumerate(checkpoints[:4]):
        folder = (
            tmp_path / "inr" / f"mnist_png_{'training' if number else 'testing'}_{number % 2}_{number}" / "checkpoints"
        )
        folder.mkdir(parents=True)
        torch.save({"state_dict": checkpoint.state, "step": 1000}, folder / "model_final.pth")
    pattern = "mnist_png_{split}_{label:int}_{number:int}/checkpoints/model_final.pth"
    import_zoo("state-dicts", tmp_path / "inr", tmp_path / "zoo", model_schema=SCHEMA, path_pattern=pattern, quiet=True)
    rows = open_zoo(tmp_path / "zoo").metadata.to_pylist()
    found = {row["number"]: (row["split"], row["label"], row["epoch"]) for row in rows}
    assert found == {0: ("test", 0, 0), 1: ("train", 1, 0), 2: ("train", 0, 0), 3: ("train", 1, 0)}


def test_safetensors_and_a_glob(tmp_path: Path, checkpoints: list[Checkpoint]) -> None:
    (tmp_path / "files").mkdir()
    for checkpoint in checkpoints:
        save_file(checkpoint.state, tmp_path / "files" / f"{checkpoint.seed}-{checkpoint.epoch}.safetensors")
    manifest = import_zoo(
        "state-dicts", tmp_path / "files" / "[0-2]-*.safetensors", tmp_path / "zoo", model_schema=SCHEMA,
        path_pattern="{seed:int}-{epoch:int}.safetensors", quiet=True,
    )  # fmt: skip
    assert (manifest.counts.expected, manifest.counts.checkpoints) == (3, 12)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_converted_and_said(
    tmp_path: Path, checkpoints: list[Checkpoint], files: Path, kind: torch.dtype, import_files: Import
) -> None:
    converted = {name: tensor.to(kind) for name, tensor in checkpoints[1].state.items()}
    save_file(converted, files / "seed0" / "epoch1.safetensors")
    manifest = import_files()
    zoo = open_zoo(tmp_path / "zoo")
    first = zoo.where((pc.field("seed") == 0) & (pc.field("epoch") == 1)).weights()[0]
    assert torch.equal(first, checkpoints[1].flat.to(kind).float())
    assert manifest.imported is not None
    assert any("converted to float32" in note for note in manifest.imported.notes) == (kind != torch.bfloat16)


def test_pickles_arrive_as_they_are(
    import_files: Import, pickles: Path, tmp_path: Path, checkpoints: list[Checkpoint]
) -> None:
    """Also inside of other dictionaries, with an optimizer's state beside them."""
    whole = {"epoch": 1, "model": {"state_dict": checkpoints[1].state}, "lr": [0.1]}
    torch.save(whole, pickles / "seed0" / "epoch1.pt")
    import_files(pickles)
    zoo = open_zoo(tmp_path / "zoo")
    weights = dict(
        zip(zip(*(zoo.metadata[n].to_pylist() for n in ("seed", "epoch")), strict=True), zoo.weights(), strict=True)
    )
    for checkpoint in checkpoints:
        assert torch.equal(weights[checkpoint.seed, checkpoint.epoch], checkpoint.flat)


def test_files_that_cannot_be_imported_are_counted_with_their_reasons(
    import_files: Import, pickles: Path, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    """Truncated, with code, of another architecture, transposed, not torch's, not matching; the others are imported."""
    cut, mark = pickles / "seed0" / "epoch3.pt", tmp_path / "exploded"
    cut.write_bytes(cut.read_bytes()[:-100])
    torch.save(torch.nn.Linear(3, 2).state_dict(), pickles / "seed1" / "epoch3.pt")
    state = dict(checkpoints[8].state)
    state["0.weight"] = state["0.weight"].permute(2, 3, 1, 0).contiguous()
    torch.save(state, pickles / "seed2" / "epoch3.pt")
    (pickles / "seed3" / "epoch3.pt").write_bytes(b"hello")
    torch.save({"0.weight": torch.zeros(1), "code": Bomb(mark)}, pickles / "seed4" / "epoch3.pt")
    (pickles / "best.pt").write_bytes(cut.read_bytes())
    manifest = import_files(pickles)
    assert not mark.exists()
    assert manifest.counts.checkpoints == 19
    shapes = "has 0.weight with the shape [3, 3, 1, 6], expected [6, 1, 3, 3] of conv1.weight"
    assert left_out(manifest) == {
        "cannot be read as a file of torch (is truncated or damaged)": ["seed0/epoch3.pt", "seed3/epoch3.pt"],
        "is a pickle with code or objects, which is not run": ["seed4/epoch3.pt"],
        f"does not match the pattern {PATTERN}": ["best.pt"],
        "has 1 layers with parameters (), expected 4": ["seed1/epoch3.pt"],
        f"{shapes}; the axes are in another order (a transposed kernel?)": ["seed2/epoch3.pt"],
    }
    assert list(faults(tmp_path / "zoo")) == []
    zoo = open_zoo(tmp_path / "zoo")
    assert sorted(zoo.metadata.filter(pc.field("seed") == 0)["epoch"].to_pylist()) == [0, 1, 2]
    assert "seed1/epoch3.pt" in (tmp_path / "zoo" / "README.md").read_text()


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self.path),)


def test_weights_that_are_not_finite_end_their_model(
    import_files: Import, files: Path, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in checkpoints[1].state.items()}
    state["0.bias"][3] = torch.nan
    save_file(state, files / "seed0" / "epoch1.safetensors")
    save_file({n: torch.full_like(t, torch.inf) for n, t in state.items()}, files / "seed4" / "epoch0.safetensors")
    manifest = import_files()
    assert (manifest.counts.diverged, manifest.counts.ok) == (2, 4)
    assert sorted(stop.epoch for stop in manifest.stopped.values()) == [0, 1]
    assert {why: len(names) for why, names in left_out(manifest).items()} == {
        "follows a checkpoint with weights that are not finite": 3,
        "has weights that are not finite": 2,
    }
    zoo = open_zoo(tmp_path / "zoo", include_diverged=True)
    assert zoo.metadata.filter(pc.field("seed") == 0)["epoch"].to_pylist() == [0]
    assert list(faults(tmp_path / "zoo")) == []


def test_missing_epochs_are_missing_and_nothing_else(import_files: Import, files: Path, tmp_path: Path) -> None:
    for name in ("seed0/epoch0.safetensors", "seed1/epoch2.safetensors", "seed2/epoch3.safetensors"):
        (files / name).unlink()
    manifest = import_files()
    assert manifest.counts.checkpoints == 21
    assert list(faults(tmp_path / "zoo")) == []
    zoo = open_zoo(tmp_path / "zoo")
    epochs = {seed: zoo.metadata.filter(pc.field("seed") == seed)["epoch"].to_pylist() for seed in range(4)}
    assert epochs == {0: [1, 2, 3], 1: [0, 1, 3], 2: [0, 1, 2], 3: [0, 1, 2, 3]}


def test_two_files_of_one_checkpoint_are_refused_by_name(import_files: Import, files: Path, tmp_path: Path) -> None:
    (files / "seed0" / "epoch01.safetensors").write_bytes((files / "seed0" / "epoch1.safetensors").read_bytes())
    names = "'seed0/epoch01.safetensors' and 'seed0/epoch1.safetensors'"
    with pytest.raises(SpecError, match=f"the files {names} are both of the model .* epoch 1"):
        import_files()
    assert not (tmp_path / "zoo").exists()


def test_a_pattern_that_matches_nothing_is_refused(import_files: Import, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"no path matches 'run\{seed:int\}.pt'; the first of 24 files is 'seed0/epoch0.safetensors'"
    ):
        import_files(path_pattern="run{seed:int}.pt")
    assert not (tmp_path / "zoo").exists()


def test_a_population_of_which_nothing_fits_is_refused_and_leaves_nothing(
    import_files: Import, files: Path, tmp_path: Path
) -> None:
    for path in files.rglob("*.safetensors"):
        path.write_bytes(b"x")
    with pytest.raises(SpecError, match="no checkpoint can be imported\n  24 is not a file of safetensors"):
        import_files()
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_schema": None}, "expected one of --schema FILE .* and --architecture NAME"),
        ({"architecture": "cnn_small"}, "expected one of --schema FILE .* and --architecture NAME"),
        ({"model_schema": None, "architecture": "cnn_smal", "images": IMAGES}, "did you mean 'cnn_small'"),
        ({"model_schema": None, "architecture": "cnn_small"}, "--architecture: needs --images too"),
        ({"split": "nfn"}, "--split: an import of the kind state-dicts does not use it"),
        ({"path_pattern": "seed{seed:integer}/*"}, r"found the type 'integer'; did you mean 'int'"),
        ({"path_pattern": "seed0/*"}, "has no field"),
        ({"constants": {"seed": 3}}, "--set seed: the population has a column of this name"),
        ({"constants": {"row": 3}}, "--set row: has the name of a column of every zoo"),
        ({"check": -1}, "--check: found -1"),
        ({"check": 4}, "--check 4: the images that the models were trained on are not given"),
        ({"nmae": "x"}, "nmae: unknown argument; did you mean 'name'"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(
    import_files: Import, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        import_files(**options)
    assert not (tmp_path / "zoo").exists()


def test_places_that_cannot_be_used(import_files: Import, files: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooNotFoundError, match="did you mean"):
        import_files(tmp_path / "rusn")
    with pytest.raises(SpecError, match="is inside of what is imported"):
        import_zoo("state-dicts", files, files / "zoo", model_schema=SCHEMA, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match="holds files but no zoo"):
        import_zoo("state-dicts", files, tmp_path / "full", model_schema=SCHEMA, quiet=True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_percentages_are_not_taken_for_fractions(import_files: Import, scores: Path, tmp_path: Path) -> None:
    lines = scores.read_text().splitlines()
    scores.write_text("\n".join([lines[0], *(f"{line.rpartition(',')[0]},87.5" for line in lines[1:])]))
    with pytest.raises(SpecError, match=r"the column test_accuracy holds 87.5; expected fractions"):
        import_files(properties=scores)
    assert not (tmp_path / "zoo").exists()


def test_a_schema_in_a_file_and_an_architecture_by_name(tmp_path: Path, import_files: Import) -> None:
    assert import_files(model_schema=write_schema(tmp_path / "schema.json")).layer_schema == SCHEMA
