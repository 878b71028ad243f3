"""Populations of small networks, trained and written by plain torch code, as people outside of zootools have them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zootools.architectures import Layer, Schema
from zootools.images.datasets import Subset, load_images
from zootools.spec import DatasetImages

IMAGES = DatasetImages(name="digits", train=300, test=200, mean=0.3, std=0.4)
"""Images without a download, 1 x 8 x 8, with a normalisation of their own."""

SCHEMA = Schema(
    "two_convolutions",
    (1, 8, 8),
    (
        Layer("conv1", "conv", 1, 6, kernel=3, max_pool=2),
        Layer("conv2", "conv", 6, 6, kernel=3, stride=1),
        Layer("fc1", "linear", 6, 10),
        Layer("fc2", "linear", 10, 10, activation=False),
    ),
)
"""The layers of `network`."""


def network(dropout: bool = False) -> nn.Sequential:
    """The network of `SCHEMA` as somebody else would write it; dropout shifts the numbers of its modules."""
    drop: list[nn.Module] = [nn.Dropout(0.1)] if dropout else []
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.MaxPool2d(2), nn.Tanh(), *drop,
        nn.Conv2d(6, 6, 3), nn.Tanh(), *drop,
        nn.Flatten(), nn.Linear(6, 10), nn.Tanh(),
        nn.Linear(10, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """One network at one epoch, with the accuracies that it has."""

    seed: int
    epoch: int
    state: dict[str, Tensor]
    train_accuracy: float
    test_accuracy: float

    @property
    def flat(self) -> Tensor:
        """The weights in the order of `SCHEMA`, float32 ``[parameters]``."""
        return torch.cat([tensor.reshape(-1) for tensor in self.state.values()])


def train(seeds: Sequence[int], epochs: int = 3) -> list[Checkpoint]:
    """Train a network for every seed; those of odd seeds have dropout."""
    images, found = load_images(IMAGES), []
    for seed in seeds:
        torch.manual_seed(seed)
        model = network(dropout=bool(seed % 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for epoch in range(epochs + 1):
            model.train()
            for start in range(0, len(images.train) if epoch else 0, 20):
                optimizer.zero_grad()
                logits = model(images.train.images[start : start + 20])
                nn.functional.cross_entropy(logits, images.train.labels[start : start + 20]).backward()
                optimizer.step()
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            scores = (accuracy(model, subset) for subset in (images.train, images.test))
            found.append(Checkpoint(seed, epoch, state, *scores))
    return found


def accuracy(model: nn.Module, subset: Subset) -> float:
    """The share of the images that a network classifies as they are labelled."""
    model.eval()
    with torch.no_grad():
        return int((model(subset.images).argmax(1) == subset.labels).sum()) / len(subset)


def write_files(folder: Path, checkpoints: Sequence[Checkpoint], ending: str = "safetensors") -> Path:
    """Write ``seed1/epoch0.safetensors`` and so on, or pickles ``seed1/epoch0.pt``, and return the folder."""
    for checkpoint in checkpoints:
        path = folder / f"seed{checkpoint.seed}" / f"epoch{checkpoint.epoch}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == "safetensors":
            save_file(checkpoint.state, path)
        else:
            torch.save(checkpoint.state, path)
    return folder


PATTERN = "seed{seed:int}/epoch{epoch:int}.*"
"""The paths of `write_files`."""


def write_scores(path: Path, checkpoints: Sequence[Checkpoint]) -> Path:
    """Write a CSV table with the accuracies of the files of `write_files`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "train_accuracy", "test_accuracy"])
        for c in checkpoints:
            writer.writerow([f"seed{c.seed}/epoch{c.epoch}.safetensors", repr(c.train_accuracy), repr(c.test_accuracy)])
    return path


def write_schema(path: Path) -> Path:
    """Write `SCHEMA` as JSON."""
    path.write_text(json.dumps(SCHEMA.to_json()))
    return path
