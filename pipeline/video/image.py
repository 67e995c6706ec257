"""Reads a still image as a clip of one frame."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pipeline.video.container import open_file
from pipeline.video.frames import MAX_BYTES, MAX_PIXELS, DecodedClip, DecodeReport, Frame, VideoError

_MAX_COPIED_BYTES = 2**28  # no image within the limit of pixels is larger
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Segments that may come before the first scan, and those of metadata that decide about pixels, with their least length.
_JPEG_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xF0), 0xFE}
_JPEG_METADATA = ((b"JFIF\0", 14), (b"Exif\0\0", 6), (b"Adobe", 12))
_TURNS = {  # EXIF 2.32, 4.6.4: orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What else lies under the name of an image: mostly what a browser or a phone saved.
_OTHERS = (
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP image"),
    (re.compile(rb"GIF8"), "a GIF image"),
    (re.compile(rb"BM....\0\0\0\0", re.DOTALL), "a BMP image"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "a TIFF image"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1|avi[fs])", re.DOTALL), "a HEIC or AVIF image"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 image"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "a JPEG XL image"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE), "a web page"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|svg)\b", re.IGNORECASE), "an SVG drawing or another XML file"),
)
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
            file.seek(0)
            head = file.read(64)
            if (other := next((name for begins, name in _OTHERS if begins.match(head)), None)) is not None:
                told = (
                    f"the file is {other} under the name of a PNG or JPEG; convert it to one of these, or leave it out"
                )
                raise VideoError("undecodable", told) from error
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
    """A copy of a PNG or JPEG with what its pixels and its orientation need; the file where it is neither.

    Pillow gives an image up for what is wrong or large elsewhere: a text, a colour profile, a density, an animation.
    """
    start = file.read(8)
    file.seek(0)
    if os.fstat(file.fileno()).st_size > _MAX_COPIED_BYTES:
        return file
    if start == _PNG_START:
        return io.BytesIO(b"".join(_png_parts(file)))
    return io.BytesIO(b"".join(_jpeg_parts(file))) if start.startswith(_JPEG_START) else file


def _png_parts(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(len(_PNG_START))
    while len(header := file.read(8)) == 8:
        size, kind = int.from_bytes(header[:4]), header[4:]
        if kind not in (*_PNG_CHUNKS, b"eXIf"):
            file.seek(size + 4, io.SEEK_CUR)
            continue
        body = file.read(size + 4)
        if kind in _PNG_CHUNKS or zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:]):
            yield header + body
        if kind == b"IEND":
            return


def _jpeg_parts(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(len(_JPEG_START) - 1)
    while True:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] not in _JPEG_SEGMENTS:
            break  # Where the pixels begin, or what Pillow may make something of.
        length = file.read(2)
        body = file.read(int.from_bytes(length) - 2) if int.from_bytes(length) >= 2 else b""
        is_metadata = 0xE0 <= marker[1] <= 0xEF or marker[1] == 0xFE
        if not is_metadata or any(body.startswith(name) and len(body) >= least for name, least in _JPEG_METADATA):
            yield marker + length + body
    yield marker
    yield file.read()


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
