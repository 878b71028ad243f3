"""Images: the same every time, prepared as the specification says, and a clear word where they are missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import mnist_folder

from zootools.errors import SpecError, StorageError, ZooError
from zootools.images.datasets import load_images
from zootools.images.sets import IMAGE_SETS, ImageSet
from zootools.images.shapes import check_images, image_shape, names_of_classes
from zootools.paths import data_folder
from zootools.spec import DatasetImages, FolderImages, ImageFacts, TetrisImages


def tetris(**changes: Any) -> TetrisImages:
    return TetrisImages(**{"name": "tetris", "train": 40, "test": 20, "noise_train": 0.2, "noise_test": 0.8} | changes)


def digits(**changes: Any) -> DatasetImages:
    return DatasetImages(**{"name": "digits", "train": 100} | changes)


def test_a_new_data_set_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name in the specification is the only other place, and no test can add it there."""

    def read(known: ImageSet, root: Path, part: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        count = known.counts[part == "test"]
        return np.full((count, *known.shape), 51, np.uint8), np.arange(count) % known.classes

    monkeypatch.setitem(IMAGE_SETS, "toy", ImageSet("toy", (2, 6, 5), ("a", "b", "c"), read=read, counts=(9, 6)))
    toy = DatasetImages.model_construct(name="toy", train=7, validation=2, test=6)  # type: ignore[arg-type]
    assert image_shape(toy, tmp_path) == ((2, 6, 5), 3)
    check_images(toy, tmp_path)
    images = load_images(toy, tmp_path)
    assert (images.input_shape, images.classes) == ((2, 6, 5), 3)
    assert [len(part) for part in (images.train, images.validation, images.test)] == [7, 2, 6]
    assert torch.equal(images.train.images, torch.full((7, 2, 6, 5), 51 / 255))
    with pytest.raises(SpecError, match="asks for 10 images, but toy has 9"):
        check_images(toy.model_copy(update={"train": 8}), tmp_path)


# --- tetris -------------------------------------------------------------------------------------------


def test_tetris_images_are_a_function_of_their_specification() -> None:
    assert load_images(tetris()).digest == load_images(tetris()).digest
    for change in ({"seed": 1}, {"train": 41}, {"noise_train": 0.3}, {"noise_test": 0.9}, {"validation": 8}):
        assert load_images(tetris(**change)).digest != load_images(tetris()).digest


def test_tetris_classes_take_turns_and_have_one_shape_each() -> None:
    images = load_images(tetris(train=42, noise_train=0.0))
    assert images.classes == 4
    assert images.input_shape == (1, 4, 4)
    assert images.train.labels.tolist() == [index % 4 for index in range(42)]
    shapes = {(int(label), tuple(image.flatten().tolist())) for image, label in zip(images.train.images, images.train.labels, strict=True)}  # fmt: skip # noqa: E501
    assert len(shapes) == 4
    assert len({shape for _, shape in shapes}) == 4
    assert all(sum(shape) == 4 and set(shape) == {0.0, 1.0} for _, shape in shapes)


def test_tetris_noise_has_the_deviation_asked_for() -> None:
    clean = load_images(tetris(train=4000, test=4000, validation=4000, noise_train=0.0, noise_test=0.0))
    noisy = load_images(tetris(train=4000, test=4000, validation=4000))
    for name, noise in (("train", 0.2), ("validation", 0.8), ("test", 0.8)):
        difference = getattr(noisy, name).images - getattr(clean, name).images
        assert difference.std().item() == pytest.approx(noise, rel=0.02)
        assert abs(difference.mean().item()) < 0.02
    assert not torch.equal(noisy.validation.images, noisy.test.images)


def test_noisy_tetris_pixels_are_shifted_and_scaled_by_mean_and_std() -> None:
    plain, scaled = load_images(tetris(validation=8)), load_images(tetris(validation=8, mean=0.25, std=0.5))
    for name in ("train", "validation", "test"):
        noisy, normalised = getattr(plain, name).images, getattr(scaled, name).images
        assert noisy.min() < 0  # noise comes first: pixels without noise are 0 or 1
        torch.testing.assert_close(normalised, (noisy - 0.25) / 0.5)


def test_tetris_pixels_that_a_tiny_std_makes_infinite_are_refused() -> None:
    with pytest.raises(SpecError, match=r"pixels that are not finite; check images.mean and images.std"):
        load_images(tetris(std=1e-300))


def test_tetris_images_without_mean_and_std_keep_their_bytes() -> None:
    digest = "c3d8c344a1ccf2c25c54be3007c2b43a98cb5328308693c9c9ea8f5ef9df29d6"
    assert load_images(tetris(validation=8)).digest == load_images(tetris(validation=8, mean=0.0, std=1.0)).digest
    assert load_images(tetris(validation=8)).digest == digest


def test_more_tetris_images_begin_with_the_same_ones() -> None:
    few, many = load_images(tetris()), load_images(tetris(train=80))
    assert torch.equal(few.train.images, many.train.images[:40])


# --- stored images ------------------------------------------------------------------------------------


def test_digits_need_no_files_and_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = load_images(digits(), tmp_path), load_images(digits(), tmp_path / "none")
    assert first.digest == second.digest
    assert first.train.images.shape == (100, 1, 8, 8)
    assert first.train.images.dtype == torch.float32
    assert first.train.labels.dtype == torch.int64
    assert first.classes == 10
    assert len(first.validation) == 0
    assert len(first.test) == 500
    assert (first.train.images.min(), first.train.images.max()) == (0, 1)


def test_validation_images_are_those_after_the_training_images() -> None:
    whole, parts = load_images(digits(train=100)), load_images(digits(train=70, validation=30, test=7))
    assert torch.equal(torch.cat([parts.train.images, parts.validation.images]), whole.train.images)
    assert torch.equal(torch.cat([parts.train.labels, parts.validation.labels]), whole.train.labels)
    assert torch.equal(parts.test.images, whole.test.images[:7])


def test_training_and_test_digits_do_not_overlap_and_hold_every_class() -> None:
    images = load_images(digits(train=1297))
    train = {tuple(image.flatten().tolist()) for image in images.train.images}
    assert not any(tuple(image.flatten().tolist()) in train for image in images.test.images)
    assert set(images.train.labels[:100].tolist()) == set(images.test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("changes", "shape"),
    [({}, (1, 8, 8)), ({"size": 28}, (1, 28, 28)), ({"crop": 6}, (1, 6, 6)), ({"crop": 6, "size": 12}, (1, 12, 12))],
)
def test_the_shape_known_beforehand_is_the_shape_loaded(changes: dict[str, int], shape: tuple[int, int, int]) -> None:
    images = load_images(digits(**changes))
    assert images.input_shape == shape
    assert image_shape(digits(**changes)) == (shape, 10)


def test_pixels_are_shifted_and_scaled_by_mean_and_std() -> None:
    plain, scaled = load_images(digits()).train.images, load_images(digits(mean=0.5, std=0.25)).train.images
    torch.testing.assert_close(scaled, (plain - 0.5) / 0.25)


def test_the_crop_is_the_centre() -> None:
    plain, cut = load_images(digits()).train.images, load_images(digits(crop=4)).train.images
    assert torch.equal(cut, plain[:, :, 2:6, 2:6])


def test_a_crop_larger_than_the_images_is_refused() -> None:
    with pytest.raises(SpecError, match=r"images.crop: 9 is larger than the images \(\(8, 8\)\)"):
        load_images(digits(crop=9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 1298}, r"train \+ validation asks for 1,298 images, but digits has 1,297"),
        ({"train": 1200, "validation": 98}, r"train \+ validation asks for 1,298 images, but digits has 1,297"),
        ({"test": 501}, "test asks for 501 images, but digits has 500"),
    ],
)
def test_asking_for_more_images_than_there_are_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_images(digits(**changes))


def test_mnist_is_read_from_its_files() -> None:
    images = load_images(
        DatasetImages(name="mnist", train=50_000, validation=10_000, mean=0.1307, std=0.3081), mnist_folder()
    )
    assert (len(images.train), len(images.validation), len(images.test)) == (50_000, 10_000, 10_000)
    assert images.input_shape == (1, 28, 28)
    assert images.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert images.train.images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.train.images.std().item() == pytest.approx(1, abs=0.01)


# --- missing and damaged files -------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails at once: nothing listens on that port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "usps", "stl10"])
def test_files_that_are_missing_and_cannot_be_downloaded_are_named_with_their_folder(name: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        load_images(DatasetImages(name=name, train=10), tmp_path / "data")
    assert f"the files of {name} are not in {tmp_path / 'data'}" in str(caught.value)
    assert "--data or $ZOOTOOLS_DATA" in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"\0\0\x08")
    with pytest.raises(StorageError, match="mnist"):
        load_images(DatasetImages(name="mnist", train=10), tmp_path)


def test_files_are_looked_for_in_the_argument_then_the_variable_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOOTOOLS_DATA", str(tmp_path / "variable"))
    assert data_folder(tmp_path) == tmp_path
    assert data_folder() == tmp_path / "variable"
    monkeypatch.delenv("ZOOTOOLS_DATA")
    assert data_folder() == tmp_path / "cache" / "zootools" / "images"


# --- the user's own pictures ---------------------------------------------------------------------------

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Red and blue pictures of different sizes, 6 of each to train with and 3 to test."""
    for part, count in (("train", 6), ("test", 3)):
        for colour, value in COLOURS.items():
            folder = tmp_path / "mine" / part / colour
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((10 + index, 16 - index, 3), value, np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def folder_images(**changes: Any) -> FolderImages:
    return FolderImages(**{"name": "image_folder", "folder": "mine", "train": 12, "size": 8} | changes)


def test_pictures_in_folders_become_images_with_the_class_of_their_folder(pictures: Path) -> None:
    images = load_images(folder_images(), pictures)
    assert images.train.images.shape == (12, 3, 8, 8)
    assert images.test.images.shape == (6, 3, 8, 8)
    assert images.classes == 2
    assert image_shape(folder_images(), pictures) == ((3, 8, 8), 2)
    colours = torch.tensor(list(COLOURS.values())) / 255
    for subset in (images.train, images.test):
        assert torch.equal(subset.images.mean(dim=(2, 3)), colours[subset.labels])


def test_the_first_pictures_are_not_all_of_one_class(pictures: Path) -> None:
    assert set(load_images(folder_images(train=6), pictures).train.labels.tolist()) == {0, 1}


def test_pictures_turn_grey_by_the_mean_of_their_channels(pictures: Path) -> None:
    images = load_images(folder_images(greyscale=True), pictures)
    assert images.input_shape == (1, 8, 8)
    torch.testing.assert_close(images.train.images, torch.full((12, 1, 8, 8), 1 / 3))


def test_pictures_are_the_same_every_time(pictures: Path) -> None:
    assert load_images(folder_images(), pictures).digest == load_images(folder_images(), pictures).digest


def test_a_folder_that_does_not_fit_is_refused(pictures: Path) -> None:
    with pytest.raises(SpecError, match="asks for 13 images, but image_folder has 12"):
        load_images(folder_images(train=13), pictures)
    with pytest.raises(ZooError, match=r"images\.size is missing"):
        image_shape(folder_images(size=None), pictures)
    with pytest.raises(StorageError, match="other/train has no folder of pictures per class"):
        load_images(folder_images(folder="other"), pictures)
    (pictures / "mine" / "test" / "red").rename(pictures / "mine" / "test" / "green")
    with pytest.raises(SpecError, match=r"only train has 'red' and only test has 'green'"):
        load_images(folder_images(), pictures)


def test_a_damaged_picture_is_refused_with_its_name(pictures: Path) -> None:
    damaged = pictures / "mine" / "train" / "red" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(StorageError, match=r"0\.png"):
        load_images(folder_images(), pictures)


# --- mean, std and classes ---------------------------------------------------------------------------------


def test_every_class_of_a_known_set_has_a_name_of_its_own() -> None:
    assert IMAGE_SETS["cifar10"].class_names[3] == "cat"
    assert IMAGE_SETS["fashion_mnist"].class_names[9] == "Ankle boot"
    for known in IMAGE_SETS.values():
        assert len(set(known.class_names)) == known.classes == (4 if known.name == "tetris" else 10), known.name
    assert names_of_classes(tetris(), ImageFacts(), 4) == ("I", "O", "T", "L")
    assert names_of_classes(digits(), ImageFacts(), 4) == ()


def test_channels_have_a_mean_and_a_deviation_of_their_own(pictures: Path) -> None:
    means, deviations = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    own = load_images(folder_images(mean=means, std=deviations), pictures)
    for channel, (mean, std) in enumerate(zip(means, deviations, strict=True)):
        one = load_images(folder_images(mean=mean, std=std), pictures)
        assert torch.equal(own.train.images[:, channel], one.train.images[:, channel])
        assert torch.equal(own.test.images[:, channel], one.test.images[:, channel])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.1, 0.2)}, r"images\.mean: found 2 values, but the images have 3 channels"),
        ({"std": (0.1, 0.2, 0.3), "greyscale": True}, r"images\.std: found 3 values, but the images have 1 channel;"),
        ({"normalise": "auto"}, r"images\.normalise: all training images have the same pixels in channel 1"),
    ],
)
def test_a_normalisation_that_does_not_fit_the_images_is_refused(
    pictures: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_images(folder_images(**changes), pictures)


def test_auto_makes_the_training_images_of_digits_standard() -> None:
    images = load_images(digits(train=1000, validation=100, normalise="auto"))
    assert abs(images.train.images.double().mean()) < 1e-5
    assert abs(images.train.images.double().std(correction=0) - 1) < 1e-5
    (mean,), (std,) = images.facts.mean, images.facts.std
    same = load_images(digits(train=1000, validation=100, mean=mean, std=std))
    assert same.facts == ImageFacts()
    assert torch.equal(same.test.images, images.test.images)
