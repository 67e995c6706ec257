"""What every page is made of: escaped text, facts, tables, sections, and the page around them."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from plotly.offline import get_plotlyjs

from pipeline.report.style import SCRIPT, STYLE

MAX_LISTED = 20_000


ROWS_AT_ONCE = 100


# Of a text from outside in a list: an error of 2,000 characters in each of 13,201 rows would be 26 MB.
MAX_CHARACTERS = 240


CAVEAT = "Labels and probabilities are a model's guess from pictures. They do not say what a person felt."


NONE = "–"


Cell = str | int | float | None


T = TypeVar("T")


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose first column names the row; numbers, and text that is one, stand to the right."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    return scrolled(
        f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{_body(rows)}</tbody></table>",
        label=caption,
    )


def _body(rows: Iterable[Sequence[Cell]]) -> str:
    body = []
    for first, *others in rows:
        cells = "".join(f"<td{_aligned(cell)}>{text(cell)}</td>" for cell in others)
        body.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    return "".join(body)


def listing(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, choose: str, num_rows: int | None = None
) -> str:
    """A long table that the reader filters by text and by the values of one column, sorts, and turns pages of.

    choose: name of that column. All rows travel as JSON (at most 20,000, the first ones); the first hundred are there
    without a script too. num_rows: how many there are, where `rows` are the first of them.
    """
    shown = [[_cut(cell) for cell in row] for row in rows[:MAX_LISTED]]
    values = sorted({str(row[columns.index(choose)] or "") for row in shown} - {""})
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{text(column)}</button></th>' for column in columns
    )
    visible = [[_visible(cell) if isinstance(cell, str) else cell for cell in row] for row in shown]
    options = "".join(f"<option>{text(value)}</option>" for value in values)
    top = f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
    inner = f"<table>{top}<tbody>{_body(shown[:ROWS_AT_ONCE])}</tbody></table>"
    return (
        f'<div class="listing" data-column="{columns.index(choose)}" data-rows="{ROWS_AT_ONCE}">'
        f"{note(len(shown), len(rows) if num_rows is None else num_rows, 'rows are in this page')}"
        f'<form role="search" aria-label="Filter: {text(caption)}"><label>text <input type="search"></label> '
        f'<label>{text(choose)} <select><option value="">all</option>{options}</select></label></form>'
        f'<p role="status" class="count">{min(len(shown), ROWS_AT_ONCE):,} of {len(shown):,}</p>'
        f"{scrolled(inner, label=caption)}"
        f'<nav aria-label="Pages of: {text(caption)}"><button type="button">previous</button> '
        f'<button type="button">next</button></nav>{data_island(visible)}</div>'
    )


def data_island(data: Any) -> str:
    """JSON for the page's script. "<" would let a name close the element."""
    packed = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{packed}</script>'


def _cut(cell: Cell) -> Cell:
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    if isinstance(cell, str) and len(cell) > MAX_CHARACTERS:
        return cell[:MAX_CHARACTERS] + "…"
    return cell


def _aligned(cell: Cell) -> str:
    return ' class="number"' if isinstance(number(cell), int | float) else ""


def scrolled(inner: str, *, label: str) -> str:
    """A wide table scrolls by itself, with the keyboard too, and the page stays as wide as the phone."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{inner}</div>'


def facts_list(facts: Mapping[str, Any]) -> str:
    items = (
        f"<div><dt>{text(name.replace('_', ' '))}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings in mappings as one, their names joined."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def section(heading: str, *parts: str) -> str:
    return f"<section><h2>{text(heading)}</h2>{''.join(parts)}</section>"


def note(num_shown: int, num_all: int, what: str) -> str:
    return f"<p>{num_shown:,} of {num_all:,} {what}.</p>" if num_shown < num_all else f"<p>All {num_all:,} {what}.</p>"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread and in their order."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def number(value: Any) -> Any:
    """A number out of text; None for one that is not finite; anything else as it is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
        value = int(value) if value.is_integer() else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(value: Any) -> Cell:
    return f"{value:.4g}" if isinstance(value, float) else value


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"


def text(value: Any) -> str:
    """Escaped for HTML. Unprintable characters (controls, reversals of direction, broken UTF-8) show as \\u codes."""
    if value is None or value == "":
        return NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return html.escape(_visible(str(value)))


def _visible(value: str) -> str:
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in value)


def page(title: str, sections: Sequence[str]) -> str:
    """The whole file."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{text(title)}</h1></header>
<main id="main">
{"".join(sections)}
</main>
<footer><p>{CAVEAT}</p></footer>
<script type="text/plain" id="plotly">{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
