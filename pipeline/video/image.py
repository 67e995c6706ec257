"""Reads a still image as a clip of one frame."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pipeline.video.container import open_file
from pipeline.video.frames import MAX_BYTES, MAX_PIXELS, DecodedClip, DecodeReport, Frame, VideoError

_MAX_COPIED_BYTES = 2**28  # no image within the limit of pixels is larger
_METADATA_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_TURNS = {  # EXIF 2.32, 4.6.4: orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, TypeError, ArithmeticError)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> DecodedClip:
    """A PNG or JPEG file as a clip of one frame at 0 s, turned as its EXIF says. Raises VideoError."""
    path = Path(path)
    with open_file(path, max_bytes) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not as it should be
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(_without_metadata(file), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > max_pixels:
                    raise VideoError(
                        "too_many_pixels",
                        f"the image has {image.width}x{image.height} pixels, the limit is {max_pixels} in all; "
                        "scale it down, or raise the limit",
                    )
                kind = (image.format or "").lower()
                turn = _TURNS.get(_orientation_of(image))
                pixels = _rgb_of(image if turn is None else image.transpose(turn))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise VideoError("too_many_pixels", f"{error}; scale the image down") from error
        except _FAULTS as error:
            # What Pillow says may quote the file, or name an object in memory.
            known = re.search(r"truncated(?: \(\d+ bytes not processed\))?", str(error), re.IGNORECASE)
            told = "it is truncated" if known else "it cannot be decoded"
            raise VideoError("undecodable", f"the file is no whole PNG or JPEG image: {told}; copy it again") from error
    return DecodedClip(_one_frame(pixels, kind))


def _orientation_of(image: Image.Image) -> Any:
    """The orientation of the EXIF data (1 to 8); 1 where it cannot be read: the rest of it is of no concern here."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - whatever a parser of foreign bytes raises
        return 1


def _without_metadata(file: BinaryIO) -> BinaryIO:
    """The file; of a PNG a copy without its texts and colour profile, of which Pillow refuses the large ones."""
    start = file.read(8)
    file.seek(0)
    if start != b"\x89PNG\r\n\x1a\n" or os.fstat(file.fileno()).st_size > _MAX_COPIED_BYTES:
        return file
    kept = io.BytesIO(file.read(8))
    kept.seek(0, io.SEEK_END)
    while len(header := file.read(8)) == 8:
        size, kind = int.from_bytes(header[:4]), header[4:]
        if kind in _METADATA_CHUNKS:
            file.seek(size + 4, io.SEEK_CUR)
            continue
        kept.write(header)
        kept.write(file.read(size + 4))
        if kind == b"IEND":
            break
    kept.seek(0)
    return kept


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
