"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.storage.redaction import terminal_text


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table: the first column to the left, the others to the right."""
    made = Table(title=Text(terminal_text(title)), title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(Text(terminal_text(column)), justify="right" if number else "left")
    for row in rows:
        made.add_row(*(Text(terminal_text(cell)) for cell in row))
    return made


def shown(value: Mapping[str, Any] | None, digits: int) -> str:
    """A spread as median (lowest–highest), - where nothing was measured."""
    if value is None:
        return "-"
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}–{value['max']:.{digits}f})"


def median(value: Mapping[str, Any] | None, *, scale: float = 1.0, digits: int = 0) -> str:
    """The median of a spread, - where nothing was measured."""
    return "-" if value is None else f"{scale * value['median']:.{digits}f}"
