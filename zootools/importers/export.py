"""Exports of whole zoos in the formats of other tools. Each is read back by an importer, with the same weights."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import SpecError, did_you_mean
from zootools.filesystem.files import TEMPORARY, durable_file, storage_error, write_durably
from zootools.filesystem.inside import remove_tree_inside
from zootools.hashing import pretty_json
from zootools.importers.importer import rows_per_block
from zootools.importers.small_cnn_metrics import COLUMNS, INITS
from zootools.importers.small_cnn_zoo import METRICS, SCHEMA, WEIGHTS
from zootools.importers.tensorflow_layout import LAYOUT, column_order, layout_of, write_layout
from zootools.storage.imported import SOURCE_MODEL
from zootools.storage.table_writer import add_weights
from zootools.storage.tables import SPLITS
from zootools.zoo import Zoo

INDEX = "index_dict.json"
PROPERTIES = "properties.parquet"
_PLACES = ("status", "stack", "row")
"""Columns that mean nothing outside of a zoo."""


def export_zoo(zoo: Zoo, folder: Path, form: str) -> int:
    """Write the checkpoints of a zoo into a new folder, and return their number.

    The formats are:

    - ``index-dict``: ``index_dict.json``, as the ModelZooDataset has it, and a Parquet file for each split, whose rows
      have the properties and the flat weights; ``zootools import parquet --schema schema.json`` reads it.
    - ``numpy``: the three files of the Small CNN Zoo, in the order of TensorFlow; ``import small-cnn-zoo``.
    - ``state-dicts``: for each model a folder with a safetensors file for each epoch, and ``properties.parquet``;
      ``import state-dicts --properties``.

    Every folder has ``schema.json``, the layers of the networks. The folder appears when it is complete. A block of
    checkpoints is in memory at a time (`zootools.importers.importer.BLOCK_BYTES`).

    Raises SpecError for an unknown format, for a folder that exists, and for a zoo without checkpoints.
    """
    if form not in _WRITERS:
        raise SpecError(f"format: found {form!r:.80}{did_you_mean(form, _WRITERS)}")
    if not len(zoo):
        raise SpecError(f"{zoo.name}: there are no checkpoints to export")
    with _new_folder(folder) as new:
        write_durably(new / SCHEMA, pretty_json(zoo.schema.to_json()))
        _WRITERS[form](zoo, new)
    return len(zoo)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A context that yields a hidden folder, which becomes ``folder`` at the end, and is removed after an error."""
    folder = folder.absolute()
    if folder.exists() or folder.is_symlink():
        raise SpecError(f"{folder}: exists; an export makes a new folder")
    new = folder.with_name(f".{folder.name}{TEMPORARY}{token_hex(4)}")
    try:
        new.mkdir(parents=True)
        yield new
        new.rename(folder)
    except BaseException as error:
        remove_tree_inside(new.parent, new.name)
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        raise


def _parts(zoo: Zoo) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
    """Yield the checkpoints in blocks: their properties, and their weights, float32 ``[rows, parameters]``."""
    for start in range(0, len(zoo), rows := rows_per_block(zoo.schema)):
        part = replace(zoo, metadata=zoo.metadata.slice(start, rows))
        yield properties(part), part.weights().numpy()


def properties(zoo: Zoo) -> pa.Table:
    """Return the metadata of a zoo without the columns that mean nothing outside of it.

    A model that was imported has the name that it had before, from which an import makes the same id again.
    """
    table = zoo.metadata
    if SOURCE_MODEL in table.column_names:
        table = table.set_column(table.column_names.index("model_id"), "model_id", table[SOURCE_MODEL])
    return table.drop_columns([name for name in (*_PLACES, SOURCE_MODEL) if name in table.column_names])


# --- index-dict ------------------------------------------------------------------------------------------


def index_of(schema: Schema) -> dict[str, list[Any]]:
    """Return the index of a flat vector as published zoos have it (`zootools.hub.foreign.read_schema` reads it).

    The lists are parallel: the number of the module in a sequential network without dropout and its kind, the start
    and length (weights and biases) in the vector, the outputs, the values of a kernel (for a linear layer behind a
    convolution: the pixels of a channel), and the channels.
    """
    index: dict[str, list[Any]] = {
        key: [] for key in ("layer", "idx_start", "idx_length", "kernel_no", "kernel_size", "channels_in")
    }
    start = module = 0
    for number, layer in enumerate(schema.layers):
        previous = schema.layers[number - 1] if number else None
        flattens = layer.kind == "linear" and previous is not None and previous.kind == "conv"
        module += flattens
        block = schema.block(number - 1) if flattens else 1
        length = layer.outputs * (layer.fan_in + layer.bias)
        index["layer"].append([module, "conv2d" if layer.kind == "conv" else "fc"])
        index["idx_start"].append(start)
        index["idx_length"].append(length)
        index["kernel_no"].append(layer.outputs)
        index["kernel_size"].append(layer.kernel**2 * block)
        index["channels_in"].append(layer.inputs // block)
        start += length
        module += 1 + (layer.max_pool > 1) + layer.activation + layer.global_average_pool
    return index


def _index_dict(zoo: Zoo, folder: Path) -> None:
    write_durably(folder / INDEX, json.dumps(index_of(zoo.schema)).encode())
    for split in SPLITS:
        if len(part := zoo.split(split)):
            with durable_file(folder / f"{split}.parquet") as file:
                _write_parquet(file, part)


def _write_parquet(file: BinaryIO, zoo: Zoo) -> None:
    writer: pq.ParquetWriter | None = None
    for table, weights in _parts(zoo):
        table = add_weights(table.combine_chunks(), weights)
        if writer is None:
            writer = pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=False)
        writer.write_table(table)
    assert writer is not None, "a split without checkpoints has no file"
    writer.close()


# --- numpy -----------------------------------------------------------------------------------------------


def _numpy(zoo: Zoo, folder: Path) -> None:
    variables = layout_of(zoo.schema)
    order = column_order(folder, variables, zoo.schema)
    write_durably(folder / LAYOUT, write_layout(variables))
    shape = (len(zoo), zoo.schema.size)
    with durable_file(folder / WEIGHTS) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, weights in _parts(zoo):
            rows = np.empty_like(weights)
            rows[:, order] = weights
            file.write(rows.data)
    with (
        durable_file(folder / METRICS[0]) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        _write_metrics(text, properties(zoo))


def _write_metrics(file: io.TextIOWrapper, table: pa.Table) -> None:
    """Write the properties of checkpoints with the names of the Small CNN Zoo; lists of numbers become JSON."""
    keras = {new: old for old, new in COLUMNS.items()} | {"model_id": "modeldir"}
    inits = {new: old for old, new in INITS.items()}
    writer = csv.writer(file)
    writer.writerow([keras.get(name, name) for name in table.column_names])
    for batch in table.to_batches(max_chunksize=10_000):
        columns = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = column.to_pylist()
            if name == "init":
                values = [inits.get(value, value) for value in values]
            columns.append([json.dumps(value) if isinstance(value, list) else value for value in values])
        writer.writerows(zip(*columns, strict=True))


# --- state-dicts -----------------------------------------------------------------------------------------


def _state_dicts(zoo: Zoo, folder: Path) -> None:
    from safetensors.numpy import save

    ids, epochs = zoo.metadata["model_id"].to_pylist(), zoo.metadata["epoch"].to_pylist()
    for row, model in enumerate(ids):
        if not _FILE_NAME.fullmatch(model):
            raise SpecError(f"{zoo.name}: row {row}: the model id {model!r:.80} cannot be the name of a folder")
    paths = [f"{model}/epoch-{epoch:04d}.safetensors" for model, epoch in zip(ids, epochs, strict=True)]
    rows = (row for _, weights in _parts(zoo) for row in weights)
    for path, row in zip(paths, rows, strict=True):
        state = {p.name: row[p.offset : p.end].reshape(p.shape) for p in zoo.schema.parameters}
        write_durably(folder / path, save(state), folder)
    table = properties(zoo)
    with durable_file(folder / PROPERTIES) as file:
        pq.write_table(table.add_column(0, "path", pa.array(paths)), file)


_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Model ids that name a folder below the export: those of a stranger's Parquet file are any text."""

_WRITERS: dict[str, Callable[[Zoo, Path], None]] = {
    "index-dict": _index_dict,
    "numpy": _numpy,
    "state-dicts": _state_dicts,
}
