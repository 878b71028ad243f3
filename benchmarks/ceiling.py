"""Measure how well any predictor can predict the accuracies of a zoo, given that they were measured on some images.

    python benchmarks/ceiling.py zoos/mnist_seed --data images

An accuracy on other images of the same kind would be a little different, and nobody can predict that difference from
the weights without those images. Each checkpoint of a sample of the test split is evaluated again, and the images are
divided at random into halves; the covariance over checkpoints of both halves, divided by the variance of the whole, is
the R2 of a predictor that knows the expected value exactly (the reliability of the measurement). It is printed for
test accuracy, train accuracy and generalisation gap, with mean and deviation over random divisions.
"""

import sys
from dataclasses import replace
from pathlib import Path

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import numpy as np
import numpy.typing as npt
import torch

from representation.recipes import Epochs
from zootools import open_zoo
from zootools.architectures.networks import stacked_forward
from zootools.images.datasets import Subset, load_images
from zootools.importers.evaluation import Sample, groups, tensors
from zootools.zoo import Zoo

Hits = npt.NDArray[np.float64]
"""1 where a checkpoint classifies an image as it is labelled, else 0, ``[checkpoints, images]``."""
DIVISIONS = 50
FORWARD = 50_000
"""Networks times images of a forward pass, which bounds the memory."""


def hits(zoo: Zoo, subset: Subset) -> Hits:
    """Evaluate all checkpoints of a zoo on some images; the order of the rows is that of the activations."""
    order = np.argsort(zoo.metadata["activation"].to_numpy(zero_copy_only=False), kind="stable")
    activations = tuple(zoo.metadata["activation"].take(order).to_pylist())
    sample = Sample(zoo.weights().numpy()[order], activations, ())
    found = np.empty((len(sample), len(subset)))
    with torch.no_grad():
        for group, activation in groups(sample):
            weights = tensors(zoo.schema, sample.weights[group])
            step = max(1, FORWARD // (group.stop - group.start))
            for start in range(0, len(subset), step):
                logits = stacked_forward(zoo.schema, weights, subset.images[start : start + step], activation)
                guesses = logits.argmax(dim=2) == subset.labels[start : start + step]
                found[group, start : start + step] = guesses.numpy()
    return found


def reliability(train: Hits, test: Hits, weights: tuple[float, float], seed: int) -> float:
    """Return the reliability of ``weights[0] * train accuracy + weights[1] * test accuracy``."""
    draws = np.random.default_rng(seed)
    halves = [np.array_split(draws.permutation(part.shape[1]), 2) for part in (train, test)]
    first, second = (
        weights[0] * train[:, halves[0][i]].mean(axis=1) + weights[1] * test[:, halves[1][i]].mean(axis=1)
        for i in range(2)
    )
    return float(np.cov(first, second)[0, 1] / np.var((first + second) / 2, ddof=1))


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("zoo")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of image files.")
@click.option("--checkpoints", default=300, show_default=True, help="Checkpoints that are evaluated.")
def main(zoo: str, data: Path | None, checkpoints: int) -> None:
    opened = Epochs().select(open_zoo(zoo, split="test"))
    images = load_images(opened.spec.images, data)
    chosen = np.random.default_rng(0).permutation(len(opened))[:checkpoints]
    sample = replace(opened, metadata=opened.metadata.take(np.sort(chosen)))
    count = opened.spec.training.train_metrics_images or len(images.train)
    train = hits(sample, Subset(images.train.images[:count], images.train.labels[:count]))
    test = hits(sample, images.test)
    print(f"{opened.name}: {len(sample)} of {len(opened)} checkpoints of the test split")
    print(f"images: {count:,} train, {len(images.test):,} test; R2 in % of a predictor that knows the expected values")
    for name, weights in (("test accuracy", (0, 1)), ("train accuracy", (1, 0)), ("generalisation gap", (1, -1))):
        values = weights[0] * train.mean(axis=1) + weights[1] * test.mean(axis=1)
        found = [100 * reliability(train, test, weights, seed) for seed in range(DIVISIONS)]
        spread = f"deviation over checkpoints {100 * values.std():.2f} points"
        print(f"{name:<20} {np.mean(found):6.1f} +- {np.std(found):.1f}   {spread}")


if __name__ == "__main__":
    main()
