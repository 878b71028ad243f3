"""The losses that a recipe can name, one row each. Nothing here imports torch.

To add a loss, write its contrast as a function in a module of your own and add a row to `LOSS_KINDS`:

>>> LOSS_KINDS["mine"] = LossKind(reconstructs=True, contrast="my_module:my_contrast")
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossKind:
    """The terms of a loss: beta * reconstruction + (1 - beta) * contrast, or one of the two alone."""

    reconstructs: bool
    """Whether the squared error of the decoder's output is a term."""
    contrast: str = ""
    """``"module:function"`` of the contrast; empty for none. The function takes projections, float ``[2n, d]``, whose
    rows i and n + i are two views of one network, and the recipe's `representation.recipes.Loss`, and returns a
    scalar tensor. It is imported when a training begins."""


LOSS_KINDS: dict[str, LossKind] = {
    "ED": LossKind(reconstructs=True),
    "Ec": LossKind(reconstructs=False, contrast="representation.training.losses:contrast_of_all_views"),
    "EcD": LossKind(reconstructs=True, contrast="representation.training.losses:contrast_of_all_views"),
    "Ec+D": LossKind(reconstructs=True, contrast="representation.training.losses:contrast_of_positive_pairs"),
}
"""The losses of the paper (section 3), by the names that it gives them."""
