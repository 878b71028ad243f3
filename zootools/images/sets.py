"""The known image sets: one table of their shapes, classes, counts and files, and the functions that read the files.

Before the pixels of a file are used, the file is compared with the table: type and number of the elements, shape of
the pictures, number and range of the labels. This module does not import torch.

A new set is a function that reads it, a row of `IMAGE_SETS`, and its name in `zootools.spec.ImageSetName`.
"""

import bz2
import hashlib
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zootools.errors import StorageError
from zootools.filesystem.files import open_regular
from zootools.rng import stream
from zootools.spec.images import TRAINING_IMAGES

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Raw pixels ``[n, channels, height, width]`` and labels ``[n]``."""

PARTS = ("train", "test")

_OWN = "for your own pictures use images.name: image_folder"


@dataclass(frozen=True)
class ImageSet:
    """One known image set. Paths of files are relative to the data folder, in torchvision's layout."""

    name: str
    shape: tuple[int, int, int]
    """``(channels, height, width)`` of the raw pictures."""
    class_names: tuple[str, ...]
    """The names of the classes, in the order of the labels."""
    read: "Callable[[ImageSet, Path, str], Arrays] | None" = None
    """Reads one part below a data folder; None for tetris, whose images are drawn."""
    count: "Callable[[ImageSet, Path, str], int] | None" = None
    """Counts the images of a part from headers and labels, for formats where this is possible without the pixels."""
    counts: tuple[int, int] = (0, 0)
    """Published numbers of training and of test images."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The files of ``train`` and of ``test``."""
    md5: Mapping[str, str] = field(default_factory=dict)
    """Published digests; a file with a published digest is read only if it has this digest."""
    torchvision: str = ""
    """The class of torchvision.datasets that downloads the set."""
    by_split: bool = False
    """Whether that class selects a part with ``split="train"``, and not with ``train=True``."""
    elsewhere: str = ""
    """Where else the files can be had."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def read_part(known: ImageSet, root: Path, part: str) -> Arrays:
    """Read the part ``train`` or ``test`` of an image set: raw pixels and labels.

    Raises StorageError, which names the file, if a file cannot be read or differs from the table.
    """
    assert known.read is not None
    pixels, labels = known.read(known, root, part)
    where = " and ".join(str(root / file) for file in known.files.get(part, ())) or f"{known.name}, {part}"
    if pixels.dtype != np.uint8 or pixels.shape[1:] != known.shape:
        raise StorageError(
            f"images: {where}: pictures {_sides(pixels.shape[1:])} of {pixels.dtype}, "
            f"but those of {known.name} are {_sides(known.shape)} of uint8; {_OWN}"
        )
    _check_labels(known, where, labels, len(pixels))
    return pixels, labels


def count_part(known: ImageSet, root: Path, part: str) -> int:
    """Return the number of images of a part: the published one if a file is missing, else that in the files.

    Headers, labels and digests are compared with the table; pixels are read only if the format requires it.
    Raises StorageError as `read_part` does.
    """
    published = known.counts[PARTS.index(part)]
    if not all(present(root / file) for file in known.files.get(part, ())):
        return published
    if known.count is not None:
        return known.count(known, root, part)
    if known.md5:
        for file in known.files[part]:
            with _reading(known, root / file) as opened:
                _check_md5(known, root / file, known.md5[file], hashlib.file_digest(opened, _md5).hexdigest())
        return published
    return len(read_part(known, root, part)[1])


def missing_files(known: ImageSet, root: Path) -> list[str]:
    """Return the files of an image set that are not in a data folder."""
    return [file for files in known.files.values() for file in files if not present(root / file)]


def present(path: Path) -> bool:
    """Return whether the path exists, readable or not; a dangling link does not count."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def reason_of(error: Exception) -> str:
    """Return the message of an exception on one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


@contextmanager
def _reading(known: ImageSet, path: Path) -> Iterator[BufferedReader]:
    """Open a file of an image set; any error while it is read becomes a StorageError that names the file."""
    try:
        with open_regular(path) as file:
            yield file
    except StorageError:
        raise
    except Exception as error:  # readers raise many kinds: those of zlib, struct, pickle, MemoryError, ...
        raise _unreadable(known, path, reason_of(error)) from error


def _unreadable(known: ImageSet, path: Path, reason: str) -> StorageError:
    return StorageError(f"images: {path} exists, but cannot be read as a file of {known.name} ({reason})")


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape) or "single numbers"


def _check_labels(known: ImageSet, where: object, labels: npt.NDArray[np.int64], pictures: int) -> None:
    if labels.shape != (pictures,):
        raise StorageError(f"images: {where}: there are {labels.size:,} labels for {pictures:,} pictures")
    if pictures == 0:
        raise StorageError(f"images: {where}: there are no pictures")
    wrong = np.flatnonzero((labels < 0) | (labels >= known.classes))
    if len(wrong):
        raise StorageError(
            f"images: {where}: label {labels[wrong[0]]} of picture {wrong[0]:,}, "
            f"but labels of {known.name} are 0 to {known.classes - 1}; {_OWN}"
        )


# --- idx: MNIST, and the sets that are made to replace it ------------------------------------------------

_IDX_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def _read_idx(known: ImageSet, root: Path, part: str) -> Arrays:
    labels = _idx_labels(known, root, part)
    path = root / known.files[part][0]
    with _reading(known, path) as file:
        count = _idx_count(known, path, file, known.shape[1:])
        pixels = np.frombuffer(file.read(count * math.prod(known.shape)), np.uint8)
        return pixels.reshape(count, *known.shape), labels


def _count_idx(known: ImageSet, root: Path, part: str) -> int:
    return len(_idx_labels(known, root, part))


def _idx_labels(known: ImageSet, root: Path, part: str) -> npt.NDArray[np.int64]:
    """Read the labels of a part, and compare them with the table and with the header of the pictures."""
    pictures, path = (root / file for file in known.files[part])
    with _reading(known, pictures) as file:
        count = _idx_count(known, pictures, file, known.shape[1:])
    with _reading(known, path) as file:
        labels = np.frombuffer(file.read(_idx_count(known, path, file, ())), np.uint8).astype(np.int64)
    if len(labels) != count:
        raise StorageError(f"images: {path} holds {len(labels):,} labels, but {pictures} holds {count:,} pictures")
    _check_labels(known, path, labels, count)
    return labels


def _idx_count(known: ImageSet, path: Path, file: BufferedReader, shape: tuple[int, ...]) -> int:
    """Read the header of an idx file whose items must be uint8 of this shape; return their number.

    The size of the file must agree with the header, so a false header allocates no memory.
    """
    head, size = file.read(8 + 4 * len(shape)), os.fstat(file.fileno()).st_size
    if head[:2] == b"\x1f\x8b":
        raise _unreadable(known, path, "it is compressed; unpack it with gunzip")
    if len(head) < 8 or head[:2] != b"\0\0":
        raise _unreadable(known, path, f"{size:,} bytes that do not begin with the header of an idx file")
    kind, rank = head[2:4]
    if kind != 8:
        found = _IDX_TYPES.get(kind, f"an unknown type, {kind}")
        raise _unreadable(known, path, f"its elements are {found}, expected uint8")
    if rank != 1 + len(shape) or len(head) != 4 + 4 * rank:
        raise _unreadable(known, path, f"it has {rank} dimensions, expected {1 + len(shape)}")
    count, *sides = struct.unpack(f">{rank}I", head[4:])
    if tuple(sides) != shape:
        raise StorageError(
            f"images: {path} holds pictures of {_sides(tuple(sides))}, "
            f"but those of {known.name} are {_sides(shape)}; {_OWN}"
        )
    promised = len(head) + count * math.prod(shape)
    if size != promised:
        raise _unreadable(known, path, f"it has {size:,} bytes, but its header announces {promised:,}")
    return int(count)


# --- the other formats -----------------------------------------------------------------------------------

_MAX_TEXT = 2**30
"""Maximum of bytes read from a compressed text file; the published files have 20 MB."""
_MAX_LINE = 2**16


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # the published digests are MD5


def _check_md5(known: ImageSet, path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise StorageError(
            f"images: {path} is not the published file of {known.name} (its md5 is {found}, expected {expected}), and "
            "is not read; move it away to download it again"
        )


def _published(known: ImageSet, root: Path, name: str) -> bytes:
    """Return the content of a file after comparing it with the published digest."""
    path = root / name
    with _reading(known, path) as file:
        content = file.read(2**29)  # the largest, STL-10's training pictures, have 138 MB
        _check_md5(known, path, known.md5[name], hashlib.md5(content, usedforsecurity=False).hexdigest())
        return content


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and built-in types only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("._core.", ".core."), name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"found {module}.{name}, which is not part of an array")
        return super().find_class(module, name)


_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def _read_cifar10(known: ImageSet, root: Path, part: str) -> Arrays:
    pixels, labels = list[npt.NDArray[np.uint8]](), list[npt.NDArray[np.int64]]()
    for name in known.files[part]:
        content = _published(known, root, name)
        with _reading(known, root / name):
            batch = _ArrayUnpickler(BytesIO(content), encoding="latin1").load()
            pixels.append(batch["data"].reshape(-1, *known.shape))
            labels.append(np.array(batch["labels"], np.int64))
    return np.concatenate(pixels), np.concatenate(labels)


def _read_svhn(known: ImageSet, root: Path, part: str) -> Arrays:
    from scipy.io import loadmat

    (name,) = known.files[part]
    content = _published(known, root, name)
    with _reading(known, root / name):
        arrays = loadmat(BytesIO(content))
        labels = arrays["y"].reshape(-1).astype(np.int64)
        return arrays["X"].transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels)


def _read_stl10(known: ImageSet, root: Path, part: str) -> Arrays:
    pictures, answers = known.files[part]
    labels = np.frombuffer(_published(known, root, answers), np.uint8).astype(np.int64) - 1
    content = _published(known, root, pictures)
    with _reading(known, root / pictures):
        return np.frombuffer(content, np.uint8).reshape(-1, *known.shape).transpose(0, 1, 3, 2), labels


def _read_usps(known: ImageSet, root: Path, part: str) -> Arrays:
    """Read lines ``label 1:value ... 256:value`` with labels 1 to 10 and values in [-1, 1]."""
    path, pixels, labels, size = root / known.files[part][0], list[npt.NDArray[np.uint8]](), list[int](), 0
    indices = [b"%d" % index for index in range(1, 1 + math.prod(known.shape))]
    with _reading(known, path) as file, bz2.open(file) as text:
        while line := text.readline(_MAX_LINE):
            where = f"line {len(labels) + 1:,}"
            label, *words = line.replace(b":", b" ").split() or [b""]
            if words[::2] != indices or len(words) != 2 * len(indices):
                raise ValueError(f"{where} does not consist of a label and the values 1 to {len(indices)}")
            values = np.array([float(word) for word in words[1::2]], np.float32)
            if not (np.abs(values) <= 1).all():  # NaN included
                raise ValueError(f"{where} has values outside [-1, 1]")
            if not 1 <= int(label) <= known.classes:
                raise StorageError(
                    f"images: {path}, {where}: label {int(label)}, "
                    f"but labels in the files of {known.name} are 1 to {known.classes}; {_OWN}"
                )
            pixels.append(((values + 1) / 2 * 255).astype(np.uint8))
            labels.append(int(label) - 1)
            size += len(line)
            if size > _MAX_TEXT:
                raise ValueError(f"more than {_MAX_TEXT:,} bytes when decompressed")
        return np.array(pixels, np.uint8).reshape(-1, *known.shape), np.array(labels, np.int64)


def _read_digits(known: ImageSet, root: Path, part: str) -> Arrays:
    """Return scikit-learn's 1797 scans of 8x8: 1297 to train with, 500 to test.

    They are grouped by writer, so they are shuffled, always in the same order.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = stream(0, "digits").permutation(len(digits.target))
    order = order[: known.counts[0]] if part == "train" else order[known.counts[0] :]
    pixels = (digits.images[order] * (255 / 16)).round().astype(np.uint8)[:, None]
    return pixels, digits.target[order].astype(np.int64)


# --- the table ----------------------------------------------------------------------------------------------


_CIFAR10 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
}
_STL10 = {
    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
_SVHN = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


_DIGITS = tuple(map(str, range(10)))
_CLOTHES = (
    "T-shirt/top",
    *("Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)


def _like_mnist(name: str, torchvision: str, class_names: tuple[str, ...], elsewhere: str = "") -> ImageSet:
    """Return the row of a set that replaces MNIST: its shape, counts and names of files."""
    files = {
        part: tuple(f"{torchvision}/raw/{stem}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        for part, stem in (("train", "train"), ("test", "t10k"))
    }
    counts = (TRAINING_IMAGES[name], 10_000)
    return ImageSet(
        name,
        (1, 28, 28),
        class_names,
        _read_idx,
        _count_idx,
        counts=counts,
        files=files,
        torchvision=torchvision,
        elsewhere=elsewhere,
    )


def _parts(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Divide files into parts; the names of those of the test part begin with ``test``."""
    in_test = {name: name.rpartition("/")[2].startswith("test") for name in names}
    return {part: tuple(name for name in in_test if in_test[name] == (part == "test")) for part in PARTS}


def _table(*rows: ImageSet) -> dict[str, ImageSet]:
    return {row.name: row for row in rows}


IMAGE_SETS = _table(
    ImageSet("tetris", (1, 4, 4), ("I", "O", "T", "L")),
    ImageSet("digits", (1, 8, 8), _DIGITS, read=_read_digits, counts=(TRAINING_IMAGES["digits"], 500)),
    _like_mnist("mnist", "MNIST", _DIGITS),
    _like_mnist(
        "fashion_mnist",
        "FashionMNIST",
        _CLOTHES,
        "the package dataset-fashion-mnist of Debian and Ubuntu has them, compressed",
    ),
    _like_mnist("kmnist", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    ImageSet(
        "cifar10",
        (3, 32, 32),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        read=_read_cifar10,
        counts=(TRAINING_IMAGES["cifar10"], 10_000),
        files=_parts(_CIFAR10),
        md5=_CIFAR10,
        torchvision="CIFAR10",
    ),
    ImageSet(
        "svhn",
        (3, 32, 32),
        _DIGITS,
        read=_read_svhn,
        counts=(TRAINING_IMAGES["svhn"], 26_032),
        files=_parts(_SVHN),
        md5=_SVHN,
        torchvision="SVHN",
        by_split=True,
    ),
    ImageSet(
        "stl10",
        (3, 96, 96),
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        read=_read_stl10,
        counts=(TRAINING_IMAGES["stl10"], 8_000),
        files=_parts(_STL10),
        md5=_STL10,
        torchvision="STL10",
        by_split=True,
    ),
    ImageSet(
        "usps",
        (1, 16, 16),
        _DIGITS,
        read=_read_usps,
        counts=(TRAINING_IMAGES["usps"], 2_007),
        files={"train": ("usps.bz2",), "test": ("usps.t.bz2",)},
        torchvision="USPS",
    ),
)
"""The known image sets by name."""
