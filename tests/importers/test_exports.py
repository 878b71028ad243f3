"""Exports of whole zoos: other tools read them by their own rules, and importing one gives the same zoo back."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.nn import functional as F

from zootools import export_zoo, import_zoo, open_zoo
from zootools.cli import main
from zootools.errors import DamagedZooError, SpecError
from zootools.zoo import Zoo

CNN = Path(__file__).parents[1] / "data" / "golden_cnn"
FORMATS = {
    "index-dict": ("parquet", {"model_schema": "schema.json"}),
    "numpy": ("small-cnn-zoo", {}),
    "state-dicts": ("state-dicts", {"model_schema": "schema.json", "properties": "properties.parquet"}),
}
"""The kind and the options of the import of each format; the options name files of the export."""


@pytest.fixture(params=["cnn", "mlp"])
def zoo(request: pytest.FixtureRequest, tiny_zoo: Path) -> Zoo:
    """A zoo whose last convolution is flattened, and one without biases."""
    return open_zoo(CNN if request.param == "cnn" else tiny_zoo)


def sorted_rows(zoo: Zoo) -> list[dict[str, Any]]:
    """Return metadata and weights by model and epoch, without what says where they are or came from."""
    rows = [
        {name: value for name, value in row.items() if name not in ("stack", "row", "source_model")}
        | {"weights": weights.tolist()}
        for row, weights in zip(zoo.metadata.to_pylist(), zoo.weights(), strict=True)
    ]
    return sorted(rows, key=lambda row: (row["model_id"], row["epoch"]))


@pytest.mark.parametrize("form", FORMATS)
def test_importing_an_export_gives_the_same_zoo_back(zoo: Zoo, form: str, tmp_path: Path) -> None:
    assert export_zoo(zoo, tmp_path / "export", form) == len(zoo)
    kind, options = FORMATS[form]
    paths = {name: tmp_path / "export" / file for name, file in options.items()}
    import_zoo(kind, tmp_path / "export", tmp_path / "zoo", check=0, quiet=True, **paths)
    found = open_zoo(tmp_path / "zoo")
    assert found.schema == zoo.schema
    assert sorted_rows(found) == sorted_rows(zoo)


def test_the_numpy_files_are_those_that_readers_of_the_small_cnn_zoo_expect(zoo: Zoo, tmp_path: Path) -> None:
    """A row, cut by layout.csv and used as TensorFlow uses it (channels last), computes what the network computes."""
    export_zoo(zoo, tmp_path / "export", "numpy")
    matrix = np.load(tmp_path / "export" / "weights.npy")
    assert matrix.dtype == np.float32
    layout = pyarrow.csv.read_csv(tmp_path / "export" / "layout.csv").to_pylist()
    with gzip.open(tmp_path / "export" / "metrics.csv.gz") as file:
        metrics = pyarrow.csv.read_csv(file).to_pylist()
    assert len(metrics) == len(matrix) == len(zoo)
    row = len(zoo) - 1
    x = images = torch.randn(3, *zoo.schema.input_shape, generator=torch.Generator().manual_seed(0))
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for variable in layout:
        shape = [int(side) for side in re.findall(r"\d+", variable["shape"])]
        values = torch.from_numpy(matrix[row, variable["start_idx"] : variable["end_idx"]].reshape(shape))
        name, _, kind = variable["varname"].removesuffix(":0").rpartition("/")
        layers.setdefault(name, {})[kind] = values
    activation = {"tanh": torch.tanh, "relu": torch.relu}[metrics[row]["config.activation"]]
    for layer, tensors in zip(zoo.schema.layers, layers.values(), strict=True):
        if layer.kind == "conv":
            x = F.conv2d(x, tensors["kernel"].permute(3, 2, 0, 1), tensors["bias"], layer.stride)
            x = F.max_pool2d(x, layer.max_pool)
        else:
            x = x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x
            x = x @ tensors["kernel"] + tensors.get("bias", torch.zeros(1))
        x = activation(x) if layer.activation else x
    with torch.no_grad():
        expected = zoo.module(metrics[row]["modeldir"], metrics[row]["step"]).eval()(images)
    torch.testing.assert_close(x, expected)


def test_the_index_is_that_of_the_model_zoo_dataset(tmp_path: Path) -> None:
    zoo = open_zoo(CNN)
    export_zoo(zoo, tmp_path / "export", "index-dict")
    assert json.loads((tmp_path / "export" / "index_dict.json").read_text()) == {
        "layer": [[0, "conv2d"], [3, "conv2d"], [6, "conv2d"], [9, "fc"], [11, "fc"]],
        "idx_start": [0, 208, 1414, 1514, 2254],
        "idx_length": [208, 1206, 100, 740, 210],
        "kernel_no": [8, 6, 4, 20, 10],
        "kernel_size": [25, 25, 4, 9, 1],
        "channels_in": [1, 8, 6, 4, 20],
    }
    for split in {*zoo.metadata["split"].to_pylist()}:
        table = pq.read_table(tmp_path / "export" / f"{split}.parquet")
        expected = zoo.split(split)
        assert table["model_id"].to_pylist() == expected.metadata["model_id"].to_pylist()
        np.testing.assert_array_equal(np.stack(table["weights"].to_numpy()), expected.weights().numpy())


def test_each_state_dict_is_that_of_its_checkpoint(zoo: Zoo, tmp_path: Path) -> None:
    export_zoo(zoo, tmp_path / "export", "state-dicts")
    for row in pq.read_table(tmp_path / "export" / "properties.parquet").to_pylist():
        state = load_file(tmp_path / "export" / row["path"])
        torch.testing.assert_close(state, zoo.state_dict(row["model_id"], row["epoch"]), rtol=0, atol=0)


def test_only_some_checkpoints_are_exported(tiny_zoo: Path, tmp_path: Path) -> None:
    words = ["export", str(tiny_zoo), "--format", "numpy", "--epoch", "2", "-o", str(tmp_path / "export")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    expected = open_zoo(tiny_zoo).where(pc.field("epoch") == 2)
    assert len(np.load(tmp_path / "export" / "weights.npy")) == len(expected) == 12
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2
    assert "exists; an export makes a new folder" in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "nump"], "did you mean 'numpy'"),
        (["--epoch", "1"], "writes one checkpoint, and needs --model"),
        (["--model", "x"], "writes one checkpoint, and needs --epoch"),
        (["--format", "numpy", "--epoch", "99"], "no checkpoints to export"),
    ],
)
def test_what_cannot_be_exported_is_refused(tiny_zoo: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["export", str(tiny_zoo), "-o", str(tmp_path / "export"), *words])
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(tiny_zoo: Path, tmp_path: Path, form: str) -> None:
    copy = Path(shutil.copytree(tiny_zoo, tmp_path / "copy"))
    shard = next(copy.glob("checkpoints/*/epoch-0002.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DamagedZooError, match="epoch-0002"):
        export_zoo(open_zoo(copy), tmp_path / "exports" / "one", form)
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", "a/b", "", "a\x00b"])
def test_state_dicts_stay_below_the_folder_of_the_export(zoo: Zoo, tmp_path: Path, name: str) -> None:
    ids = pa.array([name, *zoo.metadata["model_id"].to_pylist()[1:]])
    hostile = replace(
        zoo, metadata=zoo.metadata.set_column(zoo.metadata.column_names.index("model_id"), "model_id", ids)
    )
    with pytest.raises(SpecError, match=r"row 0: the model id .* cannot be the name of a folder"):
        export_zoo(hostile, tmp_path / "deep" / "export", "state-dicts")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_unknown_format_is_refused_with_the_nearest_one(tiny_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'state-dicts'"):
        export_zoo(open_zoo(tiny_zoo), tmp_path / "export", "state-dict")
