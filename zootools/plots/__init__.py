"""Pictures of a zoo: what its models do over their epochs, and where they lie in weight space (extra ``plots``).

>>> portrait = Portrait.of(open_zoo("zoos/digits_hyp", include_diverged=True))
>>> portrait = portrait.with_plane("W", points, "UMAP")  # float [checkpoints, 2], made of portrait.zoo.weights()
>>> files, skipped = write_pictures(portrait, Path("pictures"))
"""

from zootools.plots.figures import accuracy, embedding, figure_4, figure_7, figure_8, gap, losses, mean_weight
from zootools.plots.portrait import Plane, Portrait
from zootools.plots.writing import pictures, write_pictures

__all__ = [
    "Plane",
    "Portrait",
    "accuracy",
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
