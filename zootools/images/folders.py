"""The user's own pictures, ``<folder>/{train,test}/<class>/<picture>``: listing and reading them.

Hidden names (with a leading dot) and files without the ending of a picture are skipped. This module does not import
torch.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zootools.errors import SpecError, StorageError
from zootools.filesystem.files import open_regular
from zootools.images.sets import PARTS, reason_of

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the names of pictures, in lower or upper case."""

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Allowed formats. Pillow has others that are not safe: reading EPS runs a program."""

MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of at most 8 bits per channel, which become RGB."""


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the classes in a part. Raises StorageError if there are none."""
    reason = "hidden folders are skipped"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    except OSError as error:
        names, reason = [], reason_of(error)
    if not names:
        raise StorageError(
            f"images: {folder} has no folder of pictures per class ({reason}); "
            "expected <data folder>/<images.folder>/{train,test}/<class>/<picture>, with --data or $ZOOTOOLS_DATA"
        )
    return names


def list_pictures(folder: Path) -> list[list[tuple[Path, int]]]:
    """Return the pictures of ``train`` and of ``test``, each with the number of its class. No picture is opened.

    Raises StorageError if a part, a class or a folder cannot be listed or is empty, SpecError if the two parts have
    different classes.
    """
    train, test = (class_folders(folder / part) for part in PARTS)
    if train != test:
        only = [f"only {part} has {_some(names)}" for part, names in _differences(train, test) if names]
        raise SpecError(f"images: {folder}: train and test must have the same classes, but {' and '.join(only)}")
    return [
        [(path, label) for label, name in enumerate(train) for path in _pictures_of_class(folder / part / name)]
        for part in PARTS
    ]


def _differences(train: list[str], test: list[str]) -> list[tuple[str, list[str]]]:
    return [("train", sorted(set(train) - set(test))), ("test", sorted(set(test) - set(train)))]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _pictures_of_class(folder: Path) -> list[Path]:
    """Return the pictures of a class, with those in its subfolders; ordered by folder, then by name."""
    found = sorted(_walk(folder), key=lambda entry: str(entry[0]))
    pictures = [inner / name for inner, names in found for name in names if name.lower().endswith(ENDINGS)]
    if not pictures:
        raise StorageError(f"images: the class {folder} has no picture; names of pictures end in {', '.join(ENDINGS)}")
    return pictures


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder, and all below it, each with the sorted names of its files; links are followed."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        inner, above = waiting.pop()
        try:
            status = inner.stat()
            entries = sorted(entry for entry in inner.iterdir() if not _is_hidden(entry.name))
            folders = [entry for entry in entries if entry.is_dir()]
        except OSError as error:
            raise StorageError(f"images: {inner} cannot be listed ({reason_of(error)})") from error
        this = (status.st_dev, status.st_ino)
        if this in above:
            raise StorageError(f"images: {inner} is a link to a folder that contains it; remove the link")
        waiting += [(entry, above | {this}) for entry in folders]
        within = set(folders)
        yield inner, [entry.name for entry in entries if entry not in within]


def read_picture(path: Path) -> "Image.Image":
    """Return a picture in RGB with 8 bits per channel, upright.

    Modes of at most 8 bits per channel are converted. Raises StorageError, which names the file, for other modes,
    transparent pixels, several pictures in one file, and files that are not pictures.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")  # about metadata that is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as picture:
                unfit = _unfit(picture)
                if not unfit:
                    picture.load()
                    unfit, opaque = _opaque(picture)
                    if not unfit:
                        return _upright(opaque.convert("RGB"))
    except UnidentifiedImageError as error:
        raise StorageError(f"images: {path}: cannot be read as a picture (not one of {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise StorageError(f"images: {path}: cannot be read as a picture ({reason_of(error)})") from error
    raise StorageError(f"images: {path}: {unfit}")


def _unfit(picture: "Image.Image") -> str:
    """Return why a picture cannot become 8-bit RGB without loss, or an empty string."""
    if picture.mode not in MODES:
        return f"its pixels have the mode {picture.mode}; {_REMEDY}"
    if _has_wide_channels(picture):
        return f"its {picture.mode} pixels have more than 8 bits per channel, or signed ones; {_REMEDY}"
    # The first picture of a JPEG with several (MPO) is the main one: phones add previews and brightness maps.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    return f"it contains {frames} pictures; save each in a separate file" if frames != 1 else ""


_REMEDY = "save it with 8 bits per channel, in grey or RGB"


def _has_wide_channels(picture: "Image.Image") -> bool:
    """Return whether a file has more bits per channel than its mode: Pillow drops the lower bits of colours."""
    if picture.format == "TIFF":
        tags: Any = picture.tag_v2  # type: ignore[attr-defined]
        bits, formats = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
        return max(bits) > 8 or any(kind != 1 for kind in formats)
    # The arguments of Pillow's decoder: "RGB;16B" for PNG, the largest value for PPM.
    for tile in picture.tile:  # type: ignore[attr-defined]
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and ";16" in argument and not argument.startswith("BGR"):  # BGR;16 is 5, 6, 5
                return True
            if picture.format == "PPM" and isinstance(argument, int) and argument > 255:
                return True
    return False


_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _ORIENTATION = 258, 339, 274


def _opaque(picture: "Image.Image") -> tuple[str, "Image.Image"]:
    """Return why a loaded picture is not opaque, or an empty string; and the picture without alpha."""
    if picture.mode in ("P", "PA"):
        colours = len(picture.getpalette("RGB") or ()) // 3
        highest = max(picture.getchannel(0).tobytes())
        if highest >= colours:  # Pillow makes them black
            return f"pixels have the index {highest} in a palette of {colours} colours", picture
    if "transparency" not in picture.info and picture.mode not in ("LA", "PA", "P", "RGBA"):
        return "", picture
    with_alpha = picture.convert("RGBA")
    lowest, _ = with_alpha.getchannel("A").getextrema()
    if lowest != 255:
        return "it has transparent pixels; add a background, and save it without alpha", picture
    return "", with_alpha


def _upright(picture: "Image.Image") -> "Image.Image":
    """Rotate a picture by its EXIF orientation; unreadable EXIF data are ignored."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)
