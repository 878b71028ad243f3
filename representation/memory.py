"""What an encoder takes of memory, estimated before anything is computed.

The estimate is a lower bound: parameters with their gradients, the optimizer's two moments and the copies that a commit
makes, and of the activations of a batch those that every block keeps for the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from representation.encoders import Encoder, projection_head
from representation.recipes import Attention, Recipe
from representation.tokens import Tokenizer
from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.memory import available_memory, gigabytes

TRAINED, STORED = 16, 12
"""Bytes of a parameter in training (itself, its gradient, two moments of Adam), and in the state that is written."""
KEYS = ("encoder.hidden", "encoder.width", "encoder.latent", "encoder.blocks", "encoder.layers", "head.hidden")


class Need(NamedTuple):
    """Estimated memory of an encoder, in bytes."""

    parameters: int
    """Their number."""
    fixed: int
    """What the parameters take."""
    batch: int
    """What the activations of a batch take."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.fixed + self.batch


def estimate(schema: Schema, recipe: Recipe, rows: int, training: bool = True) -> Need:
    """Return what the encoder of a recipe takes; ``rows`` are the networks that it is trained on."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        modules = [Encoder.build(schema, recipe.encoder)]
        if training:
            modules.append(projection_head(recipe.encoder.latent, recipe.head))  # type: ignore[arg-type]
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    if not training:
        return Need(parameters, 4 * parameters, 0)
    settings, views = recipe.encoder, 2 * min(recipe.training.batch_size, rows)
    if isinstance(settings, Attention):
        tokens = Tokenizer(schema, settings.tokens).length + settings.compression_token
        kept = 2 * settings.blocks * tokens * (8 * settings.width + 2 * settings.hidden)
    else:
        kept = settings.layers * (schema.size + settings.latent)
    size = 4 if recipe.training.precision in ("fp32", "tf32") else 2
    return Need(parameters, (TRAINED + STORED) * parameters, size * kept * views)


def check_memory(
    schema: Schema, recipe: Recipe, rows: int, training: bool = True, device: torch.device | None = None
) -> None:
    """Raise SpecError, with what is needed and what is free, where an encoder does not fit into memory."""
    need = estimate(schema, recipe, rows, training)
    free = torch.cuda.mem_get_info(device)[0] if device is not None and device.type == "cuda" else available_memory()
    if need.total <= free:
        return
    about = f"the encoder has {need.parameters:,} parameters; "
    about += "training it takes" if training else "without any training it takes"
    parts = f" ({gigabytes(need.fixed)} for parameters and optimizer, {gigabytes(need.batch)} for a batch)"
    raise SpecError(
        f"{about} at least {gigabytes(need.total)} of memory{parts if training else ''}, and {gigabytes(free)} are "
        f"free; use a smaller {_decisive(schema, recipe, rows, training)}"
    )


@contextmanager
def memory_named(schema: Schema, recipe: Recipe, rows: int, training: bool = True) -> Iterator[None]:
    """Turn a lack of memory that the estimate did not foresee into a SpecError that names the key to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        need = estimate(schema, recipe, rows, training)
        raise SpecError(
            f"memory does not suffice for an encoder of {need.parameters:,} parameters (at least "
            f"{gigabytes(need.total)}; {gigabytes(available_memory())} are free); use a smaller "
            f"{_decisive(schema, recipe, rows, training)}"
        ) from error


def _decisive(schema: Schema, recipe: Recipe, rows: int, training: bool) -> str:
    """Return the key of a recipe that memory depends on most, and its value."""
    found = []
    for key in (*KEYS, "training.batch_size"):
        section, name = key.split(".")
        settings = getattr(recipe, section)
        value = getattr(settings, name, 1)
        if isinstance(value, int) and value > 1:
            smaller = recipe.model_copy(update={section: settings.model_copy(update={name: value // 2})})
            found.append((estimate(schema, smaller, rows, training).total, key, value))
    _, key, value = min(found, default=(0, "encoder.latent", recipe.encoder.latent))
    return f"{key} (now {value})"
