"""Colours come out as they went in, whatever matrix, range, depth and chroma a file is coded in."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from pipeline.video.frames import Sampling
from pipeline.video.open import open_clip

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 210), (230, 220, 40), (128, 128, 128), (245, 245, 245), (10, 10, 10)]
MATRICES = {"bt709": (Colorspace.ITU709, 1), "bt601": (Colorspace.ITU601, 6), "bt470bg": (Colorspace.ITU601, 5)}
RANGES = {"tv": (ColorRange.MPEG, 1), "pc": (ColorRange.JPEG, 2)}


def coloured_clip(path: Path, *, matrix: str, colour_range: str, pixel_format: str, codec: str) -> np.ndarray:
    image = np.zeros((64, 32 * len(COLOURS), 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        image[:, 32 * number : 32 * number + 32] = colour
    space, space_code = MATRICES[matrix]
    bounds, bounds_code = RANGES[colour_range]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"crf": "4", "x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = space_code, bounds_code
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=space, src_color_range=ColorRange.JPEG, dst_color_range=bounds
            )
            frame.colorspace, frame.color_range = space_code, bounds_code
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return image


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("colour_range", RANGES)
@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("libx264", "yuv420p"),
        ("libx264", "yuv422p"),
        ("libx264", "yuv444p"),
        ("libx264", "yuv420p10le"),
        ("libx265", "yuv420p"),
        ("libx265", "yuv420p10le"),
        ("libx265", "yuv444p10le"),
    ],
)
def test_colours_come_out_as_they_went_in(
    tmp_path: Path, matrix: str, colour_range: str, codec: str, pixel_format: str
):
    how = {"matrix": matrix, "colour_range": colour_range, "codec": codec, "pixel_format": pixel_format}
    image = coloured_clip(tmp_path / "a.mp4", **how)
    with open_clip(tmp_path / "a.mp4", Sampling(frames_per_clip=1)) as clip:
        (frame,) = list(clip)
    for number in range(len(COLOURS)):
        patch = (slice(16, 48), slice(32 * number + 8, 32 * number + 24))
        difference = np.abs(frame.image[patch].astype(int) - image[patch].astype(int)).mean()
        assert difference < 5, (COLOURS[number], frame.image[32, 32 * number + 16])
