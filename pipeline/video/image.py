"""Reads a still image as a clip of one frame."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.video.container import open_file
from pipeline.video.frames import MAX_BYTES, MAX_PIXELS, DecodedClip, DecodeReport, Frame, VideoError


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> DecodedClip:
    """A PNG or JPEG file as a clip of one frame at 0 s, turned as its EXIF says. Raises VideoError."""
    path = Path(path)
    with open_file(path, max_bytes) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > max_pixels:
                    raise VideoError(
                        "too_many_pixels",
                        f"the image has {image.width}x{image.height} pixels, the limit is {max_pixels} in all; "
                        "scale it down, or raise the limit",
                    )
                kind = (image.format or "").lower()
                pixels = _rgb_of(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise VideoError("too_many_pixels", f"{error}; scale the image down") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise VideoError(
                "undecodable", f"the file is no whole PNG or JPEG image: {error}; copy it again"
            ) from error
    return DecodedClip(_one_frame(pixels, kind))


def _rgb_of(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _one_frame(pixels: np.ndarray, kind: str) -> Generator[Frame, None, DecodeReport]:
    yield Frame(frame_index=0, pts_seconds=0.0, seconds=0.0, image=pixels)
    return DecodeReport(
        decoder="pillow",
        decoder_reason="a still image",
        container=kind,
        codec=kind,
        num_frames=1,
        num_decoded=1,
        num_corrupt=0,
        num_repeated=0,
        num_missing=0,
        decode_integrity=1.0,
    )
