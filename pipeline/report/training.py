"""The page of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, Chart, ConfusionMatrix, across, down, line
from pipeline.report.evaluation import beside_the_paper
from pipeline.report.examined import Examined, example_card
from pipeline.report.parts import Table
from pipeline.report.templates import render
from pipeline.report.values import flat, interval, number, said, short


def training_page(
    summary: Mapping[str, Any],
    metrics_rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    best: Mapping[str, Any] | None = None,
    classes: Sequence[str] = EMOTIONS,
    attended: Sequence[Examined] = (),
    wrong: Sequence[Examined] = (),
    num_examined: int = 0,
    data: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """A training run: did it learn, and does it overfit?

    Args:
        summary: as in summary.json.
        metrics_rows: as in metrics.csv (numbers or their text).
        best: `metrics_of` the validation split after the best epoch.
        classes: that it tells apart.
        attended: examples whose attention is drawn.
        wrong: the most wrong of `num_examined` validation examples.
        data: what the run learned from, as its checkpoint says it.
        settings: of the training.
    """
    rows = [{name: number(value) for name, value in row.items()} for row in metrics_rows]
    pictures = {"blur_faces": blur_faces}
    synthetic = bool(data and data.get("synthetic"))
    return render(
        "training.html",
        title=title,
        lead=verdict(rows, num_validation=best.get("num_examples") if best else None, num_classes=len(classes)),
        warnings=["It learned from made-up faces: what it says of real people means nothing."] if synthetic else [],
        curves=_curves(rows, num_classes=len(classes)),
        multiples=_multiples(rows, classes),
        num_classes=len(classes),
        best=best and _best(best, classes),
        no_thumbnails=no_thumbnails,
        has_attention=any(example.attention is not None for example in attended),
        attended=[] if no_thumbnails else [example_card(each, with_face=False, **pictures) for each in attended],
        wrong=[] if no_thumbnails else [example_card(each, with_face=True, **pictures) for each in wrong],
        num_examined=num_examined,
        epochs=_epochs(rows, classes),
        provenance={"The run": flat(summary), "The data": flat(data or {}), "Settings": flat(settings or {})},
    )


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch with the highest top-1 accuracy on validation, the earliest of equals."""
    known = [row for row in rows if row.get("validation_top1_accuracy") is not None]
    return max(known, key=lambda row: (row["validation_top1_accuracy"], -row["epoch"])) if known else None


def verdict(
    rows: Sequence[Mapping[str, Any]], *, num_validation: int | None = None, num_classes: int = len(EMOTIONS)
) -> list[str]:
    """Whether a run learned, and whether it overfits, in a sentence each.

    Args:
        rows: of epochs, in numbers.
        num_validation: examples of the validation split, if known.
    """
    best = best_row(rows)
    if best is None:
        return ["No epoch has been validated yet."]
    accuracy, chance = best["validation_top1_accuracy"], 1 / num_classes
    low, high = interval(accuracy, num_validation) if num_validation else (accuracy, accuracy)
    figure = f"{said(accuracy)} of the validation examples right at its best, epoch {best['epoch']} of {len(rows)}"
    if num_validation:
        figure += f" (95 %: {said(low)} to {said(high)})"
    if low > 2 * chance:
        word = "It learned"
    elif low > chance:
        word = "It learned a little"
    else:
        word = "It did not learn: no better than chance"
    sentences = [f"{word}: {figure}; guessing gets {said(chance)}."]
    losses = [
        (row["epoch"], float(row["validation_loss"]), float(row["train_loss"]))
        for row in rows
        if row.get("validation_loss") is not None and row.get("train_loss") is not None
    ]
    if len(losses) > 2:
        sentences.append(_overfitting(losses, best))
    return sentences


def _overfitting(losses: Sequence[tuple[int, float, float]], best: Mapping[str, Any]) -> str:
    """losses: (epoch, validation, train) of three epochs or more."""
    lowest, last = min(losses, key=lambda each: each[1]), losses[-1]
    if last[1] > 1.05 * lowest[1] and last[2] < lowest[2]:
        return (
            f"It overfits: from epoch {lowest[0]} on the validation loss rises ({lowest[1]:.2f} to {last[1]:.2f}) while"
            " the training loss falls; more data, or fewer epochs, would help."
        )
    if best["epoch"] == last[0] and lowest[0] == last[0]:
        return "It does not overfit yet, and its last epoch is its best: more epochs may do better."
    return "It does not overfit: the validation loss did not rise while the training loss fell."


def _curves(rows: Sequence[Mapping[str, Any]], *, num_classes: int) -> list[Chart]:
    epochs = [row["epoch"] for row in rows]

    def curve(name: str, label: str, colour: str, dash: str = "solid") -> dict[str, Any]:
        return line(epochs, [row.get(name) for row in rows], name=label, colour=colour, dash=dash)

    best = best_row(rows)
    marks = [] if best is None else [down(best["epoch"], f"best accuracy, epoch {best['epoch']}")]
    chance = across(1 / num_classes, "chance")
    loss = [curve("train_loss", "train", OURS), curve("validation_loss", "validation", THEIRS, "dash")]
    whole = [curve("validation_top1_accuracy", "top-1", OURS), curve("validation_macro_f1", "macro-F1", THEIRS, "dash")]
    return [
        Chart(loss, "Loss by epoch", "epoch", "loss, nats", marks=marks),
        Chart(whole, "Accuracy on the validation split by epoch", "epoch", "share", share=True, marks=[*marks, chance]),
    ]


def _multiples(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, str]]:
    """A small curve of each emotion's accuracy over the epochs; those that were never measured are left out."""
    found = []
    for name in classes:
        values = [row.get(f"validation_accuracy_{name}") for row in rows]
        known = [(index, value) for index, value in enumerate(values) if isinstance(value, int | float)]
        if known:
            step = 100 / max(1, len(values) - 1)
            points = [f"{index * step:.1f} {40 - 40 * value:.1f}" for index, value in known]
            last = said(known[-1][1])
            words = f"{name}: {last} at the last epoch, {said(max(value for _, value in known))} at most"
            found.append({"name": name, "last": last, "path": "M" + " L".join(points), "words": words})
    return found


def _best(best: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    title = "Accuracy of each emotion on validation, beside the paper's Table 3"
    return {
        "chart": None if set(classes) - set(EMOTIONS) else beside_the_paper(best, title=title),
        "confusion": ConfusionMatrix(best["confusion_matrix"], "validation", names=classes),
    }


def _epochs(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Table:
    names = {
        "epoch": "epoch",
        "train_loss": "train loss",
        "validation_loss": "validation loss",
        "validation_top1_accuracy": "top-1",
        "validation_macro_f1": "macro-F1",
        "lr": "learning rate at its end",
        "train_examples_per_second": "examples/s",
    } | {f"validation_accuracy_{emotion}": emotion for emotion in classes}
    return Table(
        "One row an epoch; the last columns are accuracies of each emotion on the validation split",
        list(names.values()),
        [[row["epoch"], *(short(row.get(name)) for name in list(names)[1:])] for row in rows],
    )
