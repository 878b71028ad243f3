"""Alignment: the order of hidden neurons in which a network is as near as possible to a reference.

Permuting the neurons of a hidden layer, with their outgoing weights, does not change what a network computes, so the
distance between two networks means little before their neurons are in corresponding order. Git Re-Basin (Ainsworth,
Hayase and Srinivasa, 2023) finds the order by linear assignment.

>>> orders = match_weights(schema, weights, reference)
>>> aligned = permuted(schema, orders, weights)
>>> distance = (aligned - reference).norm(dim=1)

All functions take many networks at once: one batched matrix product gives the similarities of the neurons of a layer in
all of them, and an assignment problem for each network follows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from representation.training.augmentation import flat_index
from zootools.architectures import PermutationGroup, Schema
from zootools.errors import SpecError

Orders = Sequence[Tensor]
"""For each group of neurons (`Schema.permutation_groups`) their order in each of n networks, int64 ``[n, size]``."""

AT_ONCE = 1 << 23
"""Most weights that are matched at a time; a few times this many float64 values are in memory."""
ROUNDING = 1e-9
"""Gain of an assignment, relative to the squared norms of the networks, that rounding may make."""


def match_weights(schema: Schema, weights: Tensor, reference: Tensor) -> list[Tensor]:
    """Return the orders of the neurons in which networks have the smallest distance from references that is found.

    Coordinate descent: the best order of one layer given those of all others is a linear assignment problem; the layers
    are solved in turn until nothing changes. It begins twice, with the given order and with that of the incoming
    weights, layer by layer from the images on, and the better result counts. So the distance never grows, and of a
    network whose neurons were permuted the permutation is found exactly.

    Args:
        schema: the layers of all networks.
        weights: flat networks, ``[n, N]``.
        reference: one network ``[N]`` for all, or one for each, ``[n, N]``.

    Raises SpecError for networks of another schema, and, with the first row, for weights that are not finite.
    """
    check_networks(schema, weights, "the networks")
    check_networks(schema, reference[None] if reference.dim() == 1 else reference, "the reference")
    count = max(1, AT_ONCE // schema.size)
    parts = [
        _match(schema, part.double(), (reference[None] if reference.dim() == 1 else others).double())
        for part, others in zip(weights.split(count), reference.expand(len(weights), -1).split(count), strict=True)
    ]
    return [torch.cat(orders) for orders in zip(*parts, strict=True)]


def permuted(schema: Schema, orders: Orders, weights: Tensor) -> Tensor:
    """Return networks ``[n, N]`` with their neurons in other orders; they compute the same functions as before."""
    return weights.gather(1, flat_index(schema, orders, len(weights), weights.device))


def aligned(schema: Schema, weights: Tensor, reference: Tensor) -> Tensor:
    """Return networks ``[n, N]`` in the orders that `match_weights` finds."""
    return permuted(schema, match_weights(schema, weights, reference), weights)


def distances(schema: Schema, first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distances modulo permutation of all pairs, float64 ``[len(first), len(second)]``.

    They are upper bounds, because the best permutation of a deep network cannot be found in general.
    """
    columns = [(aligned(schema, first, other).double() - other.double()).norm(dim=1) for other in second]
    return torch.stack(columns, dim=1) if columns else torch.empty(len(first), 0, dtype=torch.float64)


def inverse(orders: Orders) -> list[Tensor]:
    """Return the orders that undo others."""
    return [order.argsort(dim=1) for order in orders]


def after(orders: Orders, others: Orders) -> list[Tensor]:
    """Return the orders of networks that are permuted by ``orders``, and then by ``others``."""
    return [order.gather(1, other) for order, other in zip(orders, others, strict=True)]


def check_networks(schema: Schema, weights: Tensor, what: str) -> None:
    """Raise SpecError unless flat networks ``[n, N]`` are of a schema, and finite; the first wrong row is named."""
    if weights.dim() != 2 or weights.shape[1] != schema.size:
        raise SpecError(
            f"{what}: found the shape {tuple(weights.shape)}; networks of {schema.name} are [n, {schema.size}]"
        )
    finite = weights.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise SpecError(f"{what}: row {row} of {len(weights):,} has weights that are not finite; expected finite ones")


def assigned(similarity: Tensor) -> Tensor:
    """Return the orders that maximise the sum of similarities, int64 ``[n, size]``.

    ``similarity[i, a, b]``, ``[n, size, size]``, is that of neuron a of the reference and neuron b of network i.
    """
    costs = similarity.cpu().numpy()
    orders = np.stack([linear_sum_assignment(cost, maximize=True)[1] for cost in costs])
    return torch.from_numpy(orders).to(similarity.device)


def _match(schema: Schema, weights: Tensor, reference: Tensor) -> list[Tensor]:
    """Return the better outcome of both starts for each network; ``reference`` is ``[1 or n, N]``."""
    count = len(weights)
    given = [torch.arange(group.size, device=weights.device).expand(count, -1) for group in schema.permutation_groups]
    forward = _by_incoming(schema, weights, reference)
    starts = [torch.cat(pair) for pair in zip(given, forward, strict=True)]
    twice = permuted(schema, starts, weights.repeat(2, 1))
    others = reference if len(reference) == 1 else reference.repeat(2, 1)
    orders = after(starts, _descend(schema, twice, others))
    products = (permuted(schema, orders, weights.repeat(2, 1)) * others).sum(dim=1).view(2, count)
    better = (products[1] - products[0] > _rounding(weights, reference))[:, None]
    return [torch.where(better, order[count:], order[:count]) for order in orders]


def _by_incoming(schema: Schema, weights: Tensor, reference: Tensor) -> list[Tensor]:
    """Return orders by the similarity of incoming weights and biases, given those of the layers before."""
    current, orders = weights.clone(), []
    for group in schema.permutation_groups:
        orders.append(assigned(_similarity(schema, group, current, reference, incoming=True)))
        _permute(schema, group, orders[-1], current)
    return orders


def _descend(schema: Schema, current: Tensor, reference: Tensor) -> list[Tensor]:
    """Return orders in which no layer can be improved any more given the others; ``current`` is permuted in place."""
    groups = schema.permutation_groups
    orders = [torch.arange(group.size, device=current.device).repeat(len(current), 1) for group in groups]
    active = torch.arange(len(current), device=current.device)
    while len(active):
        part, others = current[active], reference if len(reference) == 1 else reference[active]
        rounding, moved = _rounding(part, others), torch.zeros(len(active), dtype=torch.bool, device=current.device)
        for group, order in zip(groups, orders, strict=True):
            similarity = _similarity(schema, group, part, others)
            found = assigned(similarity)
            gain = similarity.gather(2, found[:, :, None]).sum(dim=(1, 2)) - similarity.diagonal(dim1=1, dim2=2).sum(1)
            better = gain > rounding
            found = torch.where(better[:, None], found, torch.arange(group.size, device=current.device))
            order[active] = order[active].gather(1, found)
            _permute(schema, group, found, part)
            moved |= better
        current[active] = part
        active = active[moved]
    return orders


def _rounding(weights: Tensor, reference: Tensor) -> Tensor:
    return ROUNDING * (weights.square().sum(dim=1) + reference.square().sum(dim=1))


def _neurons(schema: Schema, group: PermutationGroup, weights: Tensor) -> list[Tensor]:
    """Return views of the tensors that a group is in, ``[n, rows, size, block]``, in the order of its axes."""
    places = {parameter.name: parameter for parameter in schema.parameters}
    views = []
    for name, axis in group.axes:
        place = places[name]
        rows = place.shape[0] if axis else 1
        views.append(weights[:, place.offset : place.end].view(len(weights), rows, group.size, -1))
    return views


def _similarity(
    schema: Schema, group: PermutationGroup, weights: Tensor, reference: Tensor, incoming: bool = False
) -> Tensor:
    """Return the inner products of all weights of two neurons, of reference and network: ``[n, size, size]``.

    With ``incoming``, only of their incoming weights and biases.
    """
    sides = []
    for networks in (reference, weights):
        views = [
            view.transpose(1, 2).flatten(2)
            for view, (_, axis) in zip(_neurons(schema, group, networks), group.axes, strict=True)
            if not (incoming and axis)
        ]
        sides.append(torch.cat(views, dim=2))
    return sides[0] @ sides[1].transpose(1, 2)


def _permute(schema: Schema, group: PermutationGroup, order: Tensor, weights: Tensor) -> None:
    """Permute the neurons of one group in place."""
    for view in _neurons(schema, group, weights):
        view.copy_(view.gather(2, order[:, None, :, None].expand_as(view)))
