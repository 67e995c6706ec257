"""The page of an evaluation: how good a checkpoint is on each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import MARK, OURS, THEIRS, THIRD, Chart, ConfusionMatrix, across, bars, line
from pipeline.report.examined import Examined, example_card
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3, is_caer_s
from pipeline.report.parts import Table
from pipeline.report.templates import render
from pipeline.report.values import flat, interval, percent, said

# Parts of an evaluation that are sections of the page.
LONG = ("splits", "notes", "differs")


def evaluation_page(
    evaluation: Mapping[str, Any],
    *,
    title: str,
    wrong: Mapping[str, Sequence[Examined]] | None = None,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """How good a checkpoint is, how sure that is, against chance; `evaluation` is what `evaluate.evaluate` gives.

    The paper's figures are beside it only where the data is the paper's, and folded away where nobody said what it is.
    wrong: of each split the examples on which it was most wrong.
    """
    splits: Mapping[str, Mapping[str, Any]] = evaluation["splits"]
    classes = tuple(evaluation.get("classes", EMOTIONS))
    data = evaluation.get("dataset") or {}
    is_papers = False if set(classes) - set(EMOTIONS) else is_caer_s(data) if data else None
    pictured = {} if no_thumbnails else (wrong or {})
    cards = {
        split: [example_card(each, with_face=True, blur_faces=blur_faces) for each in examples]
        for split, examples in pictured.items()
    }
    top1 = [[method, f"{accuracy:.2f}"] for method, accuracy in PAPER_TABLE_2.items()]
    top1 += [[f"ours, {split}", percent(metrics["top1_accuracy"])] for split, metrics in splits.items()]
    return render(
        "evaluation.html",
        title=title,
        lead=_lead(splits, classes),
        warnings=["The data is made up: these figures say nothing of real people."] if data.get("synthetic") else [],
        notes=evaluation.get("notes", ()),
        splits=[_split(split, metrics, classes) | {"wrong": cards.get(split)} for split, metrics in splits.items()],
        no_thumbnails=no_thumbnails,
        is_papers=is_papers,
        paper=Table("Top-1 accuracy, percent (paper's Table 2)", ["method", "top-1"], top1),
        provenance={"Checkpoint and data": flat({name: each for name, each in evaluation.items() if name not in LONG})},
    )


def _lead(splits: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """How good it is, and how sure that is; the test split first."""
    sentences = []
    for split in sorted(splits, key=lambda name: name != "test"):
        metrics = splits[split]
        accuracy, num = metrics["top1_accuracy"], metrics["num_examples"]
        clips = metrics.get("clip_level") or {}
        num_independent = clips.get("num_clips") or num
        over = metrics.get("intervals", {})
        units = over.get("over") or ("clips" if clips.get("num_clips") else "examples")
        low, high = over.get("top1_accuracy") or interval(accuracy, num_independent)
        counts = [sum(row) for row in metrics["confusion_matrix"]]
        always = classes[counts.index(max(counts))]
        sentences.append(
            f"On {split} it names {said(accuracy)} of {num:,} faces right; the true figure lies between {said(low)} and"
            f" {said(high)} (95 %, of {over.get('num_units', num_independent):,} {units})."
        )
        if len(sentences) == 1:
            sentences.append(
                f"Guessing gets {said(1 / len(classes))}, and always saying {always} {said(max(counts) / num)}."
            )
    return sentences


def per_class(metrics: Mapping[str, Any], *, split: str, classes: Sequence[str] = EMOTIONS) -> Table:
    """Precision and recall of each emotion, from the confusion matrix."""
    matrix = metrics["confusion_matrix"]
    rows = []
    for index, emotion in enumerate(classes):
        true, named, right = sum(matrix[index]), sum(row[index] for row in matrix), matrix[index][index]
        recall, precision = (right / total if total else None for total in (true, named))
        low, high = interval(recall, true) if recall is not None else (None, None)
        between = f"{said(low)} to {said(high)}" if recall is not None else None
        rows.append([emotion, true, said(recall), between, said(precision)])
    columns = ["emotion", "examples", "found of them (recall)", "95 %", "right where it is said (precision)"]
    return Table(f"Each emotion on {split}", columns, rows)


def beside_the_paper(metrics: Mapping[str, Any], *, title: str) -> Chart:
    """Our accuracy on each emotion beside those of the paper's Table 3, in percent."""
    shares = [metrics["per_class_accuracy"].get(emotion) for emotion in EMOTIONS]
    columns = {"ours": [None if share is None else 100 * share for share in shares]}
    columns |= {f"{name}, paper": list(PAPER_TABLE_3[name]) for name in (CAHFW_NET, CAER_NET_S)}
    traces = [
        bars(list(EMOTIONS), values, name=name, colour=colour)
        for (name, values), colour in zip(columns.items(), (OURS, THEIRS, THIRD), strict=True)
    ]
    return Chart(traces, title, "true emotion", "percent")


def reliability(calibration: Mapping[str, Any], *, split: str) -> Chart:
    """How often guesses were right, by how probable they were said to be, before the temperature and after."""
    names = {"before": "temperature 1", "after": f"temperature {calibration['temperature']:.3g}"}
    rows, traces = [], [line([0, 1], [0, 1], name="as sure as right", colour=MARK, dash="dot")]
    for name, colour in zip(names, (THEIRS, OURS), strict=True):
        bins = calibration[name]["reliability"]
        told = [(each["mean_probability"], each["share_right"]) for each in bins]
        traces.append(line([x for x, _ in told], [y for _, y in told], name=names[name], colour=colour))
        rows += [[names[name], each["num_examples"], said(x), said(y)] for each, (x, y) in zip(bins, told, strict=True)]
    title = f"Reliability on {split}: share right, by the highest probability"
    numbers = Table(title, ["of", "faces", "highest probability, mean", "right"], rows)
    return Chart(traces, title, "highest probability", "share right", share=True, numbers=numbers)


def calibration_levels(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """NLL, Brier score and ECE (`evaluate.calibration`) of a split's levels, by their names."""
    found = metrics["calibration"]
    return {
        "faces, temperature 1": found["before"],
        f"faces, temperature {found['temperature']:.3g}": found["after"],
        "clips by persons": metrics["clip_level"]["calibration"],
    }


def calibration_table(metrics: Mapping[str, Any], *, split: str) -> Table:
    """NLL, Brier score and ECE of faces before the temperature and after, and of clips."""
    levels = calibration_levels(metrics).items()
    rows = [[name, f"{each['nll']:.3f}", f"{each['brier']:.3f}", said(each["ece"])] for name, each in levels]
    return Table(f"Calibration on {split}", ["of", "NLL (nats)", "Brier score (0 to 2)", "ECE"], rows)


def group_tables(metrics: Mapping[str, Any], *, split: str) -> list[Table]:
    """Each column of groups that was given, a row a group."""
    return [
        Table(
            f"Clips of {split} by {name}",
            ["group", "clips", "top-1", "95 %", "balanced accuracy"],
            [
                [
                    *(row["group"], row["num_clips"], said(row["top1_accuracy"])),
                    None if None in row["interval"] else " to ".join(map(said, row["interval"])),
                    said(row["balanced_accuracy"]),
                ]
                for row in rows
            ],
        )
        for name, rows in metrics.get("groups", {}).items()
    ]


def _split(split: str, metrics: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
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
    if "intervals" in metrics and clips:
        covered = metrics.get("coverage")
        facts |= {
            "balanced accuracy, percent": percent(metrics["balanced_accuracy"]),
            f"macro-F1 of all {len(classes)}, percent": percent(metrics["macro_f1_of_all"]),
            "persons": clips["num_persons"],
            "top-1 of clips by faces, percent": percent(clips["top1_accuracy_by_faces"]),
            "clips without a face": covered and covered["num_without_face"],
            "top-1 of all clips, those without a face wrong, percent": percent(
                covered and covered["top1_accuracy_of_all"]
            ),
        }
    own = [metrics["per_class_accuracy"][emotion] for emotion in classes]
    traces = [bars(list(classes), [None if each is None else 100 * each for each in own], name="ours", colour=OURS)]
    chance = across(100 / len(classes), "chance")
    return {
        "name": split,
        "facts": facts,
        "chart": Chart(traces, f"Accuracy of each emotion on {split}", "true emotion", "percent", marks=[chance]),
        "per_class": per_class(metrics, split=split, classes=classes),
        "beside": beside_the_paper(metrics, title=f"Accuracy of each emotion on {split}, beside the paper's Table 3"),
        "confusion": ConfusionMatrix(metrics["confusion_matrix"], split, names=classes),
        "reliability": reliability(metrics["calibration"], split=split) if "calibration" in metrics else None,
        "calibration": calibration_table(metrics, split=split) if "calibration" in metrics else None,
        "groups": group_tables(metrics, split=split),
    }
