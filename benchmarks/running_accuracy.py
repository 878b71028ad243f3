"""Compare two training accuracies of an epoch: of its training steps, and the mean of those before and after it.

    python benchmarks/running_accuracy.py mnist_seed --models 2 --data images

The paper's released code counts the right answers of the training steps, each before its update. A zoo keeps what the
checkpoints have; the table of the generalisation gap in `zootools reproduce` takes the mean of two of them instead.
Models of a specification are trained one at a time by a plain PyTorch loop. The table has, for some epochs, means over
the models: test accuracy, both training accuracies, their difference, and the largest difference of a model. The last
line has the R2 with which the gap by one of them predicts the gap by the other, over all models and epochs.
"""

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zootools.architectures.networks import Network
from zootools.building.planning import zoo_schema
from zootools.bundled import find_spec
from zootools.images.datasets import ImageData, Subset, load_images
from zootools.rng import data_order
from zootools.spec import ZooSpec, load_spec
from zootools.spec.model_configs import ModelConfig, expand, training_count
from zootools.training.reference import train_reference

Values = npt.NDArray[np.float64]
STEPS, ENDS, TEST = range(3)


def accuracy(network: Network, subset: Subset) -> float:
    """Return the share of the images that a network classifies as they are labelled."""
    with torch.no_grad():
        guesses = torch.cat([network(images).argmax(1) for images in subset.images.split(1000)])
    return float((guesses == subset.labels).double().mean())


def accuracies(spec: ZooSpec, model: ModelConfig, images: ImageData) -> Values:
    """Train a model; return its accuracies of each epoch from 1, ``[epochs, 3]``."""
    count = training_count(len(images.train), model.hyperparameters.train_fraction)
    evaluated = min(count, spec.training.train_metrics_images or count)
    train = Subset(images.train.images[:evaluated], images.train.labels[:evaluated])
    guesses: list[Tensor] = []
    rows, before = [], 0.0
    networks = train_reference(zoo_schema(spec), model, images, spec.training.batch_size, spec.training.epochs)
    for epoch, network in enumerate(networks):
        after = accuracy(network, train)
        if epoch:
            order = torch.from_numpy(data_order(model.seed, epoch, count)).long()
            right = (torch.cat(guesses) == images.train.labels[order]).double().mean()
            rows.append((float(right), (before + after) / 2, accuracy(network, images.test)))
        else:
            # The hook is called in training steps only, which give the network something to drop units with.
            network.register_forward_hook(
                lambda _, inputs, logits: guesses.append(logits.detach().argmax(1)) if len(inputs) > 1 else None
            )
        guesses.clear()
        before = after
    return np.array(rows)


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("spec", default="mnist_seed")
@click.option("--models", default=2, show_default=True)
@click.option("--epochs", type=int, help="In place of the specification's.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the image files; else $ZOOTOOLS_DATA.")
def main(spec: str, models: int, epochs: int | None, data: Path | None) -> None:
    torch.set_num_threads(1)
    loaded = load_spec(find_spec(spec), [f"training.epochs={epochs}"] if epochs else [])
    images = load_images(loaded.images, data)
    found = np.stack([accuracies(loaded, model, images) for model in expand(loaded)[:models]])
    difference = found[..., ENDS] - found[..., STEPS]
    print(f"{loaded.name}: {len(found)} models, epochs 1 to {found.shape[1]}; in %\n")
    print("| epoch | test | of the steps | mean of both ends | difference | largest |")
    print("|--:|--:|--:|--:|--:|--:|")
    for epoch in sorted({1, 2, 3, 5, 10, 25, found.shape[1]}):
        if epoch <= found.shape[1]:
            means = found[:, epoch - 1].mean(axis=0)
            shown = (means[TEST], means[STEPS], means[ENDS], means[ENDS] - means[STEPS])
            largest = np.abs(difference[:, epoch - 1]).max()
            print(f"| {epoch} | " + " | ".join(f"{100 * value:.2f}" for value in (*shown, largest)) + " |")
    gap = found[..., STEPS] - found[..., TEST]
    r2 = 1 - (difference**2).mean() / gap.var()
    print(f"\ngap by the steps from the gap by both ends: R2 {100 * r2:.1f} %")


if __name__ == "__main__":
    main()
