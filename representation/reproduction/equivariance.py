"""Training commutes with permutation: the paper's appendix A, and its Figure 5, on any registered network.

Model A is trained; Ap is A with permuted hidden neurons, at every epoch; B starts as the permuted A and is trained
independently on the same data. All three compute the same function and have the same accuracy, and B stays close to Ap
and far from A. Everything is trained by `zootools.training.reference`.
"""

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from representation.recipes import Augmentation
from representation.training.augmentation import Augmenter
from zootools.architectures import Schema, build_schema
from zootools.architectures.networks import Network
from zootools.images.datasets import ImageData, load_images
from zootools.plots.style import PALETTE
from zootools.spec import Cnn, DatasetImages, Hyperparameters
from zootools.spec.model_configs import ModelConfig
from zootools.training.reference import train_reference


class Trajectories(NamedTuple):
    """The data of figure 5; the first axis is the epoch, from 0 (the initialisation)."""

    weights: dict[str, Tensor]
    """Weights of A, Ap and B, each ``[epochs + 1, N]``."""
    accuracies: dict[str, list[float]]
    """Accuracies of A, Ap and B on the test images."""

    def distance(self, first: str, second: str) -> Tensor:
        """Return the L2 distance between two models at each epoch, ``[epochs + 1]``."""
        return (self.weights[first] - self.weights[second]).norm(dim=1)


def trajectories(schema: Schema, model: ModelConfig, images: ImageData, batch_size: int, epochs: int) -> Trajectories:
    """Train a model and its permuted copy, in the precision of the images."""
    dtype = images.train.images.dtype
    generator = torch.Generator().manual_seed(0)
    (index,) = Augmenter(schema, Augmentation()).permutations(1, torch.device("cpu"), generator)
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


def figure5_trajectories(epochs: int, train: int) -> Trajectories:
    """Train the paper's CNN and its permuted copy on ``train`` of scikit-learn's digits."""
    images = load_images(DatasetImages(name="digits", train=train, test=297, size=28, mean=0.3, std=0.3))
    hyper = Hyperparameters(activation="tanh", init="kaiming_uniform", optimizer="adam", lr=1e-3)
    schema = build_schema(Cnn(name="cnn_small"), images.input_shape, images.classes)
    return trajectories(schema, ModelConfig("", "", 1, "train", hyper), images, 10, epochs)


def draw_figure5(result: Trajectories) -> Figure:
    """Draw accuracies on the left, distances on the right."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = list(zip(PALETTE, ("-", "--", ":"), strict=False))
    for (name, values), (colour, style) in zip(result.accuracies.items(), styles, strict=True):
        left.plot(values, style, color=colour, label=name, linewidth=2)
    for (first, second), (colour, style) in zip((("A", "Ap"), ("A", "B"), ("Ap", "B")), styles, strict=True):
        right.plot(result.distance(first, second), style, color=colour, label=f"{first} to {second}", linewidth=2)
    left.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1))
    right.set(xlabel="epoch", ylabel="L2 distance of the weights")
    for axes, title in ((left, "model"), (right, "models")):
        axes.legend(title=title, loc="upper left", bbox_to_anchor=(1, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
