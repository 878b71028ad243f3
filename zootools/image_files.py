"""What is known of images before any is loaded: where their files lie, and what shape they will have.

Apart from `zootools.images` because a specification is checked without importing torch.
"""

import os
from pathlib import Path

from zootools.errors import SpecError
from zootools.spec import FolderImages, Images, TetrisImages

INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    "tetris": (1, 4, 4),
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "kmnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "svhn": (3, 32, 32),
    "usps": (1, 16, 16),
    "stl10": (3, 96, 96),
}


def image_shape(images: Images, data: Path | None = None) -> tuple[tuple[int, int, int], int]:
    """Return ``(channels, height, width)`` and the number of classes, without loading any image.

    Raises SpecError where the specification does not decide them.
    """
    if isinstance(images, FolderImages):
        if images.size is None:
            raise SpecError("images.size is missing: pictures in a folder must be brought to one size")
        root = data_folder(data) / images.folder / "train"
        classes = sum(entry.is_dir() for entry in root.iterdir()) if root.is_dir() else 0
        if classes == 0:
            raise SpecError(f"images.folder: expected one folder per class in {root}, found none")
        return (1 if images.greyscale else 3, images.size, images.size), classes
    channels, height, width = INPUT_SHAPES[images.name]
    if isinstance(images, TetrisImages):
        return (channels, height, width), 4
    side = images.size or images.crop
    if images.greyscale:
        channels = 1
    return (channels, side or height, side or width), 10


def data_folder(data: Path | None = None) -> Path:
    """Return where image files lie: the given folder, else ``$ZOOTOOLS_DATA``, else the user's cache."""
    if data is not None:
        return data
    if os.environ.get("ZOOTOOLS_DATA"):
        return Path(os.environ["ZOOTOOLS_DATA"])
    return cache_folder() / "images"


def cache_folder() -> Path:
    """Return the folder in the user's cache for what zootools can make or fetch again."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "zootools"
