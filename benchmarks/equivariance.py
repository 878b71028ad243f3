"""Training commutes with permutation: the paper's appendix A, and its figure 5, on any registered network.

    python benchmarks/equivariance.py --network cnn_small --epochs 10 --out figure5.png

Model A is trained; Ap is A with permuted hidden neurons, at every epoch; B starts as the permuted A and is trained
by itself on the same data. All three compute the same function, so they score the same, and B stays with Ap, far
away from A. Everything is trained by `zootools.training.reference`. No download: tetris or scikit-learn's digits.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

# A script's folder comes first on the path, where representation.py would hide the package; now it comes last.
sys.path.sort(key=lambda entry: entry == str(Path(__file__).parent))

import click
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from representation.augment import Augmenter
from representation.recipes import Augmentation
from zootools.architectures import Schema, build_schema
from zootools.images import ImageData, load_images
from zootools.networks import Network
from zootools.population import ModelConfig
from zootools.spec import Architecture, Cnn, DatasetImages, Hyperparameters, Mlp, TetrisImages
from zootools.training.reference import train_reference

NETWORKS: dict[str, Architecture] = {
    "mlp": Mlp(name="mlp", hidden=(5,), bias=False),
    "mlp_deep": Mlp(name="mlp", hidden=(8, 8)),
    "cnn_small": Cnn(name="cnn_small"),
    "cnn_unterthiner": Cnn(name="cnn_unterthiner"),
    "cnn_large": Cnn(name="cnn_large"),
}


class Trajectories(NamedTuple):
    """What figure 5 shows; the first axis is the epoch, from 0 (the initialisation)."""

    weights: dict[str, Tensor]
    """Of A, Ap and B: ``[epochs + 1, N]``."""
    accuracies: dict[str, list[float]]
    """On the test images."""

    def distance(self, first: str, second: str) -> Tensor:
        """Return the L2 distance of two models at each epoch."""
        return (self.weights[first] - self.weights[second]).norm(dim=1)


def trajectories(
    schema: Schema, model: ModelConfig, images: ImageData, batch_size: int, epochs: int, seed: int = 0
) -> Trajectories:
    """Train a model and its permuted copy; the precision is that of the images."""
    dtype = images.train.images.dtype
    index = Augmenter(schema, Augmentation()).permutations(1, torch.device("cpu"), torch.Generator().manual_seed(seed))[
        0
    ]
    weights: dict[str, list[Tensor]] = {"A": [], "Ap": [], "B": []}
    accuracies: dict[str, list[float]] = {"A": [], "Ap": [], "B": []}
    probe = Network(schema, model.hyperparameters.activation).to(dtype).eval().requires_grad_(False)

    def note(name: str, flat: Tensor) -> None:
        vector_to_parameters(flat, probe.parameters())
        weights[name].append(flat.clone())
        accuracies[name].append((probe(images.test.images).argmax(1) == images.test.labels).double().mean().item())

    for network in train_reference(schema, model, images, batch_size, epochs):
        flat = parameters_to_vector(network.parameters()).detach()
        note("A", flat)
        note("Ap", flat[index])
    for epoch, network in enumerate(train_reference(schema, model, images, batch_size, epochs)):
        if epoch == 0:
            vector_to_parameters(weights["Ap"][0].clone(), network.parameters())
        note("B", parameters_to_vector(network.parameters()).detach())
    return Trajectories({name: torch.stack(rows) for name, rows in weights.items()}, accuracies)


def problem(name: str, train: int) -> tuple[Schema, ImageData]:
    """Return a registered network and images that fit it."""
    if name.startswith("mlp"):
        images = load_images(TetrisImages(name="tetris", train=train, test=400, noise_train=0.2, noise_test=0.8))
    else:
        images = load_images(DatasetImages(name="digits", train=train, test=297, size=28, mean=0.3, std=0.3))
    return build_schema(NETWORKS[name], images.input_shape, images.classes), images


def draw(result: Trajectories, path: Path) -> None:
    """Draw figure 5: accuracies on the left, distances on the right."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for (name, values), style in zip(result.accuracies.items(), ("-", "--", ":"), strict=True):
        left.plot(values, style, label=name, linewidth=2)
    left.set(xlabel="epoch", ylabel="test accuracy")
    for (first, second), style in zip((("A", "Ap"), ("A", "B"), ("Ap", "B")), ("-", "--", ":"), strict=True):
        right.plot(result.distance(first, second), style, label=f"{first} to {second}", linewidth=2)
    right.set(xlabel="epoch", ylabel="distance of the weights")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command()
@click.option("--network", type=click.Choice(list(NETWORKS)), default="cnn_small", show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--train", default=1000, show_default=True, help="Training images.")
@click.option("--batch-size", default=10, show_default=True)
@click.option("--optimizer", type=click.Choice(["adam", "sgd", "rmsprop"]), default="adam", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Draw figure 5 into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    network: str, epochs: int, train: int, batch_size: int, optimizer: Any, out: Path | None, as_json: bool
) -> None:
    """Train a model and its permuted copy, and compare them."""
    schema, images = problem(network, train)
    hyper = Hyperparameters(activation="tanh", init="kaiming_uniform", optimizer=optimizer, lr=1e-3)
    result = trajectories(schema, ModelConfig("", "", 1, "train", hyper), images, batch_size, epochs)
    rows = [
        {
            "epoch": epoch,
            **{f"accuracy_{name}": values[epoch] for name, values in result.accuracies.items()},
            **{
                f"distance_{first}_{second}": result.distance(first, second)[epoch].item()
                for first, second in (("A", "Ap"), ("A", "B"), ("Ap", "B"))
            },
        }
        for epoch in range(epochs + 1)
    ]
    if out is not None:
        draw(result, out)
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo("| " + " | ".join(rows[0]) + " |\n|" + "--:|" * len(rows[0]))
    for row in rows:
        click.echo("| " + " | ".join(f"{value:.6g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
