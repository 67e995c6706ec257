"""How much the pages of a Parquet file take once they are unpacked, by their own heads; none of them is.

A footer may say anything of a column. What a reader makes room for is what stands before each page.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# Heads of ours nest four deep, and no field of Parquet's more than eight.
_MAX_DEPTH = 12
# Ours have some KB. A byte of a footer can stand for a record of 64.
_MAX_FOOTER_BYTES = 2**22
# Fields of Parquet's heads, by the numbers that its description gives them.
_ROW_GROUPS, _COLUMNS, _FACTS, _PATH, _NUM_VALUES, _NUM_BYTES, _DATA_AT, _DICTIONARY_AT = 4, 1, 3, 3, 5, 7, 9, 11
_UNPACKED, _PACKED = 2, 3


@dataclass(frozen=True, kw_only=True)
class PageSizes:
    """Of one row group: the bytes of all its pages, and of the longest page of each column together."""

    num_bytes: int
    longest_bytes: int


def page_sizes(content: bytes, columns: Collection[str]) -> list[PageSizes]:
    """The unpacked sizes of these columns' pages, by row group, as a reader will make room for them.

    columns: their names, of a nested one that of the outermost. Raises ValueError for what is no Parquet file.
    """
    if len(content) < 12 or content[-4:] != b"PAR1":
        raise ValueError("it has no end")
    length = int.from_bytes(content[-8:-4], "little")
    if length > len(content) - 8:
        raise ValueError("it has no footer")
    if length > _MAX_FOOTER_BYTES:
        raise ValueError(f"its footer is longer than {_MAX_FOOTER_BYTES / 2**20:.0f} MiB")
    footer = _Fields(content, len(content) - 8 - length).struct()
    try:
        groups = [[_chunk_sizes(content, each, columns) for each in group[_COLUMNS]] for group in footer[_ROW_GROUPS]]
    except (TypeError, KeyError, IndexError, AttributeError, UnicodeDecodeError):
        raise ValueError("a column of it has no place") from None
    return [
        PageSizes(num_bytes=sum(map(sum, sizes)), longest_bytes=sum(max(each, default=0) for each in sizes))
        for sizes in groups
    ]


def _chunk_sizes(content: bytes, chunk: Any, columns: Collection[str]) -> list[int]:
    """The unpacked size of each page of one column in one row group; none where it is not wanted."""
    facts = chunk[_FACTS]
    if facts[_PATH][0].decode() not in columns or facts[_NUM_VALUES] <= 0:
        return []  # A column without values is not read; it may have no place.
    at, dictionary = facts[_DATA_AT], facts.get(_DICTIONARY_AT, 0)
    at = dictionary if 0 < dictionary < at else at
    end = at + facts[_NUM_BYTES]
    if not 4 <= at <= end <= len(content):
        raise ValueError("a column lies outside of it")
    found = []
    while at < end:
        fields = _Fields(content, at)
        head = fields.struct()
        if min(head[_UNPACKED], head[_PACKED]) < 0:
            raise ValueError("a page of it has no length")
        found.append(head[_UNPACKED])
        at = fields.at + head[_PACKED]
    return found


class _Fields:
    """Reads the compact form of Thrift, in which Parquet writes its heads."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self.at = at

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields from here by their numbers. Raises ValueError."""
        if depth > _MAX_DEPTH:
            raise ValueError("a head of it nests too deep")
        found: dict[int, Any] = {}
        number = 0
        try:
            while kind := self._content[self.at]:
                self.at += 1
                number = number + (kind >> 4) if kind >> 4 else self._signed()
                found[number] = self._value(kind & 15, depth, is_field=True)
        except IndexError:
            raise ValueError("a head of it ends too soon") from None
        self.at += 1
        return found

    def _value(self, kind: int, depth: int, *, is_field: bool = False) -> Any:
        if kind in (1, 2):
            self.at += not is_field  # in a list a truth takes a byte; of a field the kind says it
            return kind == 1
        if kind == 3:
            self.at += 1
            return 0
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            self.at += 8
            return 0.0
        if kind == 8:
            length = self._number()
            self.at += length
            return self._content[self.at - length : self.at]
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a head of it has a field of a kind that Parquet has not")

    def _list(self, depth: int) -> list[Any]:
        first = self._content[self.at]
        self.at += 1
        length = first >> 4 if first >> 4 != 15 else self._number()
        if length > len(self._content) - self.at:
            raise ValueError("a head of it has a list without end")
        if depth > _MAX_DEPTH:
            raise ValueError("a head of it nests too deep")
        return [self._value(first & 15, depth + 1) for _ in range(length)]

    def _number(self) -> int:
        found = shift = 0
        while True:
            byte = self._content[self.at]
            self.at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("a head of it has a number without end")

    def _signed(self) -> int:
        found = self._number()
        return (found >> 1) ^ -(found & 1)
