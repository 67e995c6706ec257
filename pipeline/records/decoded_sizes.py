"""How much of Parquet and Arrow will be there once it is decoded, asked before it is.

A page of Parquet or a buffer of Arrow is decoded as a whole, and a few bytes of one can stand for gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from pipeline.records.arrow import pc
from pipeline.records.parquet_pages import page_sizes

ROWS_AT_ONCE = 256
# Of the longest values that a dictionary may have, so many rows are decoded at a time.
BYTES_AT_ONCE = 2**26
# Kinds of columns of which a few bytes can stand for many values.
_AMPLIFYING = ("dictionary", "run_end_encoded", "view")


def parquet_groups(
    file: Any, content: bytes, columns: Collection[str], *, max_bytes: int
) -> Iterator[tuple[int, int]] | None:
    """The row groups of an open Parquet file, each with how many of its rows to decode at a time.

    None where its pages are more than `max_bytes` once they are unpacked. Raises ValueError where it is damaged, or a
    column that is wanted has lists, which this package does not write: a row of one may have any number of values.
    """
    # Not the footer's facts of each column: this version of Arrow ends the process where they are damaged.
    leaves = map(file.schema.column, range(len(file.schema.names)))
    if any(leaf.max_repetition_level and leaf.path.partition(".")[0] in columns for leaf in leaves):
        raise ValueError("it has a column of a kind that is not written here")
    groups = page_sizes(content, columns)
    if len(groups) != file.metadata.num_row_groups:
        raise ValueError("its footer has two meanings")
    if sum(group.num_bytes for group in groups) > max_bytes:
        return None
    # No value is longer than the page that it stands in, nor than that of its dictionary.
    at_once = (BYTES_AT_ONCE // max(1, group.longest_bytes) for group in groups)
    return enumerate(max(1, min(ROWS_AT_ONCE, number)) for number in at_once)


def written_bytes(batch: Any) -> int:
    """The bytes of a record batch once each value of a dictionary is written out."""
    return sum(map(_written_bytes, batch.columns))


def _written_bytes(column: Any) -> int:
    if not isinstance(column, pa.DictionaryArray):
        return column.nbytes
    is_text = any(is_kind(column.dictionary.type) for is_kind in (pa.types.is_string, pa.types.is_binary))
    longest = pc.max(pc.binary_length(column.dictionary)).as_py() if is_text else column.dictionary.nbytes
    return column.nbytes + len(column) * (longest or 0)


def arrow_sizes(content: bytes) -> Iterator[int]:
    """What each record batch of an Arrow file decodes to, in bytes; None of it is decoded.

    Raises pa.ArrowException and ValueError where it is none, or has a column of a kind that this package does not
    write: of which a few bytes are any number of values.
    """
    # After eight bytes a file is a stream of its messages.
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(content).slice(8))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.type == "record batch":
            yield _decoded_bytes(message)
        elif message.type != "schema" or any(_is_amplifying(each.type) for each in pa.ipc.read_schema(message)):
            raise ValueError("it has a column of a kind that is not written here")


def _is_amplifying(kind: Any) -> bool:
    if pa.types.is_null(kind) or any(word in str(kind) for word in _AMPLIFYING):
        return True
    return any(_is_amplifying(kind.field(number).type) for number in range(kind.num_fields))


def _decoded_bytes(message: Any) -> int:
    """The rows and the bytes of a record batch, as its head and its buffers claim. Raises ValueError."""
    head, body = memoryview(message.metadata), memoryview(message.body)
    try:
        batch = _field(head, _root(head, 0), 2)
        batch += struct.unpack_from("<I", head, batch)[0]
        rows = _field(head, batch, 0)
        num_bytes = struct.unpack_from("<q", head, rows)[0] if rows else 0
        is_packed, buffers = _field(head, batch, 3), _field(head, batch, 2)
        buffers += struct.unpack_from("<I", head, buffers)[0]
        for number in range(struct.unpack_from("<I", head, buffers)[0]):
            start, length = struct.unpack_from("<qq", head, buffers + 4 + 16 * number)
            unpacked = struct.unpack_from("<q", body, start)[0] if is_packed and length else -1
            num_bytes += length if unpacked == -1 else unpacked
            if length < 0 or unpacked < -1:
                raise ValueError("a buffer in it has no length")
    except (struct.error, TypeError):
        raise ValueError("a message in it has no head") from None
    return num_bytes


# Of the flatbuffers in which the heads are written: tables begin with the distance to the list of their fields' places.


def _root(head: memoryview, at: int) -> int:
    return at + struct.unpack_from("<I", head, at)[0]


def _field(head: memoryview, table: int, number: int) -> int:
    """Where a field of a table lies; 0 where it has none."""
    fields = table - struct.unpack_from("<i", head, table)[0]
    num_bytes = struct.unpack_from("<H", head, fields)[0]
    place = 4 + 2 * number
    found = struct.unpack_from("<H", head, fields + place)[0] if place < num_bytes else 0
    return table + found if found else 0
