"""The page of an evaluation: a checkpoint's metrics on each split, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, THIRD, bars, chart, confusion_table
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3
from pipeline.report.parts import facts_list, flat, page, percent, section, table


def evaluation_page(evaluation: Mapping[str, Any], *, title: str) -> str:
    """A checkpoint's metrics on each split, beside the paper's; `evaluation` is what `evaluate.evaluate` gives."""
    splits: Mapping[str, Mapping[str, Any]] = evaluation["splits"]
    facts = {name: value for name, value in evaluation.items() if name != "splits"}
    top1 = [[method, f"{accuracy:.2f}"] for method, accuracy in PAPER_TABLE_2.items()]
    top1 += [[f"ours, {split}", percent(metrics["top1_accuracy"])] for split, metrics in splits.items()]
    return page(
        title,
        [
            section("Checkpoint and data", facts_list(flat(facts))),
            *(_split_section(split, metrics) for split, metrics in splits.items()),
            section(
                "Beside the paper",
                "<p>The paper's numbers are on the test set of CAER-S: ours compare only where the data is CAER-S.</p>",
                table("Top-1 accuracy, percent (paper's Table 2)", ["method", "top-1"], top1),
            ),
        ],
    )


def _split_section(split: str, metrics: Mapping[str, Any]) -> str:
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
    ours = [metrics["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    columns = {"ours": [None if share is None else 100 * share for share in ours]}
    columns |= {f"{name}, paper": list(PAPER_TABLE_3[name]) for name in (CAHFW_NET, CAER_NET_S)}
    return section(
        f"Split {split}",
        facts_list(facts),
        chart(
            [
                bars(list(EMOTIONS), values, name=name, colour=colour)
                for (name, values), colour in zip(columns.items(), (OURS, THEIRS, THIRD), strict=True)
            ],
            title=f"Accuracy of each emotion on {split}, beside the paper's Table 3",
            x="true emotion",
            y="percent",
        ),
        confusion_table(metrics["confusion_matrix"], split=split),
    )
