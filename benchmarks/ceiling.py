"""Measure how well any predictor can predict the scores of a zoo, given that they were measured on some images.

    python benchmarks/ceiling.py zoos/mnist_seed --data images

An accuracy on other images of the same kind would be a little different, and nobody can predict that difference from
the weights without those images. Each checkpoint of a sample of the test split is evaluated again, and the images are
divided at random into halves; the covariance over checkpoints of both halves, divided by the variance of the whole, is
the R2 of a predictor that knows the expected value exactly (the reliability of the measurement). It is printed for
test accuracy, train accuracy, generalisation gap and the F score of each class on the test images, with mean and
deviation over random divisions.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# The folder of a script comes first on the path, where representation.py would hide the package of the same name.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import numpy as np
import numpy.typing as npt

from representation.behaviour import activations_of, by_activation, predictions
from representation.recipes import Epochs
from zootools import open_zoo
from zootools.images.datasets import Subset, load_images
from zootools.zoo import Zoo

Values = npt.NDArray[np.float64]
DIVISIONS = 50


@dataclass(frozen=True)
class Guesses:
    """The classes that checkpoints give to images."""

    classes: npt.NDArray[np.int16]
    """``[checkpoints, images]``."""
    labels: npt.NDArray[np.int64]
    """``[images]``."""

    def of(self, images: npt.NDArray[np.int64]) -> "Guesses":
        """Return those of some images."""
        return Guesses(self.classes[:, images], self.labels[images])

    def accuracy(self) -> Values:
        """Return the share of the images that are classified as they are labelled, ``[checkpoints]``."""
        return (self.classes == self.labels).mean(axis=1)

    def f_score(self, label: int) -> Values:
        """Return the F score of a class, ``[checkpoints]``."""
        guessed, labelled = self.classes == label, self.labels == label
        return 2 * (guessed & labelled).sum(axis=1) / np.maximum(guessed.sum(axis=1) + labelled.sum(), 1)


Score = Callable[[Guesses, Guesses], Values]
"""A property of checkpoints, ``[checkpoints]``, from their guesses on the train and test images."""


def scores(classes: int) -> dict[str, Score]:
    """Return the properties by name."""
    found: dict[str, Score] = {
        "test accuracy": lambda train, test: test.accuracy(),
        "train accuracy": lambda train, test: train.accuracy(),
        "generalisation gap": lambda train, test: train.accuracy() - test.accuracy(),
    }
    return found | {f"F score, class {c}": lambda train, test, c=c: test.f_score(c) for c in range(classes)}  # type: ignore[misc]


def guesses(zoo: Zoo, subset: Subset) -> Guesses:
    """Evaluate all checkpoints of a zoo on some images."""
    weights, found = zoo.weights(), np.empty((len(zoo), len(subset)), np.int16)
    for activation, rows in by_activation(activations_of(zoo)):
        found[rows] = predictions(zoo.schema, weights[rows], subset.images, activation).numpy()
    return Guesses(found, subset.labels.numpy())


def reliability(score: Score, train: Guesses, test: Guesses, seed: int) -> float:
    """Return the reliability of a score: the share of its variance that another measurement would find again."""
    draws = np.random.default_rng(seed)
    halves = [np.array_split(draws.permutation(len(part.labels)), 2) for part in (train, test)]
    first, second = (score(train.of(halves[0][i]), test.of(halves[1][i])) for i in range(2))
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
    train = guesses(sample, Subset(images.train.images[:count], images.train.labels[:count]))
    test = guesses(sample, images.test)
    print(f"{opened.name}: {len(sample)} of {len(opened)} checkpoints of the test split")
    print(f"images: {count:,} train, {len(images.test):,} test; R2 in % of a predictor that knows the expected values")
    for name, score in scores(opened.schema.classes).items():
        found = [100 * reliability(score, train, test, seed) for seed in range(DIVISIONS)]
        spread = f"deviation over checkpoints {100 * score(train, test).std():.2f} points"
        print(f"{name:<20} {np.mean(found):6.1f} +- {np.std(found):.1f}   {spread}")


if __name__ == "__main__":
    main()
