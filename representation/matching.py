"""Alignment by what networks compute on images: by their activations, or by the loss between two networks.

`representation.alignment` compares weights alone. Both methods here are those of Git Re-Basin, for many networks at
once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from representation.alignment import after, assigned, check_networks, match_weights, permuted
from representation.behaviour import SIDE_BY_SIDE, scored
from zootools.architectures import Schema
from zootools.architectures.networks import activation_of, parameter_views, stacked_forward
from zootools.images.datasets import Subset
from zootools.rng import stream

STEPS = 50
BATCH = 128
RATE = 0.01
"""Learning rate of Adam in `match_straight_through`."""
JUDGED_EVERY = 10
JUDGED = 500
"""Images on which the orders of a step are judged."""


def match_activations(
    schema: Schema, weights: Tensor, reference: Tensor, images: Tensor, activation: str, other: str | None = None
) -> list[Tensor]:
    """Return the orders of neurons with the largest correlation of their activations with those of a reference.

    Every layer is one linear assignment problem. A neuron with the same activation on all images correlates with none,
    so the order of several of them is arbitrary.

    Args:
        schema: the layers of all networks.
        weights: flat networks, ``[n, N]``.
        reference: a network ``[N]``.
        images: ``[images, channels, height, width]``.
        activation: of the networks.
        other: the activation of the reference, if it has another one.

    Raises SpecError for weights that are not finite.
    """
    check_networks(schema, weights, "the networks")
    check_networks(schema, reference[None], "the reference")
    parts = [
        _match_activations(schema, part, reference[None], images, (activation, other or activation))
        for part in weights.split(SIDE_BY_SIDE)
    ]
    return [torch.cat(orders) for orders in zip(*parts, strict=True)]


def _match_activations(
    schema: Schema, weights: Tensor, reference: Tensor, images: Tensor, activations: tuple[str, str]
) -> list[Tensor]:
    groups = schema.permutation_groups
    sums: dict[str, list[Tensor]] = {}
    for batch in images.split(BATCH):
        networks, others = (
            _hidden(schema, flat, batch, activation)
            for flat, activation in zip((weights, reference), activations, strict=True)
        )
        for group in groups:
            x, y = networks[group.name], others[group.name]
            found = [
                torch.full((1,), x.shape[2], dtype=torch.float64),
                x.sum(2, dtype=torch.float64),
                y.sum(2, dtype=torch.float64),
                x.square().sum(2, dtype=torch.float64),
                y.square().sum(2, dtype=torch.float64),
                (y @ x.transpose(1, 2)).double(),
            ]
            known = sums.setdefault(group.name, [torch.zeros_like(value) for value in found])
            for total, value in zip(known, found, strict=True):
                total += value
    return [assigned(_correlation(*sums[group.name])) for group in groups]


def _correlation(count: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, yx: Tensor) -> Tensor:
    """Return correlations ``[n, size, size]``; 0 of a neuron that does not vary beyond rounding."""
    covariance = yx / count - (y / count)[:, :, None] * (x / count)[:, None, :]
    variances = [(square / count - (total / count) ** 2) for square, total in ((yy, y), (xx, x))]
    stds = [
        variance.where(variance > 1e-6 * square / count, torch.inf).sqrt()
        for variance, square in zip(variances, (yy, xx), strict=True)
    ]
    return covariance / stds[0][:, :, None] / stds[1][:, None, :]


def _hidden(schema: Schema, weights: Tensor, images: Tensor, activation: str) -> dict[str, Tensor]:
    """Return the activations of every hidden layer, ``[n, neurons, images (times places)]``."""
    function, found = activation_of(activation), dict[str, Tensor]()

    def watch(name: str, x: Tensor) -> Tensor:
        places = x.permute(1, 2, 0, 3, 4) if x.dim() == 5 else x.transpose(1, 2)
        found[name] = function(places).flatten(2)
        return x

    with torch.no_grad():
        stacked_forward(schema, parameter_views(schema, weights), images, activation, watch=watch)
    return found


def match_straight_through(
    schema: Schema, weights: Tensor, reference: Tensor, subset: Subset, activation: str, seed: int = 0
) -> list[Tensor]:
    """Return the orders of neurons for which the loss of the mean with a reference is smallest, of those tried.

    A copy of the reference is trained: the orders are those that match it by `match_weights`, the loss is that of the
    mean of reference and permuted network, and its gradient is applied to the copy as if the assignment were the
    identity (straight-through estimator). The orders of `match_weights` are the first that are tried, so the result is
    not worse on the images that judge.

    Args:
        schema: the layers of all networks.
        weights: flat networks, ``[n, N]``.
        reference: a network ``[N]``.
        subset: images to train on; the first `JUDGED` of them judge.
        activation: of all networks.
        seed: of the order of the images.

    Raises SpecError for weights that are not finite.
    """
    first = match_weights(schema, weights, reference)
    judge = Subset(subset.images[:JUDGED], subset.labels[:JUDGED])

    def loss_of(orders: list[Tensor]) -> Tensor:
        means = (permuted(schema, orders, weights) + reference) / 2
        return torch.from_numpy(scored(schema, means, judge, activation).loss)

    best, losses = first, loss_of(first)
    target = reference.repeat(len(weights), 1).requires_grad_()
    optimizer = torch.optim.Adam([target], lr=RATE)
    orders, draws = first, stream(seed, "straight-through")
    for step in range(1, STEPS + 1):
        chosen = torch.from_numpy(draws.integers(len(subset), size=BATCH))
        orders = after(orders, match_weights(schema, permuted(schema, orders, weights), target.detach()))
        straight = permuted(schema, orders, weights) + target - target.detach()
        _backward(schema, (straight + reference) / 2, subset.images[chosen], subset.labels[chosen], activation)
        optimizer.step()
        optimizer.zero_grad()
        if step % JUDGED_EVERY == 0:
            found = loss_of(orders)
            better = found < losses
            best = [torch.where(better[:, None], new, old) for new, old in zip(orders, best, strict=True)]
            losses = torch.where(better, found, losses)
    return best


def _backward(schema: Schema, means: Tensor, images: Tensor, labels: Tensor, activation: str) -> None:
    """Add the gradients of the losses of all networks; each is that of a network alone."""
    found = stacked_forward(schema, parameter_views(schema, means), images, activation)
    F.cross_entropy(found.flatten(0, 1), labels.repeat(len(means)), reduction="sum").div(len(images)).backward()
