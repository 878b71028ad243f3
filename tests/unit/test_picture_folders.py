"""Folders of pictures: every pixel as its file holds it, or a refusal that names the file."""

import os
import stat
import struct
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from zootools.errors import SpecError, StorageError, ZooError
from zootools.images.datasets import load_images
from zootools.images.shapes import check_images, image_shape
from zootools.rng import stream
from zootools.spec import FolderImages

some = partial(settings, max_examples=40, deadline=None, derandomize=True, database=None)
in_place = some(suppress_health_check=[HealthCheck.function_scoped_fixture])  # examples overwrite the same files

Array = np.ndarray[Any, Any]

SIDE = 6


def folder(**changes: Any) -> FolderImages:
    return FolderImages(**{"name": "image_folder", "folder": "mine", "train": 2, "test": 2, "size": SIDE} | changes)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with one black picture in each of two classes; the tests put another in the place of train/a/0.png."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "mine" / part / name).mkdir(parents=True)
            Image.new("L", (SIDE, SIDE)).save(tmp_path / "mine" / part / name / "0.png")
    return tmp_path / "mine"


def refused(root: Path, images: FolderImages) -> str:
    """Return why images are refused."""
    with pytest.raises(ZooError) as caught:
        load_images(images, root)
    return str(caught.value)


def first_picture(mine: Path, **changes: Any) -> Array:
    """Return the picture of class a in the training images, ``[channels, height, width]`` in 0 to 255."""
    images = load_images(folder(**changes), mine.parent).train
    (row,) = (images.labels == 0).nonzero()[0].tolist()
    pixels = images.images[row].double().numpy() * 255
    assert np.abs(pixels - pixels.round()).max() < 1e-4 or changes
    return pixels.round() if not changes else pixels


def random_pixels(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, *shape), np.uint8)


MODES = {
    "1": ["PNG", "BMP", "TIFF"],
    "L": ["PNG", "BMP", "TIFF", "PPM"],
    "P": ["PNG", "BMP", "TIFF", "GIF"],
    "LA": ["PNG", "TIFF"],
    "RGB": ["PNG", "BMP", "TIFF", "PPM", "WEBP"],
    "RGBA": ["PNG", "TIFF", "WEBP"],
    "CMYK": ["TIFF"],
    "LAB": ["TIFF"],
    "I;16": ["PNG", "TIFF", "PPM"],
    "I": ["TIFF"],
    "F": ["TIFF", "PPM"],
}
"""Pillow's modes, and the formats that keep them without loss."""


def drawn(mode: str, seed: int, opaque: bool) -> tuple[Image.Image, Array | None]:
    """Return a picture of a mode, and the RGB pixels ``[SIDE, SIDE, 3]`` that it must become; None for a refusal."""
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "LAB": 3}.get(mode)
    pixels = random_pixels(seed, *([channels] if channels else []))
    if mode == "1":
        return Image.fromarray(pixels > 127), grey(np.where(pixels > 127, 255, 0))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(pixels.astype(kind)), None
    if mode == "P":
        colours = random_pixels(seed + 1, 3).reshape(-1, 3)[:16]
        picture = Image.frombytes(mode, (SIDE, SIDE), (pixels % 16).tobytes())
        picture.putpalette(colours.tobytes())
        return picture, colours[pixels % 16]
    if mode in ("LA", "RGBA"):
        pixels[..., -1] = 255 if opaque else pixels[..., -1] // 2
    picture = Image.frombytes(mode, (SIDE, SIDE), pixels.tobytes())
    if mode == "LAB" or (mode in ("LA", "RGBA") and not opaque):
        return picture, None
    if mode == "CMYK":
        return picture, np.asarray(picture.convert("RGB"))
    return picture, pixels[..., :3] if channels and channels > 2 else grey(pixels[..., 0] if channels else pixels)


def grey(pixels: Array) -> Array:
    return np.repeat(pixels[..., None], 3, axis=2)


def turned_upright(pixels: Array, orientation: int) -> Array:
    """Turn pixels ``[height, width, ...]`` as EXIF has it: which corner the first row and the first column begin at."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


@in_place
@given(
    source=st.sampled_from([(mode, kind) for mode, kinds in MODES.items() for kind in kinds]),
    ending=st.sampled_from([".png", ".jpg", ".TIF", ".webp"]),
    opaque=st.booleans(),
    orientation=st.sampled_from([1, 1, 2, 3, 4, 5, 6, 7, 8]),
    seed=st.integers(0, 99),
)
def test_a_picture_of_any_mode_is_loaded_exactly_or_refused(
    mine: Path, source: tuple[str, str], ending: str, opaque: bool, orientation: int, seed: int
) -> None:
    """The content counts, not the ending; what pixels must come out is known without Pillow's conversions."""
    mode, kind = source
    picture, expected = drawn(mode, seed, opaque)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if orientation != 1 and kind in ("PNG", "TIFF", "WEBP"):
        options["exif"] = Image.Exif()
        options["exif"][274] = orientation
        expected = None if expected is None else turned_upright(expected, orientation)
    for path in (mine / "train" / "a").iterdir():
        path.unlink()
    path = mine / "train" / "a" / f"0{ending}"
    picture.save(path, kind, **options)

    if expected is None:
        message = refused(mine.parent, folder())
        assert str(path) in message
        assert ("transparent" if mode in ("LA", "RGBA") else "8 bits per channel") in message
    else:
        assert np.array_equal(first_picture(mine), expected.transpose(2, 0, 1))
        assert np.allclose(first_picture(mine, greyscale=True), expected.mean(axis=2)[None], atol=1e-3)


def png(bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes], size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """Return a PNG of its parts: bits per channel, kind of colour, and rows that begin with a zero each."""
    head = struct.pack(">2I5B", *size, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def png_rows(bits: int, channels: int) -> bytes:
    row = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE * channels * bits // 8), np.uint8)
    return b"".join(b"\0" + line.tobytes() for line in row)


def tiff(channels: int, bits: int, kind: int) -> bytes:
    """Return a TIFF in RGB or grey whose samples are of a kind: 1 unsigned, 2 signed, 3 float."""
    body = random_pixels(0, channels * bits // 8).tobytes()
    end = 8 + len(body)
    tags = [
        (256, 3, [SIDE]), (257, 3, [SIDE]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [channels // 3 + 1]),
        (273, 4, [8]), (277, 3, [channels]), (278, 3, [SIDE]), (279, 4, [len(body)]), (339, 3, [kind] * channels),
    ]  # fmt: skip
    extra, entries = b"", b""
    after = end + 2 + 12 * len(tags) + 4
    for tag, type_, values in tags:
        data = struct.pack(f"<{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(data) > 4:
            data, extra = struct.pack("<I", after + len(extra)), extra + data
        entries += struct.pack("<HHI", tag, type_, len(values)) + data.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", end) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + extra


def saved(kind: str, *frames: Image.Image, **options: Any) -> bytes:
    stream = BytesIO()
    frames[0].save(stream, kind, save_all=len(frames) > 1, append_images=frames[1:], **options)
    return stream.getvalue()


TWO = [Image.fromarray(random_pixels(seed, 3)) for seed in (0, 1)]
CLEAR = Image.fromarray(random_pixels(0) % 4).convert("P")

UNFIT = {
    # Pillow opens the first four as 8-bit RGB or RGBA, and drops the lower byte of every channel.
    "16-bit RGB PNG": (png(16, 2, png_rows(16, 3)), "more than 8 bits per channel"),
    "16-bit RGBA PNG": (png(16, 6, png_rows(16, 4)), "more than 8 bits per channel"),
    "16-bit grey PNG with alpha": (png(16, 4, png_rows(16, 2)), "more than 8 bits per channel"),
    "16-bit RGB PPM": (b"P6 6 6 65535\n" + bytes(216), "more than 8 bits per channel"),
    "16-bit RGB PPM as text": (b"P3 6 6 256\n" + b"256 " * 108, "more than 8 bits per channel"),
    "10-bit grey PGM": (b"P5 6 6 1023\n" + bytes(72), "mode I"),
    "16-bit RGB TIFF": (tiff(3, 16, 1), "more than 8 bits per channel"),
    "signed 8-bit TIFF": (tiff(1, 8, 2), "more than 8 bits per channel, or signed ones"),
    "signed 16-bit TIFF": (tiff(1, 16, 2), "mode I"),
    "float TIFF": (tiff(1, 32, 3), "mode F"),
    "transparent grey value": (png(8, 0, b"\0\5\5\5\5\5\5" * 6, (b"tRNS", b"\0\5")), "transparent pixels"),
    "transparent palette entry": (saved("PNG", CLEAR, transparency=0), "transparent pixels"),
    "no palette": (png(8, 3, b"\0\0\0\0\0\0\1" * 6), "the index 1 in a palette of 0 colours"),
    "a short palette": (png(8, 3, b"\0\0\0\0\0\0\2" * 6, (b"PLTE", bytes(6))), "2 in a palette of 2 colours"),
    "animated GIF": (saved("GIF", *TWO), "contains 2 pictures"),
    "animated PNG": (saved("PNG", *TWO), "contains 2 pictures"),
    "animated WebP": (saved("WEBP", *TWO), "contains 2 pictures"),
    "TIFF with pages": (saved("TIFF", *TWO), "contains 2 pictures"),
    "a bomb's header": (png(8, 0, b"", size=(10_000, 10_000)), "exceeds limit"),
    "a large bomb's header": (png(8, 0, b"", size=(2**31 - 1, 2**31 - 1)), "exceeds limit"),
    "no pixels": (png(8, 0, b"", size=(0, 0)), "cannot be read as a picture"),
    "half a file": (saved("PNG", TWO[0])[:90], "cannot be read as a picture"),
    "pixels damaged": (png(8, 2, png_rows(8, 3)).replace(b"IDATx", b"IDATy"), "cannot be read as a picture"),
    "empty": (b"", "cannot be read as a picture"),
    "text": (b"<html>404 Not Found</html>", "cannot be read as a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n", "cannot be read as a picture"),
}


@pytest.mark.parametrize(("content", "message"), UNFIT.values(), ids=UNFIT)
def test_a_picture_that_cannot_be_converted_without_loss_is_refused_by_name(
    mine: Path, content: bytes, message: str
) -> None:
    path = mine / "train" / "a" / "0.png"
    path.write_bytes(content)
    found = refused(mine.parent, folder())
    assert str(path) in found
    assert message in found


BLACK = Image.new("L", (SIDE, SIDE))

FIT = {
    "a grey value that is not there is transparent": png(8, 0, (b"\0" + bytes(6)) * 6, (b"tRNS", b"\0\5")),
    "an opaque palette": saved("PNG", BLACK.convert("P"), transparency=b"\xff\xff"),
    "PGM of 15 grey values": b"P5 6 6 15\n" + bytes(36),
    "a JPEG": saved("JPEG", BLACK),
    "a JPEG with EXIF that is none": saved("JPEG", BLACK, exif=b"Exif\0\0nonsense"),
    "a JPEG in CMYK": saved("JPEG", Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 255))),
    "a JPEG with a second picture": saved("MPO", BLACK.convert("RGB"), TWO[0]),
    "4-bit grey PNG": png(4, 0, (b"\0" + bytes(3)) * 6),
}


@pytest.mark.parametrize("content", FIT.values(), ids=FIT)
def test_a_black_picture_is_black_in_every_format(mine: Path, content: bytes) -> None:
    (mine / "train" / "a" / "0.png").write_bytes(content)
    assert not first_picture(mine).any()


def test_orientation_turns_pictures_that_are_not_square(mine: Path) -> None:
    pixels = np.zeros((SIDE, 2 * SIDE), np.uint8)
    pixels[:, SIDE:] = 255  # the right half is white; turned to the right, the lower half
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(mine / "train" / "a" / "0.png", exif=exif)
    rows = first_picture(mine, size=2).mean(axis=(0, 2))
    assert rows[0] < 60
    assert rows[1] > 195


# --- folders of pictures ------------------------------------------------------------------------------------


def test_hidden_names_and_other_files_are_not_data(mine: Path) -> None:
    clean = load_images(folder(), mine.parent)
    for part in ("train", "test"):
        for hidden in (".ipynb_checkpoints", ".git", "a/.ipynb_checkpoints", "a/.thumbnails"):
            (mine / part / hidden).mkdir()
            Image.new("L", (3, 3), 200).save(mine / part / hidden / "0.png")
        for name in (
            "._0.png",
            ".0.png.swp",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "notes.txt",
            "0.png~",
            ".hidden.jpg",
        ):
            (mine / part / "a" / name).write_bytes(b"\0\5\26\7")
        (mine / part / "README.md").write_text("not a class")
        (mine / part / "._a").write_bytes(b"\0\5\26\7")
    (mine / "train" / ".empty").mkdir()
    assert load_images(folder(), mine.parent).digest == clean.digest
    assert image_shape(folder(), mine.parent) == ((3, SIDE, SIDE), 2)
    check_images(folder(), mine.parent)
    with pytest.raises(SpecError, match="asks for 3 images, but image_folder has 2"):
        check_images(folder(train=3), mine.parent)


def test_a_class_without_a_picture_is_named(mine: Path) -> None:
    for part in ("train", "test"):
        (mine / part / "c").mkdir()
        (mine / part / "c" / ".hidden.png").write_bytes(b"")
    for call in (check_images, load_images):
        with pytest.raises(
            StorageError, match=f"the class {mine / 'train' / 'c'} has no picture; names of pictures end in .jpg"
        ):
            call(folder(), mine.parent)


def test_classes_that_only_one_part_has_are_named(mine: Path) -> None:
    for number in range(8):
        (mine / "train" / f"new{number}").mkdir()
    (mine / "test" / "b").rename(mine / "test" / "B")
    for call in (check_images, load_images):
        with pytest.raises(
            SpecError, match="only train has 'b', 'new0', 'new1', 'new2', 'new3' and 4 more and only test has 'B'"
        ):
            call(folder(), mine.parent)


def test_a_folder_with_hidden_classes_only_has_none(mine: Path) -> None:
    for name in ("a", "b"):
        (mine / "train" / name).rename(mine / "train" / f".{name}")
    with pytest.raises(StorageError, match="train has no folder of pictures per class"):
        image_shape(folder(), mine.parent)


def test_links_to_pictures_and_classes_are_followed(mine: Path, tmp_path: Path) -> None:
    clean = load_images(folder(), mine.parent)
    elsewhere = tmp_path / "elsewhere"
    (mine / "train" / "b").rename(elsewhere)
    (mine / "train" / "b").symlink_to(elsewhere)
    (mine / "train" / "a" / "0.png").rename(elsewhere / "x.bin")
    (mine / "train" / "a" / "0.png").symlink_to(elsewhere / "x.bin")
    assert load_images(folder(), mine.parent).digest == clean.digest


@pytest.mark.parametrize("target", [".", "..", "../../train"])
def test_a_link_to_a_folder_around_it_is_refused(mine: Path, target: str) -> None:
    """Every picture would count forty times, until the system gives up."""
    (mine / "train" / "a" / "again").symlink_to(target)
    for call in (check_images, load_images):
        with pytest.raises(StorageError, match=r"again.* is a link to a folder that contains it"):
            call(folder(), mine.parent)


@pytest.mark.parametrize("what", ["pipe", "broken link", "socket"])
def test_what_is_called_a_picture_and_is_not_a_file_is_refused_at_once(mine: Path, what: str) -> None:
    path = mine / "train" / "a" / "0.png"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    else:
        path.symlink_to("nowhere.png")
    message = refused(mine.parent, folder())
    assert f"{path}: cannot be read as a picture" in message


def test_only_pictures_that_are_asked_for_are_opened(mine: Path) -> None:
    for number in range(1, 30):
        (mine / "train" / "a" / f"{number}.png").write_bytes(b"damaged")
    with pytest.raises(StorageError, match="cannot be read as a picture"):
        load_images(folder(train=31), mine.parent)
    check_images(folder(train=31), mine.parent)  # pictures are listed, and not opened
    first = stream(0, "image_folder").permutation(31)[0]
    name = sorted([*(f"a/{number}.png" for number in range(30)), "b/0.png"])[first]
    (mine / "train" / name).write_bytes((mine / "train" / "b" / "0.png").read_bytes())
    assert len(load_images(folder(train=1), mine.parent).train) == 1
