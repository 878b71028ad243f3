"""Reconstruction and contrast, the two terms of the losses in `representation.loss_kinds` (paper, section 3)."""

import itertools
import math
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from representation.loss_kinds import LOSS_KINDS
from representation.recipes import Loss
from zootools.architectures import Schema

Reduction = Literal["mean", "sum"]


def squared_error(outputs: Tensor, targets: Tensor, scale: Tensor | None, reduction: Reduction = "mean") -> Tensor:
    """Return the squared error of ``[n, N]`` reconstructions, each weight's error times ``scale`` ``[N]``.

    ``mean`` averages over weights and networks; ``sum`` sums over weights and averages over networks, as the paper's
    equation does.
    """
    errors = outputs - targets
    if scale is not None:
        errors = errors * scale  # before squaring, which overflows for large weights
    errors = errors.square()
    return errors.mean() if reduction == "mean" else errors.sum() / len(errors)


def nt_xent(projected: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Return NT-Xent (equation 2) of the projections ``[2n, d]`` of n pairs; rows i and n + i are a pair.

    Every view is compared with its partner and with all 2n - 2 other views; the 2n terms are averaged or summed.
    """
    unit = F.normalize(projected.float(), dim=1)
    similarity = (unit / temperature) @ unit.T
    similarity.fill_diagonal_(-math.inf)
    pairs = len(unit) // 2
    partner = torch.arange(len(unit), device=unit.device).roll(pairs)
    return F.cross_entropy(similarity, partner, reduction=reduction)


def positive_contrast(projected: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Return equation 3, -cos + log T, of the pairs in ``[2n, d]``: lowest where two views coincide."""
    pairs = len(projected) // 2
    terms = math.log(temperature) - F.cosine_similarity(projected[:pairs].float(), projected[pairs:].float())
    return terms.mean() if reduction == "mean" else terms.sum()


def paper_code_positive_contrast(projected: Tensor, temperature: float) -> Tensor:
    """Return the term that the paper's released code computes instead of equation 3.

    It is the mean of (cos / T)^2 over the pairs, divided by their 2n views: lowest where two views are orthogonal.
    """
    pairs = len(projected) // 2
    cosine = F.cosine_similarity(projected[:pairs].float(), projected[pairs:].float())
    return (cosine / temperature).square().mean() / len(projected)


def contrast_of_all_views(projected: Tensor, settings: Loss) -> Tensor:
    """Return the contrast of Ec and EcD, a scalar: `nt_xent` of the projections ``[2n, d]``."""
    return nt_xent(projected, settings.temperature, settings.reduction)


def contrast_of_positive_pairs(projected: Tensor, settings: Loss) -> Tensor:
    """Return the contrast of Ec+D, a scalar: as the paper's equation 3 or its released code computes it."""
    if settings.positive == "equation_3":
        return positive_contrast(projected, settings.temperature, settings.reduction)
    return paper_code_positive_contrast(projected, settings.temperature)


class Terms(NamedTuple):
    """A loss and its terms, each a scalar; a term that the loss does not have is zero."""

    total: Tensor
    reconstruction: Tensor
    contrast: Tensor
    statistics: Tensor
    behaviour: Tensor


class Objective(nn.Module):
    """The loss of a recipe."""

    scale: Tensor | None

    def __init__(self, settings: Loss, schema: Schema, weights: Tensor) -> None:
        """Args: ``weights`` ``[n, N]`` are the training weights, permuted at random if the recipe permutes: errors are
        divided by their variance, if at all."""
        super().__init__()
        self.settings = settings
        scale = None
        if settings.reconstruction == "layerwise":
            scale = layer_scale(schema, weights)
        elif settings.reconstruction == "explained":
            variance = weights.double().var(dim=0, correction=0).mean().clamp_min(1e-12)
            scale = variance.rsqrt().to(weights).expand(schema.size)
        self.register_buffer("scale", scale, persistent=False)
        contrast = LOSS_KINDS[settings.kind].contrast
        self.contrast: Callable[[Tensor, Loss], Tensor] | None = resolve_name(contrast) if contrast else None
        self.beta = settings.beta if settings.contrasts else 1.0
        if not settings.reconstructs:
            self.beta = 0.0

    def forward(
        self,
        outputs: Tensor | None,
        targets: Tensor,
        projected: Tensor | None,
        statistics: Tensor | None = None,
        behaviour: Tensor | None = None,
    ) -> Terms:
        """Return the loss; an argument is None for a missing term.

        Args:
            outputs: reconstructions ``[2n, N]`` of ``targets``.
            projected: projections ``[2n, d]``.
            statistics: errors of the predicted statistics.
            behaviour: difference of the logits of reconstructions, a scalar.
        """
        settings = self.settings
        reconstruction = contrast = predicted = targets.new_zeros(())
        if outputs is not None:
            reconstruction = squared_error(outputs.float(), targets, self.scale, settings.reduction)
        if projected is not None and self.contrast is not None:
            contrast = self.contrast(projected, settings)
        if statistics is not None:
            predicted = statistics.float().square().mean()
        total = self.beta * reconstruction + (1 - self.beta) * contrast + settings.statistics * predicted
        differing = targets.new_zeros(()) if behaviour is None else behaviour
        if behaviour is not None:
            total = total + settings.behaviour * behaviour
        return Terms(total, reconstruction, contrast, predicted, differing)


def layer_scale(schema: Schema, weights: Tensor) -> Tensor:
    """Return the factors ``[N]`` of the errors by which a mean squared error becomes layer-wise.

    The mean over all weights of the squared product of scale and error is the mean over layers of each layer's mean
    squared error divided by the variance of its weights and biases in ``weights`` ``[n, N]``.
    """
    scale = torch.ones(schema.size, device=weights.device)
    ends = [parameter.offset for parameter in schema.parameters if parameter.name.endswith(".weight")] + [schema.size]
    for start, end in itertools.pairwise(ends):
        variance = weights[:, start:end].double().var(correction=0).clamp_min(1e-12)
        scale[start:end] = (schema.size / (len(schema.layers) * (end - start) * variance)).sqrt()
    return scale
