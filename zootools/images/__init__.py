"""Image data: the known data sets, folders of pictures, and the tensors that networks are trained on.

The public names are imported on first use, because they need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zootools.images.datasets import ImageData, Subset, load_images

__all__ = ["ImageData", "Subset", "load_images"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zootools.images' has no attribute {name!r}")
    return getattr(import_module("zootools.images.datasets"), name)
