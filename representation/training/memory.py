"""The memory that an encoder needs, estimated before anything is computed.

The estimate is a lower bound: parameters with their gradients, the two moments of the optimizer, the copies that a
commit makes, and the activations of a batch that every block keeps for the backward pass.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from representation.encoders.attention import feed_forward_sizes
from representation.encoders.encoder import Encoder
from representation.encoders.graph import NeuronGraph
from representation.encoders.tokens import Tokenizer
from representation.recipes import Attention, Head, NeuronSet, Recipe
from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.memory import available_memory, gigabytes

TRAINED, STORED = 16, 12
"""Bytes per parameter in training (itself, its gradient, two moments of Adam), and in the state that is written."""
KEYS = ("encoder.hidden", "encoder.width", "encoder.latent", "encoder.blocks", "encoder.layers", "head.hidden")


class Need(NamedTuple):
    """Estimated memory of an encoder, in bytes."""

    parameters: int
    """Number of parameters."""
    fixed: int
    """Bytes for the parameters."""
    batch: int
    """Bytes for the activations of a batch."""

    @property
    def total(self) -> int:
        """All bytes."""
        return self.fixed + self.batch


def estimate(schema: Schema, recipe: Recipe, rows: int, training: bool = True) -> Need:
    """Return the memory that the encoder of a recipe needs; ``rows`` is the number of training networks."""
    recipe = recipe.sized(schema.size)
    settings, views = recipe.encoder, 2 * min(recipe.training.batch_size, rows)
    if isinstance(settings, Attention):
        shapes = Tokenizer(schema, settings.tokens).shapes
        parameters = _attention_parameters(shapes, settings)
        tokens = sum(count for count, _ in shapes) + settings.compression_token
        kept = 2 * settings.blocks * tokens * (8 * settings.width + 2 * settings.hidden)
        if settings.coded:
            parameters += _linear(schema.size, settings.coded) + _linear(settings.length, schema.size)
    elif isinstance(settings, NeuronSet):
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in Encoder.build(schema, settings).parameters())
        neurons = sum(NeuronGraph(schema).nodes)
        kept = (settings.blocks + 1) * neurons * (4 * settings.width + 2 * settings.hidden) + 4 * schema.size
    else:
        sizes = feed_forward_sizes(schema.size, settings)
        parameters = sum(_linear(a, b) + _linear(b, a) for a, b in itertools.pairwise(sizes))
        kept = settings.layers * (schema.size + settings.length)
    if not training:
        return Need(parameters, 4 * parameters, 0)
    parameters += _head_parameters(settings.compared, recipe.head)
    size = 4 if recipe.training.precision in ("fp32", "tf32") else 2
    return Need(parameters, (TRAINED + STORED) * parameters, size * kept * views)


def bytes_on_disk(schema: Schema, recipe: Recipe) -> int:
    """Return the bytes of an encoder in training: itself, and its state, which a commit writes beside the old one."""
    return (4 + 2 * STORED) * estimate(schema, recipe, 1).parameters


def free_memory(device: torch.device | None = None) -> int:
    """Return the free bytes of a GPU; without one, those that this process can allocate on the machine."""
    return torch.cuda.mem_get_info(device)[0] if device is not None and device.type == "cuda" else available_memory()


def check_memory(
    schema: Schema, recipe: Recipe, rows: int, training: bool = True, device: torch.device | None = None
) -> None:
    """Raise SpecError, with the needed and the free memory, if an encoder does not fit."""
    need, free = estimate(schema, recipe, rows, training), free_memory(device)
    if need.total <= free:
        return
    about = f"the encoder has {need.parameters:,} parameters; "
    about += "training needs" if training else "even untrained it needs"
    parts = f" ({gigabytes(need.fixed)} for parameters and optimizer, {gigabytes(need.batch)} for a batch)"
    raise SpecError(
        f"{about} at least {gigabytes(need.total)} of memory{parts if training else ''}, and {gigabytes(free)} are "
        f"free; use a smaller {_decisive(schema, recipe, rows, training)}"
    )


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _attention_parameters(shapes: Sequence[tuple[int, int]], settings: Attention) -> int:
    """Return the parameters of encoder and decoder, for the tokens and weights per token of each group."""
    width, latent, tokens = settings.width, settings.length, sum(count for count, _ in shapes)
    length = tokens + settings.compression_token
    block = _linear(width, 3 * width) + _linear(width, width) + _linear(width, settings.hidden)
    block += _linear(settings.hidden, width) + 4 * width
    encoder = sum(_linear(values, width) for _, values in shapes) + (length + settings.compression_token) * width
    encoder += _linear(width * (1 if settings.compression_token else length), latent)
    decoder = _linear(latent, tokens * width) + tokens * width + sum(_linear(width, values) for _, values in shapes)
    return encoder + decoder + 2 * settings.blocks * block


def _head_parameters(latent: int, head: Head) -> int:
    sizes = [latent, *[head.hidden] * head.layers, head.outputs]
    return sum(_linear(a, b) + 2 * b for a, b in itertools.pairwise(sizes))


@contextmanager
def memory_named(schema: Schema, recipe: Recipe, rows: int, training: bool = True) -> Iterator[None]:
    """Turn a failed allocation, which the estimate did not foresee, into a SpecError that names the key to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        need = estimate(schema, recipe, rows, training)
        raise SpecError(
            f"not enough memory for an encoder of {need.parameters:,} parameters (at least "
            f"{gigabytes(need.total)}; {gigabytes(available_memory())} are free); use a smaller "
            f"{_decisive(schema, recipe, rows, training)}"
        ) from error


def _decisive(schema: Schema, recipe: Recipe, rows: int, training: bool) -> str:
    """Return the key of a recipe that memory depends on most, with its value."""
    recipe, found = recipe.sized(schema.size), []
    for key in (*KEYS, "training.batch_size"):
        section, name = key.split(".")
        settings = getattr(recipe, section)
        value = getattr(settings, name, 1)
        if isinstance(value, int) and value > 1:
            smaller = recipe.model_copy(update={section: settings.model_copy(update={name: value // 2})})
            found.append((estimate(schema, smaller, rows, training).total, key, value))
    _, key, value = min(found, default=(0, "encoder.latent", recipe.encoder.length))
    return f"{key} (now {value})"
