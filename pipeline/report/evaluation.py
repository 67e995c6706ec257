"""The page of an evaluation: how good a checkpoint is on each split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, THIRD, Chart, ConfusionMatrix, across, bars
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3
from pipeline.report.parts import Table
from pipeline.report.templates import render
from pipeline.report.values import flat, interval, percent, said


def evaluation_page(evaluation: Mapping[str, Any], *, title: str) -> str:
    """How good a checkpoint is, how sure that is, against chance; `evaluation` is what `evaluate.evaluate` gives.

    The paper's figures are beside it only where the data is the paper's, and folded away where nobody said what it is.
    """
    splits: Mapping[str, Mapping[str, Any]] = evaluation["splits"]
    data = evaluation.get("dataset") or {}
    is_papers = is_caer_s(data) if data else None
    top1 = [[method, f"{accuracy:.2f}"] for method, accuracy in PAPER_TABLE_2.items()]
    top1 += [[f"ours, {split}", percent(metrics["top1_accuracy"])] for split, metrics in splits.items()]
    return render(
        "evaluation.html",
        title=title,
        lead=_lead(splits),
        warnings=["The data is made up: these figures say nothing of real people."] if data.get("synthetic") else [],
        splits=[_split(split, metrics) for split, metrics in splits.items()],
        is_papers=is_papers,
        paper=Table("Top-1 accuracy, percent (paper's Table 2)", ["method", "top-1"], top1),
        provenance={"Checkpoint and data": flat({name: each for name, each in evaluation.items() if name != "splits"})},
    )


def is_caer_s(data: Mapping[str, Any]) -> bool:
    """Whether a data set, as its description names it, is the paper's."""
    return not data.get("synthetic") and str(data.get("name", "")).lower().replace("_", "-").startswith("caer-s")


def _lead(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How good it is, and how sure that is; the test split first."""
    sentences = []
    for split in sorted(splits, key=lambda name: name != "test"):
        metrics = splits[split]
        accuracy, num = metrics["top1_accuracy"], metrics["num_examples"]
        clips = metrics.get("clip_level") or {}
        num_independent = clips.get("num_clips") or num
        low, high = interval(accuracy, num_independent)
        counts = [sum(row) for row in metrics["confusion_matrix"]]
        always = EMOTIONS[counts.index(max(counts))]
        sentences.append(
            f"On {split} it names {said(accuracy)} of {num:,} faces right; the true figure lies between {said(low)} and"
            f" {said(high)} (95 %, of {num_independent:,} {'clips' if clips.get('num_clips') else 'examples'})."
        )
        if len(sentences) == 1:
            sentences.append(
                f"Guessing gets {said(1 / len(EMOTIONS))}, and always saying {always} {said(max(counts) / num)}."
            )
    return sentences


def per_class(metrics: Mapping[str, Any], *, split: str) -> Table:
    """Precision and recall of each emotion, from the confusion matrix."""
    matrix = metrics["confusion_matrix"]
    rows = []
    for index, emotion in enumerate(EMOTIONS):
        true, named, right = sum(matrix[index]), sum(row[index] for row in matrix), matrix[index][index]
        recall, precision = (right / total if total else None for total in (true, named))
        low, high = interval(recall, true) if recall is not None else (None, None)
        between = f"{said(low)} to {said(high)}" if recall is not None else None
        rows.append([emotion, true, said(recall), between, said(precision)])
    columns = ["emotion", "examples", "found of them (recall)", "95 %", "right where it is said (precision)"]
    return Table(f"Each emotion on {split}", columns, rows)


def beside_the_paper(metrics: Mapping[str, Any], *, title: str) -> Chart:
    """Our accuracy on each emotion beside those of the paper's Table 3, in percent."""
    shares = [metrics["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    columns = {"ours": [None if share is None else 100 * share for share in shares]}
    columns |= {f"{name}, paper": list(PAPER_TABLE_3[name]) for name in (CAHFW_NET, CAER_NET_S)}
    traces = [
        bars(list(EMOTIONS), values, name=name, colour=colour)
        for (name, values), colour in zip(columns.items(), (OURS, THEIRS, THIRD), strict=True)
    ]
    return Chart(traces, title, "true emotion", "percent")


def _split(split: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    clips = metrics.get("clip_level")
    facts = {
        "examples": metrics["num_examples"],
        "top-1, percent": percent(metrics["top1_accuracy"]),
        "macro-F1, percent": percent(metrics["macro_f1"]),
    }
    if clips:
        facts |= {
            "clips": clips["num_clips"],
            "top-1 of clips, percent": percent(clips["top1_accuracy"]),
            "macro-F1 of clips, percent": percent(clips["macro_f1"]),
        }
    own = [metrics["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    traces = [bars(list(EMOTIONS), [None if each is None else 100 * each for each in own], name="ours", colour=OURS)]
    chance = across(100 / len(EMOTIONS), "chance")
    return {
        "name": split,
        "facts": facts,
        "chart": Chart(traces, f"Accuracy of each emotion on {split}", "true emotion", "percent", marks=[chance]),
        "per_class": per_class(metrics, split=split),
        "beside": beside_the_paper(metrics, title=f"Accuracy of each emotion on {split}, beside the paper's Table 3"),
        "confusion": ConfusionMatrix(metrics["confusion_matrix"], split),
    }
