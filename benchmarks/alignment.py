"""Pairs of networks aligned per second: all at once, and one pair at a time as published implementations do it.

    python benchmarks/alignment.py zoos/mnist_seed --models 1000

Both find local optima of the same problem; the table has the mean distance that each reaches. The loop permutes whole
tensors of one network by numpy, solves one layer after the other in random order, and stops when no layer gains, from
one start; ours begins twice. Processor seconds of one core.
"""

import argparse
import sys
import time
from pathlib import Path

# This folder has a module named like the package `representation`.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from representation.alignment import aligned
from zootools.architectures import Schema
from zootools.open import open_zoo

Arrays = dict[str, npt.NDArray[np.float32]]


def one_pair(schema: Schema, reference: Arrays, network: Arrays, draws: np.random.Generator) -> Arrays:
    """Align one network with another: coordinate descent, a layer at a time, from the given order."""
    current = {name: values.copy() for name, values in network.items()}
    improved = True
    while improved:
        improved = False
        for number in draws.permutation(len(schema.permutation_groups)):
            group = schema.permutation_groups[number]
            similarity = np.zeros((group.size, group.size))
            views = []
            for name, axis in group.axes:
                sides = []
                for tensors in (reference, current):
                    tensor = tensors[name]
                    rows = tensor.shape[0] if axis else 1
                    sides.append(np.swapaxes(tensor.reshape(rows, group.size, -1), 0, 1).reshape(group.size, -1))
                similarity += sides[0] @ sides[1].T
                views.append((name, current[name].reshape(current[name].shape[0] if axis else 1, group.size, -1)))
            order = linear_sum_assignment(similarity, maximize=True)[1]
            gain = similarity[np.arange(group.size), order].sum() - np.trace(similarity)
            if gain > 1e-6:
                improved = True
                for name, view in views:
                    current[name] = view[:, order].reshape(current[name].shape)
    return current


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo")
    parser.add_argument("--models", type=int, default=1000, help="networks that are aligned at once; repeated if fewer")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of the loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    zoo = open_zoo(options.zoo).last()
    weights = zoo.weights()
    many = weights.repeat(-(-options.models // len(weights)), 1)[: options.models]
    # Copies get noise, so that no two networks are equal.
    many = many + 1e-3 * torch.randn(many.shape, generator=torch.Generator().manual_seed(0))
    some = many[: options.pairs]
    schema, draws = zoo.schema, np.random.default_rng(0)

    def arrays(network: torch.Tensor) -> Arrays:
        return {p.name: network[p.offset : p.end].view(p.shape).numpy() for p in schema.parameters}

    start = time.process_time()
    found = aligned(schema, many, weights[0])
    ours = time.process_time() - start
    start = time.process_time()
    loop = [one_pair(schema, arrays(weights[0]), arrays(network), draws) for network in some]
    theirs = time.process_time() - start
    flat = torch.stack(
        [torch.cat([torch.from_numpy(one[p.name]).flatten() for p in schema.parameters]) for one in loop]
    )
    distances = [float((networks - weights[0]).norm(dim=1).mean()) for networks in (found[: len(some)], flat)]
    rates = [len(many) / ours, len(some) / theirs]
    print(f"{schema.size:,} weights, {len(schema.permutation_groups)} hidden layers")
    print(
        f"all at once      {rates[0]:10,.0f} pairs/s  {len(many):,} in {ours:.1f} s  mean distance {distances[0]:.3f}"
    )
    print(f"one at a time    {rates[1]:10,.0f} pairs/s  mean distance {distances[1]:.3f} of {len(some):,}")
    print(f"ratio            {rates[0] / rates[1]:10.1f}")


if __name__ == "__main__":
    main()
