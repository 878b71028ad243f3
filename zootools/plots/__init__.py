"""Pictures of a zoo: scores over epochs, and checkpoints in weight space (extra ``plots``).

>>> portrait = Portrait.of(open_zoo("zoos/digits_hyp", include_diverged=True))
>>> portrait = portrait.with_plane("W", points, "UMAP")  # float [checkpoints, 2], computed from portrait.zoo.weights()
>>> files, skipped = write_pictures(portrait, Path("pictures"))

The public names are imported on first use: the interactive page (`zootools.plots.page`) needs no matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zootools.extras import optional

if TYPE_CHECKING:
    from zootools.plots.figures import (
        accuracy,
        class_scores,
        embedding,
        figure_4,
        figure_7,
        figure_8,
        gap,
        losses,
        mean_weight,
    )
    from zootools.plots.portrait import Plane, Portrait
    from zootools.plots.writing import pictures, write_pictures

__all__ = [
    "Plane",
    "Portrait",
    "accuracy",
    "class_scores",
    "embedding",
    "figure_4",
    "figure_7",
    "figure_8",
    "gap",
    "losses",
    "mean_weight",
    "pictures",
    "write_pictures",
]

_HOME = {"Plane": "portrait", "Portrait": "portrait", "pictures": "writing", "write_pictures": "writing"}


def __getattr__(name: str) -> Any:
    """Import a public name. Raises SpecError if it needs matplotlib and that is not installed."""
    if name not in __all__:
        raise AttributeError(f"module 'zootools.plots' has no attribute {name!r}")
    home = _HOME.get(name, "figures")
    if home != "portrait":
        optional("matplotlib", f"zootools.plots.{name}", "plots")
    return getattr(import_module(f"zootools.plots.{home}"), name)
