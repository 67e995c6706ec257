"""What pages show besides charts and pictures: tables, and long tables that a reader filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.report.values import Cell, cut, said, visible

MAX_LISTED = 20_000


ROWS_AT_ONCE = 100


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Iterable[Sequence[Cell]]


@dataclass(frozen=True)
class Listing:
    """A long table that the reader filters by text and by the values of one column, sorts, and turns pages of.

    rows: at most 20,000 are kept, the first ones, which travel as JSON; the first hundred are there without a script
    too. choose: name of the column to choose by. num_rows: how many rows there are, where `rows` are the first of them.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    choose: str
    num_rows: int = -1
    rows_at_once: int = field(default=ROWS_AT_ONCE, init=False)

    def __post_init__(self) -> None:
        if self.num_rows < 0:
            object.__setattr__(self, "num_rows", len(self.rows))
        kept = [[cut(visible(cell) if isinstance(cell, str) else cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", kept[:MAX_LISTED])

    @property
    def chosen(self) -> int:
        """Place of the column to choose by."""
        return self.columns.index(self.choose)

    @property
    def choices(self) -> list[str]:
        return sorted({str(row[self.chosen] or "") for row in self.rows} - {""})


@dataclass(frozen=True)
class Part:
    """A piece of a bar: from x on, of 1000. kind: its class in the style. words: what it is, for the reader."""

    kind: str
    x: str
    width: str
    words: str


@dataclass(frozen=True)
class Bar:
    """Parts of a whole, side by side. legend: whether they are named under it."""

    label: str
    parts: Sequence[Part]
    height: int = 40
    legend: bool = True


def bar_of(label: str, counts: Sequence[tuple[str, int, str]]) -> Bar:
    """A bar of counts. counts: (class in the style, count, name); those of 0 are left out."""
    total = sum(count for _, count, _ in counts) or 1
    parts, x = [], 0.0
    for kind, count, name in counts:
        if count:
            width = 1000 * count / total
            parts.append(Part(kind, f"{x:.1f}", f"{width:.1f}", f"{count:,} {name} ({said(count / total)})"))
            x += width
    return Bar(label, parts)
