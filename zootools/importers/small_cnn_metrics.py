"""The table of the Small CNN Zoo, ``metrics.csv.gz``, with the columns of zootools."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from zootools.errors import DamagedZooError, SpecError, did_you_mean
from zootools.filesystem.inside import open_inside
from zootools.importers.importer import LeftOut
from zootools.storage.verified_files import unreadable

MAX_BYTES = 1 << 30
"""Bytes of the table, uncompressed. The published ones have about 80 million."""

CHUNK = 1 << 20
"""Bytes that are unpacked at a time; gzip allocates as many at once as a read requests."""

COLUMNS = {
    "modeldir": "model",
    "step": "epoch",
    "config.activation": "activation",
    "config.w_init": "init",
    "config.optimizer": "optimizer",
    "config.learning_rate": "lr",
    "config.l2reg": "l2",
    "config.dropout": "dropout",
    "config.train_fraction": "train_fraction",
    "config.init_std": "init_std",
    "config.b_init": "bias_init",
    "config.random_seed": "seed",
}
"""The columns that have another name in zootools."""
INITS = {
    "he_normal": "kaiming_normal",
    "he_uniform": "kaiming_uniform",
    "glorot_normal": "xavier_normal",
    "glorot_uniform": "xavier_uniform",
    "RandomNormal": "normal",
    "TruncatedNormal": "truncated_normal",
    "RandomUniform": "uniform",
}
"""Initialisations that have another name in zootools."""
BIASES = {"zeros": 0.0, "zero": 0.0, "ones": 1.0}
DATASET = "config.dataset"
_TEXTS = ("model", "activation", "init", "optimizer", "split", "configuration_id", "source_model", DATASET)
"""Columns that are texts even if all their values look like numbers."""
_COMPUTED = ("status", "stack", "row")
"""Columns that zootools computes."""


@dataclass(frozen=True)
class Metrics:
    """The table of a zoo."""

    table: pa.Table
    """The properties of each row of the matrix, with the columns of a `zootools.importers.importer.Block`."""
    dataset: str | None
    """The name of the data set, if it is the same in all rows."""
    left_out: Sequence[LeftOut]
    """The columns that are not read."""


def read_metrics(root: Path, name: str) -> Metrics:
    """Read the table of a zoo. Raises DamagedZooError if it is none, or if models and steps are missing in it."""
    path = root / name
    table = _read(root, name)
    for column in ("model", "epoch"):
        if column not in table.column_names:
            old = next(key for key, new in COLUMNS.items() if new == column)
            raise DamagedZooError(f"has no column {old}{did_you_mean(old, table.column_names)}", path=path)
        if table[column].null_count:
            raise DamagedZooError(f"{column}: {table[column].null_count:,} values are missing", path=path)
    if not pa.types.is_integer(table["epoch"].type):
        raise DamagedZooError(f"step: found {table['epoch'].type}; expected whole numbers", path=path)
    datasets = table[DATASET].unique().to_pylist() if DATASET in table.column_names else []
    kept, left_out = dict[str, pa.ChunkedArray](), list[LeftOut]()
    for column in table.column_names:
        if reason := _reason(column, table[column]):
            left_out.append(LeftOut(f"{name}: {column or 'the first column'}", reason))
        else:
            kept[column.removeprefix("config.").replace(".", "_")] = _values(column, table[column])
    return Metrics(pa.table(kept), datasets[0] if len(datasets) == 1 else None, left_out)


def _read(root: Path, name: str) -> pa.Table:
    """Return the table with the names of zootools. Raises DamagedZooError."""
    path = root / name
    try:
        with open_inside(root, name) as raw:
            file = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
            parts = list[bytes]()
            while sum(map(len, parts)) <= MAX_BYTES and (part := file.read(CHUNK)):
                parts.append(part)
            data = b"".join(parts)
    except (OSError, EOFError, zlib.error) as error:
        reason = unreadable(error) if type(error) is OSError else f"cannot be unpacked ({error})"
        raise DamagedZooError(reason, path=path) from error
    if len(data) > MAX_BYTES:
        raise DamagedZooError(f"has more than {MAX_BYTES:,} bytes", path=path)
    texts = {old: pa.string() for old in (*COLUMNS, *_TEXTS) if COLUMNS.get(old, old) in _TEXTS}
    try:
        table = csv.read_csv(
            pa.py_buffer(data), convert_options=csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
        )
    except (pa.ArrowInvalid, ValueError) as error:
        raise DamagedZooError(f"cannot be read as a table ({error!s:.200})", path=path) from error
    names = [COLUMNS.get(column, column) for column in table.column_names]
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise DamagedZooError(f"has two columns for {twice[0]}", path=path)
    return table.rename_columns(names)


def _reason(column: str, values: pa.ChunkedArray) -> str | None:
    """Return why a column is not read; None if it is."""
    if column == "" or column.startswith("Unnamed:"):
        return "numbers the rows"
    if column in _COMPUTED:
        return "is computed by zootools"
    if column == DATASET or (column.startswith("config.") and len(values.unique()) == 1):
        return "is the same in all rows" if len(values.unique()) == 1 else None
    return None


def _values(column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column with the words of zootools."""
    if column == "init":
        return _translated(values, INITS)
    if column == "bias_init" and pa.types.is_string(values.type):
        found = values.unique().to_pylist()
        if unknown := [word for word in found if word is not None and word not in BIASES]:
            raise SpecError(f"config.b_init: found {unknown[0]!r:.80}{did_you_mean(unknown[0], BIASES)}")
        return pc.cast(_translated(values, {word: str(value) for word, value in BIASES.items()}), pa.float64())
    if pa.types.is_string(values.type) and column not in _TEXTS:
        return _lists(values)
    return values


def _translated(values: pa.ChunkedArray, words: Mapping[str, str]) -> pa.ChunkedArray:
    encoded = values.combine_chunks().dictionary_encode()
    dictionary = pa.array([words.get(word, word) for word in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([dictionary.take(encoded.indices)])


def _lists(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as lists of numbers if all of them are, as in the exports of zootools; otherwise unchanged."""
    if pc.all(pc.starts_with(values, "[")).as_py() is not True:
        return values
    try:
        numbers = [None if text is None else json.loads(text) for text in values.to_pylist()]
        return pa.chunked_array([pa.array(numbers, pa.list_(pa.float64()))])
    except (ValueError, RecursionError, pa.ArrowException, TypeError):
        return values
