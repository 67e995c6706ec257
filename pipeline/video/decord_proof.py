"""Whether decord is known to give the right frames of a file."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from av.error import FFmpegError

from pipeline.video.pixels import display_matrix

VOP_START = b"\x00\x00\x01\xb6"  # the start code of a picture in MPEG-4 part 2


class DecordProof:
    """Looks at every packet for a reason why decord's seeking could give a wrong frame; `why_not` is the first one.

    decord 0.6.0 numbers frames by packet, seeks to a packet that is marked as key frame and counts on from there. So
    that is right only where every packet gives one picture at once, in order, and every key frame really resets the
    decoder:
    - H.264 in mp4, mov and mkv: every key packet is an IDR picture (else frames behind it may refer to frames before
      it), and no packet brings its own parameter sets (else the size may change in the middle);
    - MPEG-4 part 2 in avi, mp4, mov and mkv: no B-frame, no packed or uncoded frame, one and the same header.
    Measured against a sequential decode, everything left out here was wrong at least once: open groups of pictures
    7 of 16 frames, MPEG-TS and PS 8 of 8, WMV 3 of 8, HEVC 4 of 8, XviD with B-frames 7 of 8.
    """

    def __init__(self, demuxer: str, stream: Any) -> None:
        self.why_not: str | None = None
        self._codec = stream.codec_context.codec.canonical_name
        self._first = True
        self._header = b""
        extradata = stream.codec_context.extradata or b""
        if (self._codec, demuxer) not in _PROVABLE:
            self.why_not = f"decord's seeking is not exact for {self._codec} in {demuxer}"
        elif self._codec == "h264":
            if extradata[:1] != b"\x01":
                self.why_not = "H.264 without an avcC header"
            self._length_size = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4

    def see(self, packet: Any, data: memoryview) -> None:
        if self.why_not is None:
            self.why_not = self._why_not(packet, data)
            self._first = False

    def _why_not(self, packet: Any, data: memoryview) -> str | None:
        if self._first and not packet.is_keyframe:
            return "the first packet is no key frame"
        if packet.is_discard:
            return "an edit list hides frames"
        if packet.is_corrupt:
            return "the container is damaged"
        if packet.pts is None:
            return "a packet has no timestamp"
        return self._why_not_h264(packet, data) if self._codec == "h264" else self._why_not_mpeg4(packet, data)

    def _why_not_h264(self, packet: Any, data: memoryview) -> str | None:
        kinds, at = set(), 0
        while at + self._length_size < len(data):
            kinds.add(data[at + self._length_size] & 31)
            at += self._length_size + int.from_bytes(data[at : at + self._length_size])
        if at != len(data):
            return "an H.264 packet is damaged"
        if kinds & {7, 8}:
            return "H.264 parameters may change in the middle"
        if packet.is_keyframe != (5 in kinds):
            return "a key frame is not an IDR picture (open group of pictures)"
        return None

    def _why_not_mpeg4(self, packet: Any, data: memoryview) -> str | None:
        header, vop, picture = bytes(data).partition(VOP_START)
        if not vop or not picture or VOP_START in picture:
            return "packed B-frames"
        kind = picture[0] >> 6  # 0 I, 1 P, 2 B, 3 sprite
        if kind == 2:
            return "B-frames"
        if packet.is_keyframe != (kind == 0) or len(data) <= 19:
            return "a frame is not coded, or not as its container says"
        header = header.partition(b"\x00\x00\x01\xb3")[0]  # what follows is a time code, new in every group
        if header and self._header and header != self._header:
            return "MPEG-4 parameters change in the middle"
        self._header = self._header or header
        return None


_PROVABLE = {("h264", "mov"), ("h264", "matroska"), ("mpeg4", "avi"), ("mpeg4", "mov"), ("mpeg4", "matroska")}


def why_not_decord(
    stream: Any, num_frames: int, pixel_aspect: Fraction, *, increasing: bool, may_reorder: bool
) -> str | None:
    """What the stream as a whole says against decord, beside `DecordProof`."""
    if not increasing or may_reorder:
        return "frames may be reordered (B-frames)"
    if len(stream.container.streams.video) != 1:
        return "more than one video stream"
    if stream.frames not in (0, num_frames):  # decord aborts the process where a header claims 10^9
        return f"the header claims {stream.frames} frames, the file holds {num_frames}"
    if pixel_aspect != 1:
        return f"its pixels are not square ({pixel_aspect.numerator}:{pixel_aspect.denominator})"
    if stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p"):
        return f"pixel format {stream.codec_context.pix_fmt}"
    return None


def shape_of_first_frame(context: Any, packet: Any) -> tuple[int, ...] | None:
    """(height, width, 3) of the first frame, or None where it has a display matrix or does not decode."""
    try:
        frames = context.decode(packet) + context.decode(None)
        if len(frames) != 1 or display_matrix(frames[0]) is not None:
            return None
    except FFmpegError:
        return None
    return (frames[0].height, frames[0].width, 3)
