"""An example that a network was shown, as a card of pictures and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.pictures import BLUR_FACTOR, BLURRED_FACE_PX, THUMBNAIL_PX, coarse, inlined, overlaid


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """An example and what the network made of it.

    face, context: (H, W, 3) uint8 RGB as the network reads them. attention: (h, w), summing to 1, where the context
    branch looks (A of Eq. 6), or None for a network without it. probabilities: (classes,), in the order of these.
    """

    where: str
    label: str
    face: np.ndarray
    context: np.ndarray
    attention: np.ndarray | None
    probabilities: np.ndarray
    classes: Sequence[str] = EMOTIONS


def example_card(example: Examined, *, blur_faces: bool, with_face: bool) -> dict[str, Any]:
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
    truth = example.probabilities[example.classes.index(example.label)]
    return {
        "pictures": pictures,
        "where": example.where,
        "true": f"{example.label} ({truth:.0%})",
        "said": f"{example.classes[said]} ({example.probabilities[said]:.0%})",
    }


def _small(image: np.ndarray, *, blur: int) -> Image.Image:
    small = Image.fromarray(image).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return coarse(small, blur) if blur else small
