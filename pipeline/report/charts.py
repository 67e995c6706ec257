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


# Those of other classes, in their order (Tol's muted palette); after the last the first comes again.
MORE_COLOURS = ("#332288", "#117733", "#aa4499", "#ddcc77", "#882255", "#44aa99", "#999933", "#661100", "#6699cc")
MORE_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def colour_numbers(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class's colour, as in the style sheet: the seven have their own in every set of classes."""
    others = [name for name in classes if name not in EMOTIONS]
    return {
        name: EMOTIONS.index(name) if name in EMOTIONS else len(EMOTIONS) + others.index(name) % len(MORE_COLOURS)
        for name in classes
    }


def colours_of(classes: Sequence[str]) -> dict[str, str]:
    """The colour of each class."""
    palette = (*COLOURS.values(), *MORE_COLOURS)
    return {name: palette[number] for name, number in colour_numbers(classes).items()}


def dashes_of(classes: Sequence[str]) -> dict[str, str]:
    """The dash of each class's line."""
    others = [name for name in classes if name not in EMOTIONS]
    return {name: DASHES.get(name) or MORE_DASHES[others.index(name) % len(MORE_DASHES)] for name in classes}


DASHES = dict(zip(EMOTIONS, ("solid", "dash", "dot", "solid", "solid", "dashdot", "dash"), strict=True))


OURS, THEIRS, THIRD = "#0072b2", "#e69f00", "#009e73"


MARK = "#8a8a8a"
MAX_TICKS = 10
_STEPS = [digit * 10**power for power in range(18) for digit in (1, 2, 5)]


@dataclass(frozen=True)
class Chart:
    """A chart, and its numbers in a table under it.

    share: the y axis goes from 0 to 1. heading: whether the title is printed over it; it is read aloud in any case.
    marks: lines across it, of `across` and `down`. numbers: the table, where it is more than the traces.
    """

    traces: Sequence[dict[str, Any]]
    title: str
    x: str
    y: str
    share: bool = False
    heading: bool = True
    marks: Sequence[dict[str, Any]] = ()
    numbers: Table | None = None

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
        places = [x for trace in self.traces for x in trace["x"]]
        if places and all(isinstance(x, int) for x in places):  # Epochs: there is none at 1.5.
            width = max(places) - min(places)
            layout["xaxis"]["dtick"] = next(step for step in _STEPS if width / step <= MAX_TICKS)
        if self.share:
            # Above the highest there is, the name of a line that goes down.
            layout["yaxis"]["range"] = [0, 1.15 if any("yref" in mark["shape"] for mark in self.marks) else 1.02]
        if self.marks:
            layout["shapes"] = [mark["shape"] for mark in self.marks]
            layout["annotations"] = [mark["annotation"] for mark in self.marks]
        return {"data": self.traces, "layout": layout}

    @property
    def table(self) -> Table:
        """Its numbers, a column a trace."""
        if self.numbers is not None:
            return self.numbers
        rows = [
            [short(value), *(short(trace["y"][index]) for trace in self.traces)]
            for index, value in enumerate(self.traces[0]["x"] if self.traces else ())
        ]
        return Table(self.title, [self.x, *(trace["name"] for trace in self.traces)], rows)


def across(y: float, words: str) -> dict[str, Any]:
    """A dotted line at a height, with its name."""
    line = {"color": MARK, "width": 1.5, "dash": "dot"}
    return {
        "shape": {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line},
        "annotation": {"xref": "paper", "x": 1, "xanchor": "right", "y": y, "yanchor": "bottom", "text": words}
        | {"showarrow": False},
    }


def down(x: float, words: str) -> dict[str, Any]:
    """A dotted line at a place of the x axis, with its name at its head."""
    line = {"color": MARK, "width": 1.5, "dash": "dot"}
    return {
        "shape": {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line},
        "annotation": {"yref": "paper", "y": 1, "yanchor": "top", "x": x, "xanchor": "auto", "text": words}
        | {"showarrow": False},
    }


def histogram(values: Sequence[float] | np.ndarray, *, title: str, unit: str) -> Chart:
    """Counts of the values in at most 20 bins of one width, whose edges are round numbers.

    Values that are not finite are left out.
    """
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Chart([], title, unit, "count")
    counts, edges = np.histogram(found, bins=_round_edges(found))
    names = [f"{round(low, 9):g} to {round(high, 9):g}" for low, high in pairwise(edges)]
    return Chart([bars(names, counts.tolist(), name="count", colour=OURS)], title, unit, "count")


def _round_edges(values: np.ndarray) -> np.ndarray:
    """Edges at multiples of 1, 2, 2.5 or 5 times a power of ten, for 5 to 20 bins as the number of values allows."""
    low, high = float(values.min()), float(values.max())
    wanted = max((high - low) / min(20, max(5, math.isqrt(len(values)))), abs(high) * 1e-6, 1e-9)
    power = 10.0 ** math.floor(math.log10(wanted))
    width = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= wanted * (1 - 1e-9))
    first = math.floor(low / width)
    last = max(first + 1, math.ceil(high / width))
    return np.arange(first, last + 1) * width


def line(x: Sequence[Any], y: Sequence[Any], *, name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    """A line through points, for a Chart."""
    style = {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5}}
    return {"type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y), "name": name, **style}


def bars(x: Sequence[str], y: Sequence[Any], *, name: str, colour: str) -> dict[str, Any]:
    """Bars, for a Chart."""
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
    """A confusion matrix in counts and shares of its rows, shaded. matrix: square, rows true, columns predicted."""

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
