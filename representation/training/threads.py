"""An encoder and its decoder on several threads: each takes a part of the batch.

PyTorch divides every single operation between its threads, which these small layers do not repay: on the networks of
TETRIS two threads are slower than one. Here a thread computes its part of the batch from the first layer to the last.
Python lets one thread at a time begin an operation, so that two threads are 1.1 to 1.9 times as fast as one.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from representation.encoders.encoder import Encoder
from zootools.training.repeatable import one_thread

LEAST = 125
"""Fewest networks of a thread; smaller parts take nearly as long as twice as large ones."""
Coded = tuple[Tensor, Tensor | None]
"""z ``[n, L]`` and reconstructions ``[n, N]``; None if they are not computed."""


class ThreadedEncoder:
    """Computes z and reconstructions of a batch, and their gradients, on one thread or on several.

    With several threads the gradient is a sum of parts, in a fixed order: its last bits depend on the number of
    threads, and on nothing else.
    """

    def __init__(self, encoder: Encoder, reconstructs: bool, precision: str, threads: int) -> None:
        """Args: ``threads`` is the largest number of them. An encoder that draws numbers (dropout) or compares the
        networks of a batch (batch normalisation) has one, as has one on a GPU; PyTorch may divide its operations."""
        self.encoder, self.reconstructs, self.precision = encoder, reconstructs, precision
        divisible = next(encoder.parameters()).is_cpu and not any(map(_needs_the_whole_batch, encoder.modules()))
        self.threads = threads if divisible else 1
        self._pool = _pool(self.threads) if self.threads > 1 else None

    def surroundings(self) -> AbstractContextManager[None]:
        """Return a context for all steps: with several threads here, no operation is divided, whose threads would wait
        for work on the processors that these need."""
        return one_thread() if self._pool else nullcontext()

    def __call__(self, weights: Tensor) -> Coded:
        """Return z and the reconstructions of flat weights ``[n, N]``."""
        parts = min(self.threads, len(weights) // LEAST)
        if self._pool is None or parts < 2:
            return self._coded(weights)
        parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        differentiated = torch.is_grad_enabled()

        def compute(part: Tensor) -> list[Tensor]:
            with torch.set_grad_enabled(differentiated):  # which every thread has of its own
                return [tensor for tensor in self._coded(part) if tensor is not None]

        z, outputs = _Divided.apply(self._pool, compute, weights.chunk(parts), parameters, *parameters)
        return z, outputs if self.reconstructs else None

    def _coded(self, weights: Tensor) -> Coded:
        with torch.autocast(weights.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z = self.encoder(weights)
            return z, self.encoder.decode(z) if self.reconstructs else None


class _Divided(torch.autograd.Function):
    """A function of a batch whose parts are computed, forward and backward, on the threads of a pool."""

    @staticmethod
    def forward(
        ctx: Any,
        pool: ThreadPoolExecutor,
        compute: Callable[[Tensor], list[Tensor]],
        parts: tuple[Tensor, ...],
        parameters: list[nn.Parameter],
        *_: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:
        ctx.pool, ctx.parameters, ctx.results = pool, parameters, list(pool.map(compute, parts))
        whole = [torch.cat([tensor.detach() for tensor in tensors]) for tensors in zip(*ctx.results, strict=True)]
        return whole[0], whole[1] if len(whole) == 2 else whole[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sizes = [len(tensors[0]) for tensors in ctx.results]
        of_parts = zip(*(gradient.split(sizes) for gradient in gradients if gradient.dim()), strict=True)

        def compute(part: tuple[list[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
            tensors, wanted = part
            return torch.autograd.grad(tensors, ctx.parameters, wanted, allow_unused=True)

        found = list(ctx.pool.map(compute, zip(ctx.results, of_parts, strict=True)))
        ctx.results = None
        return None, None, None, None, *itertools.starmap(_sum, zip(*found, strict=True))


def _sum(*gradients: Tensor | None) -> Tensor | None:
    """Return the sum from the first to the last; None for a parameter that no part of the batch depends on."""
    found = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(torch.add, found) if found else None


def _needs_the_whole_batch(module: nn.Module) -> bool:
    drawn = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return isinstance(module, _BatchNorm) or drawn > 0


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads do not divide single operations, and have been started."""
    barrier = Barrier(threads)

    def alone() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    divided = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "encoder")
    for started in [pool.submit(alone) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(divided)  # threads that are started later inherit the last number
    return pool
