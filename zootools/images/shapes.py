"""Shapes, classes and numbers of the images of a specification, before any image is loaded.

Separate from `zootools.images.datasets`, because a specification is checked without importing torch.
"""

from dataclasses import dataclass
from pathlib import Path

from zootools.errors import SpecError, StorageError
from zootools.images.folders import class_folders, list_pictures
from zootools.images.sets import IMAGE_SETS, PARTS, count_part, missing_files
from zootools.paths import data_folder
from zootools.spec import DatasetImages, FolderImages, ImageFacts, Images, TetrisImages
from zootools.spec.sections import Section


def image_shape(images: Images, data: Path | None = None) -> tuple[tuple[int, int, int], int]:
    """Return ``(channels, height, width)`` and the number of classes, without loading any image.

    Raises SpecError if the specification does not determine them, StorageError if a folder has no classes.
    """
    if isinstance(images, FolderImages):
        if images.size is None:
            raise SpecError("images.size is missing: the pictures of a folder are resized to one size")
        channels, height, width = 3, images.size, images.size
        classes = len(class_folders(data_folder(data) / images.folder / "train"))
    else:
        known = IMAGE_SETS[images.name]
        (channels, height, width), classes = known.shape, known.classes
    if isinstance(images, TetrisImages):
        return (channels, height, width), classes
    if images.crop is not None and images.crop > min(height, width):
        raise SpecError(f"images.crop: {images.crop} is larger than the images ({(height, width)})")
    side, channels = images.size or images.crop, 1 if images.greyscale else channels
    for key, values in (("mean", images.mean), ("std", images.std)):
        if isinstance(values, tuple) and len(values) != channels:
            raise SpecError(
                f"images.{key}: found {len(values)} values, but the images have {channels} channel"
                f"{'s' * (channels > 1)}; expected one number, or a list of one for each channel"
            )
    return (channels, side or height, side or width), classes


def check_images(images: Images, data: Path | None = None) -> None:
    """Compare the numbers of images in a specification with the files, without reading pixels if possible.

    Missing files are allowed, because `zootools.images.datasets.load_images` downloads them; the published number of
    images is used instead. The pictures of a folder are listed, but not opened.

    Raises SpecError if the specification has more images than the files, StorageError if a file differs from
    `zootools.images.sets.IMAGE_SETS`.
    """
    image_shape(images, data)
    if isinstance(images, TetrisImages):
        return
    root = data_folder(data)
    if isinstance(images, FolderImages):
        train, test = (len(pictures) for pictures in list_pictures(root / images.folder))
    else:
        train, test = (count_part(IMAGE_SETS[images.name], root, part) for part in PARTS)
    check_counts(images, train, test)


def check_counts(images: Images, train: int, test: int) -> None:
    """Raise SpecError if a specification has more training or test images than the data set."""
    used = images.train + images.validation
    for name, wanted, found in (("train + validation", used, train), ("test", images.test or 1, test)):
        if wanted > found:
            raise SpecError(f"images: {name} asks for {wanted:,} images, but {images.name} has {found:,}")


@dataclass(frozen=True)
class FoundImages:
    """A known image set in the data folder, some of whose files are there."""

    name: str
    counts: dict[str, int]
    """The number of images by part, ``train`` and ``test``, of the parts whose files are all there and undamaged."""
    missing: list[str]
    """The files that are not there, and are downloaded when they are needed."""
    faults: list[str]
    """What is wrong with its files, each named."""


def find_images(data: Path | None = None) -> list[FoundImages]:
    """Open the files of all known image sets in the data folder, and count their images.

    Headers, labels, sizes and published digests are compared with `zootools.images.sets.IMAGE_SETS`. Sets without any
    file are left out.
    """
    root, found = data_folder(data), list[FoundImages]()
    for known in IMAGE_SETS.values():
        missing = missing_files(known, root)
        if len(missing) == sum(map(len, known.files.values())):
            continue
        counts, faults = dict[str, int](), list[str]()
        for part in PARTS:
            if not set(missing).intersection(known.files[part]):
                try:
                    counts[part] = count_part(known, root, part)
                except StorageError as error:
                    faults.append(str(error))
        found.append(FoundImages(known.name, counts, missing, faults))
    return found


def names_of_classes(images: Section | None, facts: ImageFacts, classes: int) -> tuple[str, ...]:
    """Return the names of the classes of a zoo's images, in the order of the labels; empty if they are not known.

    Args:
        images: the section of the specification; None if the images are not known.
        facts: of the images, as the zoo stores them.
        classes: the number of classes of the zoo's models.
    """
    names = tuple(facts.class_names)
    if not names and isinstance(images, TetrisImages | DatasetImages):
        names = IMAGE_SETS[images.name].class_names
    return names if len(names) == classes else ()


def has_images(images: Images, data: Path | None = None) -> bool:
    """Return whether all files exist, so that `zootools.images.datasets.load_images` downloads nothing."""
    return isinstance(images, FolderImages) or not missing_files(IMAGE_SETS[images.name], data_folder(data))
