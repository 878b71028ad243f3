"""Shards: the safetensors files that training writes, each with one stack's models at one epoch.

A shard is the record: it holds the parameters by name, ``[models, *shape]`` float32, and under the one
metadata key ``zootools`` a canonical JSON text with the epoch, the model ids of the rows and what they
score. Weights and scores so become visible in one rename, and every table can be rebuilt from shards.
"""

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import FailFast, Field, TypeAdapter

from zootools.architectures import Schema
from zootools.checked import CheckedFiles, unreadable
from zootools.errors import DamagedZooError
from zootools.files import open_inside
from zootools.json_reader import parse_json
from zootools.population import canonical_json
from zootools.sealed import require
from zootools.sections import Section

MAX_HEADER = 10 << 20
SMALL = 1 << 20


@dataclass(frozen=True)
class ShardInfo:
    """What a shard says of its rows: ``properties`` maps a column to one value per row."""

    epoch: int
    model_ids: list[str]
    properties: dict[str, list[Any]]


def shard_name(stack: int, epoch: int) -> str:
    """Return the path of a shard inside its zoo."""
    return f"checkpoints/stack-{stack:05d}/epoch-{epoch:04d}.safetensors"


def stack_of(name: str) -> int:
    """Return the number of the stack in the name of a shard, or -1 when it is not one."""
    match = re.match(r"checkpoints/stack-(\d{5})/", name, re.ASCII)
    return int(match[1]) if match else -1


def shard_bytes(schema: Schema, weights: npt.NDArray[np.float32], info: ShardInfo) -> bytes:
    """Serialise flat weights ``[models, parameters]`` and their info; equal input gives equal bytes."""
    from safetensors.numpy import save

    tensors = {
        p.name: np.ascontiguousarray(weights[:, p.offset : p.end]).reshape(-1, *p.shape) for p in schema.parameters
    }
    text = canonical_json({"epoch": info.epoch, "model_ids": info.model_ids, "properties": info.properties})
    # One key only: safetensors writes several in random order.
    return save(tensors, {"zootools": text})


class _Info(Section):
    """What the metadata of a shard may hold."""

    epoch: Annotated[int, Field(ge=0, le=100_000)]
    model_ids: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]], FailFast(), Field(min_length=1)]
    properties: Annotated[dict[str, list[Any]], Field(max_length=100)]


_INFO = TypeAdapter(_Info)
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_NUMBERS = TypeAdapter(Annotated[list[_Number], FailFast()])
_LISTS = TypeAdapter(Annotated[list[Annotated[list[_Number], FailFast()]], FailFast()])
"""What a shard has in a column: a number for each row, or a list of numbers."""


def read_info(folder: Path, name: str) -> ShardInfo:
    """Read what a shard says of its rows, without its weights. Raises DamagedZooError."""
    path = folder / name
    header = parse_json(_read_header(folder, name), str(path))
    try:
        text = header["__metadata__"]["zootools"].encode()
    except (KeyError, TypeError, AttributeError):
        raise DamagedZooError(f"{path}: is not a shard of a zoo: it has no metadata zootools") from None
    value = parse_json(text, f"{path}: metadata")
    info = require(_INFO, value, f"{path}: metadata")
    rows, properties = len(info.model_ids), dict[str, list[Any]]()
    for column, values in info.properties.items():
        if len(values) != rows:
            raise DamagedZooError(f"{path}: metadata: {column!r}: {len(values)} values for {rows} models")
        kind = _LISTS if isinstance(values[0], list) else _NUMBERS
        properties[column] = require(kind, values, f"{path}: metadata", f"properties.{column}")
    if name != shard_name(stack_of(name), info.epoch):
        raise DamagedZooError(f"{path}: metadata: epoch: found {info.epoch}, which is not that of its name")
    return ShardInfo(info.epoch, info.model_ids, properties)


def _read_header(folder: Path, name: str, whole: bool = True) -> bytes:
    """Return the JSON header of a safetensors file, or nothing but the assurance that it is not too large."""
    try:
        with open_inside(folder, name) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise DamagedZooError(f"{folder / name}: a header of {length} bytes, more than {MAX_HEADER}")
            return file.read(length) if whole else b""
    except OSError as error:
        raise DamagedZooError(f"{folder / name}: {unreadable(error)}") from error


def gather_weights(
    files: CheckedFiles, schema: Schema, stacks: npt.ArrayLike, epochs: npt.ArrayLike, rows: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Copy the weights of some checkpoints from mapped shards into one array.

    ``stacks``, ``epochs`` and ``rows`` name one checkpoint each, in any order. Returns float32
    ``[checkpoints, parameters]``. Raises DamagedZooError for a shard that is not what the schema or its
    sha256 promises, and for weights that are not finite, which no builder stores.
    """
    stacks, epochs, rows = (np.asarray(values, np.int64) for values in (stacks, epochs, rows))
    result = np.empty((len(rows), schema.size), np.float32)
    shard = stacks * (int(epochs.max(initial=0)) + 1) + epochs
    order = np.argsort(shard, kind="stable")
    starts = np.flatnonzero(np.diff(shard[order], prepend=-1))
    ends = np.append(starts, len(order))[1:]
    # Where rows follow each other in the shard and in the result, plain slices do, which copy much faster than index
    # arrays; most reads are whole shards.
    breaks = np.cumsum((np.diff(rows[order], prepend=0) != 1) | (np.diff(order, prepend=0) != 1))
    plain = breaks[starts] == breaks[ends - 1]
    names = [
        shard_name(stack, epoch)
        for stack, epoch in zip(stacks[order[starts]].tolist(), epochs[order[starts]].tolist(), strict=True)
    ]
    files.check(names)
    places = [(parameter.name, parameter.offset, parameter.end) for parameter in schema.parameters]
    for name, start, end, straight in zip(names, starts.tolist(), ends.tolist(), plain.tolist(), strict=True):
        tensors, group = _map_shard(files, name, schema), order[start:end]
        picked = rows[group]
        count = len(tensors[places[0][0]])
        if picked.min() < 0 or picked.max() >= count:
            raise DamagedZooError(f"{files.folder}: {name}: has no row {picked.max()}")
        source = slice(int(picked[0]), int(picked[-1]) + 1) if straight else picked
        target = slice(int(group[0]), int(group[-1]) + 1) if straight else group
        for tensor, first, last in places:
            result[target, first:last] = tensors[tensor].reshape(count, -1)[source]
        if files.verify and not _is_finite(result[target]):
            raise DamagedZooError(f"{files.folder}: {name}: holds weights that are not finite")
    return result


def _is_finite(values: npt.NDArray[np.float32]) -> bool:
    """Whether there is no infinity or NaN in a contiguous array; a finite sum of squares says so at once."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore"):  # of large weights, which are looked at one by one then
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


def _map_shard(files: CheckedFiles, name: str, schema: Schema) -> Mapping[str, npt.NDArray[np.float32]]:
    """Map the tensors of a shard, each checked against the schema."""
    from safetensors import SafetensorError, safe_open

    if tensors := _map_as_written(files, name, schema):
        return tensors
    path = files.folder / name
    _read_header(files.folder, name, whole=False)  # the library itself would take a header of 100 MB
    try:
        with safe_open(path, framework="pt") as file:
            names = {parameter.name for parameter in schema.parameters}
            if set(file.keys()) != names:
                raise DamagedZooError(f"{path}: expected the tensors {sorted(names)}, found {sorted(file.keys())}")
            for parameter in schema.parameters:
                view = file.get_slice(parameter.name)
                shape = tuple(view.get_shape())
                if view.get_dtype() != "F32" or shape[1:] != parameter.shape:
                    raise DamagedZooError(
                        f"{path}: {parameter.name} is {view.get_dtype()} {shape}, "
                        f"expected F32 [models, {', '.join(map(str, parameter.shape))}]"
                    )
                tensors[parameter.name] = file.get_tensor(parameter.name).numpy()
    except (SafetensorError, OSError) as error:
        raise DamagedZooError(f"{path}: cannot be read as safetensors ({error})") from error
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        raise DamagedZooError(f"{path}: its tensors have different numbers of models")
    return tensors


def _map_as_written(files: CheckedFiles, name: str, schema: Schema) -> dict[str, npt.NDArray[np.float32]]:
    """Map a shard by where `shard_bytes` puts each tensor, or return nothing if its header does not end like that.

    Most of a header is what the models score. Not parsing it makes loading a zoo of small models several times faster.
    """
    per_model = 4 * schema.size
    with files.open(name) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # Small files are read faster than mapped.
            mapped = (
                os.pread(file.fileno(), size, 0)
                if size < SMALL
                else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            )
        except (OSError, ValueError):
            return {}
    length = int.from_bytes(mapped[:8], "little")
    models, rest = divmod(len(mapped) - 8 - length, per_model)
    if length > MAX_HEADER or models < 1 or rest:
        return {}
    tail, places = _layout(schema, models)
    # The header is padded with up to seven spaces.
    if not mapped[max(8, 1 + length - len(tail)) : 8 + length].rstrip(b" ").endswith(tail):
        return {}
    values = np.frombuffer(mapped, np.float32, models * schema.size, 8 + length)
    return {name: values[start:end].reshape(shape) for name, start, end, shape in places}


@lru_cache
def _layout(schema: Schema, models: int) -> tuple[bytes, list[tuple[str, int, int, tuple[int, ...]]]]:
    """Return how the header of a shard of so many models ends, from the end of its metadata on, and where tensors lie.

    Of each tensor: its name, the first value and the one behind the last, its shape.
    """
    entries, places, start = [], [], 0
    for parameter in sorted(schema.parameters, key=lambda parameter: parameter.name):
        shape, end = (models, *parameter.shape), start + models * parameter.size
        span = f"[{4 * start},{4 * end}]"
        entries.append(
            f'"{parameter.name}":{{"dtype":"F32","shape":{list(shape)},"data_offsets":{span}}}'.replace(" ", "")
        )
        places.append((parameter.name, start, end, shape))
        start = end
    return ('"},' + ",".join(entries) + "}").encode(), places
