"""How much memory a Parquet file takes when it is read: by the headers of its pages.

A footer can claim anything; 23 KB of dictionary and run lengths can become 200 MB, or 200 GB. What a reader
will unpack stands in the header of each page, in Thrift's compact encoding, so these headers are walked before
pyarrow reads a table that may come from a stranger.
"""

from typing import Any

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Types of pages, and the field of a page header that holds the details of each."""

_ENCODINGS = {0, 2, 3, 8}
"""PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY; others can make much out of little."""

_BYTES_PER_VALUE = 64


def check_pages(data: bytes, metadata: Any, values: int) -> None:
    """Raise ValueError unless a file's pages stay within what a table of so many values per column needs.

    Args:
        data: the whole file.
        metadata: its ``pyarrow.parquet.FileMetaData``.
        values: how many values a column may have, all row groups together.
    """
    for column in range(metadata.num_columns):
        found = unpacked = 0
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(column)
            starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
            position = min(start for start in starts if start is not None)
            end = position + chunk.total_compressed_size
            if position < 0 or end > len(data):
                raise ValueError(f"column {chunk.path_in_schema} lies outside of the file")
            while position < end:
                count, size, position = _page(data, position)
                found, unpacked = found + count, unpacked + size
        if found > values or unpacked > _BYTES_PER_VALUE * values + (1 << 20):
            raise ValueError(f"column {column} holds {found} values in {unpacked} bytes, but can have {values}")


def _page(data: bytes, position: int) -> tuple[int, int, int]:
    """Return values and unpacked bytes of the page at a position, and where the next one begins."""
    try:
        header, position = _struct(data, position)
        details = header[_DETAILS[header[1]]]
        encoding = details[4 if header[1] == _DATA_V2 else 2]
        unpacked, packed, count = header[2], header[3], details[1]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"there is no page of a known kind at byte {position}") from error
    if encoding not in _ENCODINGS or min(unpacked, packed, count) < 0:
        raise ValueError(f"the page at byte {position} has an unexpected encoding or size")
    return (0 if header[1] == _DICTIONARY else count), unpacked, position + packed


def _struct(data: bytes, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by their number, and where it ends. Raises ValueError or IndexError."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[position]:
        position += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, position = _integer(data, position)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            fields[number], position = data[position], position + 1
        elif kind in (4, 5, 6):
            fields[number], position = _integer(data, position)
        elif kind == 7:
            fields[number], position = None, position + 8
        elif kind == 8:
            length, position = _varint(data, position)
            fields[number], position = None, position + length
        elif kind == 12 and depth < 4:
            fields[number], position = _struct(data, position, depth + 1)
        else:
            raise ValueError(f"a page header has a field of kind {kind} at byte {position}")
    return fields, position + 1


def _integer(data: bytes, position: int) -> tuple[int, int]:
    bits, position = _varint(data, position)
    return (bits >> 1) ^ -(bits & 1), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position + shift // 7]
        result |= (byte & 127) << shift
        if byte < 128:
            return result, position + shift // 7 + 1
    raise ValueError(f"a page header has an endless number at byte {position}")
