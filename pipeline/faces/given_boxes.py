"""Boxes given by hand: a CSV list in, a dictionary of boxes out."""

from __future__ import annotations

import csv
import io
import re

from pipeline.records.faces import Box
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import read_url

MAX_BYTES, MAX_ROWS = 2**29, 5_000_000
_NUMBER = re.compile(r"\s*[-+]?[\d.eE+-]{1,30}\s*")


def read_boxes(url: str) -> dict[str, list[Box]]:
    """The boxes of a list, by path relative to the input root, in the list's order.

    url: any fsspec URL of a CSV file without a header: `relpath,label,x1,y1,x2,y2`, integer pixels in the full frame.
    The label is not used. Keys have forward slashes. x2 and y2 are taken as half-open (one past the last pixel), and no
    coordinate is changed: a list whose right and bottom are inclusive loses one row and one column of pixels. Raises
    ValueError, naming file, line, value and cure, for a row that cannot be read or an inverted box; a row that has no
    four numbers is not quoted, for it may be of any file that the path was pointed at.
    """
    content = read_url(url, max_bytes=MAX_BYTES, what=f"box list {url}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"box list {url}: byte {error.start} is not UTF-8; save the list as UTF-8 text") from None
    boxes: dict[str, list[Box]] = {}
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        for number, row in enumerate(rows):
            if number >= MAX_ROWS:
                raise UsageError(f"box list {url} has more than {MAX_ROWS} rows; split the corpus")
            if row:
                path, box = _read_row(row, where=f"box list {url}, line {rows.line_num}")
                boxes.setdefault(path, []).append(box)
    except csv.Error as error:
        raise UsageError(f"box list {url}, line {rows.line_num}: {error}; mend or remove the row") from None
    return boxes


def _read_row(row: list[str], *, where: str) -> tuple[str, Box]:
    if len(row) != 6 or not row[0]:
        raise UsageError(f"{where}: the row is not relpath,label,x1,y1,x2,y2; mend or remove it")
    has_numbers = all(_NUMBER.fullmatch(corner) for corner in row[2:])
    shown = f"{','.join(row)[:200]!r}: " if has_numbers else ""
    try:
        x_min, y_min, x_max, y_max = (int(corner) for corner in row[2:])
    except ValueError:
        raise UsageError(f"{where}: {shown}x1,y1,x2,y2 must be integer pixels (no header row)") from None
    if x_max <= x_min or y_max <= y_min:
        raise UsageError(f"{where}: {shown}the box is empty or inverted; it needs x1 < x2 and y1 < y2")
    return row[0].replace("\\", "/"), Box(x_min, y_min, x_max, y_max)
