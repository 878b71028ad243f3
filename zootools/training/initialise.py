"""Initial weights, drawn on the CPU from the model's own seed."""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from zootools.architectures import Layer, Schema
from zootools.rng import stream
from zootools.spec import Hyperparameters


def initial_weights(schema: Schema, hyperparameters: Hyperparameters, seed: int) -> npt.NDArray[np.float32]:
    """Return the flat weights of a model at epoch 0, float32 ``[schema.size]``.

    Every layer has its own random stream of the seed; biases are ``bias_init``.
    """
    flat = np.full(schema.size, hyperparameters.bias_init, np.float32)
    for parameter in schema.parameters:
        name, kind = parameter.name.rsplit(".", 1)
        if kind == "weight":
            layer = next(layer for layer in schema.layers if layer.name == name)
            draws = stream(seed, "init", hyperparameters.init, name)
            weights = _draw(layer, hyperparameters.init, hyperparameters.init_std, draws)
            flat[parameter.offset : parameter.end] = weights.reshape(-1)
    return flat


def _draw(layer: Layer, init: str, std: float, draws: np.random.Generator) -> npt.NDArray[np.floating]:
    """Return weights ``[outputs, fan_in]``; gains and fans as torch.nn.init computes them by default."""
    shape, fan_in, fan_out = (layer.outputs, layer.fan_in), layer.fan_in, layer.outputs * layer.kernel**2
    match init:
        case "uniform":
            return draws.random(shape, np.float32)
        case "normal":
            return std * draws.standard_normal(shape, np.float32)
        case "truncated_normal":
            low, high = ndtr(-2), ndtr(2)
            return std * ndtri(low + (high - low) * draws.random(shape))
        case "kaiming_uniform":
            return math.sqrt(6 / fan_in) * (2 * draws.random(shape, np.float32) - 1)
        case "kaiming_normal":
            return math.sqrt(2 / fan_in) * draws.standard_normal(shape, np.float32)
        case "xavier_uniform":
            return math.sqrt(6 / (fan_in + fan_out)) * (2 * draws.random(shape, np.float32) - 1)
        case "xavier_normal":
            return math.sqrt(2 / (fan_in + fan_out)) * draws.standard_normal(shape, np.float32)
        case "orthogonal":
            rows, columns = max(shape), min(shape)
            q, r = np.linalg.qr(draws.standard_normal((rows, columns)))
            q *= np.sign(np.diag(r))  # makes the factorisation, and so the distribution, unique
            return q if shape == (rows, columns) else q.T
    raise ValueError(f"unknown init {init!r}")
