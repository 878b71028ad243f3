"""Compare the training accuracy over the steps of an epoch with those of the checkpoints before and after it.

    python benchmarks/running_accuracy.py mnist_seed --models 8 --data images

The paper's released code counts the right answers of the training steps, each before its update. A zoo has only the
accuracies of its checkpoints; the table of the generalisation gap in `zootools reproduce` takes the mean of two of them
instead. Here the first models of a specification are trained, and after each 32nd of an epoch its images are classified
with the weights before and after it: the mean of both is taken as the count. For some epochs the table has means over
the models: test accuracy, both training accuracies, and their difference. Below it are the squared correlations of the
gap over the steps with two others, over all models and epochs.
"""

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from zootools.architectures import Schema
from zootools.building.planning import zoo_schema
from zootools.bundled import find_spec
from zootools.images.datasets import ImageData, Subset, load_images
from zootools.rng import data_order
from zootools.spec import ZooSpec, load_spec
from zootools.spec.model_configs import ModelConfig, expand, training_count
from zootools.training.backend import Backend, Trainer
from zootools.training.predictions import predict
from zootools.training.table import choose_backend

Values = npt.NDArray[np.float64]
STEPS, BEFORE, AFTER, TEST = range(4)
PARTS = 32


class Steps:
    """Counts the right answers in an epoch of models that are trained side by side; `after` is a callback of it."""

    def __init__(
        self, trainer: Trainer, backend: Backend, models: list[ModelConfig], schema: Schema, images: Subset, epoch: int
    ) -> None:
        self.trainer, self.backend, self.schema, self.images = trainer, backend, schema, images
        self.activation = models[0].hyperparameters.activation
        counts = [training_count(len(images), model.hyperparameters.train_fraction) for model in models]
        drawn = [data_order(model.seed, epoch, count) for model, count in zip(models, counts, strict=True)]
        self.orders = [torch.from_numpy(order).long() for order in drawn]
        self.right = np.zeros(len(models))
        self.share, self.weights = 0.0, trainer.weights

    def after(self, share: float) -> None:
        """Count the images since the last count, if they are enough."""
        if share < 1 and share - self.share < 1 / PARTS - 1e-9:
            return
        weights = self.trainer.weights
        for row, order in enumerate(self.orders):
            part = order[round(self.share * len(order)) : round(share * len(order))]
            subset = Subset(self.images.images[part], self.images.labels[part])
            both = torch.stack([self.weights[row], weights[row]]).numpy()
            guesses = predict(self.schema, both, self.activation, subset, self.backend)
            self.right[row] += (guesses == subset.labels.numpy()).sum() / 2
        self.share, self.weights = share, weights

    @property
    def accuracies(self) -> Values:
        """The share of right answers, ``[models]``."""
        return self.right / [len(order) for order in self.orders]


def accuracies(spec: ZooSpec, models: list[ModelConfig], images: ImageData) -> Values:
    """Train models; return their accuracies of each epoch from 1, ``[epochs, models, 4]``."""
    schema = zoo_schema(spec)
    backend = choose_backend("auto", "cpu", schema)
    found, remaining = [], models
    for trainer in backend.trainers(schema, models, images, spec.training):
        rows, before = [], trainer.evaluate()["train"].accuracy
        mine, remaining = remaining[: len(before)], remaining[len(before) :]
        for epoch in range(1, spec.training.epochs + 1):
            steps = Steps(trainer, backend, mine, schema, images.train, epoch)
            trainer.train_epoch(epoch, steps.after)
            scores = trainer.evaluate()
            after = scores["train"].accuracy
            rows.append(np.stack([steps.accuracies, before, after, scores["test"].accuracy], axis=1))
            before = after
        found.append(np.stack(rows))
    return np.concatenate(found, axis=1)


def correlation(first: Values, second: Values) -> float:
    """Return the squared correlation of two arrays."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1] ** 2)


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("spec", default="mnist_seed")
@click.option("--models", default=8, show_default=True)
@click.option("--epochs", type=int, help="In place of the specification's.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the image files; else $ZOOTOOLS_DATA.")
def main(spec: str, models: int, epochs: int | None, data: Path | None) -> None:
    loaded = load_spec(find_spec(spec), [f"training.epochs={epochs}"] if epochs else [])
    found = accuracies(loaded, expand(loaded)[:models], load_images(loaded.images, data))
    ends = (found[..., BEFORE] + found[..., AFTER]) / 2
    print(f"{loaded.name}: {models} models, epochs 1 to {len(found)}; in %\n")
    print("| epoch | test | over the steps | mean of both ends | difference |")
    print("|--:|--:|--:|--:|--:|")
    for epoch in sorted({1, 2, 3, 5, 10, 15, 20, len(found)} & set(range(1, len(found) + 1))):
        of_epoch, mean = found[epoch - 1], ends[epoch - 1].mean()
        test, steps = of_epoch[:, TEST].mean(), of_epoch[:, STEPS].mean()
        print(f"| {epoch} | " + " | ".join(f"{100 * value:.2f}" for value in (test, steps, mean, mean - steps)) + " |")
    gap = found[..., STEPS] - found[..., TEST]
    print("\nsquared correlation of the gap over the steps with")
    print(f"the gap by the mean of both ends   {100 * correlation(gap, ends - found[..., TEST]):.1f} %")
    print(f"the gap of the checkpoint          {100 * correlation(gap, found[..., AFTER] - found[..., TEST]):.1f} %")


if __name__ == "__main__":
    main()
