"""Learn representations of the weights of a zoo's models, and measure how well linear probes predict properties.

The public names are imported on first use, so that ``import representation`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from representation.encoders import Encoder
    from representation.evaluation.results import Results
    from representation.pipeline import RepresentOptions, embed, represent
    from representation.recipes import Recipe, load_recipe
    from representation.training.train import train_encoder

__all__ = ["Encoder", "Recipe", "RepresentOptions", "Results", "embed", "load_recipe", "represent", "train_encoder"]

_HOME = {
    "Encoder": "representation.encoders",
    "Recipe": "representation.recipes",
    "RepresentOptions": "representation.pipeline",
    "Results": "representation.evaluation.results",
    "embed": "representation.pipeline",
    "load_recipe": "representation.recipes",
    "represent": "representation.pipeline",
    "train_encoder": "representation.training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'representation' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
