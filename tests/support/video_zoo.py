"""Clips made for tests with PyAV: codecs, reordering, variable rates, display matrices, damage, odd sizes.

Every frame of a made clip carries its number in a row of grey blocks, which `read_number` reads back after any codec.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_BITS = 12


def numbered_image(number: int, *, width: int = 160, height: int = 96) -> np.ndarray:
    """An RGB image, moving with `number`, whose top quarter says the number: one block per bit, dark or light."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red = (x * 2 + number * 5) % 256
    green = (y * 2 + number * 3) % 256
    image = np.stack([red, green, (red + green) // 2], axis=2).astype(np.uint8)
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        image[: height // 4, left:right] = 230 if number >> bit & 1 else 20
    return image


def read_number(image: np.ndarray) -> int:
    """The number in an image of `numbered_image`, decoded and upright."""
    height, width = image.shape[:2]
    centres = [(2 * bit + 1) * width // (2 * NUM_BITS) for bit in range(NUM_BITS)]
    row = image[height // 8, centres].mean(axis=1)
    return sum(int(value > 125) << bit for bit, value in enumerate(row))


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """SVT-AV1 makes whoever opens it as root a real-time process of the highest priority, and what that starts later:
    nothing else on the machine would run beside them."""
    if sys.platform != "linux":
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def make_clip(
    path: Path,
    *,
    codec: str = "libx264",
    num_frames: int = 60,
    width: int = 160,
    height: int = 96,
    rate: int = 30,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container: str | None = None,
    ticks: list[int] | None = None,
    rotation: int | None = None,
    mirror: bool = False,
    images: list[np.ndarray] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """A clip of numbered frames (or of `images`), encoded with `codec`, in the container that the name asks for.

    ticks: presentation times in milliseconds, for variable rates; otherwise frame i is shown at i / rate s.
    rotation: degrees counterclockwise, and mirror: left to right, that the display matrix asks of a player.
    """
    opened = av.open(str(path), "w", format=container, container_options=container_options or {})
    with scheduling_kept(), opened as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        if ticks is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i in range(num_frames):
            image = images[i] if images else numbered_image(i, width=width, height=height)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[i], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = i, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def make_streams(path: Path, streams: list[dict], *, rate: int = 25, sound_seconds: float = 0.0) -> Path:
    """A file of several video streams of numbered frames, each with its codec, num_frames, width, height and
    pixel_format; and of silent sound that lasts `sound_seconds`."""
    with av.open(str(path), "w") as output:
        opened = []
        for how in streams:
            stream = output.add_stream(how.get("codec", "libx264"), rate=rate)
            stream.width, stream.height = how.get("width", 160), how.get("height", 96)
            stream.pix_fmt = how.get("pixel_format", "yuv420p")
            opened.append((stream, how["num_frames"]))
        sound = output.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000) if sound_seconds else None
        for i in range(max(count for _, count in opened)):
            for stream, count in opened:
                if i < count:
                    image = numbered_image(i, width=stream.width, height=stream.height)
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, rate)
                    output.mux(stream.encode(frame))
        for stream, _ in opened:
            output.mux(stream.encode(None))
        if sound is not None:
            for i in range(round(sound_seconds * 50)):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, i * 960, Fraction(1, 48000)
                output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    return path


def field_coded_h264(path: Path, *, num_frames: int, rate: int = 25) -> Path:
    """A clip of numbered frames as interlaced cameras code it: each field a picture and a packet of its own.

    Written bit by bit (ISO 14496-10), with all macroblocks as plain samples, because no encoder here does it.
    """
    width, height = 96, 64

    def golomb(value: int) -> str:
        bits = f"{value + 1:b}"
        return "0" * (len(bits) - 1) + bits

    def unit(kind: int, bits: str, body: bytes = b"") -> bytes:
        raw = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8) + body
        for tail in range(4):
            raw = raw.replace(bytes([0, 0, tail]), bytes([0, 0, 3, tail])) if tail != 3 else raw
        return b"\x00\x00\x00\x01" + bytes([kind]) + raw

    def stopped(bits: str) -> str:
        return bits + "1"

    sps = "01000010" + "00000000" + "00011110" + golomb(0) + golomb(0) + golomb(2) + golomb(1) + "0"
    sps = sps.replace("01000010", "01001101", 1)  # Main profile: Baseline has no fields
    sps += golomb(width // 16 - 1) + golomb(height // 32 - 1) + "0" + "0" + "1" + "0" + "0"
    pps = golomb(0) + golomb(0) + "0" + "0" + golomb(0) + golomb(0) + golomb(0) + "0" + "00" + golomb(0) * 3 + "0" * 3
    parameters = unit(0x67, stopped(sps)) + unit(0x68, stopped(pps))

    def field_unit(planes: list[np.ndarray], number: int, *, is_bottom: bool) -> bytes:
        is_idr = number == 0 and not is_bottom
        bits = golomb(0) + golomb(7) + golomb(0) + f"{number % 16:04b}" + "1" + str(int(is_bottom))
        bits += golomb(0) if is_idr else ""
        bits += "00" if is_idr else "0"  # dec_ref_pic_marking
        bits += golomb(0)  # slice_qp_delta
        body = bytearray()
        y, u, v = planes
        for row in range(height // 32):
            for column in range(width // 16):
                bits_or_none = golomb(25)  # I_PCM
                if not body:
                    bits += bits_or_none
                    bits += "0" * (-len(bits) % 8)
                else:
                    body += int(bits_or_none + "0" * (-len(bits_or_none) % 8), 2).to_bytes(2)
                body += y[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].tobytes()
                for plane in (u, v):
                    body += plane[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].tobytes()
        return unit(0x65 if is_idr else 0x61, bits, bytes(body) + b"\x80")

    packets = []
    for number in range(num_frames):
        image = numbered_image(number, width=width, height=height)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        planes = [
            np.maximum(np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width], 1)
            for plane in frame.planes
        ]
        packets.append(
            (parameters if number == 0 else b"") + field_unit([p[::2] for p in planes], number, is_bottom=False)
        )
        packets.append(field_unit([p[1::2] for p in planes], number, is_bottom=True))
    if path.suffix == ".h264":
        path.write_bytes(b"".join(packets))
        return path
    with av.open(str(path), "w") as output:
        stream = output.add_stream("h264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 2 * rate)
        stream.codec_context.extradata = parameters
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 2 * rate), stream
            packet.is_keyframe = number == 0
            output.mux(packet)
    return path


def remux(source: Path, path: Path, change) -> Path:
    """The packets of `source` in a new container; `change(number, packet)` gives the packets to write instead.

    It may change timestamps, drop a packet (an empty list) or replace its bytes with `with_bytes`.
    """
    with av.open(str(source)) as given, av.open(str(path), "w") as output:
        template = given.streams.video[0]
        stream = output.add_stream_from_template(template)
        number = 0
        for packet in given.demux(template):
            if packet.size == 0:
                continue
            for changed in change(number, packet):
                changed.stream = stream
                output.mux(changed)
            number += 1
    return path


def with_bytes(packet: av.Packet, data: bytes) -> av.Packet:
    """A packet of `data` with the times and flags of `packet`."""
    changed = av.Packet(data)
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.is_keyframe = packet.is_keyframe
    return changed


def with_matrix(source: Path, path: Path, *, a: int, b: int, c: int, d: int) -> Path:
    """An mp4 with the display matrix in its (only) track header replaced: x' = a x + c y, y' = b x + d y."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") + 4
    version = data[header]
    at = header + (52 if version == 1 else 40)
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(source: Path, path: Path, *, share: float) -> Path:
    """The first `share` of the bytes of a file."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flip_bits(source: Path, path: Path, *, seed: int, num_flips: int, begin: float = 0.0, end: float = 1.0) -> Path:
    """A file with random bits flipped between two shares of its length; the same for the same seed."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(int(begin * len(data)), max(int(end * len(data)), 1), num_flips):
        data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path


def claim_avi_frames(source: Path, path: Path, *, num_frames: int) -> Path:
    """An AVI whose main and stream headers claim another count of frames."""
    data = bytearray(source.read_bytes())
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = struct.pack("<I", num_frames)
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = struct.pack("<I", num_frames)
    path.write_bytes(data)
    return path
