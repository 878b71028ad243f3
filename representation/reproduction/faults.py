"""Data as the paper's released code has them: kernels of TensorFlow, and the generalisation gap of an epoch.

Kernels of TensorFlow are not transposed. In this order a row of a kernel is not a neuron, and what the code takes for a
permutation of neurons changes the function of the network. The gap is computed with a training accuracy that belongs to
no checkpoint. The other faults of that code are settings of a recipe: `Augmentation.orders`, `Augmentation.identical`
and `Loss.positive`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representation.dataset import ZooDataset
from representation.encoders.encoder import Encoder
from representation.networks import in_parts
from representation.recipes import Recipe
from representation.reproduction.items import RUNNING_GAP
from representation.training.train import Weights, train_epochs
from zootools.architectures import Schema
from zootools.importers.tensorflow_layout import from_tensorflow
from zootools.zoo import Zoo


def with_running_gap(zoo: Zoo) -> Zoo:
    """Return a zoo with the generalisation gap as the released code measures it, in the column `RUNNING_GAP`.

    The code counts the right answers of an epoch's training steps, each before its update; only at epoch 0 does it
    evaluate the checkpoint. A zoo has only accuracies of checkpoints: the mean of the training accuracies before and
    after the epoch approximates that count (compared by `benchmarks/running_accuracy.py`). A zoo that does not keep
    every epoch is returned as it is.
    """
    columns = ("model_id", "epoch", "train_accuracy", "test_accuracy")
    models, epochs, train, test = (zoo.metadata[name].to_pylist() for name in columns)
    accuracy = dict(zip(zip(models, epochs, strict=True), train, strict=True))
    before = [accuracy.get((model, max(epoch - 1, 0))) for model, epoch in zip(models, epochs, strict=True)]
    if None in before:
        return zoo
    running = (np.array(before) + np.array(train)) / 2
    return zoo.with_column(RUNNING_GAP, running - np.array(test))


def untransposed(schema: Schema) -> Tensor:
    """Return the index ``i``, int64 ``[parameters]``, for which ``flat[i]`` has the kernels as TensorFlow has them."""
    parts, parameters = [], {parameter.name: parameter for parameter in schema.parameters}
    for layer, features in zip(schema.layers, (schema.input_shape, *schema.output_shapes), strict=False):
        kernel = parameters[f"{layer.name}.weight"]
        place = from_tensorflow(np.arange(kernel.end - kernel.offset), kernel.shape, features).reshape(-1)
        parts.append(kernel.offset + place.argsort())
        if layer.bias:
            bias = parameters[f"{layer.name}.bias"]
            parts.append(np.arange(bias.offset, bias.end))
    return torch.from_numpy(np.concatenate(parts))


def misread(dataset: ZooDataset) -> ZooDataset:
    """Return the same checkpoints with `untransposed` weights."""
    index = untransposed(dataset.schema)
    splits = {name: replace(part, networks=part.weights[:, index]) for name, part in dataset.splits.items()}
    return replace(dataset, splits=splits)


def train_misread(zoo: Zoo, recipe: Recipe, out: Path, seed: int) -> Encoder:
    """Train an encoder as `representation.training.train.train_encoder` does, on `untransposed` weights."""
    weights, index = Weights.of(zoo, recipe, quiet=True, stream=False), untransposed(zoo.schema)
    train, validation = (
        torch.cat([rows[:, index] for rows in in_parts(part)]) for part in (weights.train, weights.validation)
    )
    for _ in train_epochs(weights._replace(train=train, validation=validation), recipe, out, seed, quiet=True):
        pass
    return Encoder.from_pretrained(out)
