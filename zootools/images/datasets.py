"""Image data as tensors: loaded and normalised once, then indexed by the trainers. No loader processes."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from zootools.errors import SpecError, StorageError
from zootools.images.folders import class_folders, list_pictures, read_picture
from zootools.images.sets import IMAGE_SETS, PARTS, Arrays, ImageSet, missing_files, read_part, reason_of
from zootools.images.shapes import check_counts, image_shape
from zootools.paths import data_folder
from zootools.rng import stream
from zootools.spec import DatasetImages, FolderImages, ImageFacts, Images, TetrisImages


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
    """The images of a zoo. ``validation`` is empty if the specification has no validation images."""

    train: Subset
    validation: Subset
    test: Subset
    classes: int
    facts: ImageFacts = field(default_factory=ImageFacts)
    """What the specification does not determine: names of classes, mean and standard deviation."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """sha256 over every image and label; zoos record it, and resumed builds compare it."""
        digest = hashlib.sha256()
        for subset in (self.train, self.validation, self.test):
            for tensor in (subset.images, subset.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def fault(self, shape: tuple[int, ...]) -> str:
        """Return why trainers cannot use these images, or an empty string; ``shape`` is that of one image.

        Trainers index memory by shapes and labels without further checks, so all images pass this one first.
        """
        for name, subset in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            images, labels = subset.images, subset.labels
            if images.dtype != torch.float32 or labels.dtype != torch.int64:
                return f"{name}: images are {images.dtype} and labels {labels.dtype}, expected float32 and int64"
            if tuple(images.shape[1:]) != shape or len(shape) != 3:
                return f"{name}: images are {tuple(images.shape[1:])}, expected (channels, height, width) = {shape}"
            if tuple(labels.shape) != (len(images),):
                return f"{name}: {labels.numel():,} labels for {len(images):,} images"
            if not len(images):
                if name == "validation":
                    continue
                return f"{name}: no images"
            if labels.min() < 0 or labels.max() >= self.classes:
                return f"{name}: labels are {labels.min()} to {labels.max()}, expected 0 to {self.classes - 1}"
            if not all(extreme.isfinite() for extreme in images.aminmax()):  # a NaN is its own minimum
                return f"{name}: pixels that are not finite"
        return ""

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the images on a device."""
        train, validation, test = (subset.to(device) for subset in (self.train, self.validation, self.test))
        return ImageData(train, validation, test, self.classes, self.facts)


def load_images(images: Images, data: Path | None = None) -> ImageData:
    """Load, crop, resize and normalise the images of a specification.

    ``train`` are the first images of the training part of the data set, ``validation`` the images after them.
    Missing files are downloaded to `data_folder`.

    Raises SpecError if the specification has more images than the data set; StorageError if files are missing and
    cannot be downloaded, cannot be read, or differ from `zootools.images.sets.IMAGE_SETS`.
    """
    shape, classes = image_shape(images, data)
    if isinstance(images, TetrisImages):
        loaded = _tetris(images)
    else:
        root = data_folder(data)
        names: list[str] = []
        if isinstance(images, FolderImages):
            # A name that is not UTF-8 cannot be stored as it is.
            raw = class_folders(root / images.folder / "train")
            names = [os.fsencode(name).decode(errors="backslashreplace") for name in raw]
        parts = _folder(images, root) if isinstance(images, FolderImages) else _known(images, root)
        (train, labels), (test, test_labels) = (
            (_prepare(pixels, images), torch.from_numpy(numbers)) for pixels, numbers in parts
        )
        facts = ImageFacts(class_names=names, **_moments(images, train[: images.train]))
        for pixels in (train, test):
            pixels.sub_(per_channel(facts.mean or images.mean)).div_(per_channel(facts.std or images.std))
        loaded = ImageData(
            Subset(train[: images.train], labels[: images.train]),
            Subset(train[images.train :], labels[images.train :]),
            Subset(test, test_labels),
            classes,
            facts,
        )
    fault = loaded.fault(shape)
    if fault:
        raise SpecError(f"images: {images.name}: {fault}; check images.mean and images.std")
    return loaded


def _prepare(raw: npt.NDArray[np.uint8], images: DatasetImages | FolderImages) -> Tensor:
    """Scale to [0, 1], centre-crop, average the channels to grey, resize (bilinear, antialiased)."""
    pixels = torch.from_numpy(np.require(raw, requirements=["C", "W"]))
    if images.crop is not None:
        top, left = ((side - images.crop) // 2 for side in pixels.shape[2:])
        pixels = pixels[:, :, top : top + images.crop, left : left + images.crop]
    prepared = []
    for chunk in pixels.split(4096):  # so that a large data set is in memory only once as float32
        result = chunk.float() / 255
        if images.greyscale:
            result = result.mean(dim=1, keepdim=True)
        if images.size is not None and result.shape[2:] != (images.size, images.size):
            result = F.interpolate(result, (images.size, images.size), mode="bilinear", antialias=True)
        prepared.append(result)
    return torch.cat(prepared)


def per_channel(values: float | Sequence[float]) -> Tensor | float:
    """Return mean or standard deviation as images ``[n, channels, height, width]`` take them: ``[channels, 1, 1]``."""
    return values if isinstance(values, float) else torch.tensor(values, dtype=torch.float32)[:, None, None]


def _moments(images: DatasetImages | FolderImages, pixels: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel of ``pixels``, if the specification leaves them to these.

    They have six digits, because the last bits of a sum differ between machines. Raises SpecError for a channel with
    equal pixels everywhere.
    """
    if images.normalise is None:
        return {}
    count, dimensions = pixels[:, 0].numel(), (0, 2, 3)
    mean = sum(chunk.double().sum(dimensions) for chunk in pixels.split(4096)) / count
    squares = sum((chunk.double() - mean[:, None, None]).square().sum(dimensions) for chunk in pixels.split(4096))
    found = {
        key: [float(f"{value:.6g}") for value in values.tolist()]
        for key, values in (("mean", mean), ("std", (squares / count).sqrt()))
    }
    if 0.0 in found["std"]:
        channel = found["std"].index(0.0)
        raise SpecError(
            f"images.normalise: all training images have the same pixels in channel {channel}; remove normalise"
        )
    return found


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
    """One fixed 4x4 prototype per class (paper, Figure 6) plus Gaussian noise, normalised; the classes alternate."""
    prototypes = np.array([[[float(pixel) for pixel in row] for row in shape] for shape in _SHAPES])

    def subset(name: str, count: int, noise: float) -> Subset:
        labels = np.arange(count) % len(prototypes)
        draws = stream(images.seed, "tetris", name).standard_normal((count, 4, 4))
        pixels = torch.from_numpy(prototypes[labels] + noise * draws)[:, None]
        return Subset(((pixels - images.mean) / images.std).float(), torch.from_numpy(labels.astype(np.int64)))

    return ImageData(
        subset("train", images.train, images.noise_train),
        subset("validation", images.validation, images.noise_test),
        subset("test", images.test, images.noise_test),
        classes=len(prototypes),
    )


# --- data sets in files -------------------------------------------------------------------------------


def _known(images: DatasetImages, root: Path) -> list[Arrays]:
    """Read the images of a known set: those for training and validation, and those for testing."""
    known = IMAGE_SETS[images.name]
    missing = missing_files(known, root)
    if missing:
        _download(known, root, missing)
    (train, labels), (test, test_labels) = (read_part(known, root, part) for part in PARTS)
    check_counts(images, len(train), len(test))
    used = images.train + images.validation
    return [(train[:used], labels[:used]), (test[: images.test], test_labels[: images.test])]


def _download(known: ImageSet, root: Path, missing: list[str]) -> None:
    """Download missing files. Each is renamed into place when it is complete; existing files are kept."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as folder:
            aside = Path(folder)
            _fetch(known, root, aside, missing)
            for name in missing:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).rename(root / name)
    except Exception as error:  # torchvision and urllib raise many types
        elsewhere = f"; {known.elsewhere}" if known.elsewhere else ""
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise StorageError(
            f"images: the files of {known.name} are not in {root} (missing: {names}), and could not be downloaded "
            f"({reason_of(error)}); copy them there in torchvision's layout, or name their folder with --data or "
            f"$ZOOTOOLS_DATA{elsewhere}; pictures in other files are read as images.name: image_folder"
        ) from error


def _fetch(known: ImageSet, root: Path, aside: Path, missing: list[str]) -> None:
    """Let torchvision download the missing files into the folder ``aside``, and unpack them there."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    kind = getattr(datasets, known.torchvision)
    if hasattr(kind, "resources"):
        archives = {f"{known.torchvision}/raw/{name}": md5 for name, md5 in kind.resources}
    else:
        archives = {kind.filename: kind.tgz_md5} if hasattr(kind, "tgz_md5") else {}
    for name, md5 in archives.items():
        if check_integrity(root / name, md5):  # only an intact archive is used again
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).symlink_to((root / name).resolve())
    for part in PARTS:
        if set(missing) & set(known.files[part]):
            kind(aside, part if known.by_split else part == "train", download=True)


def _folder(images: FolderImages, root: Path) -> list[Arrays]:
    """Read the pictures of a folder; classes are numbered by their sorted names."""
    from PIL.Image import Resampling

    listed = list_pictures(root / images.folder)
    check_counts(images, *map(len, listed))
    side = images.size or 0
    parts: list[Arrays] = []
    for pictures, wanted in zip(listed, (images.train + images.validation, images.test), strict=True):
        # In alphabetical order the first `images.train` pictures would be of one class only.
        order = stream(0, "image_folder").permutation(len(pictures))[:wanted]
        pixels = np.empty((len(order), 3, side, side), np.uint8)
        for row, index in enumerate(order):
            picture = read_picture(pictures[index][0]).resize((side, side), Resampling.BILINEAR)
            pixels[row] = np.asarray(picture).transpose(2, 0, 1)
        parts.append((pixels, np.array([pictures[index][1] for index in order], np.int64)))
    return parts
