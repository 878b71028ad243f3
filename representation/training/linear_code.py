"""The best linear code of a length: the bound beside which the reconstruction of every encoder is shown.

It is the PCA of permuted training networks, averaged over *all* permutations of their hidden neurons, not over a few
drawn ones. The permutations of a layer of n neurons act on its axis of the weights by permutation matrices, which leave
the mean over the axis alone and turn the n - 1 directions orthogonal to it among themselves. Schur's lemma then says
that the averaged covariance is zero between parts that differ in the axes they vary along, and within a part is the
same small matrix for every such direction. So a matrix of a hundred rows is decomposed where the covariance has
thousands.

>>> code = linear_code(zoo.split("train").weights(), zoo.schema, length=50)
>>> code.r2(permuted_test_networks)
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from representation.networks import Networks, in_parts
from representation.training.reconstruction import reconstruction_r2
from zootools.architectures import Schema

MOST_DIRECTIONS = 6_000
"""Largest matrix that is decomposed (some minutes on one core); only networks without permutations come near it."""


@dataclass(frozen=True)
class LinearCode:
    """An affine code: ``z = (w - mean) @ components``, and back ``w = mean + z @ components.T``."""

    mean: Tensor
    """float64 ``[N]``."""
    components: Tensor
    """float64 ``[N, L]`` with orthonormal columns, that of the largest variance first. L is at most N."""

    def r2(self, views: Tensor) -> float:
        """Return the `reconstruction_r2` of the decoded networks ``[n, N]``."""

        def rebuild(rows: Tensor) -> Tensor:
            codes = (rows.to("cpu", torch.float64) - self.mean) @ self.components
            return self.mean + codes @ self.components.T

        return reconstruction_r2(views, rebuild)


def linear_code(weights: Networks, schema: Schema, length: int, permute: bool = True) -> LinearCode | None:
    """Return the linear code of ``length`` numbers that explains most variance of permuted networks ``[n, N]``.

    Nothing is drawn at random. None if a matrix of more than `MOST_DIRECTIONS` rows would be decomposed.

    Args:
        weights: the training networks, finite.
        schema: their layers.
        length: the length of the code; N for a longer one.
        permute: whether networks are permuted; if false, the result is the PCA of the weights as they are.
    """
    rotation = _Rotation(schema, permute)
    parts = rotation.parts()
    if max(place.shape[1] for place in parts) > MOST_DIRECTIONS:
        return None
    mean = sum((rotation.turn(chunk)[:, parts[0]].sum(dim=0) for chunk in _chunks(weights)), torch.tensor(0.0))
    mean = mean / len(weights)  # every part but the first has mean 0 over all permutations
    grams = [torch.zeros(place.shape[1], place.shape[1], dtype=torch.float64) for place in parts]
    for chunk in _chunks(weights):
        turned = rotation.turn(chunk)
        turned[:, parts[0]] -= mean
        for gram, place in zip(grams, parts, strict=True):
            rows = turned[:, place].flatten(0, 1)
            gram.addmm_(rows.T, rows)
    found = []
    for place, gram in zip(parts, grams, strict=True):
        variances, vectors = torch.linalg.eigh(gram / (len(weights) * len(place)))
        found += [(float(variances[k]), row, vectors[:, k]) for k in range(len(variances)) for row in place]
    found = sorted(found, key=lambda entry: -entry[0])[:length]  # stable
    turned = torch.zeros(len(found) + 1, schema.size, dtype=torch.float64)
    for row, (_, place, vector) in zip(turned, found, strict=False):
        row[place] = vector
    turned[-1, parts[0]] = mean
    flat = rotation.turn(turned, back=True)
    return LinearCode(flat[-1], flat[:-1].T.contiguous())


class _Rotation:
    """An orthonormal change of basis, in which permutations of neurons leave the first element of an axis alone."""

    def __init__(self, schema: Schema, permute: bool) -> None:
        self.schema = schema
        layers = schema.layers
        self.hidden = [layer.outputs for layer in layers[:-1]] if permute else []
        self.bases = [_basis(count) for count in self.hidden]

    def turn(self, weights: Tensor, back: bool = False) -> Tensor:
        """Return networks, float64 ``[n, N]``, in the new basis; ``back`` is the inverse."""
        result = torch.empty_like(weights)
        for offset, shape, axes in self._tensors():
            end = offset + math.prod(shape)
            values = weights[:, offset:end].unflatten(1, shape)
            for axis, layer in axes.items():
                basis = self.bases[layer].T if back else self.bases[layer]
                values = torch.tensordot(values, basis, dims=([axis + 1], [0])).movedim(-1, axis + 1)
            result[:, offset:end] = values.flatten(1)
        return result

    def parts(self) -> list[Tensor]:
        """Return the places of the parts that permutations do not mix, each int64 ``[copies, directions]``.

        The first part is what no permutation changes. In another the covariance is the same for all copies, and zero
        between two of them.
        """
        places: dict[tuple[int, ...], list[Tensor]] = {(): []}
        for offset, shape, axes in self._tensors():
            index = offset + torch.arange(math.prod(shape)).view(shape)
            for varied in (some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)):
                order = tuple(sorted(varied, key=axes.__getitem__))  # of the layers, as in every other tensor
                cut = [slice(axis in varied, None if axis in varied else 1) for axis in range(len(shape))]
                cut = [part if axis in axes else slice(None) for axis, part in enumerate(cut)]
                block = index[tuple(cut)].movedim(order, tuple(range(len(order))))
                if copies := math.prod(shape[axis] - 1 for axis in order):
                    places.setdefault(tuple(map(axes.__getitem__, order)), []).append(block.reshape(copies, -1))
        return [torch.cat(blocks, dim=1) for blocks in places.values()]

    def _tensors(self) -> Iterator[tuple[int, tuple[int, ...], dict[int, int]]]:
        """Yield offset, shape, and which axis is which hidden layer, of every tensor of a network."""
        offset, last = 0, len(self.schema.layers) - 1
        for number, layer in enumerate(self.schema.layers):
            axes = {0: number} if number < last and self.hidden else {}
            inputs: tuple[int, ...] = (layer.fan_in,)
            if number and self.hidden:
                before = self.hidden[number - 1]
                inputs = (before, layer.fan_in // before)
            for shape in (inputs, *([()] if layer.bias else [])):
                yield offset, (layer.outputs, *shape), axes | ({1: number - 1} if len(shape) == 2 else {})
                offset += layer.outputs * math.prod(shape)


def _basis(count: int) -> Tensor:
    """Return an orthonormal basis, float64 ``[count, count]``, whose first column is constant."""
    start = torch.eye(count, dtype=torch.float64)
    start[:, 0] = 1
    basis = torch.linalg.qr(start).Q
    return basis * basis[0, 0].sign()


def _chunks(weights: Networks) -> Iterator[Tensor]:
    """Yield the rows, float64 on the CPU, some at a time."""
    return (rows.to("cpu", torch.float64) for rows in in_parts(weights))
