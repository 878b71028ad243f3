"""The images of a build: one file of tensors in its work folder, which all workers of a machine map."""

from collections.abc import Mapping

from torch import Tensor

from zootools.errors import DamagedZooError
from zootools.filesystem.inside import path_inside
from zootools.images.datasets import ImageData, Subset
from zootools.storage.build_state import IMAGES, ZooFolder
from zootools.storage.verified_files import unreadable


def save_images(images: ImageData, zoo: ZooFolder) -> None:
    """Write the image tensors that the workers map, to a scratch file that every build writes anew."""
    from safetensors.torch import save

    with zoo.file(IMAGES) as file:
        file.write(save(image_tensors(images)))


def map_images(zoo: ZooFolder, classes: int, device: str) -> ImageData:
    """Map the tensors that `save_images` wrote; the workers of one machine share one copy in memory.

    Raises DamagedZooError if they cannot be read, or a network cannot be trained on them.
    """
    from safetensors import SafetensorError, safe_open

    place, again = zoo.path / IMAGES, "the same build writes them again"
    try:
        with path_inside(zoo.path, IMAGES) as path, safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return images_of_tensors(tensors, classes)
    except DamagedZooError as error:
        raise DamagedZooError(error.reason, path=place) from error
    except OSError as error:
        raise DamagedZooError(f"the stored images: {unreadable(error)}; {again}", path=place) from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedZooError(f"the stored images: cannot be read ({error}); {again}", path=place) from error


def image_tensors(images: ImageData) -> dict[str, Tensor]:
    """Return all tensors of the images by name, for storing or sending."""
    subsets = {"train": images.train, "validation": images.validation, "test": images.test}
    tensors = {f"{name}.images": subset.images for name, subset in subsets.items()}
    tensors |= {f"{name}.labels": subset.labels for name, subset in subsets.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def images_of_tensors(tensors: Mapping[str, Tensor], classes: int) -> ImageData:
    """Return the images of the tensors that `image_tensors` returned.

    Raises DamagedZooError for other tensors (`ImageData.fault`), because trainers index memory by their shapes and
    labels.
    """
    expected = {f"{part}.{kind}" for part in ("train", "validation", "test") for kind in ("images", "labels")}
    if set(tensors) != expected:
        raise DamagedZooError(f"the stored images: tensors {sorted(tensors)[:10]}, expected {sorted(expected)}")
    subsets = [Subset(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in ("train", "validation", "test")]
    images = ImageData(subsets[0], subsets[1], subsets[2], classes)
    fault = images.fault(tuple(images.train.images.shape[1:]))
    if fault:
        raise DamagedZooError(f"the stored images: {fault}")
    return images
