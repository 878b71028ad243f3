"""The kind ``parquet``: Parquet files with a column of weights, as `zootools.hub.foreign` reads them, as a zoo.

The files are read in batches, so a population that is larger than the memory can be imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import DamagedZooError, SpecError
from zootools.hub.foreign import parquet_files, split_of, with_weights
from zootools.hub.foreign_columns import (
    IDENTITY,
    IDENTITY_VALUES,
    UnfitError,
    property_values,
    stored_type,
    weight_values,
)
from zootools.hub.foreign_memory import Memory
from zootools.hub.foreign_tables import FileLayout, batches, checked_size, file_layout, opened
from zootools.importers.importer import Block, Facts, ImportOptions, LeftOut, rows_per_block
from zootools.importers.options import chosen_schema
from zootools.source import Request
from zootools.storage.place import Place

_TEMPORARY_BYTES = 256 << 20
"""Bytes of texts that one batch may have."""


class Parquet:
    """An `zootools.importers.importer.Importer` of Parquet files in a folder, a hub folder or on the Hub."""

    options: ClassVar[frozenset[str]] = frozenset({"model_schema", "architecture"})

    def open(self, path: Path, options: ImportOptions) -> "ParquetPopulation":
        """Read the footers of the files. Raises what `zootools.importers.importer.Importer` raises."""
        schema, runs = chosen_schema(options)
        place, found = parquet_files(Request(path, schema=schema))
        files = with_weights(place.name, found)
        rows = {name: _rows(file) for name, file in files.items()}
        if not sum(rows.values()):
            raise SpecError(f"{path}: its {len(files)} Parquet files have no rows")
        return ParquetPopulation(place, schema, runs, files, rows)


def _rows(path: Path) -> int:
    with opened(path) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


@dataclass(frozen=True)
class ParquetPopulation:
    """A `zootools.importers.importer.Population` in Parquet files."""

    place: Place
    schema: Schema
    runs: bool
    files: dict[str, Path]
    rows: dict[str, int]
    """The number of rows of each file."""

    @cached_property
    def facts(self) -> Facts:
        """See `zootools.importers.importer.Population`."""
        notes = [f"read from {self.place.name}, commit {self.place.commit}"] if self.place.commit else []
        return Facts(
            name=Path(self.place.name).stem or self.place.folder.absolute().name,
            schema=self.schema,
            files=list(self.files.values()),
            root=self.place.folder,
            checkpoints=sum(self.rows.values()),
            runs=self.runs,
            notes=notes,
        )

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Yield batches of rows. Row groups of which all blocks are stored already are not read."""
        number = first = 0
        for name, path in self.files.items():
            with opened(path) as file:
                layout = file_layout(path, file, self.schema)
                if layout is None:
                    continue
                checked_size(layout)
                position = 0
                for groups, rows, blocks in self._chunks(file):
                    if number + blocks <= start:
                        number, position = number + blocks, position + rows
                        continue
                    cut = self._cut(batches(file, layout, groups), rows)
                    for batch in cut:
                        if number >= start:
                            yield self._block(name, layout, batch, first, position)
                        number, position = number + 1, position + batch.num_rows
                if position != layout.rows:
                    raise DamagedZooError(f"{path}: has {position} rows, and claims {layout.rows}")
            first += self.rows[name]

    def _chunks(self, file: BufferedReader) -> Iterator[tuple[list[int], int, int]]:
        """Yield consecutive row groups that are read together, their rows, and the number of their blocks."""
        footer, full = pq.ParquetFile(file).metadata, rows_per_block(self.schema)
        groups, rows = list[int](), 0
        for group in range(footer.num_row_groups):
            size = footer.row_group(group).num_rows
            if groups and rows + size > full:  # small row groups share a block, a large one has several
                yield groups, rows, -(-rows // full)
                groups, rows = [], 0
            groups, rows = [*groups, group], rows + size
        if rows:
            yield groups, rows, -(-rows // full)

    def _cut(self, found: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
        """Yield the rows of batches in full blocks, and the rest of fewer rows at the end."""
        full, held, count = rows_per_block(self.schema), list[pa.RecordBatch](), 0
        for batch in found:
            while batch.num_rows:
                part = batch.slice(0, full - count)
                held.append(part)
                count += part.num_rows
                batch = batch.slice(part.num_rows)
                if count == full:
                    yield pa.Table.from_batches(held)
                    held, count = [], 0
        if held:
            yield pa.Table.from_batches(held)

    def _block(self, name: str, layout: FileLayout, rows: pa.Table, first: int, position: int) -> Block:
        """Return a block of some rows of a file, of which ``position`` come before; ``first`` is that of the file."""
        path, count = layout.path, rows.num_rows
        weights = np.concatenate(
            [
                weight_values(path, layout.weights.name, chunk, self.schema, position).astype(np.float32, copy=False)
                for chunk in rows[layout.weights.name].chunks
            ]
        )
        left_out = [LeftOut(f"column {column}", why) for column, why in layout.left_out.items() if not position]
        for wanted in IDENTITY:
            if wanted in layout.left_out:
                raise SpecError(f"{path}: the column {wanted} cannot be used: {layout.left_out[wanted]}")
        columns: dict[str, pa.ChunkedArray] = {}
        memory = Memory(_TEMPORARY_BYTES)
        for column in layout.columns:
            try:
                chunks = [property_values(chunk, column.kind, path, memory) for chunk in rows[column.name].chunks]
            except UnfitError as error:
                what = f"column {column.name} of {count} rows from {position} on in {name}"
                left_out.append(LeftOut(what, f"has {error}"))
                continue
            values = pa.chunked_array(chunks, column.kind)
            columns[column.name] = IDENTITY_VALUES[column.name](path, values) if column.name in IDENTITY else values
        table = {
            "model": columns.pop("model_id", pa.array([f"row-{first + position + i:08d}" for i in range(count)])),
            "epoch": columns.pop("epoch", pa.array(np.zeros(count, np.int32))),
            "split": columns.pop("split", pa.array([split_of(name)] * count, pa.string())),
            **columns,
        }
        kind = stored_type(layout.weights.kind).value_type
        notes = [] if kind == pa.float32() else [f"the weights are stored as {kind}, and were converted to float32"]
        return Block(weights, pa.table(table), left_out, notes)
