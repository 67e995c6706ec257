"""Charts of Plotly, each with its numbers in a table below, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.parts import Table
from pipeline.report.values import short

# Okabe and Ito's palette, which colour-blind readers tell apart, with Neutral in grey; dashes say the same again.
COLOURS = dict(
    zip(EMOTIONS, ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8a8a", "#0072b2", "#56b4e9"), strict=True)
)


DASHES = dict(zip(EMOTIONS, ("solid", "dash", "dot", "solid", "solid", "dashdot", "dash"), strict=True))


OURS, THEIRS, THIRD = "#0072b2", "#e69f00", "#009e73"


@dataclass(frozen=True)
class Chart:
    """A chart, and its numbers in a table under it. share: the y axis goes from 0 to 1. heading: whether the title is
    printed over it; it is read aloud in any case."""

    traces: Sequence[dict[str, Any]]
    title: str
    x: str
    y: str
    share: bool = False
    heading: bool = True

    @property
    def figure(self) -> dict[str, Any]:
        """What Plotly draws."""
        layout: dict[str, Any] = {
            "xaxis": {"title": {"text": self.x}, "automargin": True},
            "yaxis": {"title": {"text": self.y}, "automargin": True, "rangemode": "tozero"},
            "showlegend": len(self.traces) > 1,
            "legend": {"orientation": "h", "y": -0.3},
            "margin": {"l": 50, "r": 10, "t": 10, "b": 40},
            "hovermode": "x unified",
        }
        if self.share:
            layout["yaxis"]["range"] = [0, 1.02]
        return {"data": self.traces, "layout": layout}

    @property
    def table(self) -> Table:
        """Its numbers, a column a trace."""
        rows = [
            [short(value), *(short(trace["y"][index]) for trace in self.traces)]
            for index, value in enumerate(self.traces[0]["x"] if self.traces else ())
        ]
        return Table(self.title, [self.x, *(trace["name"] for trace in self.traces)], rows)


def histogram(values: Sequence[float] | np.ndarray, *, title: str, unit: str) -> Chart:
    """Counts of the values in 5 to 20 bins of one width."""
    if not len(values):
        return Chart([], title, unit, "count")
    counts, edges = np.histogram(values, bins=min(20, max(5, math.isqrt(len(values)))))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return Chart([bars(names, counts.tolist(), name="count", colour=OURS)], title, unit, "count")


def line(x: Sequence[Any], y: Sequence[Any], *, name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    style = {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5}}
    return {"type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y), "name": name, **style}


def bars(x: Sequence[str], y: Sequence[Any], *, name: str, colour: str) -> dict[str, Any]:
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": {"color": colour}}


@dataclass(frozen=True)
class ConfusionCell:
    """How many examples of an emotion were called another; twentieths: their share of the row, 0 to 20."""

    count: int
    share: str
    twentieths: int
    is_right: bool


@dataclass(frozen=True)
class ConfusionMatrix:
    """A confusion matrix in counts and shares of its rows, shaded. matrix: (7, 7), rows true, columns predicted."""

    matrix: Sequence[Sequence[int]]
    split: str
    names: Sequence[str] = EMOTIONS

    @property
    def caption(self) -> str:
        return f"Confusion matrix on {self.split}: rows true, columns predicted; examples, and their share of the row"

    @property
    def rows(self) -> list[tuple[str, list[ConfusionCell]]]:
        found = []
        for emotion, counts in zip(self.names, self.matrix, strict=True):
            total = sum(counts) or 1
            cells = [
                ConfusionCell(count, f"{count / total:.0%}", round(20 * count / total), predicted == emotion)
                for predicted, count in zip(self.names, counts, strict=True)
            ]
            found.append((emotion, cells))
        return found
