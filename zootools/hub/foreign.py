"""Populations that zootools did not publish: Parquet files with a column of weights, and a schema that the user gives.

A row is a checkpoint. One column holds its flat weights, a list of floats whose order the schema explains; the columns
``model_id``, ``epoch`` and ``split`` are used where they are there, everything else that is a number or a text is a
property. The files need not be on the Hub. Only Parquet is read: other formats can bring code along.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Layer, Schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError
from zootools.hub import folder as hub_folder
from zootools.hub.locate import LOG, Place, files_meant
from zootools.hub.names import hub_setting, parse_name
from zootools.tables import SPLITS
from zootools.zoo import Zoo

if TYPE_CHECKING:
    from torch import Tensor

    from zootools.networks import Network

MAX_ROWS = 10_000_000
MAX_BYTES = 16 << 30
"""Memory that weights, and properties, may take."""
MAX_SCHEMA = 10 << 20
BATCH_BYTES = 64 << 20

_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|dev|test)(?:[/_.-]|$)")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}
_OURS = ("model_id", "epoch", "split", "status", "stack", "row")


@dataclass(frozen=True)
class ForeignZoo(Zoo):
    """A population without a manifest: it has no specification, and its weights are in memory."""

    flat: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32), repr=False, compare=False
    )
    """float32 ``[rows, parameters]``; a checkpoint's row is in the metadata's column ``row``."""
    runs: bool = True
    """Whether the schema says enough to run a network."""

    def weights(self) -> "Tensor":
        """Return the flat weights of all checkpoints: float32 ``[checkpoints, parameters]``."""
        import torch

        return torch.from_numpy(self.flat[self.metadata["row"].to_numpy()])

    def module(self, model_id: str, epoch: int) -> "Network":
        """Return a runnable network. Raises SpecError where the schema is an index, or nobody knows the activation."""
        if not self.runs or "activation" not in self.metadata.column_names:
            raise SpecError(
                f"{self.name}: a network needs a layer schema (not only an index) and a column named activation"
            )
        return super().module(model_id, epoch)


def open_foreign(
    source: str | Path, schema: str | Path | Schema, revision: str | None = None, hub: str | Path | None = None
) -> ForeignZoo:
    """Open Parquet files with a weights column; see `zootools.zoo.open_zoo` for the arguments.

    Raises ZooNotFoundError where there are no such files, SpecError where they do not fit the schema, DamagedZooError
    where they cannot be read.
    """
    layers, runs = (schema, True) if isinstance(schema, Schema) else read_schema(Path(schema))
    source = files_meant(source, revision, hub)
    place, files = _parquet_files(source, revision, hub)
    tables, blocks = [], []
    total = 0
    for name, path in _with_weights(files).items():
        table, flat = _read(path, layers, _split_of(name))
        total += table.nbytes + flat.nbytes
        if total > MAX_BYTES:
            raise SpecError(f"{place.name}: takes more than {MAX_BYTES >> 30} GB of memory")
        tables.append(table)
        blocks.append(flat)
    try:
        metadata = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise SpecError(f"{place.name}: its Parquet files have different columns ({error})") from error
    flat = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    metadata = _with_identity(metadata, np.isfinite(flat).all(1))
    counts = {"expected": len(set(metadata["model_id"].to_pylist())), "checkpoints": len(flat)}
    return ForeignZoo(place.folder, None, layers, metadata, counts, {}, place=place, flat=flat, runs=runs)


def read_schema(path: Path) -> tuple[Schema, bool]:
    """Read what explains a flat vector: a layer schema, a zoo.json, or an index as published zoos have it.

    Returns the schema, and whether it says enough to run a network: an index knows neither strides nor pooling, so its
    geometry is the smallest that fits. Raises SpecError.
    """
    try:
        if path.stat().st_size > MAX_SCHEMA:
            raise SpecError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_SCHEMA} that a schema may have")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: is not valid JSON ({error})") from error
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
    # The last convolution hands on `flattened` x 1 values per channel; without pooling each takes kernel - 1 away.
    margin = sum(layer.kernel - 1 for layer in layers if layer.kind == "conv")
    first = layers[0]
    shape = (first.inputs, flattened + margin, 1 + margin) if first.kind == "conv" else (first.inputs, 1, 1)
    return Schema("index", shape, tuple(layers))


def _parquet_files(source: str | Path, revision: str | None, hub: str | Path | None) -> tuple[Place, dict[str, Path]]:
    """Return where the files come from, and their paths by name."""
    path, name, setting = Path(source), parse_name(str(source), revision), hub_setting(hub)
    folder = path if path.exists() or name is None else None
    if folder is None and name is not None and isinstance(setting, Path):
        folder = hub_folder.find(setting, name)
    if folder is not None:
        found = [folder] if folder.is_file() else sorted(folder.rglob("*.parquet"))
        files = {file.relative_to(folder).as_posix() if folder.is_dir() else file.name: file for file in found}
        place = Place(folder, str(source), hub_folder.commit_of(folder.absolute()))
    elif name is not None:
        from zootools.hub import remote

        place, files = remote.find_parquet(name, setting if isinstance(setting, str) else None)
        LOG.info("%s: from the Hub, commit %s", name, place.commit)
    if not files:
        raise ZooNotFoundError(
            f"{source}: holds no Parquet files; of a data set in another format the Hub keeps a copy in Parquet, "
            "at the revision refs/convert/parquet"
        )
    return place, files


def _with_weights(files: dict[str, Path]) -> dict[str, Path]:
    """Return the files that have a column named weights; all, if none has."""
    named = {}
    for name, path in files.items():
        try:
            columns = pq.read_schema(path)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DamagedZooError(f"{path}: cannot be read ({error})") from error
        if "weights" in columns.names:
            named[name] = path
    return named or files


def _read(path: Path, schema: Schema, split: str) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """Return the properties, and the weights ``[rows, parameters]``, of one file; never more than it may need."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.metadata.num_rows
            if rows > MAX_ROWS or rows * schema.size * 4 > MAX_BYTES:
                raise SpecError(f"{path}: {rows} rows of {schema.size} parameters are more than fit into memory")
            weights = _weights_column(path, file.schema_arrow, schema)
            properties = [column.name for column in file.schema_arrow if _is_property(column)]
            flat, parts, position, size = np.empty((rows, schema.size), np.float32), [], 0, 0
            for batch in file.iter_batches(max(1, BATCH_BYTES // (4 * schema.size)), columns=[*properties, weights]):
                lists = batch[weights]
                if lists.null_count or set(pc.unique(pc.list_value_length(lists)).to_pylist()) - {schema.size}:
                    raise SpecError(f"{path}: the lists in {weights} do not all have {schema.size} values")
                if position + len(batch) > rows:
                    raise DamagedZooError(f"{path}: has more than the {rows} rows that it claims")
                values = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, schema.size)
                flat[position : position + len(batch)] = values
                position += len(batch)
                parts.append(batch.select(properties))
                size += parts[-1].nbytes
                if size > MAX_BYTES:
                    raise SpecError(f"{path}: its properties take more than {MAX_BYTES >> 30} GB of memory")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedZooError(f"{path}: cannot be read ({error})") from error
    table = pa.Table.from_batches(parts) if parts else pa.table({})
    if position != rows:
        raise DamagedZooError(f"{path}: has {position} rows, and claims {rows}")
    if "split" not in properties:
        table = table.append_column("split", pa.array([split] * rows, pa.string()))
    return table, flat


def _weights_column(path: Path, columns: pa.Schema, schema: Schema) -> str:
    """Return the name of the column with the weights: ``weights``, or else the only list of floats that long."""
    lists = {c.name: c.type for c in columns if _is_float_list(c.type)}
    if "weights" in lists:
        return "weights"
    fitting = [n for n, t in lists.items() if not pa.types.is_fixed_size_list(t) or t.list_size == schema.size]
    if len(fitting) != 1:
        raise SpecError(
            f"{path}: expected a column named weights, or one list of {schema.size} floats; "
            f"found the lists {sorted(lists)} among {columns.names}"
        )
    return str(fitting[0])


def _is_float_list(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))


def _is_property(column: pa.Field) -> bool:
    kind = column.type
    scalar = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(scalar or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _split_of(name: str) -> str:
    """Return the split that a file's name speaks of, as `datasets` reads it; train where it does not."""
    found = _SPLIT.findall(PurePosixPath(name).with_suffix("").as_posix().lower())
    return _ALIASES.get(found[-1], found[-1]) if found else "train"


def _with_identity(table: pa.Table, finite: Any) -> pa.Table:
    """Return the table with the columns that every zoo has: model_id, epoch, split, status, stack, row."""
    rows = table.num_rows
    present = {name: table[name] for name in table.column_names}
    splits = present["split"].cast(pa.string()).to_pylist()
    if unknown := set(splits) - set(SPLITS):
        raise SpecError(f"the column split holds {sorted(map(str, unknown))[:3]}; expected {', '.join(SPLITS)}")
    ids = present.get("model_id", pa.array([f"row-{row:08d}" for row in range(rows)]))
    epochs = present.get("epoch", pa.array(np.zeros(rows, np.int32)))
    try:
        columns = {
            "model_id": ids.cast(pa.string()),
            "epoch": epochs.cast(pa.int32()),
            "split": pa.array(splits, pa.string()),
            "status": pa.array(np.where(finite, "ok", "diverged"), pa.string()),
            **{name: column for name, column in present.items() if name not in _OURS},
            "stack": pa.array(np.zeros(rows, np.int32)),
            "row": pa.array(np.arange(rows, dtype=np.int32)),
        }
    except pa.ArrowException as error:
        raise SpecError(f"the columns model_id and epoch cannot be used ({error})") from error
    return pa.table(columns)
