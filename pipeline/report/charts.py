"""Charts of Plotly, each with its numbers in a table below, and the tables of numbers that several pages share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.parts import data_island, scrolled, short, table, text

# Okabe and Ito's palette, which colour-blind readers tell apart, with Neutral in grey; dashes say the same again.
COLOURS = dict(
    zip(EMOTIONS, ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8a8a", "#0072b2", "#56b4e9"), strict=True)
)


DASHES = dict(zip(EMOTIONS, ("solid", "dash", "dot", "solid", "solid", "dashdot", "dash"), strict=True))


OURS, THEIRS, THIRD = "#0072b2", "#e69f00", "#009e73"


def histogram(values: Sequence[float] | np.ndarray, *, title: str, unit: str) -> str:
    """Counts of the values in 5 to 20 bins of one width."""
    if not len(values):
        return f"<p>{text(title)}: there is nothing to count.</p>"
    counts, edges = np.histogram(values, bins=min(20, max(5, math.isqrt(len(values)))))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return chart([bars(names, counts.tolist(), name="count", colour=OURS)], title=title, x=unit, y="count")


def line(x: Sequence[Any], y: Sequence[Any], *, name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    style = {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5}}
    return {"type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y), "name": name, **style}


def bars(x: Sequence[str], y: Sequence[Any], *, name: str, colour: str) -> dict[str, Any]:
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": {"color": colour}}


def chart(
    traces: list[dict[str, Any]], *, title: str, x: str, y: str, share: bool = False, heading: bool = True
) -> str:
    """A chart, and its numbers in a table under it. share: the y axis goes from 0 to 1."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True, "rangemode": "tozero"},
        "showlegend": len(traces) > 1,
        "legend": {"orientation": "h", "y": -0.3},
        "margin": {"l": 50, "r": 10, "t": 10, "b": 40},
        "hovermode": "x unified",
    }
    if share:
        layout["yaxis"]["range"] = [0, 1.02]
    rows = [
        [short(value), *(short(trace["y"][index]) for trace in traces)] for index, value in enumerate(traces[0]["x"])
    ]
    return (
        f'<figure class="plot">{f"<figcaption>{text(title)}</figcaption>" if heading else ""}'
        f'<div class="chart" role="img" aria-label="{text(title)}; the numbers are in the table below"></div>'
        f"{data_island({'data': traces, 'layout': layout})}"
        "<details><summary>Numbers</summary>"
        + table(title, [x, *(trace["name"] for trace in traces)], rows)
        + "</details></figure>"
    )


def confusion_table(matrix: Sequence[Sequence[int]], *, split: str) -> str:
    """A confusion matrix in counts and shares of its rows, shaded."""
    lines = []
    for emotion, counts in zip(EMOTIONS, matrix, strict=True):
        total = sum(counts)
        cells = []
        for predicted, count in zip(EMOTIONS, counts, strict=True):
            share = count / total if total else 0.0
            right = ' class="right"' if predicted == emotion else ""
            cells.append(f'<td{right} style="--share:{share:.3f}">{count:,}<br><small>{share:.0%}</small></td>')
        lines.append(f'<tr><th scope="row">{emotion}</th>{"".join(cells)}</tr>')
    caption = f"Confusion matrix on {split}: rows true, columns predicted; examples, and their share of the row"
    return scrolled(
        f'<table class="confusion"><caption>{text(caption)}</caption><thead><tr><th scope="col">true</th>'
        + "".join(f'<th scope="col">{emotion}</th>' for emotion in EMOTIONS)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table>",
        label=caption,
    )
