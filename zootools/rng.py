"""All random numbers of a model, as pure functions of its seed.

A stream is named by (seed, purpose, ...) and used for nothing else: two models of one seed draw the same initial
weights and the same order of data, whatever their other hyper-parameters, and a model draws the same numbers in any
stack, in any process, and after any interruption. Global generators are not used.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


def stream(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """Return the generator of one purpose: Philox with a hash of the name as its key."""
    name = "/".join(map(str, (seed, purpose, *counters)))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    return np.random.Generator(np.random.Philox(key=key))


def data_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int32]:
    """Return the order of ``count`` images in one epoch (1, 2, ...) for a seed: a permutation, int32 ``[count]``."""
    return stream(seed, "order", epoch).permutation(count).astype(np.int32)


def dropout_key(seed: int, epoch: int, layer: str) -> int:
    """Return the 32-bit key of `dropout_bits` for one model, epoch and layer."""
    name = f"{seed}/dropout/{epoch}/{layer}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


def dropout_bits(key: Any, counter: Any) -> Any:
    """Return 32 random bits for each (key, counter), as int64 in [0, 2^32).

    Dropout needs bits for every unit of every sample of every model, the same in each backend, so this is a
    counter-based hash and not a generator with a state: two rounds of a 32-bit integer mixer, with the key added in
    between. It works element-wise on integers, numpy int64 arrays and torch int64 tensors. A unit is dropped if its
    bits are below rate * 2^32. The function ``drop`` of zootools/native/network.h computes the same bits.
    """
    return _mix((_mix((counter * 0x9E3779B1 + key) & 0xFFFFFFFF) + key) & 0xFFFFFFFF)


def _mix(bits: Any) -> Any:
    """Return the finaliser of MurmurHash3 (public domain): every input bit flips half of the output bits."""
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return bits ^ (bits >> 16)
