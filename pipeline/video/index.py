"""Reads the packets of a video stream once: which pictures there are, and when each is shown."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from av.error import FFmpegError

from pipeline.video.claims import num_absent_frames
from pipeline.video.container import open_container, packets_of
from pipeline.video.decord_proof import VOP_START, DecordProof, shape_of_first_frame, why_not_decord
from pipeline.video.fields import FieldPairs
from pipeline.video.formats import HEAD_BYTES, Container, sniff_container
from pipeline.video.frames import VideoError
from pipeline.video.pixels import pixel_aspect_of
from pipeline.video.streams import choose_stream


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """What one pass over the packets tells, before anything is decoded.

    stream: which of the video streams. ticks: the presentation time of every frame, sorted, in units of time_base
    seconds. num_pictures: how many pictures the packet of each frame gives (0 where the codec says "as before"), in the
    same order. packet_ticks: the same time by packet number, NO_TICK for a packet that shows nothing of its own; the
    second field of a picture has the time of the first.
    key_ticks, key_packets: time and packet number of the key frames, in packet order.
    by_order: packets are in decoding order and their times are too, so the time of a picture is known from the order
    in which pictures come out. reorder_depth: by how many pictures that may differ. has_presentation_times: the
    container gives them.
    zero_tick: the beginning of the clip on its own clock. num_absent: frames that the header claims after the last one.
    pixel_aspect: width of a stored pixel by its height.
    """

    demuxer: str
    stream: int
    codec: str
    time_base: Fraction
    ticks: np.ndarray
    num_pictures: np.ndarray
    packet_ticks: np.ndarray
    key_ticks: np.ndarray
    key_packets: np.ndarray
    by_order: bool
    has_presentation_times: bool
    reorder_depth: int
    zero_tick: int
    num_absent: int
    pixel_aspect: Fraction
    why_not_decord: str | None
    shape: tuple[int, ...] | None
    notes: tuple[str, ...]

    @cached_property
    def seconds(self) -> np.ndarray:
        """When each frame is shown on the file's own clock, seconds."""
        # In this order it rounds once, so that a frame at 1/2 s is at 0.5 and inside a range that starts there.
        return self.ticks.astype(np.float64) * self.time_base.numerator / self.time_base.denominator

    @cached_property
    def clock(self) -> np.ndarray:
        """When each frame is shown after the beginning of the clip, seconds."""
        ticks = (self.ticks - self.zero_tick).astype(np.float64)
        return ticks * self.time_base.numerator / self.time_base.denominator


NO_TICK = -(2**63)
_FAR = 2**61  # a timestamp beyond it is damaged, and would overflow 64 bits in a difference
_MAX_REORDERED = 16  # pictures that a decoder may hold back (ISO 14496-10, A.3.1)


_kept_index: list[tuple[tuple[Any, ...], FrameIndex]] = []


def index_of(file: BinaryIO, *, max_pixels: int, max_packets: int, stream: int | None = None) -> FrameIndex:
    """The index of the file, kept until the next one's: the segments of a film are opened one after the other."""
    key = (*identity_of(file), max_pixels, max_packets, stream)
    if not _kept_index or _kept_index[0][0] != key:
        index = _read_index(file, max_pixels=max_pixels, max_packets=max_packets, asked=stream)
        _kept_index[:] = [(key, index)]
    return _kept_index[0][1]


def identity_of(file: BinaryIO) -> tuple[Any, ...]:
    """What tells whether an open file is the one that was read before, and unchanged."""
    try:
        status = os.fstat(file.fileno())
    except io.UnsupportedOperation:  # It lies elsewhere, and is named by its content.
        return (file.name,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass
class _Packets:
    """What was read of the packets, in their order."""

    presented: list[int] = field(default_factory=list)  # NO_TICK where there is none
    decoded: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    num_pictures: list[int] = field(default_factory=list)  # -1: never shown; -2: the second field of the one before
    keys: list[int] = field(default_factory=list)
    first: Any = None
    notes: list[str] = field(default_factory=list)


_HIDDEN, _SECOND_FIELD = -1, -2


def _read_index(file: BinaryIO, *, max_pixels: int, max_packets: int, asked: int | None) -> FrameIndex:
    file.seek(0)
    kind = sniff_container(file.read(HEAD_BYTES))
    number, notes = choose_stream(file, kind.demuxer, asked=asked, max_pixels=max_pixels, max_packets=max_packets)
    with open_container(file, kind.demuxer, max_pixels, number=number) as (container, stream):
        proof = DecordProof(kind.demuxer, stream)
        packets = _read_packets(container, stream, proof, max_packets=max_packets)
        times, by_order, has_jumped = _times_of(packets, kind, stream)
        shown = np.array(packets.num_pictures) >= 0
        if not shown.any():
            raise VideoError("no_frames", "its container opens but holds no frame: it was cut off, or is a header only")
        ticks = times[shown]
        increasing = bool((np.diff(ticks) > 0).all())
        order = np.argsort(ticks, kind="stable")
        keys = np.array([key for key in packets.keys if shown[key]], dtype=np.int64)
        num_absent, words = num_absent_frames(
            file, container, stream, kind.demuxer, ticks[order], num_packets=len(times), max_pixels=max_pixels
        )
        pixel_aspect = pixel_aspect_of(stream)
        why_not = proof.why_not or why_not_decord(
            stream,
            len(ticks),
            pixel_aspect,
            increasing=increasing,
            may_reorder=has_jumped or bool(stream.codec_context.has_b_frames),
        )
        shape = None
        if why_not is None:
            shape = shape_of_first_frame(stream.codec_context, packets.first)
            why_not = "the first frame is turned or does not decode" if shape is None else None
        return FrameIndex(
            demuxer=kind.demuxer,
            stream=number,
            codec=stream.codec_context.codec.canonical_name,
            time_base=stream.time_base or Fraction(1, 1),
            ticks=ticks[order],
            num_pictures=np.array(packets.num_pictures)[shown][order],
            packet_ticks=times,
            key_ticks=times[keys],
            key_packets=keys,
            by_order=by_order,
            has_presentation_times=kind.has_presentation_times,
            reorder_depth=_reorder_depth(stream.codec_context),
            zero_tick=zero_tick(
                kind,
                int(ticks.min()),
                begins_with_key=bool(len(keys)) and not shown[: keys[0]].any(),
                # FFmpeg shows what it has put in order itself one tick later than the container counts.
                origin=int(not kind.has_presentation_times and not increasing),
            ),
            num_absent=num_absent,
            pixel_aspect=pixel_aspect,
            why_not_decord=why_not,
            shape=shape,
            notes=(*notes, *packets.notes, *words, *([_JUMPED] if has_jumped else [])),
        )


_JUMPED = "its timestamps jump back; what follows is moved behind what came before"


def _read_packets(container: Any, stream: Any, proof: DecordProof, *, max_packets: int) -> _Packets:
    """Every packet of the stream, without decoding. Raises VideoError."""
    codec = stream.codec_context.codec.canonical_name
    fields = FieldPairs(codec, stream.codec_context.extradata)
    found, number = _Packets(), -1
    try:
        for number, packet in enumerate(packets_of(container, stream)):
            if number >= max_packets:
                raise VideoError(
                    "too_large", f"its video has more than {max_packets} packets; cut it, or raise the limit"
                )
            if packet.has_sidedata("encryption_info"):
                raise VideoError("encrypted", "its video is encrypted (DRM); give a copy without")
            data = memoryview(packet)
            proof.see(packet, data)
            pictures = _pictures_of(codec, data, stream.codec_context)
            if packet.is_discard:
                pictures = _HIDDEN
            elif pictures > 0 and fields.is_second_field(data):
                pictures = _SECOND_FIELD
                proof.why_not = proof.why_not or "pictures are coded as fields"
            found.presented.append(_bounded(packet.pts))
            found.decoded.append(_bounded(packet.dts))
            found.durations.append(max(0, min(packet.duration or 0, _FAR)))
            found.num_pictures.append(pictures)
            if pictures >= 0:
                found.first = found.first or packet
                if packet.is_keyframe:
                    found.keys.append(number)
    except FFmpegError as error:
        found.notes.append(f"the container is damaged after packet {number + 1} ({error.strerror})")
    return found


def _bounded(tick: int | None) -> int:
    return NO_TICK if tick is None else max(-_FAR, min(tick, _FAR))


def _times_of(packets: _Packets, kind: Container, stream: Any) -> tuple[np.ndarray, bool, bool]:
    """The presentation time of each packet; whether they are in decoding order; whether they jumped back somewhere."""
    pictures = np.array(packets.num_pictures, dtype=np.int64)
    presented, decoded = (np.array(each, dtype=np.int64) for each in (packets.presented, packets.decoded))
    durations = np.maximum(np.array(packets.durations, dtype=np.int64), 1)
    times = np.where(presented == NO_TICK, decoded, presented)
    if not kind.has_presentation_times and bool((np.diff(times) > 0).all()):
        times = _counted(presented, decoded)  # else FFmpeg knows the codec's reordering, and has undone it
    for number in np.flatnonzero(times == NO_TICK).tolist():  # one tick, or its duration, after the one before
        times[number] = times[number - 1] + durations[number] if number else 0
    shown = np.flatnonzero(pictures >= 0)
    moved, has_jumped = _joined(times[shown], durations[shown])
    times[pictures == _HIDDEN] = NO_TICK
    times[shown] = moved
    for number in np.flatnonzero(pictures == _SECOND_FIELD).tolist():
        times[number] = times[number - 1] if number else NO_TICK
    increasing = bool((np.diff(moved) > 0).all())
    may_reorder = bool(stream.codec_context.has_b_frames)
    return times, increasing and (may_reorder or not kind.has_presentation_times), has_jumped


def times_in_order(presented: Sequence[int | None], decoded: Sequence[int | None]) -> np.ndarray | None:
    """The times of the first packets of a container that numbers its packets and no more, where these are the times of
    pictures in the order in which they come out; None where FFmpeg tells each its own."""
    shown, read = (np.array([_bounded(tick) for tick in ticks], dtype=np.int64) for ticks in (presented, decoded))
    times = np.where(shown == NO_TICK, read, shown)
    return _counted(shown, read) if bool((np.diff(times) > 0).all()) else None


def _counted(presented: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The times of a container that numbers its packets and no more, of which FFmpeg makes decoding times."""
    times = decoded.copy()
    if len(times) > 1 and NO_TICK not in (presented[0], decoded[0], decoded[1]):
        # FFmpeg calls the first one 0 even where it is not, and shows it one tick later.
        times[0] = max(decoded[0], min(presented[0], decoded[1]) - 1)
    return times


def _joined(ticks: np.ndarray, durations: np.ndarray) -> tuple[np.ndarray, bool]:
    """The ticks, where joined files start their clock again moved behind what came before; whether that was so.

    A jump is a tick below the last 16, further than any reordering goes back, that most of the next ticks share: one
    damaged timestamp moves nothing.
    """
    ticks, has_jumped, begin = ticks.copy(), False, 0
    for at in np.flatnonzero(ticks < _least_before(ticks)).tolist():
        floor = int(ticks[max(begin, at - _MAX_REORDERED) : at].min())
        moved = int(ticks[begin:at].max()) + int(durations[at]) - int(ticks[at])
        if at - begin < 2 or moved <= 0 or (ticks[at : at + 8] < floor).mean() <= 0.5:
            continue
        ticks[at:] = np.minimum(ticks[at:] + moved, _FAR)
        has_jumped, begin = True, at
    return ticks, has_jumped


def _least_before(ticks: np.ndarray) -> np.ndarray:
    """The least of the last 16 ticks before each; of the first there is none."""
    least = np.full(len(ticks), NO_TICK)
    for step in range(1, _MAX_REORDERED + 1):
        earlier = ticks[:-step]
        least[step:] = earlier if step == 1 else np.minimum(least[step:], earlier)
    return least


def zero_tick(kind: Container, first: int, *, begins_with_key: bool, origin: int = 0) -> int:
    """Where the clock of the clip begins: at its first frame (tick `first`).

    Not where the packets before it are lost and the container's own clock says how many: a cut at the beginning then
    leaves the times of what follows as they were.
    """
    return min(first, origin) if not begins_with_key and kind.demuxer in ("avi", "mov", "matroska") else first


def _reorder_depth(context: Any) -> int:
    if context.codec.canonical_name in ("h264", "hevc"):
        return context.reorder_depth or _MAX_REORDERED  # 0: its parameters do not say
    return 1


def _pictures_of(codec: str, data: memoryview, context: Any) -> int:
    """How many pictures a packet gives when decoded, -1 where it is never shown."""
    if codec == "vp8" and not data[0] & 0x10:  # show_frame of the frame tag (RFC 6386, 9.1)
        return _HIDDEN
    if codec == "mpeg4":
        # A packed AVI holds a B-frame behind a P-frame, and a stub in the place of the B-frame. A stub ("not coded")
        # gives no picture. A coded frame takes a bit for each macroblock, so 19 bytes cannot hold more than 152.
        is_stub = len(data) <= 19 and context.width * context.height > 152 * 256
        return 0 if is_stub else max(1, bytes(data).count(VOP_START))
    return 1
