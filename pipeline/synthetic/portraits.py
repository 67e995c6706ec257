"""One real face in several expressions, as it is or of a made person, and how it is set into a picture.

The face is that of the astronaut Eileen Collins, a NASA photograph in the public domain that scikit-image carries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.records.vocabulary import UsageError

# Each bend is (x, y, dx, dy, sigma) in pixels of the photograph: the skin at (x, y) moves by (dx, dy), its
# neighbourhood follows as a Gaussian of width sigma. Mouth corners lie at (203, 140) and (244, 140), brows at y = 90.
EXPRESSIONS: dict[str, tuple[tuple[float, float, float, float, float], ...]] = {
    "smile": ((203, 140, -5, -7, 9), (244, 140, 5, -7, 9)),
    "frown": (
        (202, 141, 2, 15, 11),
        (246, 141, -2, 15, 11),
        (224, 148, 0, -5, 8),
        (212, 91, 0, -8, 8),
        (234, 93, 0, -8, 8),
    ),
    "open": (
        (203, 140, 9, 3, 8),
        (244, 140, -9, 3, 8),
        (224, 153, 0, 20, 14),
        (224, 178, 0, 12, 16),
        (202, 89, 0, -9, 9),
        (250, 92, 0, -9, 9),
    ),
}


# All that an expression or a person moves lies in FEATURES, (x_min, y_min, x_max, y_max) in pixels of the photograph; a
# box wider by what resizing spreads holds the whole expression, so that the masked context says nothing of it.
FEATURES = (174, 72, 274, 192)


SPREAD_PX = 4


PORTRAIT = (148, 10, 308, 200)  # the head that is cut out of the photograph


def draw_portraits(person: np.random.Generator | None = None) -> dict[str, Image.Image]:
    """Each expression as an RGBA cut-out of the head, at the photograph's scale; of one made person, if drawn."""
    try:
        from skimage import data, transform
    except ModuleNotFoundError as error:
        raise UsageError(
            "the made corpus takes its face from scikit-image, which is not installed: pip install"
            " 'emotion-pipeline[demo]'"
        ) from error
    photo = data.astronaut()[:210, :320]  # the head, and what its bends reach
    mask = Image.new("L", photo.shape[1::-1], 0)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((157, 19, 299, 140), fill=255)
    draw.ellipse((184, 60, 266, 194), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(2))
    shape: tuple[tuple[float, float, float, float, float], ...] = ()
    skin = np.ones(3)
    if person is not None:
        # Brows, cheeks, nose, chin: broad bends, which leave the narrow ones of an expression to be seen.
        spots = ((208, 100), (240, 100), (224, 120), (205, 130), (243, 130), (224, 170))
        shape = tuple((x, y, *person.normal(0, 3.5, 2), person.uniform(16, 24)) for x, y in spots)
        skin = person.uniform(0.55, 1.1) * person.uniform(0.88, 1.12, 3)
        if person.random() < 0.3:
            photo = _with_glasses(photo, colour=tuple(person.integers(0, 120, 3).tolist()))

    portraits = {}
    for expression, bends in EXPRESSIONS.items():

        def source(points: np.ndarray, bends: Any = bends) -> np.ndarray:
            if person is None:
                return _unbent(points, bends)
            return _unbent(_unbent(points, shape, within=FEATURES), bends, within=FEATURES)

        image = Image.fromarray(transform.warp(photo, source, preserve_range=True).astype(np.uint8))
        if expression == "open":
            inside = Image.new("L", image.size, 0)
            ImageDraw.Draw(inside).ellipse((211, 144, 237, 170), fill=255)
            image.paste((50, 12, 14), mask=inside.filter(ImageFilter.GaussianBlur(1.5)))
        if person is not None:
            image = image.point([int(min(value * gain, 255)) for gain in skin for value in range(256)])
        image.putalpha(mask)
        portraits[expression] = image.crop(PORTRAIT)
    return portraits


def _unbent(
    points: np.ndarray,
    bends: tuple[tuple[float, float, float, float, float], ...],
    *,
    within: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Where in the photograph the skin at `points` (N, 2) came from; outside `within` nothing moves."""
    moved = points.copy()
    for x, y, dx, dy, sigma in bends:
        weight = np.exp(-((points[:, 0] - x - dx) ** 2 + (points[:, 1] - y - dy) ** 2) / (2 * sigma**2))
        moved -= weight[:, None] * (dx, dy)
    if within is not None:
        x_min, y_min, x_max, y_max = within
        # From nothing at the edge to all of it 12 px inside, so that no seam is seen.
        gap = np.minimum(
            np.minimum(points[:, 0] - x_min, x_max - points[:, 0]),
            np.minimum(points[:, 1] - y_min, y_max - points[:, 1]),
        )
        moved = points + (moved - points) * np.clip(gap / 12, 0, 1)[:, None]
    return moved


def _with_glasses(photo: np.ndarray, *, colour: tuple[int, ...]) -> np.ndarray:
    image = Image.fromarray(photo)
    draw = ImageDraw.Draw(image)
    for x in (209, 241):
        draw.ellipse((x - 13, 93, x + 13, 115), outline=colour, width=2)
    draw.line((221, 102, 229, 102), fill=colour, width=2)
    return np.asarray(image)


def set_person(
    image: Image.Image,
    portrait: Image.Image,
    *,
    x: float,
    top: float,
    scale: float,
    colour: tuple[int, int, int] = (90, 90, 96),
) -> None:
    """Draw a person into the image: head centred on x, hair starting at `top`, at `scale` times the photograph."""
    head = portrait.resize((round(portrait.width * scale), round(portrait.height * scale)), Image.Resampling.BICUBIC)
    chin = top + 0.93 * head.height
    draw = ImageDraw.Draw(image)
    # The hood fills the corners of the face's box, through which the scene would show in the face crop.
    draw.ellipse((x - 88 * scale, top - 8 * scale, x + 88 * scale, top + 215 * scale), fill=colour)
    draw.ellipse((x - 130 * scale, chin, x + 130 * scale, chin + 300 * scale), fill=colour)
    draw.ellipse((x - 46 * scale, chin - 20 * scale, x + 46 * scale, chin + 26 * scale), fill=(20, 20, 24))
    image.paste(head, (round(x - 0.47 * head.width), round(top)), head)
