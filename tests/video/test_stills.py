"""Still images whose metadata is large, wrong or turned."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_zoo import numbered_image, read_number

from pipeline.video.frames import Sampling, VideoError
from pipeline.video.image import read_image
from pipeline.video.open import open_clip


def pixels_of(path: Path) -> np.ndarray:
    (frame,) = list(read_image(path))
    return frame.image


def exif(entries: list[tuple[int, int, int, int]]) -> bytes:
    """An EXIF block of (tag, type, count, value) of four bytes each, as cameras write it."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


STORED = {1: 0, 3: 2, 6: 1, 8: 3}  # orientation: quarter turns counterclockwise by which the stored image is turned


def turned_jpeg(path: Path, orientation: int, more: list[tuple[int, int, int, int]]) -> Path:
    image = np.rot90(numbered_image(9), STORED[orientation])
    Image.fromarray(image).save(path, quality=95, exif=exif([*more, (0x0112, 3, 1, orientation)]))
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    "more",
    [
        [],
        [(0x0100, 9, 1, 2**32 - 5)],
        [(0x0111, 4, 1, 2**32 - 1)],
        [(0x010F, 2, 2**31, 2**31)],
        [(0x8769, 4, 1, 8)],
        [(0x0100, 99, 7, 1)],
    ],
)
def test_an_image_is_upright_whatever_else_its_exif_says(tmp_path: Path, orientation: int, more: list):
    image = pixels_of(turned_jpeg(tmp_path / "a.jpg", orientation, more))
    assert image.shape == (96, 160, 3)
    assert read_number(image) == 9


def test_mirrored_orientations_are_undone(tmp_path: Path):
    picture = numbered_image(9)
    stored = {2: picture[:, ::-1], 4: picture[::-1], 5: picture.transpose(1, 0, 2)}
    stored[7] = picture[::-1, ::-1].transpose(1, 0, 2)
    for orientation, image in stored.items():
        path = tmp_path / f"{orientation}.jpg"
        Image.fromarray(np.ascontiguousarray(image)).save(path, quality=95, exif=exif([(0x0112, 3, 1, orientation)]))
        assert np.abs(pixels_of(path).astype(int) - picture).mean() < 8


def test_no_change_of_an_exif_block_stops_an_image(tmp_path: Path):
    source = turned_jpeg(
        tmp_path / "a.jpg", 6, [(0x0100, 4, 1, 160), (0x0111, 4, 1, 8), (0x8769, 4, 1, 40)]
    ).read_bytes()
    at, size = source.index(b"Exif\0\0"), 56  # four entries of 12 bytes behind a head of 8
    random_bytes = random.Random(1)
    for _ in range(300):
        data = bytearray(source)
        for _ in range(random_bytes.randint(1, 4)):
            data[at + 6 + random_bytes.randrange(size - 6)] = random_bytes.randrange(256)
        (tmp_path / "b.jpg").write_bytes(data)
        assert sorted(pixels_of(tmp_path / "b.jpg").shape) == [3, 96, 160]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LARGE = b"x" * (3 * 2**20)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LARGE),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
        chunk(b"tEXt", b"Comment\0" + LARGE),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
        chunk(b"iCCP", b"profile\0\0" + b"no zlib at all"),
        chunk(b"tEXt", b"no end of the key word"),
    ],
)
def test_large_and_broken_metadata_of_a_png_is_skipped(tmp_path: Path, extra: bytes):
    Image.fromarray(numbered_image(9)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[:33] + extra + data[33:])
    assert np.array_equal(pixels_of(tmp_path / "b.png"), numbered_image(9))


@pytest.mark.parametrize(
    "kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"eXIf", b"prVt"]
)
@pytest.mark.parametrize("crc", [0, 1])
def test_no_chunk_of_a_png_but_its_pixels_stops_it(tmp_path: Path, kind: bytes, crc: int):
    Image.fromarray(numbered_image(9)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    broken = bytearray(chunk(kind, b"\xff" * 3))
    broken[-1] ^= crc
    (tmp_path / "b.png").write_bytes(data[:33] + broken + data[33:])
    assert np.array_equal(pixels_of(tmp_path / "b.png"), numbered_image(9))


@pytest.mark.parametrize(
    "segment",
    [
        b"\xe0JFIF",
        b"\xe1Exif\0\0MM\0*\xff\xff\xff\xff",
        b"\xe1http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><tiff:Orientation>6",
        b"\xe2ICC_PROFILE\0\1\2",
        b"\xe2MPF\0" + b"\xff" * 40,
        b"\xedPhotoshop 3.0\x008BIM\xff",
        b"\xeeAdobe",
        b"\xfe" + b"x" * 60_000,
    ],
)
def test_no_segment_of_a_jpeg_but_its_pixels_stops_it(tmp_path: Path, segment: bytes):
    Image.fromarray(numbered_image(9)).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    more = b"\xff" + segment[:1] + struct.pack(">H", len(segment) + 1) + segment[1:]
    (tmp_path / "b.jpg").write_bytes(data[:2] + more + data[2:])
    assert np.array_equal(pixels_of(tmp_path / "b.jpg"), pixels_of(tmp_path / "a.jpg"))


def test_of_a_jpeg_with_several_pictures_the_first_is_read_upright(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(numbered_image(9), 1)))
    others = [Image.fromarray(numbered_image(3))]
    stored.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=others, quality=95, exif=turned.tobytes())
    assert read_number(pixels_of(tmp_path / "a.jpg")) == 9


def test_large_metadata_of_a_jpeg_is_skipped(tmp_path: Path):
    Image.fromarray(numbered_image(9)).save(tmp_path / "a.jpg", quality=95, icc_profile=LARGE)
    assert read_number(pixels_of(tmp_path / "a.jpg")) == 9


def test_a_png_is_turned_by_its_exif_chunk(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(numbered_image(9), 1)).save(tmp_path / "a.png", exif=turned)
    assert np.array_equal(pixels_of(tmp_path / "a.png"), numbered_image(9))


@pytest.mark.parametrize(
    ("begins", "name"),
    [
        (b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
        (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0", "a BMP image"),
        (b"II*\0\x08\0\0\0", "a TIFF image"),
        (b"\0\0\0\x18ftypheic", "a HEIC or AVIF image"),
        (b"\0\0\0\x1cftypavif", "a HEIC or AVIF image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"GIF89a", "a GIF image"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
    ],
)
def test_another_kind_under_the_name_of_an_image_is_told_and_not_to_be_copied_again(begins, name, tmp_path):
    (tmp_path / "a.jpg").write_bytes(begins + bytes(200))
    with pytest.raises(VideoError, match=f"the file is {name}.*convert it") as raised:
        read_image(tmp_path / "a.jpg")
    assert "copy it again" not in str(raised.value)


SECRET = b"SECRETSAUCE"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADS = {
    "text": b"",
    "pem": b"-----BEGIN " + SECRET + b" PRIVATE KEY-----\n",
    "link": b"http://" + SECRET,
    "playlist": b"#EXTM3U\n",
    "png": SIGNATURE,
    "png_size": SIGNATURE + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 8, 8, 8, 2, 0, 0, 0) + bytes(4),
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "gif": b"GIF89a",
    "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "matroska": bytes.fromhex("1a45dfa3"),
    "avi": b"RIFF\xff\0\0\0AVI LIST",
    "flv": b"FLV\x01\x05\0\0\0\x09\0\0\0\0",
    "ogg": b"OggS\0\x02",
    "y4m": b"YUV4MPEG2 ",
    "ivf": b"DKIF\0\0\x20\0",
    "mpeg": bytes.fromhex("000001ba"),
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "rm": b".RMF",
    "mxf": bytes.fromhex("060e2b34020501010d0102"),
    "dv": bytes.fromhex("1f07003f"),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_file_that_is_something_else_costs_its_clip_and_is_not_quoted(head, tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(HEADS[head] + SECRET * 80)
    for read in (read_image, lambda path: open_clip(path, Sampling(frames_per_clip=2))):
        with pytest.raises(VideoError) as raised:
            list(read(path))
        told = str(raised.value).lower()
        for part in (SECRET.decode(), SECRET.hex(), SECRET.hex(" "), "0x", "begin"):
            assert not any(part[start : start + 4].lower() in told for start in range(len(part) - 3)), told
