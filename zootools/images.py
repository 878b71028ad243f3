"""Image data as tensors: loaded once, normalised once, indexed by the trainers. No loader processes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from zootools.errors import SpecError, StorageError
from zootools.image_files import data_folder, image_shape
from zootools.spec import DatasetImages, FolderImages, Images, TetrisImages
from zootools.streams import stream


@dataclass(frozen=True)
class Subset:
    """Images ``[n, channels, height, width]`` float32, normalised, and their labels ``[n]`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Subset":
        """Return the subset on a device."""
        return Subset(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """The images of a zoo. ``validation`` is empty where the specification asks for none."""

    train: Subset
    validation: Subset
    test: Subset
    classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """sha256 over every image and label: what a zoo records, and a resumed build compares."""
        digest = hashlib.sha256()
        for subset in (self.train, self.validation, self.test):
            for tensor in (subset.images, subset.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the images on a device."""
        return ImageData(self.train.to(device), self.validation.to(device), self.test.to(device), self.classes)


def load_images(images: Images, data: Path | None = None) -> ImageData:
    """Load, cut, resize and normalise the images of a specification.

    ``train`` are the first images of the data set's training part, ``validation`` the next ones.
    Files that are missing below `data_folder` are downloaded there.

    Raises SpecError when more images are asked for than there are, StorageError when files are missing
    and cannot be downloaded, or cannot be read.
    """
    if isinstance(images, TetrisImages):
        return _tetris(images)
    root = data_folder(data)
    if images.name == "digits":
        parts = _digits()
    elif isinstance(images, FolderImages):
        parts = _folder(images, root)
    else:
        parts = _torchvision(images, root)
    (train, train_labels), (test, test_labels) = parts
    used, wanted_test = images.train + images.validation, images.test or len(test)
    for name, wanted, found in (("train + validation", used, len(train)), ("test", wanted_test, len(test))):
        if wanted > found:
            raise SpecError(f"images: {name} asks for {wanted:,} images, but {images.name} has {found:,}")
    pixels = [_prepare(part, images) for part in (train[:used], test[:wanted_test])]
    return ImageData(
        Subset(pixels[0][: images.train], train_labels[: images.train]),
        Subset(pixels[0][images.train :], train_labels[images.train : used]),
        Subset(pixels[1], test_labels[:wanted_test]),
        classes=image_shape(images, data)[1],
    )


Part = tuple[Tensor, Tensor]
"""Raw pixels uint8 ``[n, channels, height, width]`` and labels int64 ``[n]``."""


def _prepare(pixels: Tensor, images: DatasetImages | FolderImages) -> Tensor:
    """Centre crop, resize (bilinear, antialiased), grey by the channel mean, scale to [0, 1], normalise."""
    if images.crop is not None:
        top, left = ((side - images.crop) // 2 for side in pixels.shape[2:])
        if top < 0 or left < 0:
            raise SpecError(f"images.crop: {images.crop} is larger than the images ({tuple(pixels.shape[2:])})")
        pixels = pixels[:, :, top : top + images.crop, left : left + images.crop]
    prepared = []
    for chunk in pixels.split(4096):  # so that a large data set never exists twice as float32
        result = chunk.float() / 255
        if images.greyscale:
            result = result.mean(dim=1, keepdim=True)
        if images.size is not None and result.shape[2:] != (images.size, images.size):
            result = F.interpolate(result, (images.size, images.size), mode="bilinear", antialias=True)
        prepared.append((result - images.mean) / images.std)
    return torch.cat(prepared)


# --- tetris ------------------------------------------------------------------------------------------

_SHAPES = np.array(
    [
        ["0000", "1111", "0000", "0000"],  # I
        ["0000", "0110", "0110", "0000"],  # O
        ["0000", "0111", "0010", "0000"],  # T
        ["0100", "0100", "0110", "0000"],  # L
    ]
)


def _tetris(images: TetrisImages) -> ImageData:
    """One fixed 4x4 prototype per class (paper, Figure 6) plus Gaussian noise; classes take turns."""
    prototypes = np.array([[[float(pixel) for pixel in row] for row in shape] for shape in _SHAPES])

    def subset(name: str, count: int, noise: float) -> Subset:
        labels = np.arange(count) % len(prototypes)
        draws = stream(images.seed, "tetris", name).standard_normal((count, 4, 4))
        pixels = (prototypes[labels] + noise * draws)[:, None].astype(np.float32)
        return Subset(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))

    return ImageData(
        subset("train", images.train, images.noise_train),
        subset("validation", images.validation, images.noise_test),
        subset("test", images.test, images.noise_test),
        classes=len(prototypes),
    )


# --- data sets that others keep -----------------------------------------------------------------------


def _digits() -> tuple[Part, Part]:
    """scikit-learn's 1797 scans of 8x8: 1297 to train with, 500 to test.

    They come grouped by writer, so they are shuffled, always the same way.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = stream(0, "digits").permutation(len(digits.target))
    pixels = torch.from_numpy((digits.images[order] * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    return (pixels[:1297], labels[:1297]), (pixels[1297:], labels[1297:])


def has_images(images: Images, data: Path | None = None) -> bool:
    """Return whether all images are at hand: whether `load_images` would download nothing."""
    if not isinstance(images, DatasetImages) or images.name == "digits":
        return True
    read = _readers(data_folder(data))[images.name]
    try:
        for train in (True, False):
            read(train, False)
    except _NOT_WHOLE:
        return False
    return True


_NOT_WHOLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError)
"""What torchvision raises where files are missing or damaged."""


def _readers(root: Path) -> dict[str, Callable[[bool, bool], Any]]:
    """Return for each data set of torchvision what reads its training (or test) part, and may download it."""
    from torchvision import datasets

    return {
        "mnist": lambda train, download: datasets.MNIST(root, train, download=download),
        "fashion_mnist": lambda train, download: datasets.FashionMNIST(root, train, download=download),
        "kmnist": lambda train, download: datasets.KMNIST(root, train, download=download),
        "cifar10": lambda train, download: datasets.CIFAR10(root, train, download=download),
        "usps": lambda train, download: datasets.USPS(root, train, download=download),
        "svhn": lambda train, download: datasets.SVHN(root, "train" if train else "test", download=download),
        "stl10": lambda train, download: datasets.STL10(root, "train" if train else "test", download=download),
    }


def _torchvision(images: DatasetImages, root: Path) -> tuple[Part, Part]:
    read = _readers(root)[images.name]
    return _raw(images.name, read, True, root), _raw(images.name, read, False, root)


def _raw(name: str, read: Callable[[bool, bool], Any], train: bool, root: Path) -> Part:
    """Read one part of a torchvision data set as uint8 ``[n, channels, height, width]``."""
    try:
        dataset = read(train, False)
    except _NOT_WHOLE:  # not there, or not whole: fetch it
        try:
            root.mkdir(parents=True, exist_ok=True)
            dataset = read(train, True)
        except Exception as error:  # torchvision and urllib raise many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise StorageError(
                f"images: the files of {name} are not in {root}, or not whole, and could not be downloaded ({reason}); "
                "put them there in torchvision's layout, or name their folder with --data or $ZOOTOOLS_DATA"
            ) from error
    pixels: npt.NDArray[np.uint8] = np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64))


def _folder(images: FolderImages, root: Path) -> tuple[Part, Part]:
    """Read ``<root>/<folder>/{train,test}/<class>/<picture>``; classes are numbered by their sorted names."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor, resize

    folder, parts = root / images.folder, []
    for name in ("train", "test"):
        try:
            dataset = ImageFolder(str(folder / name))
        except (OSError, RuntimeError) as error:
            raise StorageError(f"images: {folder / name} has no folder of pictures per class ({error})") from error
        parts.append(dataset)
    if parts[0].classes != parts[1].classes:
        raise SpecError(f"images: train has the classes {parts[0].classes}, test has {parts[1].classes}")
    size = [images.size or 0] * 2
    result = []
    for dataset in parts:
        # A training set in alphabetical order would give `images.train` one class only.
        order = stream(0, "image_folder").permutation(len(dataset))
        pixels = []
        for i in order:
            try:
                picture = dataset[int(i)][0].convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
                raise StorageError(
                    f"images: {dataset.samples[int(i)][0]}: cannot be read as a picture ({error})"
                ) from error
            pixels.append(pil_to_tensor(resize(picture, size)))
        labels = torch.tensor([dataset.targets[int(i)] for i in order])
        result.append((torch.stack(pixels), labels))
    return result[0], result[1]
