"""Counts the packets of a video stream once: which frames there are, and when they are shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from av.error import FFmpegError

from pipeline.video.container import open_container, packets_of, sniff_container
from pipeline.video.decord_proof import VOP_START, DecordProof, shape_of_first_frame, why_not_decord
from pipeline.video.frames import VideoError


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """What one pass over the packets tells, before anything is decoded.

    ticks: the presentation time of every frame, sorted, in units of time_base seconds. num_pictures: how many pictures
    the packet of each frame gives (0 where the codec says "as before"), in the same order.
    key_ticks, key_packets: time and packet number of the key frames, in packet order.
    by_order: the timestamps are in decoding order, so the i-th frame that comes out takes the i-th time.
    """

    demuxer: str
    codec: str
    time_base: Fraction
    ticks: np.ndarray
    num_pictures: np.ndarray
    key_ticks: np.ndarray
    key_packets: np.ndarray
    by_order: bool
    why_not_decord: str | None
    shape: tuple[int, ...] | None
    notes: tuple[str, ...]

    @cached_property
    def seconds(self) -> np.ndarray:
        # In this order it rounds once, so that a frame at 1/2 s is at 0.5 and inside a range that starts there.
        return self.ticks.astype(np.float64) * self.time_base.numerator / self.time_base.denominator


_FAR = 2**61  # a timestamp beyond it is damaged, and would overflow 64 bits in a difference


_kept_index: list[tuple[tuple[int, ...], FrameIndex]] = []


def index_of(file: BinaryIO, *, max_pixels: int, max_packets: int) -> FrameIndex:
    """The index of the file, kept until the next one's: the segments of a film are opened one after the other."""
    status = os.fstat(file.fileno())
    key = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        max_pixels,
        max_packets,
    )
    if not _kept_index or _kept_index[0][0] != key:
        _kept_index[:] = [(key, _read_index(file, max_pixels=max_pixels, max_packets=max_packets))]
    return _kept_index[0][1]


def _read_index(file: BinaryIO, *, max_pixels: int, max_packets: int) -> FrameIndex:
    demuxer = sniff_container(file.read(4096))
    with open_container(file, demuxer, max_pixels) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        time_base = stream.time_base or Fraction(1, 1)
        proof = DecordProof(demuxer, stream)
        ticks: list[int] = []
        num_pictures: list[int] = []
        keys: list[tuple[int, int]] = []
        notes: list[str] = []
        first_packet: Any = None
        number, previous_dts, moved, latest = -1, None, 0, -_FAR
        try:
            for number, packet in packets_of(container, stream):
                if number >= max_packets:
                    raise VideoError(
                        "too_large", f"its video has more than {max_packets} packets; cut it, or raise the limit"
                    )
                if packet.has_sidedata("encryption_info"):
                    raise VideoError("encrypted", "its video is encrypted (DRM); give a copy without")
                data = memoryview(packet)
                proof.see(packet, data)
                pictures = _pictures_of(codec, data, stream.codec_context)
                if packet.is_discard or pictures is None:
                    continue
                # Without any timestamp: one tick, or the frame's duration, after the packet before.
                tick = packet.pts if packet.pts is not None else packet.dts
                if tick is None:
                    tick = ticks[-1] + (packet.duration or 1) if ticks else 0
                # Joined files start their clock again: what follows is moved behind what came before.
                if packet.dts is not None and previous_dts is not None and packet.dts < previous_dts:
                    moved = latest + (packet.duration or 1) - tick
                previous_dts = packet.dts
                tick = max(-_FAR, min(tick + moved, _FAR))
                latest = max(latest, tick)
                first_packet = first_packet or packet
                ticks.append(tick)
                num_pictures.append(pictures)
                if packet.is_keyframe:
                    keys.append((tick, number))
        except FFmpegError as error:
            notes.append(f"the container is damaged after packet {number + 1} ({error.strerror})")
        if moved:
            notes.append("its timestamps jump back; what follows is moved behind what came before")
        if not ticks:
            raise VideoError("no_frames", "its container opens but holds no frame: it was cut off, or is a header only")
        times = np.array(ticks, dtype=np.int64)
        increasing = bool((np.diff(times) > 0).all())
        if 0 < stream.frames != number + 1:
            notes.append(f"the header claims {stream.frames} frames, the file holds {number + 1}")
        by_order = bool(moved) or (increasing and bool(stream.codec_context.has_b_frames))
        why_not = proof.why_not or why_not_decord(stream, len(ticks), increasing=increasing, by_order=by_order)
        shape = None
        if why_not is None:
            shape = shape_of_first_frame(stream.codec_context, first_packet)
            why_not = "the first frame is turned or does not decode" if shape is None else None
        order = np.argsort(times, kind="stable")
        return FrameIndex(
            demuxer=demuxer,
            codec=codec,
            time_base=time_base,
            ticks=times[order],
            num_pictures=np.array(num_pictures)[order],
            key_ticks=np.array([tick for tick, _ in keys], dtype=np.int64),
            key_packets=np.array([packet for _, packet in keys], dtype=np.int64),
            by_order=by_order,
            why_not_decord=why_not,
            shape=shape,
            notes=tuple(notes),
        )


def _pictures_of(codec: str, data: memoryview, context: Any) -> int | None:
    """How many pictures a packet gives when decoded, or None where it is never shown."""
    if codec == "vp8" and not data[0] & 0x10:  # show_frame of the frame tag (RFC 6386, 9.1)
        return None
    if codec == "mpeg4":
        # A packed AVI holds a B-frame behind a P-frame, and a stub in the place of the B-frame. A stub ("not coded")
        # gives no picture. A coded frame takes a bit for each macroblock, so 19 bytes cannot hold more than 152.
        is_stub = len(data) <= 19 and context.width * context.height > 152 * 256
        return 0 if is_stub else max(1, bytes(data).count(VOP_START))
    return 1
