"""The reference: training one model in plain PyTorch. Every other trainer must compute the same."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from zootools.architectures import Schema
from zootools.architectures.networks import Network
from zootools.images.datasets import ImageData
from zootools.rng import data_order, dropout_bits, dropout_key
from zootools.spec import Hyperparameters
from zootools.spec.model_configs import ModelConfig, training_count
from zootools.training.initialise import initial_weights


def train_reference(
    schema: Schema, model: ModelConfig, images: ImageData, batch_size: int, epochs: int
) -> Iterator[Network]:
    """Train one model and yield it after each epoch 0, 1, ..., epochs (0 is the initialisation).

    The same network object is yielded each time; the next step of the iterator trains it further.
    """
    hyper = model.hyperparameters
    network = Network(schema, hyper.activation).to(images.train.images)
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(initial_weights(schema, hyper, model.seed)).to(images.train.images), network.parameters()
    )
    optimizer = make_optimizer(network, hyper)
    count = training_count(len(images.train), hyper.train_fraction)
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
    """Return the torch optimizer in a model's hyper-parameters, with torch's defaults."""
    parameters = network.parameters()
    if hyper.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=hyper.lr, weight_decay=hyper.weight_decay)
    if hyper.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay)
    return torch.optim.RMSprop(parameters, lr=hyper.lr, weight_decay=hyper.weight_decay)


def _drop(x: Tensor, rate: float, key: int, first_sample: int) -> Tensor:
    """Inverted dropout of ``[B, ...]`` activations, drawn by position in the epoch (`zootools.rng.dropout_bits`)."""
    counters = torch.arange(x.numel(), device=x.device) + first_sample * x[0].numel()
    keep = dropout_bits(key, counters) >= int(rate * 2**32)
    return x * keep.view_as(x) / (1 - rate)
