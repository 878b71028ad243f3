"""Populations of other tools: Parquet files with a column of weights, read with a schema that the user gives.

A row is a checkpoint. One column has its flat weights, a list of floats in the order of the schema; the columns
``model_id``, ``epoch`` and ``split`` are used if they exist, and every other number or text is a property
(`zootools.hub.foreign_columns`). The files may be local or on the Hub. Other formats are not read, because some of them
can contain code.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zootools.architectures import Layer, Schema
from zootools.errors import DamagedZooError, SpecError, StorageError, ZooNotFoundError
from zootools.filesystem.files import exists, open_regular
from zootools.hub import folder as hub_folder
from zootools.hub.foreign_memory import Memory
from zootools.hub.foreign_tables import Part, column_names, joined, read_part
from zootools.hub.locate import hub_url, in_hub_folder, name_of
from zootools.json_reader import parse_json
from zootools.object_store.urls import folder_of
from zootools.source import Request
from zootools.storage.file_rules import is_hidden
from zootools.storage.manifest import Counts
from zootools.storage.place import Place
from zootools.zoo import Zoo

LOG = logging.getLogger(__name__)

MAX_SCHEMA = 10 << 20
"""Bytes of a file with a schema."""

_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|dev|test)(?:[/_.-]|$)")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True, repr=False)
class ForeignZoo(Zoo):
    """A population that zootools did not build: without manifest and specification, its weights in memory."""

    flat: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32), compare=False)
    """float32 ``[rows, parameters]``; the column ``row`` of the metadata has the row of a checkpoint."""

    def mapped_weights(self) -> "FlatWeights":
        """Return the flat weights of all checkpoints, which are in memory."""
        return FlatWeights(self.flat, self.metadata["row"].to_numpy())


@dataclass(frozen=True)
class FlatWeights:
    """Rows of weights in memory; `zootools.storage.mapped_weights.WeightRows`."""

    flat: npt.NDArray[np.float32]
    """float32 ``[rows, parameters]``."""
    rows: npt.NDArray[np.int64]
    """The row of each checkpoint."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return a copy of some rows."""
        return self.flat[self.rows[np.asarray(places, np.int64)]]

    def read_all(self) -> npt.NDArray[np.float32]:
        """Return a copy of all rows."""
        return self.flat[self.rows]


class ParquetSource:
    """A `zootools.source.Source` of Parquet files with a weights column, in a folder, a hub folder or on the Hub."""

    def accepts(self, request: Request) -> bool:
        """Whether a schema is given; without one the weights cannot be read."""
        return request.schema is not None

    def open(self, request: Request) -> ForeignZoo:
        """Read all files into memory.

        Raises ZooNotFoundError where there are no such files, SpecError where they do not fit the schema,
        DamagedZooError where they cannot be read.
        """
        assert request.schema is not None, "`accepts` has said so"
        schema, runs = read_schema(request.schema)
        place, files = parquet_files(request)
        chosen = with_weights(place.name, files)
        memory = Memory(sum(path.stat().st_size for path in chosen.values()))
        found = {name: read_part(path, schema, memory) for name, path in chosen.items()}
        parts = {name: part for name, part in found.items() if part is not None}
        if not parts:
            raise SpecError(f"{place.name}: its {len(files)} Parquet files have no rows")
        properties, left_out = joined(list(parts.values()))
        if left_out:
            LOG.warning("%s: left out: %s", place.name, "; ".join(f"{name!r}: {why}" for name, why in left_out.items()))
        flat = np.concatenate([part.weights for part in parts.values()]) if len(parts) > 1 else _first(parts).weights
        metadata = _metadata(parts, properties, flat)
        counts = _counts(metadata)
        return ForeignZoo(
            place.folder, None, schema, metadata, counts, {}, place=place, left_out=left_out, flat=flat, runs=runs
        )


def _counts(metadata: pa.Table) -> Counts:
    """Count models and checkpoints; a model with weights that are not finite in any checkpoint has diverged."""
    models = pc.count_distinct(metadata["model_id"]).as_py()
    diverged = pc.count_distinct(metadata.filter(pc.field("status") == "diverged")["model_id"]).as_py()
    return Counts(
        expected=models,
        ok=models - diverged,
        diverged=diverged,
        failed=0,
        missing=0,
        checkpoints=metadata.num_rows,
    )


def read_schema(given: Schema | str | Path) -> tuple[Schema, bool]:
    """Read a layer schema from a JSON file: a schema, a zoo.json, or an index as other published zoos have it.

    A schema in the place of the file is returned as it is.

    Returns the schema, and whether it is enough to run a network: an index has neither strides nor pooling, so the
    schema gets the smallest images that fit. Raises SpecError.
    """
    if isinstance(given, Schema):
        return given, True
    path = Path(given)
    try:
        with open_regular(path) as file:
            data = file.read(MAX_SCHEMA + 1)
        if len(data) > MAX_SCHEMA:
            raise SpecError(f"{path}: more than the {MAX_SCHEMA} bytes that a schema may have")
        value = parse_json(data, str(path))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except DamagedZooError as error:
        raise SpecError(str(error)) from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected a layer schema or an index (a JSON object)")
    try:
        if "idx_start" in value:
            return _from_index(value), False
        return Schema.from_json(value.get("schema", value)), True
    except (DamagedZooError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SpecError(f"{path}: {error!r:.200}; expected a layer schema, a zoo.json or an index") from error


def _from_index(index: Mapping[str, Any]) -> Schema:
    """Turn an index (parallel lists: layer, idx_start, idx_length, kernel_no, kernel_size, channels_in) into layers."""
    layers, offset, flattened = [], 0, 1
    keys = ("layer", "idx_start", "idx_length", "kernel_no", "kernel_size", "channels_in")
    for number, (layer, start, length, outputs, size, inputs) in enumerate(
        zip(*(index[key] for key in keys), strict=True)
    ):
        kind = "conv" if str(layer[1]).startswith("conv") else "linear"
        weights = outputs * size * inputs
        if start != offset or length not in (weights, weights + outputs):
            raise ValueError(f"layer {number}: {length} values at {start}; expected {weights} or {weights + outputs}")
        offset += length
        last, bias = number == len(index["layer"]) - 1, length > weights
        name = f"{'fc' if kind == 'linear' else 'conv'}{number + 1}"
        if kind == "conv":
            kernel = round(size**0.5)
            if kernel**2 != size:
                raise ValueError(f"layer {number}: a kernel of {size} values is not square")
            layers.append(Layer(name, "conv", inputs, outputs, kernel=kernel, bias=bias, activation=not last))
        else:
            flattened = size if layers and layers[-1].kind == "conv" else flattened
            layers.append(Layer(name, "linear", inputs * size, outputs, bias=bias, activation=not last))
    # The last convolution has `flattened` x 1 outputs per channel; without pooling each removes kernel - 1 pixels.
    margin = sum(layer.kernel - 1 for layer in layers if layer.kind == "conv")
    first = layers[0]
    shape = (first.inputs, flattened + margin, 1 + margin) if first.kind == "conv" else (first.inputs, 1, 1)
    return Schema("index", shape, tuple(layers))


def parquet_files(request: Request) -> tuple[Place, dict[str, Path]]:
    """Return the place of the files, and their paths by name. Raises ZooNotFoundError where there are none."""
    path = folder_of(request.path)
    if path is None:
        raise SpecError(
            f"{request.path}: Parquet files of other tools are read from a folder or the Hub; copy them first"
        )
    place: Place | None = Place(path, str(request.path), hub_folder.commit_of(path.absolute()))
    if not exists(path):
        name = name_of(request)
        place = in_hub_folder(name, request.hub)
    if place is not None:
        files = _find_files(place.folder) if place.folder.is_dir() else {place.folder.name: place.folder}
    else:
        from zootools.hub import remote

        place, files = remote.parquet_place(name, hub_url(request.hub))
        LOG.info("%s: from the Hub, commit %s", name, place.commit)
    if not files:
        raise ZooNotFoundError(
            f"{request.path}: holds no Parquet files; of a data set in another format the Hub keeps a copy in Parquet, "
            "at the revision refs/convert/parquet"
        )
    return place, files


def _find_files(folder: Path) -> dict[str, Path]:
    """Return the Parquet files below a folder by name, sorted; hidden files and links to folders are skipped."""

    def refuse(error: OSError) -> None:
        raise StorageError(f"{error.filename}: cannot be read ({error.strerror})") from error

    found = {}
    for where, folders, names in os.walk(folder, onerror=refuse):
        inside = Path(where).relative_to(folder)
        folders[:] = [name for name in folders if not is_hidden(f"{(inside / name).as_posix()}/x")]
        for name in folders:
            if (Path(where) / name).is_symlink():
                LOG.warning("%s: is a link to a folder, which is not followed", Path(where) / name)
        paths = (inside / name for name in names if name.endswith(".parquet"))
        found.update({path.as_posix(): folder / path for path in paths if not is_hidden(path.as_posix())})
    return dict(sorted(found.items()))


def with_weights(name: str, files: dict[str, Path]) -> dict[str, Path]:
    """Return the files that have a column named weights; all files, if none has."""
    named = {file: path for file, path in files.items() if "weights" in column_names(path)}
    if named and len(named) < len(files):
        others = ", ".join(file for file in files if file not in named)
        LOG.warning("%s: not read, because they have no column weights: %.500s", name, others)
    return named or files


def split_of(name: str) -> str | None:
    """Return the split that the name of a file contains, as `datasets` does; None where it contains none."""
    found = _SPLIT.findall(PurePosixPath(name).with_suffix("").as_posix().lower())
    return _ALIASES.get(found[-1], found[-1]) if found else None


def _metadata(
    parts: Mapping[str, Part], properties: Mapping[str, pa.ChunkedArray], flat: npt.NDArray[np.float32]
) -> pa.Table:
    """Return the table of a zoo: model_id, epoch, split, status, the properties, stack, row."""
    rows = len(flat)

    def column(name: str, kind: pa.DataType) -> pa.ChunkedArray:
        chunks = [chunk for part in parts.values() for chunk in part.identity[name].chunks]
        return pa.chunked_array(chunks, kind)

    first = _first(parts).identity
    ids = column("model_id", pa.string()) if "model_id" in first else [f"row-{row:08d}" for row in range(rows)]
    for name, part in parts.items():
        if "split" not in part.identity:
            split = pa.array([split_of(name) or "train"]).take(pa.array(np.zeros(len(part.weights), np.int32)))
            part.identity["split"] = pa.chunked_array([split])
    return pa.table(
        {
            "model_id": ids,
            "epoch": column("epoch", pa.int32()) if "epoch" in first else np.zeros(rows, np.int32),
            "split": column("split", pa.string()),
            "status": pa.array(np.where(np.isfinite(flat).all(axis=1), "ok", "diverged"), pa.string()),
            **properties,
            "stack": np.zeros(rows, np.int32),
            "row": np.arange(rows, dtype=np.int32),
        }
    )


def _first(parts: Mapping[str, Part]) -> Part:
    return next(iter(parts.values()))
