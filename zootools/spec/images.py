"""The sections ``images`` of a specification: the data that the models are trained on."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from zootools.spec.sections import Section
from zootools.spec.values import Count, Name, Seed, Size

ImageSetName = Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "usps", "stl10"]
"""The data sets of `zootools.images.sets.IMAGE_SETS`, which has a row for each; tetris is made from a seed."""

MAX_CHANNELS = 4

TRAINING_IMAGES: dict[str, int] = {
    "digits": 1_297,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "kmnist": 60_000,
    "cifar10": 50_000,
    "svhn": 73_257,
    "usps": 7_291,
    "stl10": 5_000,
}
"""The published number of training images of each data set."""


class TetrisImages(Section):
    """4x4 grey images of four tetris shapes, made from a seed (`zootools.images.datasets.load_images`)."""

    name: Literal["tetris"]
    """Made from a seed; no file is read."""
    train: Count
    """Number of training images; the classes alternate."""
    test: Count
    """Number of test images."""
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Number of images for `validation_loss` and `validation_accuracy`, with the noise of the test images."""
    seed: Seed = 0
    """Seed of the noise."""
    noise_train: Annotated[float, Field(ge=0, le=100)]
    """Standard deviation of the Gaussian noise on the training images; pixels without noise are 0 or 1."""
    noise_test: Annotated[float, Field(ge=0, le=100)]
    """Standard deviation of the Gaussian noise on the test images."""
    mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Subtracted from the noisy pixels."""
    std: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Divisor of the noisy pixels after the subtraction."""


def _form(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "number"


Mean = Annotated[float, Field(ge=-10, le=10)]
Deviation = Annotated[float, Field(gt=0, le=10)]
Means = Annotated[
    Annotated[Mean, Tag("number")]
    | Annotated[tuple[Mean, ...], Field(min_length=1, max_length=MAX_CHANNELS), Tag("list")],
    Discriminator(_form),
]
Deviations = Annotated[
    Annotated[Deviation, Tag("number")]
    | Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=MAX_CHANNELS), Tag("list")],
    Discriminator(_form),
]
"""One number, or one for each channel."""


class StoredImages(Section):
    """Images from files: crop, greyscale, size, mean and std are applied in this order."""

    train: Count
    """Number of training images: the first images of the training part."""
    validation: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Number of images after them for `validation_loss` and `validation_accuracy`."""
    test: Count | None = None
    """Number of test images: the first images of the test part; all by default."""
    crop: Size | None = None
    """Side of the square that is cut from the centre, in pixels."""
    size: Size | None = None
    """Side to which images are resized (bilinear, antialiased), in pixels."""
    greyscale: bool = False
    """Whether the channels are averaged to one."""
    mean: Means = 0.0
    """Subtracted from the pixels, which are in [0, 1]: one number, or a list of one for each channel."""
    std: Deviations = 1.0
    """Divisor of the pixels after the subtraction: one number, or a list of one for each channel."""
    normalise: Literal["auto"] | None = None
    """`auto`: mean and std of each channel are those of the training images; zoo.json and the card have the numbers."""

    @model_validator(mode="after")
    def _one_normalisation(self) -> Self:
        if self.normalise is not None and (given := sorted({"mean", "std"} & self.model_fields_set)):
            raise ValueError(f"normalise: auto computes mean and std; remove {' and '.join(given)}, or normalise")
        return self


class DatasetImages(StoredImages):
    """A well-known data set: scikit-learn's bundled digits, or one that torchvision reads."""

    name: ImageSetName
    """`digits` needs no file; torchvision downloads the missing files of the others."""


class FolderImages(StoredImages):
    """The user's own pictures: ``<data folder>/<folder>/{train,test}/<class>/<picture>``; ``size`` is required."""

    name: Literal["image_folder"]
    """Pictures in folders, one per class; classes are numbered by their sorted names."""
    folder: Name
    """Name of the folder below the data folder (`--data`, else $ZOOTOOLS_DATA, else the user's cache)."""


class ImageFacts(Section):
    """The facts about the images of a zoo that its specification does not determine; zoo.json has them."""

    class_names: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=10_000)] = Field(
        default_factory=list
    )
    """The names of the classes of a folder of pictures: those of its folders, in the order of the labels."""
    mean: Annotated[list[float], Field(max_length=MAX_CHANNELS)] = Field(default_factory=list)
    """With `normalise: auto` the mean of each channel of the training images."""
    std: Annotated[list[float], Field(max_length=MAX_CHANNELS)] = Field(default_factory=list)
    """With `normalise: auto` the standard deviation of each channel of the training images."""


Images = Annotated[TetrisImages | DatasetImages | FolderImages, Discriminator("name")]
