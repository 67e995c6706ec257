"""The page of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import COLOURS, DASHES, OURS, THEIRS, Chart, ConfusionMatrix, line
from pipeline.report.evaluation import beside_the_paper
from pipeline.report.parts import Table
from pipeline.report.pictures import BLUR_FACTOR, BLURRED_FACE_PX, THUMBNAIL_PX, coarse, inlined, overlaid
from pipeline.report.templates import render
from pipeline.report.values import flat, number, short


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """A validation example and what the network made of it.

    face, context: (H, W, 3) uint8 RGB as the network reads them. attention: (h, w), summing to 1, where the context
    branch looks (A of Eq. 6), or None for a network without it. probabilities: (7,).
    """

    where: str
    label: str
    face: np.ndarray
    context: np.ndarray
    attention: np.ndarray | None
    probabilities: np.ndarray


def training_page(
    summary: Mapping[str, Any],
    metrics_rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    best: Mapping[str, Any] | None = None,
    attended: Sequence[Examined] = (),
    wrong: Sequence[Examined] = (),
    num_examined: int = 0,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """A training run: its curves over the epochs, its best epoch beside the paper, and what its network looks at.

    metrics_rows: as in metrics.csv (numbers or their text). best: `metrics_of` the validation split after the best
    epoch. attended: examples whose attention is drawn. wrong: the most wrong of `num_examined` validation examples.
    """
    rows = [{name: number(value) for name, value in row.items()} for row in metrics_rows]
    pictures = {"blur_faces": blur_faces}
    return render(
        "training.html",
        title=title,
        facts=flat(summary),
        curves=_curves(rows),
        best=best and _best(best),
        no_thumbnails=no_thumbnails,
        has_attention=any(example.attention is not None for example in attended),
        attended=[] if no_thumbnails else [_card(each, with_face=False, **pictures) for each in attended],
        wrong=[] if no_thumbnails else [_card(each, with_face=True, **pictures) for each in wrong],
        num_examined=num_examined,
        epochs=_epochs(rows),
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    epochs = [row["epoch"] for row in rows]

    def curve(name: str, label: str, colour: str, dash: str = "solid") -> dict[str, Any]:
        return line(epochs, [row.get(name) for row in rows], name=label, colour=colour, dash=dash)

    loss = [curve("train_loss", "train", OURS), curve("validation_loss", "validation", THEIRS, "dash")]
    whole = [curve("validation_top1_accuracy", "top-1", OURS), curve("validation_macro_f1", "macro-F1", THEIRS, "dash")]
    each = [curve(f"validation_accuracy_{name}", name, COLOURS[name], DASHES[name]) for name in EMOTIONS]
    return [
        Chart(loss, "Loss by epoch", "epoch", "loss, nats"),
        Chart(whole, "Accuracy on the validation split by epoch", "epoch", "share", share=True),
        Chart(each, "Accuracy of each emotion on the validation split by epoch", "epoch", "share", share=True),
    ]


def _best(best: Mapping[str, Any]) -> dict[str, Any]:
    title = "Accuracy of each emotion on validation, beside the paper's Table 3"
    return {
        "chart": beside_the_paper(best, title=title),
        "confusion": ConfusionMatrix(best["confusion_matrix"], "validation"),
    }


def _card(example: Examined, *, blur_faces: bool, with_face: bool) -> dict[str, Any]:
    """An example and what was said of it: its context with its face before it, or with the attention over it."""
    context = _small(example.context, blur=THUMBNAIL_PX // BLUR_FACTOR if blur_faces else 0)
    pictures = [inlined(context, alt=f"Context of {example.where}, the face zeroed")]
    if with_face:
        face = _small(example.face, blur=BLURRED_FACE_PX if blur_faces else 0)
        pictures.insert(0, inlined(face, alt=f"Face of {example.where}"))
    elif example.attention is not None:
        over = overlaid(np.array(context), example.attention)
        row, column = np.unravel_index(example.attention.argmax(), example.attention.shape)
        height, width = example.attention.shape
        peak = f"row {row + 1} of {height}, column {column + 1} of {width}"
        pictures.append(inlined(over, alt=f"Attention over it; its highest place is {peak}"))
    said = int(example.probabilities.argmax())
    truth = example.probabilities[EMOTIONS.index(example.label)]
    return {
        "pictures": pictures,
        "where": example.where,
        "true": f"{example.label} ({truth:.0%})",
        "said": f"{EMOTIONS[said]} ({example.probabilities[said]:.0%})",
    }


def _small(image: np.ndarray, *, blur: int) -> Image.Image:
    small = Image.fromarray(image).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return coarse(small, blur) if blur else small


def _epochs(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = {
        "epoch": "epoch",
        "train_loss": "train loss",
        "validation_loss": "validation loss",
        "validation_top1_accuracy": "top-1",
        "validation_macro_f1": "macro-F1",
        "lr": "learning rate at its end",
        "train_examples_per_second": "examples/s",
    } | {f"validation_accuracy_{emotion}": emotion for emotion in EMOTIONS}
    return Table(
        "One row an epoch; the last columns are accuracies of each emotion on the validation split",
        list(names.values()),
        [[row["epoch"], *(short(row.get(name)) for name in list(names)[1:])] for row in rows],
    )
