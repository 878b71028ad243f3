"""The memory that reading a Parquet file takes, computed from the headers of its pages.

A footer can be wrong: 23 KB of dictionary and run lengths can expand to 200 MB, or 200 GB. The header of each page has
the size of its decompressed data, so these headers are read before pyarrow reads an untrusted table. Footer and headers
are read here, in Thrift's compact encoding, because some footers (with statistics that contradict the schema) crash
pyarrow.

This reader and pyarrow must not interpret the same bytes differently. Therefore duplicate fields, and fields of a wrong
type, are refused: Thrift would use the last one, or skip it.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

_MAGIC = b"PAR1"
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Types of pages, each with the number of its field in a page header."""

OWN_ENCODINGS = frozenset({0, 2, 3, 8, 9})
"""PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY, BYTE_STREAM_SPLIT: the encodings of the tables of a zoo."""
DELTA_LENGTHS, PREFIXES = 6, 7
"""DELTA_LENGTH_BYTE_ARRAY; and DELTA_BYTE_ARRAY, in which a string shares its prefix with the previous one."""
ENCODINGS = OWN_ENCODINGS | {5, DELTA_LENGTHS, PREFIXES}
"""All encodings of Parquet: also DELTA_BINARY_PACKED."""

BYTES_PER_VALUE = 64
SPARE_BYTES = 1 << 20
"""Bytes that a column may have besides its values."""
MAX_PAGES = 1_000_000
MAX_FOOTER = 32 << 20

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12
"""Thrift's compact types."""
_MAX_DEPTH = 8

_Fields = dict[int, tuple[int, Any]]
"""Type and value of the fields of a struct, by number."""


@dataclass
class ColumnPages:
    """The sums over the page headers of a column, all row groups together."""

    values: int = 0
    unpacked: int = 0
    """Bytes of all pages after decompression."""
    longest: int = 0
    """Maximal size of a value in encodings that expand: dictionary, prefixes."""
    encodings: set[int] = field(default_factory=set)

    def exceeds(self, values: int) -> bool:
        """Whether the pages have more than ``values`` values, or more bytes than these can need."""
        return self.values > values or self.unpacked > BYTES_PER_VALUE * values + SPARE_BYTES


def check_pages(data: bytes, values: int) -> None:
    """Raise ValueError for pages with more values or bytes than a table of ``values`` values per column needs.

    Args:
        data: the whole file.
        values: maximal number of values of a column in all row groups.
    """
    for column, pages in enumerate(column_pages(data, OWN_ENCODINGS)):
        if pages.exceeds(values):
            raise ValueError(
                f"column {column} holds {pages.values} values in {pages.unpacked} bytes, but can have {values}"
            )


def column_pages(data: bytes | mmap, encodings: Set[int] = ENCODINGS, group: int | None = None) -> list[ColumnPages]:
    """Return the sums over the pages of each column (leaf of the schema), without decompressing a page.

    Args:
        data: the whole file.
        encodings: the encodings that a page may have.
        group: the row group to read; by default all of them.

    Raises ValueError for an invalid file.
    """
    found: list[ColumnPages] = []
    count = 0
    for number, column, position, end in _chunks(data):
        if group not in (None, number):
            continue
        if column == len(found):
            found.append(ColumnPages())
        pages = found[column]
        while position < end:
            is_dictionary, values, unpacked, encoding, position = _page(data, position)
            if encoding not in encodings:
                raise ValueError(f"the page before byte {position} has the encoding {encoding}, which is not expected")
            count += 1
            if count > MAX_PAGES:
                raise ValueError(f"there are more than {MAX_PAGES} pages")
            pages.values += 0 if is_dictionary else values
            pages.unpacked += unpacked
            pages.encodings.add(encoding)
            if is_dictionary or encoding == PREFIXES:
                pages.longest = max(pages.longest, unpacked)
    return found


def _chunks(data: bytes | mmap) -> Iterator[tuple[int, int, int, int]]:
    """Yield row group, column, and begin and end of the pages (bytes) of every column chunk of a file."""
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    if data[-4:] != _MAGIC or start < len(_MAGIC):
        raise ValueError("there is no footer of a Parquet file at its end")
    if length > MAX_FOOTER:
        raise ValueError(f"the footer has {length} bytes, more than the {MAX_FOOTER} that are read")
    try:
        footer, end = _struct(data, start)
        if end != len(data) - 8:
            raise ValueError(f"the footer ends at byte {end}, and not before its length")
        total = 0
        for number, group in enumerate(_value(footer, 4, _LIST)):
            for column, chunk in enumerate(_value(group, 1, _LIST)):
                if set(chunk) - {2, 3, 4, 5, 6, 7}:
                    raise ValueError(f"column {column} is encrypted, or in another file")
                metadata = _value(chunk, 3, _STRUCT)
                first, size = _value(metadata, 9, _I64), _value(metadata, 7, _I64)
                if 11 in metadata and _value(metadata, 11, _I64) > 0:
                    first = min(first, _value(metadata, 11, _I64))
                total += size
                if not _value(metadata, 5, _I64):
                    yield number, column, 0, 0  # without values no page is read, wherever its offset points
                    continue
                if first < len(_MAGIC) or size < 0 or first + size > start or total > start:
                    raise ValueError(f"column {column} has its pages outside of the file, or overlaps another column")
                yield number, column, first, first + size
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("the footer is not what Parquet says it is") from error


def _page(data: bytes | mmap, position: int) -> tuple[bool, int, int, int, int]:
    """Return whether a page is a dictionary, its number of values, decompressed bytes, encoding, and end."""
    begin = position
    try:
        header, position = _struct(data, position)
        kind = _value(header, 1, _I32)
        details = _value(header, _DETAILS[kind], _STRUCT)
        encoding = _value(details, 4 if kind == _DATA_V2 else 2, _I32)
        unpacked, packed, count = _value(header, 2, _I32), _value(header, 3, _I32), _value(details, 1, _I32)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"there is no page of a known kind at byte {begin}") from error
    if min(unpacked, packed, count) < 0:
        raise ValueError(f"the page at byte {begin} has a negative size")
    return kind == _DICTIONARY, count, unpacked, encoding, position + packed


# --- Thrift's compact encoding -------------------------------------------------------------------------


def _value(fields: _Fields, number: int, kind: int) -> Any:
    """Return the value of a required field. Raises KeyError if it is missing, TypeError for another type."""
    found, value = fields[number]
    if found != kind:
        raise TypeError(f"field {number} has the type {found}, expected {kind}")
    return value


def _struct(data: bytes | mmap, position: int, depth: int = 0) -> tuple[_Fields, int]:
    """Return the fields of a struct, and its end. Raises ValueError or IndexError."""
    fields: _Fields = {}
    number = 0
    while head := data[position]:
        position += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, position = _integer(data, position, 16)
        if number in fields or number < 1:
            raise ValueError(f"the field {number} occurs twice at byte {position}")
        value, position = (None, position) if kind in (_TRUE, _FALSE) else _item(data, position, kind, depth)
        fields[number] = kind, value
    return fields, position + 1


def _item(data: bytes | mmap, position: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value and its end; numbers, lists and structs are read, other values are skipped (None)."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"a struct is nested too deep at byte {position}")
    if kind in (_TRUE, _FALSE, _BYTE):
        return data[position], position + 1
    if kind in (_I16, _I32, _I64):
        return _integer(data, position, {_I16: 16, _I32: 32, _I64: 64}[kind])
    if kind == _DOUBLE:
        return None, position + 8
    if kind == _BINARY:
        length, position = _varint(data, position)
        return None, position + length
    if kind == _STRUCT:
        return _struct(data, position, depth + 1)
    if kind != _LIST:
        raise ValueError(f"there is a value of type {kind} at byte {position}")
    count, inner = data[position] >> 4, data[position] & 15
    position += 1
    if count == 15:
        count, position = _varint(data, position)
    items = []
    for _ in range(count):
        item, position = _item(data, position, inner, depth + 1)
        items.append(item)
    return items, position


def _integer(data: bytes | mmap, position: int, bits: int) -> tuple[int, int]:
    """Return a signed number and its end. Raises ValueError for more than ``bits`` bits, which Thrift truncates."""
    coded, position = _varint(data, position)
    if coded >> bits:
        raise ValueError(f"a number has more than {bits} bits at byte {position}")
    return (coded >> 1) ^ -(coded & 1), position


def _varint(data: bytes | mmap, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position + shift // 7]
        result |= (byte & 127) << shift
        if byte < 128:
            return result, position + shift // 7 + 1
    raise ValueError(f"there is an endless number at byte {position}")
