"""Image files of others: loaded with exactly the pixels and labels that they hold, or refused by name."""

import bz2
import hashlib
import math
import os
import pickle
import socketserver
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from samples import make_spec, mnist_folder
from scipy.io import savemat
from torch.nn import functional as F

from zootools.building.builder import build
from zootools.doctor import examine
from zootools.errors import DamagedZooError, SpecError, StorageError, ZooError
from zootools.images.datasets import load_images
from zootools.images.sets import IMAGE_SETS, read_part
from zootools.images.shapes import check_images, find_images, has_images
from zootools.spec import DatasetImages, FolderImages, TetrisImages
from zootools.storage.build_state import IMAGES, ZooFolder
from zootools.storage.image_tensors import image_tensors, images_of_tensors, map_images

some = partial(settings, max_examples=40, deadline=None, derandomize=True, database=None)
in_place = some(suppress_health_check=[HealthCheck.function_scoped_fixture])  # examples overwrite the same files

Array = np.ndarray[Any, Any]

SMALL: dict[str, Any] = {"train": 5, "test": 3}


def known(name: str = "mnist", **changes: Any) -> DatasetImages:
    return DatasetImages(**{"name": name} | SMALL | changes)


# --- files like MNIST's --------------------------------------------------------------------------------

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx(values: Array, kind: int = 8) -> bytes:
    """Return an array as an idx file."""
    head = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    return head + values.astype(IDX_TYPES[kind]).tobytes()


PICTURES = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10
TRAIN_PICTURES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_PICTURES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder of four small files under MNIST's names."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for pictures, labels in ((TRAIN_PICTURES, TRAIN_LABELS), (TEST_PICTURES, TEST_LABELS)):
        (folder / pictures).write_bytes(idx(PICTURES))
        (folder / labels).write_bytes(idx(LABELS))
    return folder


def image_faults(root: Path) -> list[str]:
    """Return the faults of the image files in a data folder."""
    return [fault for images in find_images(root) for fault in images.faults]


def refused(root: Path, images: DatasetImages | FolderImages) -> str:
    """Return why images are refused."""
    with pytest.raises(ZooError) as caught:
        load_images(images, root)
    return str(caught.value)


def test_the_specification_and_the_table_name_the_same_sets() -> None:
    names = get_args(DatasetImages.model_fields["name"].annotation)
    assert {*names, "tetris"} == set(IMAGE_SETS)


def test_small_files_are_loaded_as_they_are(raw: Path, tmp_path: Path) -> None:
    images = load_images(known(validation=2), tmp_path)
    assert torch.equal(images.train.images, torch.from_numpy(PICTURES[:5, None]).float() / 255)
    assert images.validation.labels.tolist() == LABELS[5:7].tolist()
    assert images.test.labels.tolist() == LABELS[:3].tolist()
    check_images(known(validation=2), tmp_path)
    assert image_faults(tmp_path) == []


@in_place
@given(data=st.data())
def test_files_under_a_known_name_are_loaded_exactly_or_refused(raw: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Sides, counts, labels, element types and sizes at random: never a picture or label that is not in the files."""
    count = data.draw(st.integers(0, 12), "pictures")
    labelled = data.draw(st.sampled_from([count, count, count, max(0, count - 3), count + 1]), "labels")
    side = data.draw(st.sampled_from([28, 28, 28, 27, 32, 0]), "side")
    low, high = data.draw(st.sampled_from([(0, 9), (0, 9), (0, 0), (1, 10), (1, 26), (0, 255), (9, 9)]), "range")
    kinds = st.sampled_from([8, 8, 8, 8, *IDX_TYPES])
    kind, label_kind = data.draw(kinds, "type"), data.draw(kinds, "label type")
    extra = data.draw(st.sampled_from([0, 0, 0, 1, -1, 784]), "bytes too many")
    part = data.draw(st.sampled_from(["train", "t10k"]), "part")

    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    pictures = random.integers(0, 256, (count, side, side), np.uint8)
    labels = random.integers(low, high + 1, labelled).astype(np.uint8)
    content = idx(pictures, kind)
    for name, other in ((TRAIN_PICTURES, PICTURES), (TEST_PICTURES, PICTURES)):
        (raw / name).write_bytes(idx(other))
    for name in (TRAIN_LABELS, TEST_LABELS):
        (raw / name).write_bytes(idx(LABELS))
    (raw / f"{part}-images-idx3-ubyte").write_bytes(content[:extra] if extra < 0 else content + bytes(extra))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels, label_kind))

    fits = count > 0 and labelled == count and side == 28 and kind == label_kind == 8 and not extra
    fits = fits and int(labels.max()) < 10
    images = known(train=max(count, 1) if part == "train" else 5, test=max(count, 1) if part == "t10k" else 3)
    if fits:
        loaded = load_images(images, tmp_path)
        subset = loaded.train if part == "train" else loaded.test
        assert torch.equal(subset.images, torch.from_numpy(pictures[:, None]).float() / 255)
        assert subset.labels.tolist() == labels.tolist()
        check_images(images, tmp_path)
        assert image_faults(tmp_path) == []
    else:
        message = refused(tmp_path, images)
        assert f"{part}-images-idx3-ubyte" in message or f"{part}-labels-idx1-ubyte" in message
        with pytest.raises(StorageError) as caught:
            check_images(images, tmp_path)
        assert str(caught.value) == message
        assert image_faults(tmp_path) == [message]


@pytest.mark.parametrize("changes", [{"size": 28}, {"crop": 20}, {"crop": 20, "size": 28}, {"greyscale": True}])
def test_no_resizing_makes_pictures_of_another_size_fit_a_known_name(
    raw: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    (raw / TRAIN_PICTURES).write_bytes(idx(np.zeros((20, 32, 32))))
    message = refused(tmp_path, known(**changes))
    assert "holds pictures of 32 x 32, but those of mnist are 28 x 28" in message
    assert "image_folder" in message


BROKEN = {
    "empty": b"",
    "compressed": b"\x1f\x8b\x08\x00" + bytes(30),
    "text": b"<html>404 Not Found</html>",
    "a header alone": idx(PICTURES)[:16],
    "more pictures than memory": struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28) + bytes(784),
    "pictures beyond memory": struct.pack(">HBB3I", 0, 8, 3, 1, 2**32 - 1, 2**32 - 1),
    "of a type that there is not": struct.pack(">HBB3I", 0, 200, 3, 1, 28, 28) + bytes(784),
    "of 255 dimensions": struct.pack(">HBB3I", 0, 8, 255, 1, 28, 28) + bytes(784),
    "floats": idx(PICTURES / 255, 13),
    "labels": idx(LABELS),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_said_to_be_there_by_its_name(raw: Path, tmp_path: Path, content: bytes) -> None:
    (raw / TEST_PICTURES).write_bytes(content)
    message = refused(tmp_path, known())
    assert str(raw / TEST_PICTURES) in message
    assert "downloaded" not in message
    assert has_images(known(), tmp_path)  # it is there
    assert image_faults(tmp_path) == [message]


def test_doctor_counts_the_images_and_names_files_that_are_not_what_their_set_promises(
    raw: Path, tmp_path: Path
) -> None:
    findings = examine(tmp_path)
    assert findings.problems == []
    assert findings.machine["images"] == {"mnist": {"train": 20, "test": 20}}
    (raw / TRAIN_PICTURES).write_bytes(idx(PICTURES[:, :20, :20]))
    findings = examine(tmp_path)
    (problem,) = findings.problems
    assert findings.machine["images"] == {}
    assert TRAIN_PICTURES in problem
    assert "20 x 20" in problem
    (raw / TRAIN_PICTURES).unlink()
    findings = examine(tmp_path)
    assert findings.problems == []
    assert findings.machine["incomplete_images"] == {"mnist": [f"MNIST/raw/{TRAIN_PICTURES}"]}


@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_what_is_not_a_regular_file_is_refused_at_once(raw: Path, tmp_path: Path, what: str) -> None:
    (raw / TRAIN_LABELS).unlink()
    os.mkfifo(raw / TRAIN_LABELS) if what == "pipe" else (raw / TRAIN_LABELS).mkdir()
    message = refused(tmp_path, known())
    assert f"{raw / TRAIN_LABELS} exists, but cannot be read" in message


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails at once: nothing listens on that port."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies that it was made with
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
def test_only_files_that_are_missing_are_said_to_be(raw: Path, tmp_path: Path) -> None:
    (raw / TEST_LABELS).unlink()
    (raw / f"{TRAIN_PICTURES}.gz").write_bytes(b"half of an archive")
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    message = refused(tmp_path, known())
    assert f"(missing: MNIST/raw/{TEST_LABELS}), and could not be downloaded" in message
    assert not has_images(known(), tmp_path)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_a_build_trains_nothing_on_images_that_are_refused(raw: Path, tmp_path: Path) -> None:
    (raw / TRAIN_LABELS).write_bytes(idx(LABELS + 1))
    spec = make_spec(images={"name": "mnist", "train": 5, "test": 3})
    with pytest.raises(
        StorageError, match=r"train-labels-idx1-ubyte: label 10 of picture 9, but labels of mnist are 0 to 9"
    ):
        build(spec, tmp_path / "zoo", data=tmp_path, workers=1, quiet=True)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- downloads ------------------------------------------------------------------------------------------


def usps(labels: list[int], value: str = "0.5") -> bytes:
    """Return a file like USPS's, with all pixels of one value."""
    pixels = " ".join(f"{index}:{value}" for index in range(1, 257))
    return bz2.compress("".join(f"{label} {pixels} \n" for label in labels).encode())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder on a server on loopback, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_download_adds_what_is_missing_and_touches_nothing_else(
    web: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import calculate_md5

    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies that it was made with
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, address = web
    for part, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        (folder / name).write_bytes(usps([1, 2, 3, 4, 5, 6]))
        published = [f"{address}/{name}", name, calculate_md5(folder / name)]
        monkeypatch.setitem(datasets.USPS.split_list, part, published)
    mine = tmp_path / "data" / "usps.bz2"
    mine.parent.mkdir()
    mine.write_bytes(usps([10] * 5))
    images = load_images(known("usps"), tmp_path / "data")
    assert images.train.labels.tolist() == [9] * 5
    assert images.test.labels.tolist() == [0, 1, 2]
    assert mine.read_bytes() == usps([10] * 5)
    assert sorted(path.name for path in mine.parent.iterdir()) == ["usps.bz2", "usps.t.bz2"]

    (mine.parent / "usps.t.bz2").unlink()
    (folder / "usps.t.bz2").write_bytes(b"another file")  # whose md5 is not the published one
    assert "could not be downloaded" in refused(mine.parent, known("usps"))
    assert [path.name for path in mine.parent.iterdir()] == ["usps.bz2"]


# --- the other formats -----------------------------------------------------------------------------------


@in_place
@given(labels=st.lists(st.integers(0, 11), min_size=5, max_size=8), value=st.floats(-1.01, 1.01))
def test_usps_is_loaded_exactly_or_refused(tmp_path: Path, labels: list[int], value: float) -> None:
    (tmp_path / "usps.bz2").write_bytes(usps(labels, repr(value)))
    (tmp_path / "usps.t.bz2").write_bytes(usps([1, 2, 3]))
    if all(1 <= label <= 10 for label in labels) and abs(np.float32(value)) <= 1:
        images = load_images(known("usps"), tmp_path)
        assert images.train.labels.tolist() == [label - 1 for label in labels[:5]]
        pixel = int((np.float32(value) + 1) / 2 * 255)
        assert torch.equal(images.train.images, torch.full((5, 1, 16, 16), float(pixel)) / 255)
    else:
        assert f"{tmp_path / 'usps.bz2'}" in refused(tmp_path, known("usps"))


def pairs(*values: str) -> bytes:
    return bz2.compress(f"3 {' '.join(values)}\n".encode() * 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (usps([0, 1, 2, 3, 4]), "line 1: label 0, but labels in the files of usps are 1 to 10"),
        (
            pairs(*(f"{index}:0.5" for index in range(1, 256))),
            "line 1 does not consist of a label and the values 1 to 256",
        ),
        (
            pairs(*(f"{index}:0.5" for index in range(256))),
            "line 1 does not consist of a label and the values 1 to 256",
        ),
        (pairs(*(f"{index}:nan" for index in range(1, 257))), r"line 1 has values outside \[-1, 1\]"),
        (pairs(*(f"{index}:x" for index in range(1, 257))), "cannot be read as a file of usps"),
        (bz2.compress(b"\0" * 50_000_000), "line 1 does not consist of a label"),  # a bomb: one line of it is read
        (usps([1] * 9)[:-5], "ended before the end-of-stream marker"),
        (b"not bz2 at all", "cannot be read as a file of usps"),
        (b"", "ended before the end-of-stream marker"),
        (usps([]), "there are no pictures"),
    ],
    ids=["labels from 0", "255 values", "index 0", "NaN", "text", "bomb", "truncated", "not bz2", "empty", "no lines"],
)
def test_a_usps_file_that_is_not_one_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "usps.bz2").write_bytes(content)
    (tmp_path / "usps.t.bz2").write_bytes(usps([1, 2, 3]))
    with pytest.raises(StorageError, match=message) as caught:
        load_images(known("usps"), tmp_path)
    assert str(tmp_path / "usps.bz2") in str(caught.value)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "stl10"])
def test_a_file_whose_digest_is_not_the_published_one_is_not_even_parsed(tmp_path: Path, name: str) -> None:
    files = [file for part in IMAGE_SETS[name].files.values() for file in part]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(pickle.dumps(Touch(tmp_path / "was run")))
    message = refused(tmp_path, known(name))
    assert f"is not the published file of {name}" in message
    assert any(str(tmp_path / file) in message for file in files)
    assert not (tmp_path / "was run").exists()
    assert pickle.loads((tmp_path / files[0]).read_bytes()) is None  # it would have been run
    assert (tmp_path / "was run").exists()
    assert len(image_faults(tmp_path)) == 2
    with pytest.raises(StorageError, match="is not the published file"):
        check_images(known(name), tmp_path)


def cifar10_batch(pixels: Array, labels: Array) -> bytes:
    return pickle.dumps({"data": pixels.reshape(len(pixels), -1), "labels": labels.tolist()}, protocol=2)


def svhn_file(pixels: Array, labels: Array) -> bytes:
    stream = BytesIO()
    savemat(stream, {"X": pixels.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
    return stream.getvalue()


@pytest.mark.parametrize("name", ["cifar10", "svhn", "stl10"])
@pytest.mark.parametrize("low", [0, 1])
def test_files_with_published_digests_are_read_as_their_authors_wrote_them(tmp_path: Path, name: str, low: int) -> None:
    """The digests are those of small files here. With ``low`` 1 there is a label 10, which is out of range."""
    published, random = IMAGE_SETS[name], np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, *published.shape), np.uint8)
    labels = np.array([9, 0, 3, 9, 5]) + low
    for file in published.files["train"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if name == "cifar10":
            content = cifar10_batch(pixels, labels)
        elif name == "svhn":
            content = svhn_file(pixels, labels + low)  # its 10 is a 0
        else:
            content = (labels + 1).astype(np.uint8).tobytes() if "_y" in file else pixels.swapaxes(2, 3).tobytes()
        (tmp_path / file).write_bytes(content)
    files = published.files["train"]
    small = replace(published, md5={file: hashlib.md5((tmp_path / file).read_bytes()).hexdigest() for file in files})
    if low:
        with pytest.raises(StorageError, match=f"label 1[01] of picture 0, but labels of {name} are 0 to 9"):
            read_part(small, tmp_path, "train")
        return
    found, numbers = read_part(small, tmp_path, "train")
    batches = len(files) if name == "cifar10" else 1
    assert np.array_equal(found, np.concatenate([pixels] * batches))
    assert numbers.tolist() == labels.tolist() * batches


class Canary:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def test_nothing_but_arrays_is_unpickled_even_of_files_with_the_right_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published, content = IMAGE_SETS["cifar10"], pickle.dumps({"data": Canary(), "labels": []}, protocol=2)
    for file in published.files["train"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    with pytest.raises(StorageError, match=r"data_batch_1.*mkdir, which is not part of an array"):
        read_part(replace(published, md5=dict.fromkeys(published.files["train"], digest)), tmp_path, "train")
    assert not (tmp_path / "canary").exists()


def test_published_counts_serve_where_files_are_missing(tmp_path: Path) -> None:
    check_images(known(train=60_000, test=10_000), tmp_path)
    with pytest.raises(SpecError, match=r"train \+ validation asks for 60,001 images, but mnist has 60,000"):
        check_images(known(train=60_000, validation=1), tmp_path)
    with pytest.raises(SpecError, match="crop: 29 is larger than the images"):
        check_images(known(crop=29), tmp_path)
    check_images(TetrisImages(name="tetris", train=10**6, test=1, noise_train=0, noise_test=0), tmp_path)


def test_pixels_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SpecError, match=r"pixels that are not finite; check images\.mean and images\.std"):
        load_images(known("digits", std=1e-45))


# --- digests -----------------------------------------------------------------------------------------------


def test_digests_of_images_are_what_they_always_were(tmp_path: Path) -> None:
    """Digests as computed before image files were checked, so that zoos of that time still resume."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("b", "a", "A c"):
            for folder in (".", "more", "more-of-it", "more/still"):
                inner = tmp_path / "mine" / part / label / folder
                inner.mkdir(parents=True, exist_ok=True)
                for number, shape in enumerate([(8, 8), (8, 8, 3)]):
                    pixels = random.integers(0, 256, shape, np.uint8)
                    Image.fromarray(pixels).save(inner / f"{number}.{('png', 'BMP')[number]}")
    found = {
        "tetris": load_images(
            TetrisImages(name="tetris", train=40, validation=7, test=20, noise_train=0.2, noise_test=0.8)
        ),
        "digits": load_images(known("digits", train=900, validation=100, test=None, crop=6, mean=0.5, std=0.25)),
        "folder": load_images(
            FolderImages(name="image_folder", folder="mine", train=20, validation=3, size=8), tmp_path
        ),
    }
    assert {name: images.digest[:16] for name, images in found.items()} == DIGESTS


DIGESTS = {"tetris": "8e16e7c33a992ef2", "digits": "7bc90299b8cac44f", "folder": "8d12cc8445346a94"}


def test_the_digest_of_mnist_is_what_it_always_was() -> None:
    images = DatasetImages(name="mnist", train=50_000, validation=10_000, mean=0.1307, std=0.3081)
    assert (
        load_images(images, mnist_folder()).digest == "666ae6f0df96027036e3f0813d3b1bc3f4cada3d0d59ebe95edd759a605bd470"
    )


# --- the file that workers map ---------------------------------------------------------------------------------

TETRIS = TetrisImages(name="tetris", train=12, validation=4, test=8, noise_train=0.2, noise_test=0.8)


def _change(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name].clone()).contiguous()

    return apply


def _put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return put


@given(data=st.data())
@some()
def test_stored_images_are_mapped_as_they_are_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    tensors = image_tensors(load_images(TETRIS))
    part = data.draw(st.sampled_from(["train", "validation", "test"]), "part")
    pictures, labels = f"{part}.images", f"{part}.labels"
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "nothing": lambda tensors: None,
        "a label too large": _change(labels, _put(4)),
        "a negative label": _change(labels, _put(-1)),
        "a huge label": _change(labels, _put(2**62)),
        "labels of 32 bits": _change(labels, torch.Tensor.int),
        "a label too few": _change(labels, lambda tensor: tensor[1:]),
        "labels in rows": _change(labels, lambda tensor: tensor[:, None]),
        "an image too few": _change(pictures, lambda tensor: tensor[1:]),
        "images of 64 bits": _change(pictures, torch.Tensor.double),
        "larger images": _change(pictures, lambda tensor: F.pad(tensor, (0, 1))),
        "images without channels": _change(pictures, lambda tensor: tensor[:, 0]),
        "a pixel that is no number": _change(pictures, _put(math.nan)),
        "a pixel that is infinite": _change(pictures, _put(math.inf)),
        "no labels": lambda tensors: tensors.pop(labels),
        "another tensor": lambda tensors: tensors.update(more=torch.zeros(1)),
    }
    change = data.draw(st.sampled_from(list(changes)), "change")
    changes[change](tensors)
    zoo = ZooFolder(tmp_path_factory.mktemp("stored"))
    zoo.work.mkdir()
    save_file(tensors, zoo.path / IMAGES)
    if change == "nothing":
        assert map_images(zoo, 4, "cpu").digest == load_images(TETRIS).digest
        with pytest.raises(DamagedZooError, match="labels are 0 to 3, expected 0 to 2"):
            map_images(zoo, 3, "cpu")
    else:
        with pytest.raises(DamagedZooError, match="the stored images: "):
            map_images(zoo, 4, "cpu")
        with pytest.raises(DamagedZooError, match="the stored images: "):
            images_of_tensors(tensors, 4)


@pytest.mark.parametrize("what", ["nothing", "pipe", "folder", "text", "empty"])
def test_stored_images_that_cannot_be_read_are_refused_at_once(tmp_path: Path, what: str) -> None:
    zoo = ZooFolder(tmp_path)
    zoo.work.mkdir()
    path = tmp_path / IMAGES
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "nothing":
        path.write_bytes(b"" if what == "empty" else b"not tensors at all")
    with pytest.raises(DamagedZooError, match="the stored images: "):
        map_images(zoo, 4, "cpu")
