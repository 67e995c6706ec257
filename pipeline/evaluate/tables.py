"""Results as tables: terminal, Markdown, JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.evaluation import calibration_levels
from pipeline.report.paper import (
    CAER_NET_S,
    CAHFW_NET,
    PAPER_TABLE_2,
    PAPER_TABLE_3,
    PAPER_TABLE_4,
    answered_by,
    is_caer_s,
)
from pipeline.report.values import NONE, percent
from pipeline.storage.redaction import terminal_text

CAVEAT = (
    "Accuracies and F1 are percent, over single faces unless clips are named. The paper's are on the test set of"
    " CAER-S: ours stand beside them for comparison only where the data is CAER-S too."
)


TOP1_95 = "95 % of top-1"
OFFICIAL_LEAK = (
    "The official splits of CAER-S leak: 30.5 % of the test images have a box of the same class with IoU > 0.9 in train"
    " within 60 files (Fear 60, Sad 43, Disgust 36, Surprise 31, Neutral 22, Anger 13, Happy 9 %), 6.2 % by chance. The"
    " split scheme shots of jobs/preprocess.py has no such neighbours."
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
    dataset = evaluation.get("dataset") or {}
    if dataset.get("synthetic") or (dataset.get("synthetic") is False and not is_caer_s(dataset)):
        paper = None  # Beside the paper's figure it would look like an answer to it.
    row_2, row_4 = (paper.table_2, paper.table_4) if paper else (None, None)
    classes = evaluated_classes(evaluation)
    columns_3 = [name for name in PAPER_TABLE_3 if name in (row_2, CAER_NET_S, CAHFW_NET)]
    ours = [f"{name}, ours, {split}" for split in splits]
    top1 = [percent(metrics["top1_accuracy"]) for metrics in splits.values()]
    per_class = [
        [emotion, *(_of_paper(column, emotion) for column in columns_3)]
        + [percent(metrics["per_class_accuracy"][emotion]) for metrics in splits.values()]
        for emotion in classes
    ]
    return [
        *_summaries(splits, num_classes=len(classes), title=f"{name}, epoch {evaluation['epoch']}"),
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
        *(confusion_table(metrics["confusion_matrix"], split, classes=classes) for split, metrics in splits.items()),
        *group_tables(splits),
    ]


def evaluated_classes(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of an evaluation: the seven of one that is older than this word of it."""
    return tuple(evaluation.get("classes", EMOTIONS))


def _of_paper(column: str, emotion: str) -> str:
    return f"{PAPER_TABLE_3[column][EMOTIONS.index(emotion)]:.2f}" if emotion in EMOTIONS else NONE


def _summaries(splits: dict[str, dict[str, Any]], *, num_classes: int, title: str) -> list[ResultTable]:
    """How good it is by faces of frames, by clips and persons, and how far its probabilities are to be believed."""
    columns = ["split", "examples", "top-1", TOP1_95, "balanced", f"macro-F1 of {num_classes}"]
    faces = [[split, f"{each['num_examples']:,}", *_measured(each)] for split, each in splits.items()]
    clip_rows, covered_rows, calibration = [], [], []
    for split, each in splits.items():
        clips, covered = each["clip_level"], each.get("coverage")
        without = covered["num_without_face"] if covered else None
        told = NONE if without is None else f"{without:,}", percent(covered and covered["top1_accuracy_of_all"])
        counts = f"{clips['num_clips']:,}", f"{clips['num_persons']:,}"
        clip_rows.append([split, *counts, *_measured(clips)])
        covered_rows.append([split, percent(clips["top1_accuracy_by_faces"]), *told])
        for level, values in calibration_levels(each).items():
            told = f"{values['nll']:.3f}", f"{values['brier']:.3f}", percent(values["ece"])
            calibration.append([f"{split}, {level}", *told])
    covered_columns = ["split", "top-1 by faces, each alike", "without a face", "top-1 with these wrong"]
    return [
        ResultTable(f"{title}: faces of single frames", columns, faces),
        ResultTable(f"{title}: clips by persons", ["split", "clips", "persons", *columns[2:]], clip_rows),
        ResultTable(f"{title}: all labelled clips", covered_columns, covered_rows),
        ResultTable(f"{title}: calibration", ["of", "NLL (nats)", "Brier (0 to 2)", "ECE"], calibration),
    ]


def group_tables(splits: dict[str, dict[str, Any]]) -> list[ResultTable]:
    """Of each split and column of groups its groups; none where no groups were given."""
    columns = ["group", "clips", "top-1", TOP1_95, "balanced"]
    return [
        ResultTable(
            f"Clips of {split} by {name}",
            columns,
            [
                [
                    *(row["group"], f"{row['num_clips']:,}", percent(row["top1_accuracy"]), between(row["interval"])),
                    percent(row["balanced_accuracy"]),
                ]
                for row in rows
            ],
        )
        for split, metrics in splits.items()
        for name, rows in metrics.get("groups", {}).items()
    ]


def between(edges: Sequence[float | None]) -> str:
    """An interval in percent."""
    return NONE if None in edges else " to ".join(map(percent, edges))


def notes_of(evaluation: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the tables, a sentence each."""
    notes = []
    if evaluation.get("differs"):
        notes.append(f"Done otherwise than in the paper: {'; '.join(evaluation['differs'])}.")
    if is_caer_s(evaluation.get("dataset") or {}) and (evaluation.get("split_scheme") or "official") == "official":
        notes.append(OFFICIAL_LEAK)
    if evaluation.get("faces") == "largest":
        notes.append("The examples hold the largest face of each frame alone; score looks at all faces.")
    for split, metrics in evaluation["splits"].items():
        units = metrics["intervals"]
        what = "group" if units["over"] == "groups" else "clip"
        notes.append(
            f"95 % intervals of {split} are by bootstrap over {units['num_units']:,} {what}s: faces of one {what} are"
            " alike."
        )
    return notes


def confusion_table(matrix: Sequence[Sequence[int]], name: str, *, classes: Sequence[str] = EMOTIONS) -> ResultTable:
    """A confusion matrix of these classes in counts."""
    rows = [[emotion, *map(str, counts)] for emotion, counts in zip(classes, matrix, strict=True)]
    return ResultTable(f"Confusion matrix, {name} (examples; rows true, columns predicted)", ["true", *classes], rows)


def _measured(metrics: dict[str, Any]) -> list[str]:
    top1, interval = percent(metrics["top1_accuracy"]), between(metrics["intervals"]["top1_accuracy"])
    return [top1, interval, percent(metrics["balanced_accuracy"]), percent(metrics["macro_f1_of_all"])]


def _beside(paper: dict[str, float], row: str | None, ours: list[str], name: str) -> list[list[str]]:
    """Rows of a table of the paper with ours in the row that our model answers, or in a row of its own."""
    rows = [[key, f"{value:.2f}", *(ours if key == row else [NONE] * len(ours))] for key, value in paper.items()]
    return rows if row else [*rows, [name, NONE, *ours]]


def markdown_of(evaluation: dict[str, Any]) -> str:
    """The tables of an evaluation as one Markdown page."""
    lines = [f"# Evaluation of {markdown_text(evaluation['model']['name'])}", "", CAVEAT]
    data, checkpoint = (markdown_code(evaluation[name]) for name in ("data", "checkpoint"))
    lines += ["", f"Data: {data}. Checkpoint: {checkpoint}."]
    lines += [line for note in notes_of(evaluation) for line in ("", f"**Note:** {markdown_text(note)}")]
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
    """The tables of an evaluation in a terminal, and what has to be known beside them."""
    print_tables(result_tables(evaluation), console)
    for note in notes_of(evaluation):
        console.print(terminal_text(note), highlight=False, markup=False)


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
