"""Shards: the safetensors files that training writes, each with one stack's models at one epoch.

A shard contains the parameters by name, float32 ``[models, *shape]``, and under its only metadata key, ``zootools``, a
canonical JSON text with the epoch, the ids and the scores of the models. Weights and scores thus become visible in one
rename, and every table can be rebuilt from the shards.
"""

import json
import mmap
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import FailFast, Field, TypeAdapter

from zootools.architectures import Parameter, Schema
from zootools.errors import DamagedZooError
from zootools.filesystem.inside import open_inside
from zootools.hashing import canonical_json
from zootools.json_reader import parse_json
from zootools.spec.sections import DEFERRED, Section
from zootools.storage.hashed_json import validate
from zootools.storage.imported import Imported
from zootools.storage.verified_files import THREADS, VerifiedFiles, unreadable

MAX_HEADER = 10 << 20
"""Maximal size of a header, in bytes."""
BLOCK = 1 << 16
"""Values that are read, hashed and copied at a time: they stay in the processor's cache."""
AT_ONCE = 8
"""Shards that a thread reads before it asks for more; asking takes as long as opening a file."""
NOT_FINITE = "contains weights that are not finite"
SMALL = 1 << 20
"""Files of fewer bytes are read, larger ones are mapped; each is faster for its size."""


@dataclass(frozen=True)
class ShardInfo:
    """The metadata of a shard."""

    epoch: int
    model_ids: list[str]
    """The models of the rows."""
    properties: dict[str, list[Any]]
    """The columns of scores by name: for every row a number, or a list of numbers."""


class Shard(NamedTuple):
    """The values of a shard that is read or mapped."""

    values: npt.NDArray[np.float32]
    """float32 ``[models * parameters]``, in the order of the file (`_spans`)."""
    models: int


def shard_name(stack: int, epoch: int) -> str:
    """Return the path of a shard inside its zoo."""
    return f"checkpoints/stack-{stack:05d}/epoch-{epoch:04d}.safetensors"


def stack_of(name: str) -> int:
    """Return the number of the stack in the name of a shard; -1 for any other name."""
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
    """The fields of a shard's metadata."""

    epoch: Annotated[int, Field(ge=0, le=100_000)]
    model_ids: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]], FailFast(), Field(min_length=1)]
    properties: Annotated[dict[str, list[Any]], Field(max_length=100)]


_INFO = TypeAdapter(_Info)
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_NUMBERS = TypeAdapter(Annotated[list[_Number], FailFast()], config=DEFERRED)
_LISTS = TypeAdapter(Annotated[list[Annotated[list[_Number], FailFast()]], FailFast()], config=DEFERRED)
"""The types of a column: a number for each row, or a list of numbers."""


def read_info(folder: Path, name: str, imported: Imported | None = None) -> ShardInfo:
    """Return the metadata of a shard; its weights are not read.

    The columns are those of scores: numbers, or lists of numbers; of an imported zoo those of its record.
    Raises DamagedZooError.
    """
    path = folder / name
    header = parse_json(_read_header(folder, name), path)
    try:
        text = header["__metadata__"]["zootools"].encode()
    except (KeyError, TypeError, AttributeError):
        raise DamagedZooError("is not a shard of a zoo: it has no metadata key zootools", path=path) from None
    try:
        value = parse_json(text, "metadata")
    except DamagedZooError as error:
        raise DamagedZooError(str(error), path=path) from error
    if canonical_json(value).encode() != text:
        raise DamagedZooError("metadata: is not canonical JSON", path=path)
    info = validate(_INFO, value, path, "metadata")
    rows, properties = len(info.model_ids), dict[str, list[Any]]()
    for column, values in info.properties.items():
        if len(values) != rows:
            raise DamagedZooError(f"metadata: {column!r}: {len(values)} values for {rows} models", path=path)
        if imported is None:
            kind = _LISTS if isinstance(values[0], list) else _NUMBERS
            values = validate(kind, values, path, f"metadata.properties.{column}")
        properties[column] = values
    if imported is not None:
        imported.check_values(properties, path)
    if name != shard_name(stack_of(name), info.epoch):
        raise DamagedZooError(f"metadata.epoch: found {info.epoch}, which is not that of its name", path=path)
    return ShardInfo(info.epoch, info.model_ids, properties)


def check_shard(files: VerifiedFiles, schema: Schema, name: str, imported: Imported | None = None) -> ShardInfo:
    """Read a whole shard, and return its metadata.

    Raises DamagedZooError unless its tensors are those of the schema, finite, and have one row for each model.
    """
    info = read_info(files.folder, name, imported)
    values, models = open_shard(files, name, schema)
    if models != len(info.model_ids):
        raise DamagedZooError(
            f"has {models} rows, but the ids of {len(info.model_ids)} models", path=files.folder / name
        )
    if not _is_finite(values):
        raise DamagedZooError(NOT_FINITE, path=files.folder / name)
    return info


def _read_header(folder: Path, name: str) -> bytes:
    """Return the JSON header of a safetensors file. Raises DamagedZooError if it is too large."""
    try:
        with open_inside(folder, name) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise DamagedZooError(f"its header has {length} bytes, more than {MAX_HEADER}", path=folder / name)
            return file.read(length)
    except OSError as error:
        raise DamagedZooError(unreadable(error), path=folder / name) from error


def gather_weights(
    files: VerifiedFiles,
    schema: Schema,
    stacks: npt.ArrayLike,
    epochs: npt.ArrayLike,
    rows: npt.ArrayLike,
    opened: Callable[[str], Shard] | None = None,
) -> npt.NDArray[np.float32]:
    """Copy the weights of checkpoints from mapped shards into one array.

    Args:
        files: the files of the zoo.
        schema: the layers of every model.
        stacks: the stack of each checkpoint, integers ``[checkpoints]``, in any order.
        epochs: the epoch of each checkpoint.
        rows: the row of each checkpoint in the shard of its stack and epoch.
        opened: returns a shard by its name; by default each is opened once, and closed.

    Returns float32 ``[checkpoints, parameters]``. Raises DamagedZooError for a shard whose sha256 or layout is not the
    expected one, and for weights that are not finite, which no builder stores.
    """
    stacks, epochs, rows = (np.asarray(values, np.int64) for values in (stacks, epochs, rows))
    result = np.empty((len(rows), schema.size), np.float32)
    shard = stacks * (int(epochs.max(initial=0)) + 1) + epochs
    order = np.argsort(shard, kind="stable")
    starts = np.flatnonzero(np.diff(shard[order], prepend=-1))
    ends = np.append(starts, len(order))[1:]
    # Consecutive rows (most reads are whole shards) are copied with slices, much faster than with index arrays.
    breaks = np.cumsum((np.diff(rows[order], prepend=0) != 1) | (np.diff(order, prepend=0) != 1))
    plain = breaks[starts] == breaks[ends - 1]
    names = [
        shard_name(stack, epoch)
        for stack, epoch in zip(stacks[order[starts]].tolist(), epochs[order[starts]].tolist(), strict=True)
    ]

    copies = list(zip(names, starts.tolist(), ends.tolist(), plain.tolist(), strict=True))

    def copy(first: int) -> None:
        buffer = np.empty(max(BLOCK, *(parameter.size for parameter in schema.parameters)), np.float32)
        for name, start, end, straight in copies[first : first + AT_ONCE]:
            group = order[start:end]
            rows_of_copy = _Rows(rows[group], group, straight, result)
            if opened is None and files.verify and files.identity(name) is None:
                _copy_hashed(files, schema, name, rows_of_copy, buffer)
            else:
                _copy_mapped(files, schema, name, rows_of_copy, opened(name) if opened else None)

    firsts = range(0, len(copies), AT_ONCE)
    if opened is not None:  # they are kept open by the caller, which is not prepared for threads
        files.check(names)
        for first in firsts:
            copy(first)
        return result
    with ThreadPoolExecutor(min(THREADS, max(1, len(firsts)))) as pool:
        for _ in pool.map(copy, firsts):
            pass  # the first error, in the order of the files, is raised here
    return result


@dataclass(frozen=True)
class _Rows:
    """Rows of one shard, and where they are copied to."""

    picked: npt.NDArray[np.int64]
    """The rows of the shard, in the order of their targets."""
    targets: npt.NDArray[np.int64]
    """The rows of the result."""
    straight: bool
    """Whether both are consecutive, so that slices can be used, which are much faster than index arrays."""
    result: npt.NDArray[np.float32]

    def copy(self, block: npt.NDArray[np.float32], first: int, columns: slice) -> None:
        """Copy from a part of the shard's rows ``[rows, values]`` that begins with the row ``first``."""
        if self.straight:
            begin, end = (min(max(int(row) - first, 0), len(block)) for row in (self.picked[0], self.picked[-1] + 1))
            at = int(self.targets[0]) + first + begin - int(self.picked[0])
            self.result[at : at + end - begin, columns] = block[begin:end]
        else:
            here = (self.picked >= first) & (self.picked < first + len(block))
            self.result[self.targets[here], columns] = block[self.picked[here] - first]

    def are_finite(self) -> bool:
        """Whether all that was copied is finite."""
        if self.straight:
            return _is_finite(self.result[self.targets[0] : self.targets[-1] + 1])
        return _is_finite(self.result[self.targets])

    def fault(self, models: int) -> str | None:
        """Return what is wrong if the shard has ``models`` models, or None."""
        return f"has no row {self.picked.max()}" if self.picked.min() < 0 or self.picked.max() >= models else None


def _copy_hashed(files: VerifiedFiles, schema: Schema, name: str, rows: _Rows, buffer: npt.NDArray[np.float32]) -> None:
    """Copy rows of a shard while it is hashed: every byte is read once, so that what is copied is what was hashed."""
    fault, written = None, False
    with files.reading(name) as reader:
        size = files.files[name].size
        length = int.from_bytes(reader.read(8), "little")
        if length <= min(MAX_HEADER, size):
            header = reader.read(length)
            models, rest = divmod(size - 8 - length, 4 * schema.size)
            written = models >= 1 and not rest and _is_as_written(header, _layout(schema, models))
        if written and files.expected_rows(name) in (None, models):
            fault = rows.fault(models)
            for block in _layout(schema, models).blocks if fault is None else ():
                values = buffer[: block.values]
                if not reader.fill(values):
                    break  # the file was cut short, which its hash shows
                for parameter, first, begin, end in block.pieces:
                    piece = values[begin:end].reshape(-1, parameter.size)
                    rows.copy(piece, first, slice(parameter.offset, parameter.end))
        else:
            written = False
    if not written:
        _copy_mapped(files, schema, name, rows)  # raises what is wrong with the layout
    elif fault or not rows.are_finite():
        raise DamagedZooError(fault or NOT_FINITE, path=files.folder / name)


def _copy_mapped(files: VerifiedFiles, schema: Schema, name: str, rows: _Rows, shard: Shard | None = None) -> None:
    """Copy rows of a shard that is mapped, or read if it is small."""
    values, models = shard or open_shard(files, name, schema)
    fault = rows.fault(models)
    for parameter, begin, stop in _layout(schema, models).spans if fault is None else ():
        block = values[begin:stop].reshape(models, -1)
        rows.copy(block, 0, slice(parameter.offset, parameter.end))
    if fault or (files.verify and not rows.are_finite()):
        raise DamagedZooError(fault or NOT_FINITE, path=files.folder / name)


def _is_finite(values: npt.NDArray[np.float32]) -> bool:
    """Whether a contiguous array has no infinity or NaN; a finite sum of squares, which is fast, proves it."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore"):  # the values are then compared one by one
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


def open_shard(files: VerifiedFiles, name: str, schema: Schema, small: int = SMALL) -> Shard:
    """Map a shard, or read it if it has fewer than ``small`` bytes.

    Only the layout that `shard_bytes` writes is accepted, byte by byte, so that no two readers can interpret a file
    differently. Raises DamagedZooError with the difference.
    """
    try:
        with files.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            # Small files are read faster than mapped.
            mapped = (
                os.pread(file.fileno(), size, 0)
                if size < small
                else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            )
    except (OSError, ValueError) as error:
        raise DamagedZooError(f"cannot be read ({error})", path=files.folder / name) from error
    length = int.from_bytes(mapped[:8], "little")
    behind = len(mapped) - 8 - length
    if length > MAX_HEADER or behind < 0:
        raise DamagedZooError(f"its header has {length} bytes, the file {len(mapped)}", path=files.folder / name)
    header = mapped[8 : 8 + length]
    models, rest = divmod(behind, 4 * schema.size)
    if models < 1 or rest or not _is_as_written(header, _layout(schema, models)):
        raise DamagedZooError(_layout_fault(header, behind, schema), path=files.folder / name)
    expected = files.expected_rows(name)
    if expected is not None and models != expected:
        raise DamagedZooError(f"has {models} rows, expected {expected}", path=files.folder / name)
    return Shard(np.frombuffer(mapped, np.float32, models * schema.size, 8 + length), models)


def _is_as_written(header: bytes, layout: "_Layout") -> bool:
    """Whether a header has the bytes that `shard_bytes` writes, except for the text in its metadata."""
    text = header.rstrip(b" ")
    if len(header) - len(text) >= 8 or not (text.startswith(layout.before) and text.endswith(layout.behind)):
        return False
    return _is_one_string(text[len(layout.before) : len(text) - len(layout.behind)])


def _is_one_string(text: bytes) -> bool:
    """Whether this is one JSON string of ASCII characters, which every reader of JSON ends at the same place."""
    if len(text) < 3 or not text[0] == text[-1] == ord('"'):
        return False
    inner = np.frombuffer(text, np.uint8, len(text) - 2, 1)
    quote, escape = inner == ord('"'), inner == ord("\\")
    # Of the texts that training writes this is all: no other escape, each before a quote, and no quote without one.
    if inner.min() >= 32 and inner.max() < 127 and not (quote[0] or escape[-1]) and (escape[:-1] == quote[1:]).all():
        return True
    try:
        value = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, str) and value.isascii()


class _Block(NamedTuple):
    """Values of a shard that are read, hashed and copied at a time."""

    values: int
    pieces: list[tuple[Parameter, int, int, int]]
    """Rows of a parameter: the parameter, the first row, and the start and end of the values in the block."""


class _Layout(NamedTuple):
    """The layout of a shard, as `shard_bytes` writes it."""

    before: bytes
    """The header before the text of its metadata."""
    behind: bytes
    spans: list[tuple[Parameter, int, int]]
    """The tensors in the order of the file, each with the start and end of its values."""
    blocks: list[_Block]


@lru_cache
def _layout(schema: Schema, models: int) -> _Layout:
    """Return the layout of a shard with a number of models."""
    spans = _spans(schema, models)
    entries: dict[str, Any] = {"__metadata__": {"zootools": ""}}
    for parameter, start, end in spans:
        shape = [models, *parameter.shape]
        entries[parameter.name] = {"dtype": "F32", "shape": shape, "data_offsets": [4 * start, 4 * end]}
    before, _, behind = json.dumps(entries, separators=(",", ":")).partition('""')
    return _Layout(before.encode(), behind.encode(), spans, _blocks(spans, models))


def _blocks(spans: list[tuple[Parameter, int, int]], models: int) -> list[_Block]:
    """Divide the values of a shard into blocks of whole rows of its tensors, of `BLOCK` values or one row."""
    blocks = [_Block(0, [])]
    for parameter, _, _ in spans:
        first = 0
        while first < models:
            begin = blocks[-1].values
            count = min(models - first, max(BLOCK - begin, 0 if begin else parameter.size) // parameter.size)
            if count == 0:
                blocks.append(_Block(0, []))
                continue
            end = begin + count * parameter.size
            blocks[-1] = _Block(end, [*blocks[-1].pieces, (parameter, first, begin, end)])
            first += count
    return blocks


def _layout_fault(header: bytes, size: int, schema: Schema) -> str:
    """Return why a header, followed by ``size`` bytes of values, is not that of a shard."""
    try:
        entries = parse_json(header, "its header")
        names, found = sorted(parameter.name for parameter in schema.parameters), sorted({*entries} - {"__metadata__"})
        if found != names:
            return f"expected the tensors {names}, found {found!s:.400}"
        for parameter in schema.parameters:
            entry = entries[parameter.name]
            shape = entry["shape"]
            if entry["dtype"] != "F32" or not shape or shape[1:] != list(parameter.shape):
                return (
                    f"{parameter.name} is {entry['dtype']!s:.40} {shape!s:.80}, "
                    f"expected F32 [models, {', '.join(map(str, parameter.shape))}]"
                )
        models = entries[names[0]]["shape"][0]
        expected = [[4 * start, 4 * end] for _, start, end in _spans(schema, models)] if type(models) is int else []
        spans = [entries[name]["data_offsets"] for name in names]
        if spans != expected or spans[-1][1] != size:
            return f"its tensors lie at {spans!s:.200} in {size} bytes, expected one behind the other up to the end"
        return "its header is not written as zootools writes it"
    except DamagedZooError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"cannot be read as safetensors ({error!s:.200})"


def _spans(schema: Schema, models: int) -> list[tuple[Parameter, int, int]]:
    """Return the tensors of a shard in the order of the file, each with the start and end of its values."""
    spans, start = [], 0
    for parameter in sorted(schema.parameters, key=lambda parameter: parameter.name):
        end = start + models * parameter.size
        spans.append((parameter, start, end))
        start = end
    return spans
