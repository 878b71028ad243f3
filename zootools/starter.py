"""The first specification of a user: a commented YAML file for one image set."""

from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from zootools.errors import SpecError, did_you_mean
from zootools.filesystem.files import storage_error
from zootools.images.folders import list_pictures
from zootools.images.sets import IMAGE_SETS
from zootools.paths import data_folder
from zootools.spec import Activation, CnnName, Init, Optimizer, parse_spec
from zootools.spec.values import Name
from zootools.spec.yaml_reader import parse_scalar, parse_yaml

_NAME: TypeAdapter[str] = TypeAdapter(Name)

_TEXT = """\
# 16 small networks. zootools check {file}.yaml validates this file, zootools build {file}.yaml trains them.
# All keys are described in docs/specs.md; with the output of zootools schema an editor completes them.
name: {name}
description: ""  # a sentence or two for the card and for searches
license: cc-by-4.0  # as the Hub spells it
# authors: [First Last]
# homepage: https://example.com
# citation: How to cite the zoo, for the card.

{images}

{architecture}

grid:  # all combinations of these values are trained
  activation: [tanh, relu]  # {activations}
  init: kaiming_uniform  # {inits}
  optimizer: adam  # {optimizers}
  lr: [1.0e-2, 1.0e-3]  # learning rates
  # With defaults: weight_decay, l2, dropout, train_fraction, momentum, init_std, bias_init.
seeds: 4  # 1 to 4, for every combination; or [7, 8, 9]
training: {{epochs: 10, batch_size: 32}}  # a checkpoint of every epoch is kept; checkpoint_every keeps fewer
# split: {{train: 0.7, validation: 0.15, test: 0.15}}  # of the models, for what is learned from them
"""

_TETRIS = """\
images:
  name: tetris  # 4 x 4 pixels, made from a seed
  train: 1000
  test: 1000
  noise_train: 0.5  # standard deviation of the noise on the pixels, which are 0 or 1
  noise_test: 1.0
  mean: 0.25  # subtracted from the pixels"""

_STORED = """\
images:
  name: {name}{folder}
  train: {train}  # of {published:,}
  # validation: 100  # images after them, for validation_loss and validation_accuracy
  # test: 100  # by default all {test:,}{size}
  normalise: auto  # by mean and standard deviation of the training images; or mean: 0.5, std: 0.5"""

_SMALL, _LARGE = 28, 32
"""Sides of images for which `cnn_small` is made: smaller ones are enlarged to the first, larger ones reduced to the
second."""
_ENOUGH = 10_000
"""Training images of a zoo that is trained in minutes."""


def starter(name: str, images: str, data: Path | None = None) -> str:
    """Return a commented specification that `zootools.spec.load_spec` accepts.

    Args:
        name: of the zoo.
        images: a known image set, such as ``mnist``, or a folder of pictures below the data folder.
        data: the folder of the image files (`zootools.paths.data_folder`).

    Raises SpecError for an invalid name and for unknown images, StorageError for a folder without pictures.
    """
    scalar = _scalar("name", name)
    if images == "tetris":
        section = _TETRIS
    elif images in IMAGE_SETS:
        known = IMAGE_SETS[images]
        side = known.shape[1]
        size = _SMALL if side < _SMALL else _LARGE if side > _LARGE else None
        section = _stored(images, "", known.counts, size)
    else:
        section = _stored("image_folder", images, _count_pictures(images, data_folder(data)), _SMALL)
    cnns = ", ".join(get_args(CnnName))
    text = _TEXT.format(
        name=scalar,
        file=name,
        images=section,
        architecture="architecture: {name: mlp, hidden: [5]}  # the widths of the hidden layers"
        if images == "tetris"
        else f"architecture: cnn_small  # {cnns}, or {{name: mlp, hidden: [32, 32]}}",
        activations=", ".join(get_args(Activation)),
        inits=", ".join(get_args(Init)),
        optimizers=", ".join(get_args(Optimizer)),
    )
    parse_spec(parse_yaml(text, "the new specification")[0], "the new specification")
    return text


def write_starter(name: str, images: str, data: Path | None = None, folder: Path | None = None) -> Path:
    """Write `starter` as ``NAME.yaml`` into a folder, by default the current one; return its path.

    Raises SpecError as `starter` does, and if the file exists; StorageError if it cannot be written.
    """
    name = name.removesuffix(".yaml")
    text = starter(name, images, data)
    path = (folder or Path()) / f"{name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{path}: exists already, and is not overwritten; choose another name") from None
    except OSError as error:
        raise storage_error(path, error) from error
    return path


def _stored(name: str, folder: str, counts: tuple[int, int], size: int | None) -> str:
    return _STORED.format(
        name=name,
        folder=f"\n  folder: {_scalar('folder', folder)}  # with the folders train/CLASS and test/CLASS"
        if folder
        else "",
        train=min(counts[0], _ENOUGH),
        published=counts[0],
        test=counts[1],
        size=f"\n  size: {size}  # pixels, to which the images are resized" if size is not None else "",
    )


def _scalar(key: str, name: str) -> str:
    """Return a name as YAML, in quotes where it would not be read as text. Raises SpecError for an invalid one."""
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise SpecError(
            f"{key}: found {name!r:.200}; expected at most 100 letters, digits, '.', '_' and '-', the first a letter "
            "or digit"
        ) from None
    return name if parse_scalar(name) == name else f'"{name}"'


def _count_pictures(folder: str, root: Path) -> tuple[int, int]:
    """Return the numbers of training and of test pictures. Raises SpecError if there is no such folder."""
    if not folder.strip("./") or not (root / folder).is_dir():
        raise SpecError(
            f"images: found {folder!r:.200}{did_you_mean(folder[:200], IMAGE_SETS)}; or the name of a folder of "
            f"pictures in {root} (--data)"
        )
    train, test = (len(pictures) for pictures in list_pictures(root / folder))
    return train, test
