"""The page of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import COLOURS, DASHES, OURS, THEIRS, THIRD, bars, chart, confusion_table, line
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_3
from pipeline.report.parts import facts_list, flat, number, page, section, short, table, text
from pipeline.report.pictures import BLUR_FACTOR, BLURRED_FACE_PX, THUMBNAIL_PX, coarse, inlined, overlaid


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
    return page(
        title,
        [
            section("Run", facts_list(flat(summary))),
            _curves(rows),
            *(() if best is None else (_best_section(best),)),
            _attention_section(attended, no_thumbnails=no_thumbnails, blur_faces=blur_faces),
            _wrong_section(wrong, num_examined=num_examined, no_thumbnails=no_thumbnails, blur_faces=blur_faces),
            _epochs(rows),
        ],
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    epochs = [row["epoch"] for row in rows]

    def curve(name: str, label: str, colour: str, dash: str = "solid") -> dict[str, Any]:
        return line(epochs, [row.get(name) for row in rows], name=label, colour=colour, dash=dash)

    return section(
        "Curves",
        chart(
            [curve("train_loss", "train", OURS), curve("validation_loss", "validation", THEIRS, "dash")],
            title="Loss by epoch",
            x="epoch",
            y="loss, nats",
        ),
        chart(
            [
                curve("validation_top1_accuracy", "top-1", OURS),
                curve("validation_macro_f1", "macro-F1", THEIRS, "dash"),
            ],
            title="Accuracy on the validation split by epoch",
            x="epoch",
            y="share",
            share=True,
        ),
        chart(
            [
                curve(f"validation_accuracy_{emotion}", emotion, COLOURS[emotion], DASHES[emotion])
                for emotion in EMOTIONS
            ],
            title="Accuracy of each emotion on the validation split by epoch",
            x="epoch",
            y="share",
            share=True,
        ),
    )


def _best_section(best: Mapping[str, Any]) -> str:
    shares = [best["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    columns = {"ours": [None if share is None else 100 * share for share in shares]}
    columns |= {f"{name}, paper": list(PAPER_TABLE_3[name]) for name in (CAHFW_NET, CAER_NET_S)}
    return section(
        "Best epoch",
        "<p>Ours is on the validation split of this data, the paper's on the test set of CAER-S: they compare only"
        " where the data is CAER-S, and then roughly.</p>",
        chart(
            [
                bars(list(EMOTIONS), values, name=name, colour=colour)
                for (name, values), colour in zip(columns.items(), (OURS, THEIRS, THIRD), strict=True)
            ],
            title="Accuracy of each emotion on validation, beside the paper's Table 3",
            x="true emotion",
            y="percent",
        ),
        confusion_table(best["confusion_matrix"], split="validation"),
    )


def _attention_section(examples: Sequence[Examined], *, no_thumbnails: bool, blur_faces: bool) -> str:
    heading = "Where the context branch looks"
    if no_thumbnails or not examples:
        return section(heading, _nothing("No example was looked at.", no_thumbnails=no_thumbnails))
    if all(example.attention is None for example in examples):
        return section(heading, "<p>This network has no attention over the context.</p>")
    return section(
        heading,
        "<p>The attention map of the context branch (Eq. 6 to 8) over validation examples: orange where it is high, as"
        " a share of its own highest place. Of an attention that is the same everywhere all is orange.</p>",
        _sheet(examples, blur_faces=blur_faces, with_face=False),
    )


def _wrong_section(examples: Sequence[Examined], *, num_examined: int, no_thumbnails: bool, blur_faces: bool) -> str:
    heading = "Most wrong"
    if no_thumbnails or not num_examined:
        return section(heading, _nothing("No example was looked at.", no_thumbnails=no_thumbnails))
    if not examples:
        return section(heading, f"<p>All {num_examined:,} validation examples that were looked at are right.</p>")
    return section(
        heading,
        f"<p>Of {num_examined:,} validation examples, spread over the split, those whose true emotion got least.</p>",
        _sheet(examples, blur_faces=blur_faces, with_face=True),
    )


def _nothing(why: str, *, no_thumbnails: bool) -> str:
    return "<p>Left out by --no-thumbnails.</p>" if no_thumbnails else f"<p>{why}</p>"


def _sheet(examples: Sequence[Examined], *, blur_faces: bool, with_face: bool) -> str:
    cards = (_card(example, blur_faces=blur_faces, with_face=with_face) for example in examples)
    return f'<ul class="sheet">{"".join(cards)}</ul>'


def _card(example: Examined, *, blur_faces: bool, with_face: bool) -> str:
    context = _small(example.context, blur=THUMBNAIL_PX // BLUR_FACTOR if blur_faces else 0)
    images = inlined(context, alt=f"Context of {example.where}, the face zeroed")
    if with_face:
        face = _small(example.face, blur=BLURRED_FACE_PX if blur_faces else 0)
        images = inlined(face, alt=f"Face of {example.where}") + images
    elif example.attention is not None:
        over = overlaid(np.array(context), example.attention)
        row, column = np.unravel_index(example.attention.argmax(), example.attention.shape)
        height, width = example.attention.shape
        peak = f"row {row + 1} of {height}, column {column + 1} of {width}"
        images += inlined(over, alt=f"Attention over it; its highest place is {peak}")
    said = int(example.probabilities.argmax())
    truth = example.probabilities[EMOTIONS.index(example.label)]
    return (
        f"<li><figure>{images}<figcaption>{text(example.where)}<br>true {text(example.label)} ({truth:.0%}); said"
        f" {EMOTIONS[said]} ({example.probabilities[said]:.0%})</figcaption></figure></li>"
    )


def _small(image: np.ndarray, *, blur: int) -> Image.Image:
    small = Image.fromarray(image).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return coarse(small, blur) if blur else small


def _epochs(rows: Sequence[Mapping[str, Any]]) -> str:
    names = {
        "epoch": "epoch",
        "train_loss": "train loss",
        "validation_loss": "validation loss",
        "validation_top1_accuracy": "top-1",
        "validation_macro_f1": "macro-F1",
        "lr": "learning rate at its end",
        "train_examples_per_second": "examples/s",
    } | {f"validation_accuracy_{emotion}": emotion for emotion in EMOTIONS}
    return section(
        "Epochs",
        table(
            "One row an epoch; the last columns are accuracies of each emotion on the validation split",
            list(names.values()),
            [[row["epoch"], *(short(row.get(name)) for name in list(names)[1:])] for row in rows],
        ),
    )
