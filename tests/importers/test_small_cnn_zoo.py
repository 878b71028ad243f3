"""Importing the Small CNN Zoo, in files that the test writes in the order of TensorFlow."""

import gzip
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from foreign_zoos import DIGITS, LAYOUT, STEPS, Written, keras_metrics, write_layout, write_metrics, write_small_cnn_zoo

from zootools import import_zoo, open_zoo
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.importers.small_cnn_zoo import SmallCnnZoo
from zootools.testing import ImporterExample, ImporterTests
from zootools.zoo import Zoo

PARAMETERS = 4970
Matrix = npt.NDArray[np.float32]


def imported(path: Path, out: Path, **options: Any) -> Zoo:
    """Import a folder without re-evaluating its models, and open the zoo."""
    import_zoo("small-cnn-zoo", path, out, check=0, quiet=True, **options)
    return open_zoo(out, include_diverged=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """Two models at the nine published steps."""
    path = tmp_path_factory.mktemp("small") / "mnist"
    return path, write_small_cnn_zoo(path)


@pytest.fixture
def copy(written: tuple[Path, Written], tmp_path: Path) -> Path:
    """A copy of it, for a test that changes it."""
    return Path(shutil.copytree(written[0], tmp_path / "mnist"))


def write_many(path: Path, size: int, steps: tuple[int, ...] = STEPS) -> None:
    """Write a zoo of random weights with at least this number of bytes."""
    path.mkdir()
    models = size // (4 * PARAMETERS * len(steps)) + 1
    shape = (models * len(steps), PARAMETERS)
    matrix = np.lib.format.open_memmap(path / "weights.npy", "w+", np.float32, shape)
    matrix[:] = np.random.default_rng(0).standard_normal((1, PARAMETERS), np.float32)
    matrix[:, 0] = np.arange(len(matrix))
    matrix.flush()
    scores: dict[str, Any] = {"test_accuracy": 0.5, "test_loss": 1.0, "train_accuracy": 0.75, "train_loss": 0.5}
    write_metrics(path, [keras_metrics(model, step, **scores) for model in range(models) for step in steps])
    write_layout(path)


def cut(path: Path) -> None:
    """Remove the last bytes of the matrix."""
    data = (path / "weights.npy").read_bytes()
    (path / "weights.npy").write_bytes(data[:-1000])


def cut_table(path: Path) -> None:
    """Remove the last bytes of the packed table."""
    data = (path / "metrics.csv.gz").read_bytes()
    (path / "metrics.csv.gz").write_bytes(data[:-100])


def drop_row(path: Path) -> None:
    """Remove a row of the table, so that all others belong to other weights."""
    lines = gzip.decompress((path / "metrics.csv.gz").read_bytes()).splitlines(keepends=True)
    (path / "metrics.csv.gz").write_bytes(gzip.compress(b"".join([*lines[:2], *lines[3:]])))


def transpose_layout(path: Path) -> None:
    """Say that kernels have the order of PyTorch, in which they are not."""
    write_layout(path, [(name, shape[::-1] if len(shape) == 4 else shape) for name, shape in LAYOUT])


class TestSmallCnnZoo(ImporterTests):
    """The conformance tests of an importer."""

    @pytest.fixture
    def example(self, written: tuple[Path, Written]) -> ImporterExample:
        damages = {
            "cut": cut,
            "cut table": cut_table,
            "row missing": drop_row,
            "transposed": transpose_layout,
            "no layout": lambda path: (path / "layout.csv").unlink(),
            "not a matrix": lambda path: (path / "weights.npy").write_bytes(b"x" * 1000),
        }
        path, content = written
        return ImporterExample(SmallCnnZoo(), path, content.weights, content.properties, damages, write_many)


def test_every_network_computes_what_it_computed_in_tensorflow(written: tuple[Path, Written], tmp_path: Path) -> None:
    """With the order of the files kept, the kernels would not even be those of the same network."""
    zoo = imported(written[0], tmp_path / "zoo")
    matrix = np.load(written[0] / "weights.npy")
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    names = {row["source_model"]: row["model_id"] for row in zoo.metadata.to_pylist()}
    for model in range(2):
        x = images
        row, start, values = matrix[9 * model + 8], 0, []
        for _, shape in LAYOUT:
            values.append(torch.from_numpy(row[start : start + np.prod(shape)].reshape(shape)))
            start += int(np.prod(shape))
        for layer in range(3):
            kernel = values[2 * layer + 1].permute(3, 2, 0, 1)
            x = torch.nn.functional.conv2d(x, kernel, values[2 * layer], stride=2)
            x = (torch.relu, torch.tanh)[model % 2](x)
        expected = x.mean(dim=(2, 3)) @ values[7] + values[6]
        with torch.no_grad():
            found = zoo.module(names[f"/zoo/mnist/{model}"], 86).eval()(images)
        torch.testing.assert_close(found, expected)


def test_the_images_of_the_published_zoos_are_known(written: tuple[Path, Written], tmp_path: Path) -> None:
    zoo = imported(written[0], tmp_path / "zoo")
    assert zoo.imported is not None
    assert zoo.imported.images is not None
    assert (zoo.imported.images.name, zoo.imported.images.mean, zoo.imported.images.std) == ("mnist", 0.5, 0.5)


def test_columns_that_are_the_same_in_all_rows_are_named(written: tuple[Path, Written], tmp_path: Path) -> None:
    zoo = imported(written[0], tmp_path / "zoo")
    assert zoo.imported is not None
    (same,) = [entry for entry in zoo.imported.left_out if entry.why == "is the same in all rows"]
    assert same.count == 6
    assert same.examples[:2] == ["metrics.csv.gz: config.dataset", "metrics.csv.gz: config.dnn_architecture"]
    assert "num_units" not in zoo.metadata.column_names


def test_weights_that_are_not_finite_mark_their_model(copy: Path, tmp_path: Path) -> None:
    matrix = np.load(copy / "weights.npy")
    matrix[8, 17] = np.inf
    np.save(copy / "weights.npy", matrix)
    zoo = imported(copy, tmp_path / "zoo")
    assert len(zoo) == 17
    status = {row["source_model"]: row["status"] for row in zoo.metadata.to_pylist()}
    assert status == {"/zoo/mnist/0": "diverged", "/zoo/mnist/1": "ok"}


def test_another_layout_is_refused_with_the_layer(copy: Path, tmp_path: Path) -> None:
    changed = list(LAYOUT)
    changed[6], changed[7] = ("sequential/dense/bias:0", (16,)), ("sequential/dense/kernel:0", (11, 14))
    write_layout(copy, changed)
    with pytest.raises(SpecError, match=r"layout.csv: sequential/dense|takes"):
        imported(copy, tmp_path / "zoo")
    write_layout(copy, [*LAYOUT[:-1], ("sequential/dense/gamma:0", (16, 10))])
    with pytest.raises(DamagedZooError, match="gamma:0: is neither a kernel nor a bias"):
        imported(copy, tmp_path / "zoo")


def test_an_unknown_data_set_is_refused_with_the_nearest_one(copy: Path, tmp_path: Path) -> None:
    write_metrics(copy, [keras_metrics(0, step) | {"config.dataset": "fashion"} for step in range(18)])
    with pytest.raises(SpecError, match="did you mean 'fashion_mnist'"):
        imported(copy, tmp_path / "zoo")


def test_two_rows_of_one_checkpoint_are_refused(copy: Path, tmp_path: Path) -> None:
    write_metrics(copy, [keras_metrics(0, min(step, 16)) for step in range(18)])
    with pytest.raises(SpecError, match="/zoo/mnist/0"):
        imported(copy, tmp_path / "zoo")
    assert not (tmp_path / "zoo" / "zoo.json").exists()


def test_a_matrix_of_float64_is_rounded_and_the_card_says_so(copy: Path, tmp_path: Path) -> None:
    matrix = np.load(copy / "weights.npy")
    np.save(copy / "weights.npy", matrix.astype(np.float64) * (1 + 1e-12))
    zoo = imported(copy, tmp_path / "zoo")
    assert zoo.imported is not None
    assert "the weights were float64, and are stored as float32" in zoo.imported.notes
    assert "float64" in (zoo.folder / "README.md").read_text()


def test_objects_in_the_matrix_are_not_unpickled(copy: Path, tmp_path: Path) -> None:
    np.save(copy / "weights.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedZooError, match="object"):
        imported(copy, tmp_path / "zoo")


# --- the check on images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks with ReLU, trained for longer."""
    path = tmp_path_factory.mktemp("trained") / "mnist"
    write_small_cnn_zoo(path, ("relu", "relu"), range(0, 24, 2))
    return path


def stored(path: Path, change: Callable[[str, Matrix], Matrix]) -> None:
    """Change the values of every variable in the matrix; the layout stays, and is wrong."""
    matrix, start = np.load(path / "weights.npy"), 0
    for name, shape in LAYOUT:
        size = int(np.prod(shape))
        values = matrix[:, start : start + size].reshape(-1, *shape)
        matrix[:, start : start + size] = change(name, values).reshape(len(matrix), -1)
        start += size
    np.save(path / "weights.npy", matrix)


def relabel(path: Path) -> None:
    """Say that the activation is tanh."""
    text = gzip.decompress((path / "metrics.csv.gz").read_bytes())
    (path / "metrics.csv.gz").write_bytes(gzip.compress(text.replace(b"relu", b"tanh")))


def in_pytorch_order(name: str, values: Matrix) -> Matrix:
    """Return kernels as (outputs, inputs, height, width)."""
    return (
        values.transpose(0, 4, 3, 1, 2) if values.ndim == 5 else values.swapaxes(1, 2) if values.ndim == 3 else values
    )


PLANTED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "nothing": (lambda path: None, {}, ""),
    "kernels in the order of PyTorch": (
        lambda path: stored(path, in_pytorch_order),
        {},
        "all kernels were transposed although they were in PyTorch's order already",
    ),
    "height and width exchanged": (
        lambda path: stored(path, lambda name, v: v.swapaxes(1, 2) if v.ndim == 5 else v),
        {},
        "height and width of the convolution kernels are exchanged",
    ),
    "another order of classes": (
        lambda path: stored(path, lambda name, v: v[..., ::-1] if "dense" in name else v),
        {},
        "the classes are numbered in another order",
    ),
    "another activation": (relabel, {}, "the activation is relu"),
    "another normalisation": (
        lambda path: None,
        {"images": DIGITS.model_copy(update={"mean": 0.0, "std": 1.0})},
        "the images are scaled to [-1, 1] (mean 0.5, std 0.5)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
def test_the_check_names_a_planted_mistake(trained: Path, tmp_path: Path, planted: str) -> None:
    """The accuracies in the table were measured by the original networks."""
    plant, options, expected = PLANTED[planted]
    path = Path(shutil.copytree(trained, tmp_path / "mnist"))
    plant(path)
    words = {"check": 8, "quiet": True, "images": DIGITS, **options}
    if not expected:
        imported_zoo = import_zoo("small-cnn-zoo", path, tmp_path / "zoo", **words).imported
        assert imported_zoo is not None
        assert imported_zoo.check.largest_difference == 0
        assert imported_zoo.check.checkpoints == 8
        return
    with pytest.raises(SpecError) as refused:
        import_zoo("small-cnn-zoo", path, tmp_path / "zoo", **words)
    print(planted, "|", str(refused.value).replace("\n", " / "))
    assert expected in str(refused.value)
    assert not (tmp_path / "zoo").exists()


# --- the published split ---------------------------------------------------------------------------------


def nfn_splits(order: list[int], steps: list[int]) -> dict[int, set[str]]:
    """Return the splits of every final row, as the code of nfn computes them from its file, header and all."""
    final = [row for row in [0, *order] if steps[row] == 86]
    half = int(0.5 * len(final))
    first = list(range(half))
    random.Random(0).shuffle(first)
    splits: dict[int, set[str]] = {}
    for names, places in (("train", first[: int(0.8 * half)]), ("validation", first[int(0.8 * half) :])):
        for place in places:
            splits.setdefault(final[place], set()).add(names)
    for place in range(half, len(final)):
        splits.setdefault(final[place], set()).add("test")
    return splits


@pytest.mark.parametrize("first_is_final", [False, True])
def test_the_published_split_is_that_of_nfn(tmp_path: Path, first_is_final: bool) -> None:
    """Its files begin with a header, 0, that nfn reads as a row; if that row is a final one, it is there twice."""
    path, steps = tmp_path / "mnist", (86, 0) if first_is_final else (0, 86)
    write_many(path, 4 * PARAMETERS * 79, steps)
    rows = len(np.load(path / "weights.npy", mmap_mode="r"))
    assert rows == 80
    order = list(range(rows))
    random.Random(7).shuffle(order)
    (path / "mnist_split.csv").write_text("\n".join(map(str, [0, *order])) + "\n")
    zoo = imported(path, tmp_path / "zoo", split="nfn")
    expected = nfn_splits(order, [*steps] * 40)
    found = {row["source_model"]: row["split"] for row in zoo.metadata.to_pylist()}
    twice = 0
    for row, splits in expected.items():
        assert found[f"/zoo/mnist/{row // 2}"] in splits
        twice += len(splits) > 1
    assert len(expected) == 40
    assert {*found.values()} == {"train", "validation", "test"}
    assert twice == first_is_final
    assert zoo.imported is not None
    assert ("/zoo/mnist/0 is in" in " ".join(zoo.imported.notes)) == first_is_final
    by_hash = {row["source_model"]: row["split"] for row in imported(path, tmp_path / "own").metadata.to_pylist()}
    assert by_hash != found


def test_an_order_of_other_rows_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooNotFoundError, match=r"no file \*_split.csv"):
        imported(copy, tmp_path / "zoo", split="nfn")
    (copy / "svhn_split.csv").write_text("\n".join(map(str, [0, *range(17)])))
    with pytest.raises(DamagedZooError, match="expected each of the 18 rows once"):
        imported(copy, tmp_path / "zoo", split="nfn")
    with pytest.raises(SpecError, match="did you mean 'nfn'"):
        imported(copy, tmp_path / "zoo", split="nfm")
