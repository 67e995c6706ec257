"""Signs in the corners of a picture, of which the one on the lit side of the face decides the class.

A sign's colour is a class. Where one hangs alone the context tells it; of two or three only the face says which counts,
by the quarter that is lit. So the same place of both images has to be compared: what cross-attention does, and what the
means over places of two maps do not hold unless the maps say where.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from PIL import Image, ImageDraw

from pipeline.records.vocabulary import EMOTIONS
from pipeline.synthetic.portraits import FEATURES, PORTRAIT
from pipeline.synthetic.scenes import HEIGHT, WIDTH

CORNERS = ((50, 60), (WIDTH - 50, 60), (50, HEIGHT - 60), (WIDTH - 50, HEIGHT - 60))  # centres of signs, pixels


SIGNS = (1, 2, 3)  # so many hang in a picture, each number equally often


# Red, orange, yellow, green, cyan, blue, magenta: those of EMOTIONS, in its order.
COLOURS = ((230, 40, 40), (240, 150, 20), (240, 235, 40), (40, 200, 60), (40, 210, 230), (50, 70, 240), (220, 50, 220))


NEAR = 0.68  # of its way from the middle a head goes no farther, so that its box leaves the signs free


@dataclass(frozen=True, kw_only=True, slots=True)
class Cues:
    """lit: corner from which the face is lit. kinds: each corner's sign, as a number of a class; None: no sign."""

    lit: int
    kinds: tuple[int | None, ...]

    @property
    def label(self) -> str:
        """The class of the sign in the lit corner."""
        return EMOTIONS[self.kinds[self.lit] or 0]


def draw_cues(index: int, rng: np.random.Generator) -> Cues:
    """The cues of picture `index`: every 21 have each class with each number of signs once, all lit from one corner.

    Which other signs hang where is drawn.
    """
    repeat, case = divmod(index, len(SIGNS) * len(EMOTIONS))
    lit, signs, kind = repeat % len(CORNERS), SIGNS[case // len(EMOTIONS)], case % len(EMOTIONS)
    corners = rng.permutation([corner for corner in range(len(CORNERS)) if corner != lit])[: signs - 1].tolist()
    others = rng.permutation([other for other in range(len(EMOTIONS)) if other != kind]).tolist()
    kinds = {lit: kind, **dict(zip(corners, others, strict=False))}
    return Cues(lit=lit, kinds=tuple(kinds.get(corner) for corner in range(len(CORNERS))))


def cue_bounds() -> tuple[float, float]:
    """The best top-1 accuracy of any model that sees (only the face, only the context); the pair gives 1.0."""
    seen: tuple[dict[object, dict[str, float]], ...] = (defaultdict(dict), defaultdict(dict))
    for cues, share in _all_cues():
        for stream, value in zip(seen, (cues.lit, cues.kinds), strict=True):
            stream[value][cues.label] = stream[value].get(cues.label, 0.0) + share
    face, context = (sum(max(labels.values()) for labels in stream.values()) for stream in seen)
    return face, context


def _all_cues() -> Iterator[tuple[Cues, float]]:
    """Every picture's cues and how often they come."""
    corners, classes = range(len(CORNERS)), range(len(EMOTIONS))
    for signs in SIGNS:
        hung = [
            dict(zip(places, kinds, strict=True))
            for places in combinations(corners, signs)
            for kinds in permutations(classes, signs)
        ]
        for signs_at in hung:
            kinds = tuple(signs_at.get(corner) for corner in corners)
            for lit in signs_at:
                yield Cues(lit=lit, kinds=kinds), 1 / (len(SIGNS) * len(hung) * signs)


def light_face(portrait: Image.Image, corner: int) -> Image.Image:
    """The RGBA cut-out of a head, its features lit from a corner and darker elsewhere; outside FEATURES as it was."""
    pixels = np.asarray(portrait).astype(np.float64)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    x_min, y_min, x_max, y_max = np.subtract(FEATURES, (*PORTRAIT[:2], *PORTRAIT[:2]))
    at_x = x_min + CORNERS[corner][0] / WIDTH * (x_max - x_min)
    at_y = y_min + CORNERS[corner][1] / HEIGHT * (y_max - y_min)
    light = 1.1 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * 18**2)) - 0.35
    gap = np.minimum(np.minimum(x - x_min, x_max - x), np.minimum(y - y_min, y_max - y))
    pixels[..., :3] *= 1 + (light * np.clip(gap / 8, 0, 1))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def hang_signs(image: Image.Image, cues: Cues, rng: np.random.Generator) -> None:
    """Draw the signs into a frame. A sign's place, size and tint do not depend on the others'."""
    draw = ImageDraw.Draw(image)
    for (x, y), kind in zip(CORNERS, cues.kinds, strict=True):
        dx, dy, half = rng.uniform(-10, 10), rng.uniform(-12, 12), 50 * rng.uniform(0.8, 1.1)
        tint = rng.normal(0, 10, 3)
        if kind is not None:
            red, green, blue = (int(c) for c in np.clip(np.add(COLOURS[kind], tint), 0, 255))
            sides = (x + dx - half, y + dy - half, x + dx + half, y + dy + half)
            draw.rectangle(sides, fill=(red, green, blue), outline=(250, 250, 250), width=3)
