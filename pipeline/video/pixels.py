"""A decoded frame in, an upright RGB array out."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from av.error import FFmpegError

from pipeline.video.frames import VideoError

_WIDEST = 8  # a larger ratio is a damaged header: 352x576 shown as 16:9 is 2.9


def pixel_aspect_of(stream: Any) -> Fraction:
    """The width of a stored pixel by its height, as the container or else the codec says; 1 where neither does."""
    for aspect in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if aspect and Fraction(1, _WIDEST) <= aspect <= _WIDEST:
            return Fraction(aspect)
    return Fraction(1)


def shown_size(width: int, height: int, pixel_aspect: Fraction, *, max_pixels: int) -> tuple[int, int]:
    """Width and height of a stored frame in square pixels: its width is changed, or its height where that would pass
    the limit."""
    wide = max(1, round(width * pixel_aspect))
    if wide * height <= max_pixels or pixel_aspect < 1:
        return wide, height
    return width, max(1, round(height / pixel_aspect))


def to_rgb(frame: Any, number: int, *, size: tuple[int, int]) -> np.ndarray:
    """A frame as RGB uint8 of `size` (width, height). Raises VideoError."""
    try:
        if size == (frame.width, frame.height):
            return frame.to_ndarray(format="rgb24")
        return frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="BICUBIC")
    except FFmpegError as error:
        raise VideoError(
            "undecodable",
            f"frame {number} ({frame.width}x{frame.height}, {frame.format.name}) does not convert to RGB "
            f"({error.strerror}); encode the video again",
        ) from error


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of the frame's display matrix, which maps a stored x, y to a shown x' = a x + c y, y' = b x + d y.

    None where there is none (ISO 14496-12, 6.2.2).
    """
    # From a tiny copy: PyAV 18.1 holds a frame whose side data was read until the next full garbage collection,
    # 7 MB a clip of 640x480 when each sampled frame was asked.
    data = frame.reformat(width=16, height=16).side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return a, b, c, d


def upright(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """An image turned and mirrored as its display matrix says; an angle between quarter turns becomes the nearest.

    image: (H, W, 3) -> (H, W, 3) or (W, H, 3), uint8.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
