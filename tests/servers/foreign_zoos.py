"""Zoos in the layouts of other people, written with plain torch and numpy as their own code does, and what is in them.

Nothing of `zootools.importers` is used here. The networks are trained for a moment on scikit-learn's digits, so that
their recorded accuracies are measured ones, and differ.
"""

import csv
import gzip
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zootools.images.datasets import load_images
from zootools.spec import DatasetImages

DIGITS = DatasetImages(name="digits", train=200, test=200, size=28, mean=0.5, std=0.5)
"""The images of all zoos here: 28 x 28 pixels in [-1, 1]."""


@dataclass
class Written:
    """What was written."""

    weights: dict[tuple[str, int], npt.NDArray[np.float32]] = field(default_factory=dict)
    """The flat weights, outputs first and biases last in every layer, by the name of the model and the epoch."""
    properties: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """The properties by the names of zootools."""


@cache
def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and labels of both parts."""
    data = load_images(DIGITS, Path())
    return {"train": (data.train.images, data.train.labels), "test": (data.test.images, data.test.labels)}


def train_epoch(network: nn.Module, seed: int, lr: float = 0.05) -> None:
    """Train a network for an epoch of 100 images."""
    images, labels = digits()["train"]
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:100]
    network.train()
    for part in order.split(10):
        optimizer.zero_grad()
        F.cross_entropy(network(images[part]), labels[part]).backward()
        optimizer.step()


def scores(network: nn.Module) -> dict[str, float]:
    """Return loss and accuracy on both parts, by the names of zootools."""
    network.eval()
    found = {}
    with torch.no_grad():
        for part, (images, labels) in digits().items():
            logits = network(images)
            found[f"{part}_loss"] = float(F.cross_entropy(logits, labels))
            found[f"{part}_accuracy"] = float((logits.argmax(1) == labels).float().mean())
    return found


def flat(state: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
    """Return the weights of a state dict of torch: layer by layer, biases last."""
    return torch.cat([tensor.reshape(-1) for tensor in state.values()]).numpy().copy()


# --- zoos of Ray Tune ------------------------------------------------------------------------------------

NONLINEARITIES = {"tanh": nn.Tanh, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU}


class RayCnn(nn.Module):
    """The small CNN of the ModelZooDataset: the numbers of its modules depend on whether it has dropout."""

    def __init__(self, nlin: str, dropout: float) -> None:
        super().__init__()
        act, drop = NONLINEARITIES[nlin], [nn.Dropout(dropout)] if dropout > 0 else []
        self.module_list = nn.ModuleList(
            [
                *(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2, 2), act(), *drop),
                *(nn.Conv2d(8, 6, 5), nn.MaxPool2d(2, 2), act(), *drop),
                *(nn.Conv2d(6, 4, 2), act(), nn.Flatten()),
                *(nn.Linear(36, 20), act(), *drop, nn.Linear(20, 10)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for module in self.module_list:
            x = module(x)
        return x


def ray_parameters(**changes: Any) -> dict[str, Any]:
    """Return the content of a params.json."""
    return {
        "cuda": False,
        "dataset::dump": "/scratch/zoos/own/dataset.pt",
        "model::channels_in": 1,
        "model::dropout": 0.0,
        "model::init_type": "kaiming_uniform",
        "model::nlin": "tanh",
        "model::o_dim": 10,
        "model::type": "CNN",
        "optim::lr": 0.05,
        "optim::momentum": 0.9,
        "optim::optimizer": "sgd",
        "optim::wd": 0.0,
        "seed": 1,
        "training::batchsize": 10,
        "training::epochs_train": 2,
    } | changes


def result_line(parameters: Mapping[str, Any], iteration: int, found: Mapping[str, float]) -> str:
    """Return a line of a result.json; before the first epoch the training scores are -999."""
    short = {name.replace("accuracy", "acc").replace("validation", "val"): value for name, value in found.items()}
    if iteration == 0:
        short |= {"train_loss": -999, "train_acc": -999}
    line = {**short, "done": False, "training_iteration": iteration, "time_total_s": 1.5, "config": {**parameters}}
    return json.dumps(line) + "\n"


def write_ray_zoo(
    root: Path, trials: Sequence[Mapping[str, Any]] = ({}, {"model::dropout": 0.5, "seed": 2})
) -> Written:
    """Write a folder for each trial with three checkpoints; ``trials`` has what differs in their params.json."""
    written = Written()
    for number, changes in enumerate(trials):
        parameters = ray_parameters(**changes)
        name = f"NN_tune_trainable_0b1f2_{number:05d}_{number}_seed={parameters['seed']}_2021-05-04_11-12-13"
        torch.manual_seed(parameters["seed"])
        network = RayCnn(parameters["model::nlin"], parameters["model::dropout"])
        (root / name).mkdir(parents=True)
        (root / name / "params.json").write_text(json.dumps(parameters))
        lines = ""
        for epoch in range(3):
            if epoch:
                train_epoch(network, parameters["seed"] + epoch)
            folder = root / name / f"checkpoint_{epoch:06d}"
            folder.mkdir()
            torch.save(network.state_dict(), folder / "checkpoints")
            torch.save({"state": {}, "param_groups": []}, folder / "optimizer")
            found = scores(network)
            lines += result_line(parameters, epoch, found)
            written.weights[name, epoch] = flat(network.state_dict())
            written.properties[name, epoch] = {
                **{key: value for key, value in found.items() if epoch or not key.startswith("train_")},
                "activation": parameters["model::nlin"].replace("leakyrelu", "leaky_relu"),
                "dropout": parameters["model::dropout"],
                "seed": parameters["seed"],
                "lr": 0.05,
                "optimizer": "sgd",
            }
        (root / name / "result.json").write_text(lines)
    (root / "readme.md").write_text("")
    return written


def pruned(state: Mapping[str, Tensor], sigma: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the weights with which a sparse twin is evaluated, as its layers clip them.

    In a convolution weights and biases are removed, in a linear layer the weights.
    """
    result = OrderedDict(state)
    for name, values in state.items():
        prefix, kind = name.rsplit(".", 1)
        if kind == "bias" and state[f"{prefix}.weight"].dim() == 2:
            continue
        log_sigma = sigma[f"{prefix}.log_sigma2" + ("_bias" if kind == "bias" else "")]
        log_alpha = torch.clamp(log_sigma - 2 * torch.log(torch.abs(values) + 1e-15), -8, 8)
        result[name] = torch.where(torch.ge(log_alpha, 3), torch.zeros_like(values), values)
    return result


# --- the Small CNN Zoo -----------------------------------------------------------------------------------

LAYOUT = (
    *(("sequential/conv2d/bias:0", (16,)), ("sequential/conv2d/kernel:0", (3, 3, 1, 16))),
    *(("sequential/conv2d_1/bias:0", (16,)), ("sequential/conv2d_1/kernel:0", (3, 3, 16, 16))),
    *(("sequential/conv2d_2/bias:0", (16,)), ("sequential/conv2d_2/kernel:0", (3, 3, 16, 16))),
    *(("sequential/dense/bias:0", (10,)), ("sequential/dense/kernel:0", (16, 10))),
)
"""The variables of a row of weights.npy, in its order."""
STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
KERAS_COLUMNS = (
    *(f"config.{key}" for key in ("activation", "b_init", "dataset", "dnn_architecture", "dropout", "epochs")),
    *(f"config.{key}" for key in ("epochs_between_checkpoints", "init_std", "l2reg", "learning_rate", "num_layers")),
    *(f"config.{key}" for key in ("num_units", "optimizer", "random_seed", "train_fraction", "w_init")),
    *("modeldir", "step", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
)


class KerasCnn(nn.Module):
    """The network of the Small CNN Zoo, with its variables as TensorFlow has them."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = {"relu": torch.relu, "tanh": torch.tanh}[activation]
        self.values = nn.ParameterList(
            torch.zeros(shape) if name.endswith("bias:0") else torch.randn(shape) * (2 / np.prod(shape[:-1])) ** 0.5
            for name, shape in LAYOUT
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(3):
            bias, kernel = self.values[2 * layer], self.values[2 * layer + 1]
            x = self.activation(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2))
        return x.mean(dim=(2, 3)) @ self.values[7] + self.values[6]

    def row(self) -> npt.NDArray[np.float32]:
        """Return the row of weights.npy."""
        return flat(dict(enumerate(value.detach() for value in self.values)))  # type: ignore[arg-type]

    def torch_row(self) -> npt.NDArray[np.float32]:
        """Return the weights as PyTorch would have them: outputs first, kernels before biases."""
        parts = []
        for layer in range(4):
            bias, kernel = self.values[2 * layer].detach(), self.values[2 * layer + 1].detach()
            parts += [kernel.permute(3, 2, 0, 1) if kernel.dim() == 4 else kernel.T, bias]
        return torch.cat([part.reshape(-1) for part in parts]).numpy()


def write_layout(root: Path, layout: Sequence[tuple[str, tuple[int, ...]]] = LAYOUT) -> None:
    """Write layout.csv."""
    lines, start = ["varname,start_idx,end_idx,size,shape"], 0
    for name, shape in layout:
        size = int(np.prod(shape))
        lines.append(f'{name},{start},{start + size},{size},"{shape}"')
        start += size
    (root / "layout.csv").write_text("\n".join(lines) + "\n")


def keras_metrics(model: int, step: int, activation: str = "relu", **found: float) -> dict[str, Any]:
    """Return a row of metrics.csv.gz."""
    return {
        "config.activation": activation,
        "config.b_init": "zeros",
        "config.dataset": "mnist",
        "config.dnn_architecture": "cnn",
        "config.dropout": 0.25,
        "config.epochs": 86,
        "config.epochs_between_checkpoints": 20,
        "config.init_std": 0.01 * (model + 1),
        "config.l2reg": 1e-5,
        "config.learning_rate": 0.0123,
        "config.num_layers": 3,
        "config.num_units": 16,
        "config.optimizer": "adam",
        "config.random_seed": 42,
        "config.train_fraction": 0.5,
        "config.w_init": "he_normal",
        "modeldir": f"/zoo/mnist/{model}",
        "step": step,
    } | found


def write_metrics(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv.gz."""
    with gzip.open(root / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, KERAS_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_small_cnn_zoo(
    root: Path, activations: Sequence[str] = ("relu", "tanh"), steps: Sequence[int] = STEPS
) -> Written:
    """Write the three files for a model of each activation, with the checkpoints of a model one after the other."""
    root.mkdir()
    written, matrix, metrics = Written(), [], []
    for model, activation in enumerate(activations):
        torch.manual_seed(model)
        network = KerasCnn(activation)
        for step in steps:
            if step:
                train_epoch(network, 100 * model + step)
            found = scores(network)
            matrix.append(network.row())
            metrics.append(keras_metrics(model, step, activation, **found))
            name = (f"/zoo/mnist/{model}", step)
            written.weights[name] = network.torch_row()
            written.properties[name] = {
                **found,
                "activation": activation,
                "init": "kaiming_normal",
                "optimizer": "adam",
                "lr": 0.0123,
                "l2": 1e-5,
                "dropout": 0.25,
                "train_fraction": 0.5,
                "init_std": 0.01 * (model + 1),
                "bias_init": 0.0,
                "seed": 42,
            }
    np.save(root / "weights.npy", np.stack(matrix))
    write_metrics(root, metrics)
    write_layout(root)
    return written
