"""Reading the Parquet files of a zoo, which may come from an untrusted author."""

import mmap
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zootools.architectures import Schema
from zootools.errors import DamagedZooError
from zootools.storage.imported import MAX_TEXT, Imported, Origin
from zootools.storage.parquet_guard import OWN_ENCODINGS, check_pages, column_pages
from zootools.storage.table_writer import GROUP_ROWS, with_weights
from zootools.storage.tables import check_properties, check_scores, metadata_name, metadata_schema, rows_per_group
from zootools.storage.verified_files import VerifiedFiles

ROW_BYTES = 10_000
"""Upper bound of the bytes that a row of metadata takes in a file."""
MAX_STRING = 100
"""Maximal length of a string in a table of a zoo that zootools built, in bytes."""
TEXT_VALUES = 16
"""Number of values whose memory the longest text of an imported zoo (`MAX_TEXT`) takes."""
MAX_FOOTER = 1 << 20
"""Bytes of a footer that are parsed; a file has about a dozen row groups, each of which takes a few kilobytes there."""


def read_metadata(
    files: VerifiedFiles, origin: Origin, rows: Mapping[str, int], classes: int, class_names: Sequence[str] = ()
) -> pa.Table:
    """Return the metadata of all splits, ordered by stack, epoch and row.

    Memory is bounded by the expected number of rows, whatever the Parquet files contain.

    Args:
        files: the files of the zoo.
        origin: its specification or the record of its import, which decides the columns.
        rows: the number of rows of each split.
        classes: the number of F scores in a row.
        class_names: the names of the classes that the zoo stores.

    Raises DamagedZooError for other columns, other numbers of rows, rows in another order, and impossible scores.
    """
    expected = metadata_schema(origin, class_names)
    tables = [
        _read_split(files, expected, isinstance(origin, Imported), split, count, classes)
        for split, count in rows.items()
        if count or metadata_name(split) in files.files
    ]
    metadata = pa.concat_tables(tables) if tables else expected.empty_table()
    return metadata.sort_by([("stack", "ascending"), ("epoch", "ascending"), ("row", "ascending")])


def _read_split(
    files: VerifiedFiles, expected: pa.Schema, imported: bool, split: str, count: int, classes: int
) -> pa.Table:
    name = metadata_name(split)
    path = files.folder / name
    data = files.read(name, limit=ROW_BYTES * count + (1 << 20))
    try:
        _check_footer(data, expected, count, -(-count // GROUP_ROWS))
        # A text of an imported zoo takes as much as some numbers.
        check_pages(data, values=count * (max(classes, TEXT_VALUES) if imported else classes))
        with _opened(data, expected) as parquet:
            table = _plain(parquet.read(), expected, MAX_TEXT if imported else MAX_STRING)
            check = check_properties if imported else check_scores
            check(table, classes)
            _check_order(table, split)
            for group in range(parquet.num_row_groups):
                _check_statistics(parquet.metadata, group, table.slice(group * GROUP_ROWS, GROUP_ROWS))
    except (OSError, pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise DamagedZooError(_refusal(error), path=path) from error
    return table


def data_fault(files: VerifiedFiles, schema: Schema, name: str, rows: pa.Table, group: int) -> str | None:
    """Compare one row group of a table with weights with the shards; return the difference, or None.

    The values are compared to the last bit, but not the bytes of the file: they also depend on the version of the
    library that wrote it. Only a few row groups are in memory at a time.

    Args:
        files: the zoo's files.
        schema: the layers of every model.
        name: the name of the table.
        rows: the expected metadata of all its rows.
        group: the number of the row group.
    """
    step = rows_per_group(schema)
    (expected,) = with_weights(files, schema, rows.slice(group * step, step), step)
    try:
        with files.open(name) as file:
            if os.fstat(file.fileno()).st_size < len(b"PAR1....PAR1"):
                raise ValueError("is not a Parquet file")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_footer(data, expected.schema, rows.num_rows, -(-rows.num_rows // step))
        pages = column_pages(data, OWN_ENCODINGS, group)
        for column, found_pages in zip(expected.column_names, pages, strict=True):
            if found_pages.unpacked > 2 * expected[column].nbytes + (1 << 20):
                raise ValueError(
                    f"the column {column} unpacks to {found_pages.unpacked} bytes, {found_pages.values} values"
                )
        with _opened(data, expected.schema) as parquet:
            found = _plain(parquet.read_row_group(group, use_threads=False), expected.schema, MAX_TEXT)
            if found.num_rows != expected.num_rows:
                raise ValueError(f"row group {group} has {found.num_rows} rows, expected {expected.num_rows}")
            for column in expected.column_names:
                if not same_values(found[column], expected[column]):
                    return f"the column {column} is not what the shards and spec.yaml say (row group {group})"
            _check_statistics(parquet.metadata, group, expected)
    except (OSError, pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        return _refusal(error)
    return None


def _refusal(error: Exception) -> str:
    """Return the message of an error: that of this module, or that of the library that could not read the table."""
    return str(error) if type(error) is ValueError else f"cannot be read ({error!s:.400})"


def same_values(first: pa.ChunkedArray, second: pa.ChunkedArray) -> bool:
    """Whether two columns of one type hold the same values in the same order, floats to the last bit.

    Two unknown values (null) are the same; weights are always known.
    """
    if len(first) != len(second) or first.null_count != second.null_count:
        return False
    if pa.types.is_fixed_size_list(first.type) and first.null_count:
        return False
    if not pa.types.is_fixed_size_list(first.type) and not first.equals(second):
        return False
    one, two = _flat(first), _flat(second)
    if not pa.types.is_floating(one.type):
        return True  # `equals` has compared them
    bits = pa.uint32() if one.type == pa.float32() else pa.uint64()
    first_bits, second_bits = (values.drop_null().view(bits).to_numpy() for values in (one, two))
    return one.type == two.type and bool(np.array_equal(first_bits, second_bits))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Return the values of a column, or of its lists, as one array; a single chunk is not copied."""
    listed = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    chunks = [chunk.flatten() if listed else chunk for chunk in column.chunks]
    if not chunks:
        return pa.array([], column.type.value_type if listed else column.type)
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _opened(data: bytes | mmap.mmap, expected: pa.Schema) -> pq.ParquetFile:
    """Open a Parquet file that has been checked.

    Strings are read as dictionaries, so that a long string that many rows repeat is in memory once.
    """
    strings = [field.name for field in expected if pa.types.is_string(field.type)]
    return pq.ParquetFile(pa.BufferReader(data), read_dictionary=strings, page_checksum_verification=True)


def _check_footer(data: bytes | mmap.mmap, expected: pa.Schema, rows: int, groups: int) -> None:
    """Raise ValueError unless a file has exactly these columns, and these numbers of rows and row groups."""
    if data[-4:] != b"PAR1":
        raise ValueError("is not a Parquet file")
    if (length := int.from_bytes(data[-8:-4], "little")) > MAX_FOOTER:
        raise ValueError(f"its footer has {length} bytes, more than {MAX_FOOTER}")
    footer = pq.read_metadata(pa.BufferReader(data))
    notes = {*(footer.metadata or {})}
    # Some readers use the types of the format alone, others those of the Arrow schema that is stored with them.
    for columns in (footer.schema.to_arrow_schema(), pq.read_schema(pa.BufferReader(data))):
        if not columns.equals(expected):
            raise ValueError("its columns are not those of its specification")
        notes |= {*(columns.metadata or {})}
        for field, wanted in zip(columns, expected, strict=True):
            notes |= {*dict((field.metadata or {}).items() - (wanted.metadata or {}).items())}
    if notes - {b"ARROW:schema", b"PARQUET:field_id"}:  # some of it would make `datasets` read other types
        raise ValueError("its footer has metadata that no builder writes")
    if footer.num_rows != rows:
        raise ValueError(f"has {footer.num_rows} rows, expected {rows}")
    if footer.num_row_groups != groups:
        raise ValueError(f"has {footer.num_row_groups} row groups, expected {groups}")


def _plain(table: pa.Table, expected: pa.Schema, longest: int) -> pa.Table:
    """Return a table that was just read with the expected types. Raises ValueError for a string that is too long."""
    table.validate(full=True)
    for column in table.columns:
        for dictionary in (chunk.dictionary for chunk in column.chunks if pa.types.is_dictionary(chunk.type)):
            if (pc.max(pc.binary_length(dictionary)).as_py() or 0) > longest:
                raise ValueError(f"a string is longer than {longest} bytes")
    return table.cast(expected)


def _check_order(table: pa.Table, split: str) -> None:
    """Raise ValueError unless all rows of a table are of one split, ordered by stack, epoch and row."""
    if not pc.all(pc.equal(table["split"], split)).as_py():
        raise ValueError("has rows of another split")
    stack, epoch, row = (table[name].to_numpy().astype(np.int64) for name in ("stack", "epoch", "row"))
    # The manifest limits stacks and epochs to 100,000, and rows to 4096.
    if (np.diff((stack << 29) + (epoch << 12) + row) <= 0).any():
        raise ValueError("its rows are not ordered by stack, epoch and row")


def _check_statistics(footer: pq.FileMetaData, group: int, table: pa.Table) -> None:
    """Raise ValueError if the smallest and largest values in a footer exclude rows of a row group.

    Readers skip row groups by these statistics (``load_dataset(filters=...)``). The row group must have been read
    before, and the types be equal, because pyarrow aborts the process for some damaged ones.
    """
    for number, name in enumerate(table.column_names):
        column = footer.row_group(group).column(number)
        if column.physical_type != footer.schema.column(number).physical_type:
            raise ValueError(f"the column {name} has two types in the footer")
        statistics = column.statistics
        if statistics is None:
            continue
        values = _flat(table[name])
        if statistics.null_count not in (None, table[name].null_count):
            raise ValueError(f"the statistics of the column {name} count other missing values")
        if statistics.has_min_max:
            values = values.drop_null()
            if not len(values):
                raise ValueError(f"the statistics of the column {name} are those of other values")
            if pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
                low, high = pc.min_max(values).as_py().values()
            else:
                low, high = values.to_numpy().min(), values.to_numpy().max()
            if not (statistics.min <= low and high <= statistics.max):
                raise ValueError(f"the statistics of the column {name} are not those of its values")
