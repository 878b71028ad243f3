"""Matrix products whose bits do not depend on the alignment of their factors in memory, or on the number of threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread in a block, as the workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_products_repeatable() -> None:
    """Set ``MKL_CBWR`` to ``AUTO,STRICT``, unless it is set already.

    Otherwise the last bits of a product depend on the addresses of its factors, and so a model's bits on its place in a
    stack. MKL reads the variable at its first use, in this process and its children. Modules that train call this
    function when they are imported, so that builds and encoders share one setting.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
