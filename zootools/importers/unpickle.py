"""The process that reads pickles of others: ``python -m zootools.importers.unpickle MEMORY``.

It reads names of files from stdin, one JSON text a line, and answers each on stdout with a frame: the length of its
bytes (8 bytes, little-endian) and the tensors as safetensors, or JSON with the reason why there are none. torch is told
to build nothing but tensors (``weights_only``), the memory of this process is limited, and its parent ends it when it
takes too long; whatever the pickle does, the parent reads only safetensors and JSON.
"""

import json
import os
import resource
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

MAX_FILE = 1 << 30
"""Bytes of a file with one checkpoint."""
DEPTH = 4
"""Dictionaries inside each other that are searched for a state dict."""


class NoStateError(Exception):
    """A file holds no state dict, or several; the message says so."""


def main() -> None:
    """Answer every line of stdin."""
    # The address space of torch depends on the machine: with CUDA its libraries alone take many gigabytes.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, used + int(sys.argv[1]))
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    torch.set_num_threads(1)
    # What a library prints must not get between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        data = _answer(json.loads(line))
        answers.write(len(data).to_bytes(8, "little") + data)
        answers.flush()


def _limit(kind: int, limit: int) -> None:
    """Lower both limits of a resource; a limit that is already lower stays."""
    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _answer(path: str) -> bytes:
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            return json.dumps("is not a regular file").encode()
        if about.st_size > MAX_FILE:
            return json.dumps("is larger than a file with one checkpoint may be").encode()
        state = _state(torch.load(path, map_location="cpu", weights_only=True))
        return save({name: tensor.detach().contiguous().clone() for name, tensor in state.items()})
    except (FileNotFoundError, PermissionError) as error:
        reason = f"cannot be read ({error.strerror})"
    except MemoryError:
        reason = "needs more memory than a file of checkpoints may take"
    except Exception as error:
        reason = _reason(error)
    return json.dumps(reason).encode()


def _reason(error: Exception) -> str:
    """Return in words why a file is not read; what differs from file to file is left out."""
    text = str(error)
    if "alloc" in text.lower() and "memory" in text.lower():
        return "needs more memory than a file of checkpoints may take"
    if "weights_only" in text or "Unsupported" in text:
        return "is a pickle with code or objects, which is not run"
    if isinstance(error, NoStateError):
        return text
    return "cannot be read as a file of torch (is truncated or damaged)"


def _state(value: Any) -> dict[str, torch.Tensor]:
    """Return the state dict in what a file holds: itself, or the only one in the dictionaries inside of it."""
    found = list(_states(value, DEPTH))
    if len(found) != 1:
        raise NoStateError("holds no state dict" if not found else f"holds {len(found)} state dicts")
    return found[0]


def _states(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping) and depth:
        tensors = {str(name): item for name, item in value.items() if isinstance(item, torch.Tensor)}
        if tensors and all(item.layout == torch.strided for item in tensors.values()):
            yield tensors
        else:
            for item in value.values():
                yield from _states(item, depth - 1)


if __name__ == "__main__":
    main()
