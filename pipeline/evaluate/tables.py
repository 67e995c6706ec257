"""Results as tables: terminal, Markdown, JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3, PAPER_TABLE_4, answered_by
from pipeline.report.values import NONE, percent
from pipeline.storage.redaction import terminal_text

CAVEAT = (
    "Accuracies and F1 are percent, over single faces unless clips are named. The paper's are on the test set of"
    " CAER-S: ours stand beside them for comparison only where the data is CAER-S too."
)


@dataclass(frozen=True, slots=True)
class ResultTable:
    """One table for people: its first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def result_tables(evaluation: dict[str, Any]) -> list[ResultTable]:
    """Our metrics, and ours beside the paper's Tables 2, 3 and 4; `evaluation` as `evaluate` gives it."""
    splits: dict[str, dict[str, Any]] = evaluation["splits"]
    name, paper = evaluation["model"]["name"], answered_by(evaluation["network"])
    row_2, row_4 = (paper.table_2, paper.table_4) if paper else (None, None)
    columns_3 = [name for name in PAPER_TABLE_3 if name in (row_2, CAER_NET_S, CAHFW_NET)]
    ours = [f"{name}, ours, {split}" for split in splits]
    top1 = [percent(metrics["top1_accuracy"]) for metrics in splits.values()]
    summary = [
        [split, *_summary(metrics, metrics["num_examples"]), *_summary(clips, clips["num_clips"])]
        for split, metrics in splits.items()
        for clips in (metrics["clip_level"],)
    ]
    per_class = [
        [emotion, *(f"{PAPER_TABLE_3[column][index]:.2f}" for column in columns_3)]
        + [percent(metrics["per_class_accuracy"][emotion]) for metrics in splits.values()]
        for index, emotion in enumerate(EMOTIONS)
    ]
    return [
        ResultTable(
            f"{name}, epoch {evaluation['epoch']}",
            ["split", "examples", "top-1", "macro-F1", "clips", "top-1 of clips", "macro-F1 of clips"],
            summary,
        ),
        ResultTable(
            "Table 2: top-1 accuracy of methods", ["method", "paper", *ours], _beside(PAPER_TABLE_2, row_2, top1, name)
        ),
        ResultTable(
            "Table 3: accuracy on each emotion",
            ["emotion", *(f"{column}, paper" for column in columns_3), *ours],
            per_class,
        ),
        ResultTable(
            "Table 4: top-1 accuracy of ablations",
            ["network", "paper", *ours],
            _beside(PAPER_TABLE_4, row_4, top1, name),
        ),
        *(confusion_table(metrics["confusion_matrix"], split) for split, metrics in splits.items()),
    ]


def confusion_table(matrix: Sequence[Sequence[int]], name: str) -> ResultTable:
    """A 7 x 7 confusion matrix in counts."""
    rows = [[emotion, *map(str, counts)] for emotion, counts in zip(EMOTIONS, matrix, strict=True)]
    return ResultTable(f"Confusion matrix, {name} (examples; rows true, columns predicted)", ["true", *EMOTIONS], rows)


def _summary(metrics: dict[str, Any], count: int) -> list[str]:
    return [f"{count:,}", percent(metrics["top1_accuracy"]), percent(metrics["macro_f1"])]


def _beside(paper: dict[str, float], row: str | None, ours: list[str], name: str) -> list[list[str]]:
    """Rows of a table of the paper with ours in the row that our model answers, or in a row of its own."""
    rows = [[key, f"{value:.2f}", *(ours if key == row else [NONE] * len(ours))] for key, value in paper.items()]
    return rows if row else [*rows, [name, NONE, *ours]]


def markdown_of(evaluation: dict[str, Any]) -> str:
    """The tables of an evaluation as one Markdown page."""
    lines = [f"# Evaluation of {markdown_text(evaluation['model']['name'])}", "", CAVEAT]
    data, checkpoint = (markdown_code(evaluation[name]) for name in ("data", "checkpoint"))
    lines += ["", f"Data: {data}. Checkpoint: {checkpoint}."]
    for table in result_tables(evaluation):
        lines += markdown_lines(table)
    return "\n".join(lines) + "\n"


def markdown_lines(table: ResultTable) -> list[str]:
    """A table under its title as lines of Markdown; what stands under `command` is code."""
    rule = ["---"] + ["---:"] * (len(table.columns) - 1)
    body = (
        [
            markdown_code(cell).replace("|", "\\|") if column == "command" else markdown_text(cell)
            for column, cell in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    )
    rows = ([*map(markdown_text, table.columns)], rule, *body)
    return ["", f"## {markdown_text(table.title)}", "", *("| " + " | ".join(cells) + " |" for cells in rows)]


def markdown_text(text: str) -> str:
    """Text for Markdown: in one line, and what would begin a cell, code, a link or HTML is escaped."""
    return re.sub(r"([\\`|\[\]<*])", r"\\\1", terminal_text(text))


def markdown_code(text: str) -> str:
    """Text as code in Markdown. It has no escape for a backtick there, so it becomes an apostrophe."""
    return "`{}`".format(terminal_text(text).replace("`", "'"))


def print_evaluation(evaluation: dict[str, Any], console: Console) -> None:
    """The tables of an evaluation in a terminal."""
    print_tables(result_tables(evaluation), console)


def print_tables(tables: Sequence[ResultTable], console: Console) -> None:
    """Tables in a terminal, and what they can be compared with."""
    for result in tables:
        # As Text: in a plain string Rich would take "[...]" of a name for its markup.
        table = Table(title=Text(terminal_text(result.title)), title_justify="left")
        for number, column in enumerate(result.columns):
            table.add_column(Text(terminal_text(column)), justify="right" if number else "left")
        for row in result.rows:
            table.add_row(*(Text(terminal_text(cell)) for cell in row))
        console.print(table)
    console.print(CAVEAT, highlight=False)
