"""Small pictures of people for pages: drawn, blurred where that is asked for, and inlined.

Blurred means gone: a face keeps 6 x 6 colours, and the rest of its picture an eighth of its thumbnail's pixels each
way, since other people may stand in it whose faces nobody looked for.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from pipeline.records.faces import Box, Example, Thumbnail
from pipeline.report.values import spread

THUMBNAIL_PX = 112


FRAME_PX = 176


MAX_THUMBNAILS = 8


BLURRED_FACE_PX = 6


BLUR_FACTOR = 8


# The colours that tell persons apart: outlines of their boxes, and their headings. None is an emotion's.
PERSON_COLOURS = ("#6a3d9a", "#8c510a", "#c51b7d", "#1b7f79", "#4d4d4d", "#7a7a00")


@dataclass(frozen=True)
class Picture:
    """A small picture that a page holds. base64: its JPEG. alt: what it shows, in words."""

    base64: Markup
    alt: str
    width: int
    height: int


def picture_of(data: bytes, *, alt: str, blur: int = 0) -> Picture:
    """A thumbnail of JPEG or PNG bytes. 60 pairs at 224 px and quality 95 would be 5 MB, at 112 px and 80 are 0.7 MB.

    blur: 0, or how many pixels a side are kept of it.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return inlined(coarse(small, blur) if blur else small, alt=alt)


def inlined(image: Image.Image, *, alt: str) -> Picture:
    """The image as the page holds it."""
    return Picture(Markup(base64.b64encode(_jpeg(image)).decode()), alt, image.width, image.height)


def coarse(image: Image.Image, px: int) -> Image.Image:
    """The same size with px x px colours: each the mean of its part, so that nothing of it can be sharpened again."""
    few = image.resize((min(px, image.width), min(px, image.height)), Image.Resampling.BOX)
    return few.resize(image.size, Image.Resampling.BILINEAR)


def pair_of(face: bytes, context: bytes, *, where: str, blur_faces: bool) -> tuple[Picture, Picture]:
    """The two pictures of an example."""
    return (
        picture_of(face, alt=f"Face of {where}", blur=BLURRED_FACE_PX if blur_faces else 0),
        picture_of(
            context, alt=f"Context of {where}, the face zeroed", blur=THUMBNAIL_PX // BLUR_FACTOR if blur_faces else 0
        ),
    )


def overlaid(context: np.ndarray, attention: np.ndarray) -> Image.Image:
    """A context (H, W, 3) uint8 in grey, orange where the attention (h, w), of any positive sum, is high."""
    image = Image.fromarray(context).convert("L").convert("RGB")
    weights = Image.fromarray((attention / attention.max()).astype(np.float32))
    alpha = np.array(weights.resize(image.size, Image.Resampling.BILINEAR)).clip(0, 1)[..., None] * 0.75  # (H, W, 1)
    mixed = np.array(image) * (0.75 - alpha) + np.array([255, 176, 0]) * alpha
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def thumbnails_of(examples: Iterable[Example], *, box_margin: float, blur_faces: bool) -> list[Thumbnail]:
    """Small frames of one clip, at most 8, spread over it, put together from its faces and contexts.

    examples: of one clip, in order of time. box_margin: share of the box that its crop has on each side.
    """
    frames = [list(faces) for _, faces in groupby(examples, key=lambda example: example.frame_index)]
    return [_thumbnail(faces, box_margin=box_margin, blur_faces=blur_faces) for faces in spread(frames, MAX_THUMBNAILS)]


def _thumbnail(faces: Sequence[Example], *, box_margin: float, blur_faces: bool) -> Thumbnail:
    first = faces[0]
    width, height = first.frame_width, first.frame_height
    scale = FRAME_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    with Image.open(io.BytesIO(first.context_jpeg), formats=("JPEG", "PNG")) as image:
        frame = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    # Only the first face is zeroed in its own context.
    box = first.box
    extra_x, extra_y = round(box_margin * box.width), round(box_margin * box.height)
    crop = Box(box.x_min - extra_x, box.y_min - extra_y, box.x_max + extra_x, box.y_max + extra_y)
    place = _scaled(crop.clamped(width=width, height=height), scale)
    with Image.open(io.BytesIO(first.face_jpeg), formats=("JPEG", "PNG")) as image:
        face = image.convert("RGB").resize((place[2] - place[0], place[3] - place[1]), Image.Resampling.BILINEAR)
    frame.paste(face, place[:2])
    if blur_faces:
        frame = blurred(frame, [face.box for face in faces], scale=scale)
    return Thumbnail(
        clip_id=first.clip_id,
        frame_index=first.frame_index,
        pts_seconds=first.pts_seconds,
        frame_width=width,
        frame_height=height,
        jpeg=_jpeg(frame),
    )


def blurred(frame: Image.Image, boxes: Iterable[Box], *, scale: float) -> Image.Image:
    """The frame with its faces gone, and all of it coarse. scale: pixels of it to one of the boxes' frame."""
    found = coarse(frame, max(1, max(frame.size) // BLUR_FACTOR))
    for box in boxes:
        place = _scaled(box, scale)
        found.paste(coarse(frame.crop(place), BLURRED_FACE_PX), place[:2])
    return found


def drawn_frame(thumbnail: Thumbnail, boxes: Sequence[tuple[int, Box]], *, alt: str, blur_faces: bool) -> Picture:
    """A frame with the boxes of its persons in their colours and with their numbers. boxes: (track_index, box)."""
    with Image.open(io.BytesIO(thumbnail.jpeg), formats=("JPEG",)) as image:
        frame = image.convert("RGB")
    scale = frame.width / thumbnail.frame_width
    if blur_faces:
        frame = blurred(frame, [box for _, box in boxes], scale=scale)
    draw = ImageDraw.Draw(frame)
    for track_index, box in boxes:
        colour = PERSON_COLOURS[track_index % len(PERSON_COLOURS)]
        left, top, right, bottom = _scaled(box, scale)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
        tag = top - 12 if top >= 12 else top  # Above the box, where there is room: a small face would lie under it.
        draw.rectangle((left, tag, left + 11, tag + 12), fill=colour)
        draw.text((left + 3, tag), str(track_index + 1), fill="white")
    return inlined(frame, alt=alt)


def _scaled(box: Box, scale: float) -> tuple[int, int, int, int]:
    left, top = int(box.x_min * scale), int(box.y_min * scale)
    return left, top, max(left + 1, round(box.x_max * scale)), max(top + 1, round(box.y_max * scale))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
