"""Boxes given by hand: a CSV list in, a dictionary of boxes out."""

from __future__ import annotations

import csv
import io

from pipeline.records.faces import Box
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import read_url


def read_boxes(url: str) -> dict[str, list[Box]]:
    """The boxes of a list, by path relative to the input root, in the list's order.

    url: any fsspec URL of a CSV file without a header: `relpath,label,x1,y1,x2,y2`, integer pixels in the full frame.
    The label is not used. Keys have forward slashes. x2 and y2 are taken as half-open (one past the last pixel), and no
    coordinate is changed: a list whose right and bottom are inclusive loses one row and one column of pixels. Raises
    ValueError, naming file, line, value and cure, for a row that cannot be read or an inverted box.
    """
    content = read_url(url)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"box list {url}: byte {error.start} is not UTF-8; save the list as UTF-8 text") from error
    boxes: dict[str, list[Box]] = {}
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            if row:
                path, box = _read_row(row, where=f"box list {url}, line {rows.line_num}")
                boxes.setdefault(path, []).append(box)
    except csv.Error as error:
        raise UsageError(f"box list {url}, line {rows.line_num}: {error}; mend or remove the row") from error
    return boxes


def _read_row(row: list[str], *, where: str) -> tuple[str, Box]:
    shown = ",".join(row)
    if len(row) != 6 or not row[0]:
        raise UsageError(f"{where}: {shown!r} is not relpath,label,x1,y1,x2,y2; mend or remove the row")
    try:
        x_min, y_min, x_max, y_max = (int(corner) for corner in row[2:])
    except ValueError as error:
        raise UsageError(f"{where}: {shown!r}: x1,y1,x2,y2 must be integer pixels (no header row)") from error
    if x_max <= x_min or y_max <= y_min:
        raise UsageError(f"{where}: {shown!r}: the box is empty or inverted; it needs x1 < x2 and y1 < y2")
    return row[0].replace("\\", "/"), Box(x_min, y_min, x_max, y_max)
