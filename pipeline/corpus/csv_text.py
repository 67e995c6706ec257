"""The bytes of a CSV or TSV manifest to rows of trimmed cells, as spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import io
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

# Around a cell: also what web pages leave there, what prints nothing, and the end of a file of DOS.
BLANK = f"{string.whitespace}\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}\x1a"
_SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|"}
# The longest first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_HEAD_BYTES = 2**16
# A line of a spreadsheet's own, or one in which nothing stands.
_BEFORE_THE_HEADER = re.compile(r"(?:(?:sep=[,;\t|])?[ \t,;|\"\ufeff]*(?:\r\n|\r|\n))+")


def csv_rows(content: bytes, extension: str) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """The separator, and the number of its last line and the cells of each row, the header's first. Rows without a word
    are left out.

    extension: csv or tsv, whose separator counts where the header has no column `url` by another.

    Raises UnicodeDecodeError where it is no UTF-8 and has no mark of UTF-16 or UTF-32; reading the rows raises
    csv.Error too, where it is no CSV.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    head = content[:_HEAD_BYTES].decode(encoding, "ignore")
    before = found[0] if (found := _BEFORE_THE_HEADER.match(head)) else ""
    separator = _separator_of(head[len(before) :], _SEPARATORS[extension])
    text = io.TextIOWrapper(io.BytesIO(content), encoding=encoding, newline="")
    text.read(len(before))
    reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=True)
    return separator, _rows(reader, num_before=len(re.findall(r"\r\n|\r|\n", before)))


def _rows(reader: Any, *, num_before: int) -> Iterator[tuple[int, list[str]]]:
    for cells in reader:
        fields = [cell.strip(BLANK) for cell in cells]
        if any(fields):
            yield num_before + reader.line_num, fields


def _separator_of(head: str, separators: Sequence[str]) -> str:
    """The separator by which the header has a column `url`; the first where none does."""
    for separator in separators:
        try:
            names = next(csv.reader(io.StringIO(head, newline=""), delimiter=separator, skipinitialspace=True), [])
        except csv.Error:
            continue
        if "url" in {name.strip(BLANK).lower() for name in names}:
            return separator
    return separators[0]


def with_decimal_point(cell: str) -> str:
    """A number in which a comma may stand for the point; as it is where that is not plain, since 1,234 may be
    thousands."""
    return cell.replace(",", ".") if re.fullmatch(r"[+-]?\d*,(\d{1,2}|\d{4,})", cell) else cell
