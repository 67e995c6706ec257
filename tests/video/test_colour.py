"""Colours come out as they went in, whatever matrix, range, depth and chroma a file is coded in."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.video.frames import Sampling
from pipeline.video.open import open_clip

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 210), (230, 220, 40), (128, 128, 128), (245, 245, 245), (10, 10, 10)]
PATCH_PX, HEIGHT_PX = 32, 64
# Shares of red and blue in luma, and the code that a stream carries (ITU-T H.273, 8.3).
MATRICES = {"bt709": (0.2126, 0.0722, 1), "bt601": (0.299, 0.114, 6), "bt2020": (0.2627, 0.0593, 9)}
RANGES = {"tv": 1, "pc": 2, "not_said": 0}  # What does not say it is of limited range.
CHROMA = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
X265 = {"crf": "2", "x265-params": "log-level=none:bframes=0"}


def coded_planes(image: np.ndarray, *, matrix: str, full: bool, depth: int, chroma: str) -> list[np.ndarray]:
    """Luma and both differences of an RGB picture, by the equations of H.273, so that no library checks itself."""
    red, green, blue = np.moveaxis(image / 255, 2, 0)
    of_red, of_blue, _ = MATRICES[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    differences = ((blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red))
    wide, high = CHROMA[chroma]
    scale, top, middle = 2 ** (depth - 8), 2**depth - 1, 2 ** (depth - 1)
    planes = [luma * top if full else (219 * luma + 16) * scale]
    planes += [(each * top if full else 224 * each * scale) + middle for each in differences]
    kind = np.uint8 if depth == 8 else np.uint16
    rounded = [np.clip(np.round(plane), 0, top).astype(kind) for plane in planes]
    return [rounded[0], *(np.ascontiguousarray(plane[::high, ::wide]) for plane in rounded[1:])]


def picture() -> np.ndarray:
    image = np.zeros((HEIGHT_PX, PATCH_PX * len(COLOURS), 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        image[:, PATCH_PX * number : PATCH_PX * (number + 1)] = colour
    return image


def coloured_clip(
    path: Path, *, matrix: str, colour_range: str, depth: int, chroma: str, codec: str, options: dict[str, str]
) -> None:
    image = picture()
    planes = coded_planes(image, matrix=matrix, full=colour_range == "pc", depth=depth, chroma=chroma)
    pixel_format = f"yuv{chroma}p{'' if depth == 8 else f'{depth}le'}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = MATRICES[matrix][2], RANGES[colour_range]
        for number in range(2):
            frame = av.VideoFrame(image.shape[1], image.shape[0], pixel_format)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                of_row = values.view(np.uint8).reshape(plane.height, -1)
                rows[:, : of_row.shape[1]] = of_row
                plane.update(rows)
            frame.colorspace, frame.color_range = MATRICES[matrix][2], RANGES[colour_range]
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def assert_colours(path: Path) -> None:
    with open_clip(path, Sampling(frames_per_clip=1)) as clip:
        (frame,) = list(clip)
    image = picture()
    for number, colour in enumerate(COLOURS):
        patch = (slice(16, 48), slice(PATCH_PX * number + 8, PATCH_PX * number + 24))
        difference = np.abs(frame.image[patch].astype(int) - image[patch].astype(int)).mean()
        assert difference < 5, (path.name, colour, frame.image[32, PATCH_PX * number + 16])


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("colour_range", RANGES)
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_colours_come_out_as_they_went_in(tmp_path: Path, matrix: str, colour_range: str, depth: int):
    codec, options = ("libx265", X265) if depth == 12 else ("libx264", {"crf": "2", "threads": "1"})
    for chroma in CHROMA:
        how = {"matrix": matrix, "colour_range": colour_range, "depth": depth, "chroma": chroma}
        coloured_clip(path := tmp_path / f"{chroma}.mp4", **how, codec=codec, options=options)
        assert_colours(path)


# Of each codec that can: its container, its depths and its chromas.
OTHERS = {
    "libx265": (".mp4", [8, 10], ["420", "444"], X265),
    "libvpx-vp9": (".webm", [8], ["420", "444"], {"lossless": "1", "cpu-used": "8", "deadline": "realtime"}),
    "ffv1": (".mkv", [8, 10, 12], ["420", "422", "444"], {}),
    "prores_ks": (".mov", [10], ["422", "444"], {}),
    "mpeg2video": (".ts", [8], ["420", "422"], {"qmin": "1", "qmax": "1"}),
}


@pytest.mark.parametrize("codec", OTHERS)
def test_colours_of_other_codecs_come_out_as_they_went_in(tmp_path: Path, codec: str):
    suffix, depths, chromas, options = OTHERS[codec]
    for matrix, depth, chroma in product(("bt709", "bt601"), depths, chromas):
        path = tmp_path / f"{matrix}-{depth}-{chroma}{suffix}"
        how = {"matrix": matrix, "colour_range": "tv", "depth": depth, "chroma": chroma}
        coloured_clip(path, **how, codec=codec, options=options)
        assert_colours(path)
