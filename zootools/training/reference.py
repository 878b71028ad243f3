"""The reference: one model, plain PyTorch. What it computes is what every other trainer must compute."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from zootools.architectures import Schema
from zootools.architectures.networks import Network
from zootools.images.datasets import ImageData
from zootools.rng import data_order, dropout_bits, dropout_key
from zootools.spec import Hyperparameters
from zootools.spec.model_configs import ModelConfig
from zootools.training.initialise import initial_weights


def train_reference(
    schema: Schema, model: ModelConfig, images: ImageData, batch_size: int, epochs: int
) -> Iterator[Network]:
    """Train one model and yield it after each epoch 0, 1, ..., epochs (0 is the initialisation).

    The yielded network is the same object each time; its training goes on with the next step of the iterator.
    """
    hyper = model.hyperparameters
    network = Network(schema, hyper.activation).to(images.train.images)
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(initial_weights(schema, hyper, model.seed)).to(images.train.images), network.parameters()
    )
    optimizer = make_optimizer(network, hyper)
    count = training_count(len(images.train), hyper)
    yield network
    for epoch in range(1, epochs + 1):
        order = torch.from_numpy(data_order(model.seed, epoch, count)).long()
        for start in range(0, count, batch_size):
            batch = order[start : start + batch_size]

            def drop(layer: str, x: Tensor, first: int = start, epoch: int = epoch) -> Tensor:
                return _drop(x, hyper.dropout, dropout_key(model.seed, epoch, layer), first)

            logits = network(images.train.images[batch], drop)
            loss = F.cross_entropy(logits, images.train.labels[batch])
            if hyper.l2:
                kernels = [p for name, p in network.named_parameters() if name.endswith("weight")]
                loss = loss + hyper.l2 * sum((kernel**2).sum() for kernel in kernels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield network


def make_optimizer(network: Network, hyper: Hyperparameters) -> torch.optim.Optimizer:
    """Return the torch optimizer that a model's hyper-parameters name; every default is torch's own."""
    parameters = network.parameters()
    if hyper.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=hyper.lr, weight_decay=hyper.weight_decay)
    if hyper.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay)
    return torch.optim.RMSprop(parameters, lr=hyper.lr, weight_decay=hyper.weight_decay)


def training_count(available: int, hyper: Hyperparameters) -> int:
    """How many training images a model sees: the first ``train_fraction`` of them, at least one."""
    return max(1, int(available * hyper.train_fraction))


def _drop(x: Tensor, rate: float, key: int, first_sample: int) -> Tensor:
    """Inverted dropout of ``[B, ...]`` activations, drawn by position in the epoch (`streams.dropout_bits`)."""
    counters = torch.arange(x.numel(), device=x.device) + first_sample * x[0].numel()
    keep = dropout_bits(key, counters) >= int(rate * 2**32)
    return x * keep.view_as(x) / (1 - rate)
