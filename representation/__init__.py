"""Learn representations of the weights of a zoo's models, and measure how well linear probes predict properties.

The public names are imported on first use, so that ``import representation`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from representation.benchmark.bench import bench
    from representation.benchmark.making import make_task
    from representation.benchmark.methods.method import Examples, Method, Population, Problem
    from representation.benchmark.methods.trained import TrainedMethod
    from representation.benchmark.tasks import load_task
    from representation.comparison import compare
    from representation.encoders import Encoder
    from representation.encoders.tokens import Tokenizer
    from representation.evaluation.results import Results
    from representation.pipeline import RepresentOptions, embed, represent
    from representation.recipes import Augmentation, Recipe, load_recipe
    from representation.training.augmentation import Augmenter
    from representation.training.losses import nt_xent
    from representation.training.train import train_encoder

__all__ = [
    "Augmentation",
    "Augmenter",
    "Encoder",
    "Examples",
    "Method",
    "Population",
    "Problem",
    "Recipe",
    "RepresentOptions",
    "Results",
    "Tokenizer",
    "TrainedMethod",
    "bench",
    "compare",
    "embed",
    "load_recipe",
    "load_task",
    "make_task",
    "nt_xent",
    "represent",
    "train_encoder",
]

_HOME = {
    "Augmentation": "representation.recipes",
    "Augmenter": "representation.training.augmentation",
    "Encoder": "representation.encoders",
    "Examples": "representation.benchmark.methods.method",
    "Method": "representation.benchmark.methods.method",
    "Population": "representation.benchmark.methods.method",
    "Problem": "representation.benchmark.methods.method",
    "Recipe": "representation.recipes",
    "RepresentOptions": "representation.pipeline",
    "Results": "representation.evaluation.results",
    "Tokenizer": "representation.encoders.tokens",
    "TrainedMethod": "representation.benchmark.methods.trained",
    "bench": "representation.benchmark.bench",
    "compare": "representation.comparison",
    "embed": "representation.pipeline",
    "load_recipe": "representation.recipes",
    "load_task": "representation.benchmark.tasks",
    "make_task": "representation.benchmark.making",
    "nt_xent": "representation.training.losses",
    "represent": "representation.pipeline",
    "train_encoder": "representation.training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'representation' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
