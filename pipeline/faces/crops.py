"""A frame and a face's Box come in; the face crop, the context image and their encoded bytes go out. Pure.

Every resize is Pillow's antialiased bilinear: its weights are never negative, so nothing rings around the zeroed face
and `masked_region` can say to the pixel where the context stays zero.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.records.faces import Box, Face

MAX_DECODED_PX = 4096
JPEG_QUALITY = 95


def crop_face(image: np.ndarray, box: Box, *, face_px: int = 224, margin: float = 0.0) -> np.ndarray:
    """The box's pixels squashed to a square; the aspect is not kept.

    image: (H, W, 3) uint8 RGB. margin: share of the box's width and height added on each side. The widened box is
    clamped to the frame. Returns (face_px, face_px, 3) uint8. Raises ValueError if no part of the box is inside.
    """
    height, width = _frame_size(image)
    extra_x, extra_y = round(margin * box.width), round(margin * box.height)
    widened = Box(box.x_min - extra_x, box.y_min - extra_y, box.x_max + extra_x, box.y_max + extra_y)
    inside = widened.clamped(width=width, height=height)
    return _squash(image[inside.y_min : inside.y_max, inside.x_min : inside.x_max], face_px)


def mask_face(image: np.ndarray, box: Box) -> np.ndarray:
    """A copy of the frame in which every pixel of the box is zero (Eq. 2).

    image: (H, W, 3) uint8 RGB. Raises ValueError if no part of the box is inside.
    """
    height, width = _frame_size(image)
    inside = box.clamped(width=width, height=height)
    context = image.copy()
    context[inside.y_min : inside.y_max, inside.x_min : inside.x_max] = 0
    return context


def make_context(image: np.ndarray, box: Box, *, context_px: int = 224) -> np.ndarray:
    """The frame with the face zeroed first and squashed after: (context_px, context_px, 3) uint8.

    Masking before the resize leaves the `masked_region` exactly zero and lets no face pixel leak across its edge.
    """
    return _squash(mask_face(image, box), context_px)


def masked_region(
    box: Box, *, frame_width: int, frame_height: int, context_px: int
) -> tuple[int, int, int, int] | None:
    """The pixels of the context image that the masked box alone decides: (x_min, y_min, x_max, y_max), half-open.

    `make_context` is exactly zero there. JPEG is not (at quality 95 up to a dozen grey levels beside the edge), so the
    reader zeroes the region again. None where the box is too small to decide one whole pixel.
    """
    inside = box.clamped(width=frame_width, height=frame_height)
    columns = _decided(inside.x_min, inside.x_max, frame_px=frame_width, context_px=context_px)
    rows = _decided(inside.y_min, inside.y_max, frame_px=frame_height, context_px=context_px)
    if columns is None or rows is None:
        return None
    return columns[0], rows[0], columns[1], rows[1]


def encode_image(image: np.ndarray, *, image_format: str = "jpeg") -> bytes:
    """(H, W, 3) uint8 RGB as a file: "jpeg" (quality 95, chroma not subsampled) or "png" (lossless).

    Raises ValueError for another format.
    """
    _frame_size(image)
    buffer = io.BytesIO()
    if image_format == "jpeg":
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    elif image_format == "png":
        Image.fromarray(image).save(buffer, "PNG")
    else:
        raise ValueError(f"image format {image_format!r} is unknown; use jpeg or png")
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of JPEG or PNG bytes. Raises OSError if they are neither, cut off or huge."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if max(image.size) > MAX_DECODED_PX:  # A kilobyte of PNG may claim a gigabyte.
            raise OSError(f"it has {image.size[0]} x {image.size[1]} pixels; {MAX_DECODED_PX} a side are the most")
        return np.array(image.convert("RGB"))


def select_faces(
    faces: Sequence[Face], *, faces_kept: Literal["largest", "all"], width: int, height: int
) -> tuple[list[Face], int]:
    """The faces to keep of one frame of `width` x `height` pixels, and how many of all its boxes passed its edge.

    Boxes come back clamped, the largest first; ties go to the higher score, then to the lower box. A box wholly
    outside the frame is dropped, and counted with those that passed the edge.

    Raises ValueError for another `faces_kept`.
    """
    if faces_kept not in ("largest", "all"):
        raise ValueError(f"faces kept {faces_kept!r} is unknown; use largest or all")
    frame = Box(0, 0, width, height)
    clamped = [
        replace(face, box=face.box.clamped(width=width, height=height)) for face in faces if _overlap(face.box, frame)
    ]
    num_clamped = sum(
        not (face.box.x_min >= 0 and face.box.y_min >= 0 and face.box.x_max <= width and face.box.y_max <= height)
        for face in faces
    )
    clamped.sort(key=lambda face: (-face.box.area, -face.score, face.box))
    return (clamped[:1] if faces_kept == "largest" else clamped), num_clamped


def _overlap(a: Box, b: Box) -> bool:
    return a.x_min < b.x_max and b.x_min < a.x_max and a.y_min < b.y_max and b.y_min < a.y_max


def _frame_size(image: np.ndarray) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}; convert it first")
    return image.shape[0], image.shape[1]


def _squash(image: np.ndarray, px: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def _decided(start: int, stop: int, *, frame_px: int, context_px: int) -> tuple[int, int] | None:
    """The output pixels of one axis whose every tap of non-zero weight lies in [start, stop) of the frame."""
    scale = frame_px / context_px
    centre = (np.arange(context_px) + 0.5) * scale
    # The triangle's half width, in frame pixels. Weights under 2**-23 are zero in Pillow's 22-bit fixed point, which
    # forgives rounding where a tap lies exactly on the triangle's foot.
    reach = max(scale, 1.0) * (1 - 1e-7)
    first = np.maximum(np.floor(centre - reach - 0.5) + 1, 0)
    last = np.minimum(np.ceil(centre + reach - 0.5) - 1, frame_px - 1)
    decided = np.flatnonzero((first >= start) & (last < stop))
    return (int(decided[0]), int(decided[-1]) + 1) if decided.size else None
