"""Writing the Parquet files of a zoo, which `datasets.load_dataset` reads."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.storage.build_state import ZooFolder
from zootools.storage.shards import gather_weights
from zootools.storage.tables import SPLITS, metadata_name, rows_per_group, split_files, weights_schema
from zootools.storage.verified_files import FileInfo, VerifiedFiles, file_info

GROUP_ROWS = 1 << 20
"""Rows of metadata in one row group, about 60 MB in a file."""


def write_parquet(zoo: ZooFolder, shards: VerifiedFiles, schema: Schema, table: pa.Table) -> dict[str, FileInfo]:
    """Write both configurations of the data set, split by split; return the files by name.

    ``metadata`` holds the table, ``checkpoints`` the same rows with the flat weights as a fixed-size list. A split
    without rows gets no file: one empty Parquet file makes ``load_dataset`` fail for all of them.
    Only the table, one split of it and a few row groups are in memory at a time.
    """
    files: dict[str, FileInfo] = {}
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        for name, rows in split_files(schema, split, part.num_rows).items():
            group = part.slice(rows.start, len(rows))
            if name == metadata_name(split):
                files[name] = _write(zoo, name, part.schema, _groups(group, GROUP_ROWS))
            else:
                groups = with_weights(shards, schema, group, rows_per_group(schema))
                files[name] = _write(zoo, name, weights_schema(part.schema, schema), groups)
    return files


def _groups(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Cut a table into pieces of ``rows`` rows, each in one chunk, because the bytes of a file depend on the chunks."""
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows).combine_chunks()


def with_weights(shards: VerifiedFiles, schema: Schema, table: pa.Table, rows_per_group: int) -> Iterator[pa.Table]:
    """Cut the metadata of checkpoints into row groups, and append the weights to each (`add_weights`)."""
    for part in _groups(table, rows_per_group):
        yield add_weights(part, gather_weights(shards, schema, part["stack"], part["epoch"], part["row"]))


def add_weights(table: pa.Table, flat: npt.NDArray[np.float32]) -> pa.Table:
    """Return a table with a column ``weights`` of fixed-size lists at the end.

    ``flat`` holds the weights of its rows, float32 ``[rows, parameters]``; they are not copied.
    """
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return table.append_column("weights", values)


def _write(zoo: ZooFolder, name: str, schema: pa.Schema, groups: Iterable[pa.Table]) -> FileInfo:
    """Write one Parquet file, one row group per table.

    Weights are split into byte streams and compressed with zstd, which makes trained weights about a fifth smaller;
    dictionaries are used for strings only. Every page has a checksum.
    """
    floats = [name for name in ("weights",) if name in schema.names]
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    with (
        zoo.file(name) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=strings,
            use_byte_stream_split=[f"{name}.list.element" for name in floats],
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    return file_info(zoo.path, name)
