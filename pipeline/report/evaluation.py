"""The page of an evaluation: a checkpoint's metrics on each split, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, THIRD, Chart, ConfusionMatrix, bars
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3
from pipeline.report.parts import Table
from pipeline.report.templates import render
from pipeline.report.values import flat, percent


def evaluation_page(evaluation: Mapping[str, Any], *, title: str) -> str:
    """A checkpoint's metrics on each split, beside the paper's; `evaluation` is what `evaluate.evaluate` gives."""
    splits: Mapping[str, Mapping[str, Any]] = evaluation["splits"]
    top1 = [[method, f"{accuracy:.2f}"] for method, accuracy in PAPER_TABLE_2.items()]
    top1 += [[f"ours, {split}", percent(metrics["top1_accuracy"])] for split, metrics in splits.items()]
    return render(
        "evaluation.html",
        title=title,
        facts=flat({name: value for name, value in evaluation.items() if name != "splits"}),
        splits=[_split(split, metrics) for split, metrics in splits.items()],
        paper=Table("Top-1 accuracy, percent (paper's Table 2)", ["method", "top-1"], top1),
    )


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
    title = f"Accuracy of each emotion on {split}, beside the paper's Table 3"
    return {
        "name": split,
        "facts": facts,
        "chart": beside_the_paper(metrics, title=title),
        "confusion": ConfusionMatrix(metrics["confusion_matrix"], split),
    }
