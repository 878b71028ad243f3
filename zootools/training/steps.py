"""The steps of an epoch as tensors, recorded on CUDA as graphs.

A step of a small stack consists of about a hundred short kernels, and Python launches one in several microseconds. A
CUDA graph launches all of them at once. It repeats the same kernels on the same memory, so what differs between steps
is read from tensors by a counter on the device. The weights are the same, bit by bit, with and without graphs.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """What the steps of an epoch read, one row per step; a row has the same fields without the first dimension."""

    order: Tensor
    """Indices of the images, int32 ``[steps, B, M]``."""
    sample_weights: Tensor
    """Weights of the samples in the mean over the batch, float32 ``[steps, M, B]``; 0 beyond a model's share."""
    rate: Tensor
    """Step sizes, float32 ``[steps, M, 1]``."""
    correction: Tensor
    """Factors of the root of Adam's second moment, float32 ``[steps, M, 1]``."""
    moving: Tensor
    """Whether the model has samples left in this epoch, bool ``[steps, M, 1]``."""
    first: Tensor
    """Place in the epoch of the first sample of the batch, int64 ``[steps]``."""

    def row(self, step: int) -> "Steps":
        """Return what one step reads, as views."""
        return Steps(*(tensor[step] for tensor in self))

    def row_at(self, counter: Tensor) -> "Steps":
        """Return what one step reads, as copies; ``counter`` is its number, int64 ``[1]`` on the device."""
        return Steps(*(tensor.index_select(0, counter)[0] for tensor in self))


Take = Callable[[Steps, bool], None]
"""Takes one step, given its row and whether models have finished the epoch before it, whose state must not change then.

It must not read from or write to the host.
"""


class CountedSteps:
    """Takes the steps of epochs one after the other, by a counter on the device; on CUDA as graphs.

    Args:
        steps: the tensors that the steps read. Their values may change between epochs, their memory may not.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.counter = torch.zeros(1, dtype=torch.int64, device=steps.order.device)
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}

    def begin(self) -> None:
        """Begin an epoch."""
        self.counter.zero_()

    def next(self, take: Take, some_finished: bool) -> None:
        """Take the next step of the epoch; ``take`` is the same function in every call."""
        if some_finished in self.graphs:
            self.graphs[some_finished].replay()
        elif self.counter.is_cuda:
            self._record(take, some_finished)
        else:
            self._take(take, some_finished)

    def _take(self, take: Take, some_finished: bool) -> None:
        take(self.steps.row_at(self.counter), some_finished)
        self.counter += 1

    def _record(self, take: Take, some_finished: bool) -> None:
        """Take a step, and record the kernels of the following ones."""
        # The first step is not recorded: libraries prepare themselves in it, on the host. Recording computes nothing.
        aside = torch.cuda.Stream(self.counter.device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._take(take, some_finished)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph):
            self._take(take, some_finished)
        self.graphs[some_finished] = graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before, and not in this block: to free an older graph would end the recording of a new one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """On CUDA: compute products and convolutions in float32 without TF32, by algorithms that repeat their bits.

    By default PyTorch rounds the factors of convolutions to the 10 bits of TF32.
    """
    if device.type != "cuda":
        yield
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
