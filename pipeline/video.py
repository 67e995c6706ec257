"""A video file in, upright RGB frames at chosen times out, with a report of how whole the decode was.

The only module that knows PyAV and decord. The order of work is what makes it safe: the container is recognised by
its content before any decoder sees the file, its packets are counted once, and every choice of frames is made from
that count, never from what a header claims. A decoder is given an open file and the name of one demuxer, so that it
follows neither playlists nor URLs, whatever the file is called.

One decoder, PyAV, decodes in sequence, is right for every file and sees damage. The other, decord, seeks; it is used
only where that is exact (`_DecordProof`, `_why_not_decord`) and where it spares a long decode (`_WORTH_FRAMES`).
Both give the same frames: the index of every sampled frame is fixed before either opens the file.

Still for the reader of a file to fear are time and memory: run this in a supervised child process.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image, ImageOps

DECODERS = ("auto", "decord", "pyav")

MAX_PIXELS = 4096 * 4096  # 50 MB as RGB; a 772 KB file can claim 16384 x 16000 and want 7 to 12 GB
MAX_BYTES = 8 * 2**30
MAX_PACKETS = 2_000_000  # 18 hours at 30 frames/s


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of the range to take: exactly one way is set, the others are None or False.

    frames_per_clip: k evenly spaced frames, the i-th at index floor((i + 0.5) * n / k) of the n frames in the range;
    all frames where n < k. sample_fps: the first frame at or after t0 + i / sample_fps for i = 0, 1, ..., where t0 is
    the start of the range (or the first frame); no frame twice. every_frame: all of them. Raises ValueError.
    """

    frames_per_clip: int | None = 8
    sample_fps: float | None = None
    every_frame: bool = False

    def __post_init__(self) -> None:
        ways = (self.frames_per_clip is not None) + (self.sample_fps is not None) + self.every_frame
        if ways != 1:
            raise ValueError(
                f"{self} sets {ways} ways to sample: set exactly one of frames_per_clip, sample_fps and every_frame "
                "(frames_per_clip=None clears the default)"
            )
        if self.frames_per_clip is not None and self.frames_per_clip < 1:
            raise ValueError(f"frames_per_clip is {self.frames_per_clip}; it must be at least 1")
        if self.sample_fps is not None and not 0 < self.sample_fps < float("inf"):
            raise ValueError(f"sample_fps is {self.sample_fps}; it must be a number above 0, in frames per second")

    def choose(self, seconds: np.ndarray, *, start_pts_seconds: float | None = None) -> np.ndarray:
        """Positions, increasing, to take of frames shown at `seconds` (sorted, the range only)."""
        num = len(seconds)
        if self.every_frame or num == 0:
            return np.arange(num)
        if self.frames_per_clip is not None:
            k = self.frames_per_clip
            return np.arange(num) if num < k else np.array([(2 * i + 1) * num // (2 * k) for i in range(k)])
        assert self.sample_fps is not None
        start = seconds[0] if start_pts_seconds is None else start_pts_seconds
        # A frame is taken when a target lies after the frame before it and not after the frame itself. The allowance
        # keeps a frame whose pts, as a binary fraction, falls a hair before its target.
        targets_passed = np.floor((seconds - start) * self.sample_fps + 1e-6)
        return np.flatnonzero(np.diff(targets_passed, prepend=-1) > 0)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One sampled frame: `image` is RGB uint8 (height, width, 3), upright.

    frame_index counts the frames of the file in presentation order from 0, by the container's timestamps, so that it
    is the same after a damaged stretch. pts_seconds is in the file's own timeline. Alpha is dropped, interlaced
    frames stay woven, pixels stay as stored where they are not square.
    """

    frame_index: int
    pts_seconds: float
    image: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """How one clip was decoded, and how whole it was.

    num_frames: frames of the whole file by its packets, without those that an edit list hides. The other counts are of
    the frames that were decoded to get the samples: with PyAV every frame of the range, sampled or not; with decord
    the sampled ones, since it conceals damage. num_missing: frames that the packets promise and the decoder did not
    give. num_repeated: frames with the timestamp of the frame before. decode_integrity: the share of
    num_decoded + num_missing that is neither corrupt nor repeated, 0 to 1.
    """

    decoder: str
    decoder_reason: str
    container: str
    codec: str
    num_frames: int
    num_decoded: int
    num_corrupt: int
    num_repeated: int
    num_missing: int
    decode_integrity: float
    notes: tuple[str, ...] = ()


class VideoError(Exception):
    """A file that gives no frames: `reason` is a short stable word, the message is for people.

    Reasons: unreadable, not_a_file, empty_file, too_large, playlist, image, not_a_video, undecodable,
    no_video_stream, unsupported_codec, encrypted, too_many_pixels, no_frames, range_past_end.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


class DecodedClip:
    """The sampled frames of one clip, once, in order of time; `report` is there when they have all been read.

    Iterating streams: one frame is held at a time, however long the film. Raises VideoError where no frame at all
    comes out. Leaving early is safe after `close()`, or as a context manager.
    """

    def __init__(self, frames: Generator[Frame, None, DecodeReport]) -> None:
        self._frames = frames
        self._report: DecodeReport | None = None

    def __iter__(self) -> Iterator[Frame]:
        report = yield from self._frames
        self._report = self._report or report

    @property
    def report(self) -> DecodeReport:
        """How the decode went. Raises ValueError before the last frame was read."""
        if self._report is None:
            raise ValueError("the report of a clip is complete only after its last frame: iterate to the end first")
        return self._report

    def close(self) -> None:
        self._frames.close()

    def __enter__(self) -> DecodedClip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_clip(
    path: str | Path,
    sampling: Sampling,
    *,
    start_pts_seconds: float | None = None,
    end_pts_seconds: float | None = None,
    decoder: str = "auto",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    max_packets: int = MAX_PACKETS,
) -> DecodedClip:
    """Recognise and index a local video file; iterate over the result to decode the sampled frames.

    The range [start_pts_seconds, end_pts_seconds) is in the file's own timeline; None is the file's start or end.
    decoder: "auto" (decord where right and worth it), "decord" (wherever right), "pyav" (always). Limits: pixels of
    one frame, bytes of the file, packets of the video stream. Raises VideoError for a file that cannot be used, here
    or at the first frame, and ValueError for an unknown decoder.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder is {decoder!r}; it must be one of {', '.join(DECODERS)}")
    path = Path(path)
    with _opened_file(path, max_bytes) as file:
        index = _index_of(file, max_pixels=max_pixels, max_packets=max_packets)
    seconds = index.seconds
    low = 0 if start_pts_seconds is None else int(np.searchsorted(seconds, start_pts_seconds))
    high = len(seconds) if end_pts_seconds is None else int(np.searchsorted(seconds, end_pts_seconds))
    if low >= len(seconds):
        raise VideoError(
            "range_past_end",
            f"the range starts at {start_pts_seconds} s, past the last frame ({seconds[-1]:.3f} s); check the manifest",
        )
    if low >= high:
        raise VideoError(
            "no_frames",
            f"no frame lies in the range {start_pts_seconds} to {end_pts_seconds} s (the file has frames from "
            f"{seconds[0]:.3f} to {seconds[-1]:.3f} s); check the manifest",
        )
    wanted = low + sampling.choose(seconds[low:high], start_pts_seconds=start_pts_seconds)
    return DecodedClip(
        _decode(path, index, wanted, low=low, high=high, decoder=decoder, limits=(max_pixels, max_bytes))
    )


def claimed_range(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[float, float] | None:
    """The times of a local video's first and last frame by its header (seconds), None where it tells none.

    Not to be trusted. Raises VideoError for a file that is no video.
    """
    with (
        _opened_file(Path(path), MAX_BYTES) as file,
        _opened_container(file, _sniff(file.read(4096)), max_pixels) as (container, stream),
    ):
        if container.duration is None or not stream.time_base:
            return None
        start = float((stream.start_time or 0) * stream.time_base)
        return start, start + container.duration / av.time_base


def frames_of_spans(
    path: str | Path, spans: Iterable[tuple[float, float]], *, past_seconds: float, max_pixels: int = MAX_PIXELS
) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
    """For each (start, end) in seconds the frames from its start to `past_seconds` past its end, small, with their
    times: BGR uint8, at most 160 px wide. Read each to its end before the next.

    Seeks by key frames: for a look at the pictures, where a frame more or less does no harm. Raises VideoError for a
    file that is no video, and FFmpegError where it is damaged.
    """
    with (
        _opened_file(Path(path), MAX_BYTES) as file,
        _opened_container(file, _sniff(file.read(4096)), max_pixels) as (container, stream),
    ):
        for start, end in spans:
            container.seek(round(start / stream.time_base), stream=stream)
            yield _small_frames(container, stream, start, end + past_seconds)


def _small_frames(container: Any, stream: Any, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
    for frame in container.decode(stream):
        if frame.time is None or frame.time < start:
            continue
        if frame.time >= end:
            return
        scale = min(1.0, 160 / frame.width)
        small = frame.reformat(width=round(frame.width * scale), height=max(1, round(frame.height * scale)))
        yield frame.time, small.to_ndarray(format="bgr24")


# The container, by its content ---------------------------------------------------------------------------------------

_MAGIC = (  # (offset, bytes, demuxer)
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"OggS", "ogg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "mxf"),
)
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid")
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*", b"8BPS", b"\x00\x00\x00\x0cjP")
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"<asx", b"<smil", b"v=0", b"[reference]")
_URLS = (b"http:", b"https:", b"rtsp:", b"rtmp:", b"ftp:", b"file:", b"mms:", b"udp:", b"concat:", b"subfile:")


def _sniff(head: bytes) -> str:
    """FFmpeg's name of the demuxer for a file that starts with `head`. Raises VideoError for all that is no video.

    Nothing here asks FFmpeg: its own probe takes playlists (HLS, DASH, ffconcat, SDP) in a file of any name, and
    then opens what they point to.
    """
    for offset, magic, demuxer in _MAGIC:
        if head[offset:].startswith(magic):
            return demuxer
    if head[4:8] in _MOV_BOXES and head[8:12] not in _STILL_BRANDS:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX", b"AVI\x19", b"AMV "):
        return "avi"
    # 188 bytes a packet, or 192 and 204 with a time stamp or a checksum; a cut file may start inside a packet.
    for size in (188, 192, 204):
        if any(len(syncs := head[start::size][:5]) == 5 and set(syncs) == {0x47} for start in range(size)):
            return "mpegts"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    if text.startswith(_PLAYLISTS + _URLS):
        raise VideoError(
            "playlist",
            f"the file is a playlist or a link (it starts with {text[:12].decode('latin-1')!r}), not a video; "
            "give the videos that it points to",
        )
    if head.startswith(_IMAGES) or head[8:12] in (*_STILL_BRANDS, b"WEBP"):
        raise VideoError("image", "the file is a still image, not a video; give it an image's name, or leave it out")
    raise VideoError(
        "not_a_video",
        f"the file is no video container that is known here (it starts with {head[:8].hex(' ')}); "
        "give mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf or gif",
    )


_ERRORS_OF_THE_PATH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


@contextmanager
def _opened_file(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """The file, open for reading, if it is a regular one of 1 to `max_bytes` bytes. Raises VideoError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked before opening: a FIFO would block
            raise VideoError("not_a_file", f"{path.name!r} is a folder, pipe or device; give a regular file")
        if status.st_size == 0:
            raise VideoError("empty_file", "the file has 0 bytes; copy it again")
        if status.st_size > max_bytes:
            raise VideoError(
                "too_large",
                f"the file has {status.st_size} bytes, the limit is {max_bytes}; cut it, or raise the limit",
            )
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        if isinstance(error, OSError) and error.errno not in _ERRORS_OF_THE_PATH:
            raise  # a full table of open files or a failing disk is not the clip's fault
        raise VideoError("unreadable", f"{path.name!r} cannot be opened: {error}; check its name and rights") from error
    with file:
        yield file


@contextmanager
def _opened_container(file: BinaryIO, demuxer: str, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, ready to decode on one thread. Raises VideoError."""
    file.seek(0)
    options = {"max_pixels": str(max_pixels), "protocol_whitelist": "none"}
    try:
        container = av.open(file, "r", format=demuxer, options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise VideoError(
            "undecodable",
            f"its {demuxer} container cannot be read ({error.strerror}): it is damaged or was cut off; copy it again",
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError("no_video_stream", "the file holds no video stream (only sound, text or a cover picture)")
        best = container.streams.best("video")
        stream: Any = best if best in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise VideoError("unsupported_codec", "no decoder is known for its video; convert it, for example to H.264")
        if context.width * context.height > max_pixels:
            raise VideoError(
                "too_many_pixels",
                f"its frames claim {context.width}x{context.height} pixels, the limit is {max_pixels} in all; "
                "scale it down, or raise the limit",
            )
        context.options = {"max_pixels": str(max_pixels)}  # also stops a stream that grows in the middle
        context.thread_count = 1
        context.thread_type = "NONE"
        yield container, stream


def _packets(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """The packets of the stream, numbered. Raises FFmpegError where the container is damaged."""
    number = -1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # PyAV 18.1, at the end of a file in which another stream appeared on the way
            packet = None
        if packet is None:
            return
        if packet.size:  # an empty one is a dropped frame of an AVI, or the end; it would end the decode
            number += 1
            yield number, packet


# The index: what the packets say -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Index:
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


_kept_index: list[tuple[tuple[int, ...], _Index]] = []


def _index_of(file: BinaryIO, *, max_pixels: int, max_packets: int) -> _Index:
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


def _read_index(file: BinaryIO, *, max_pixels: int, max_packets: int) -> _Index:
    demuxer = _sniff(file.read(4096))
    with _opened_container(file, demuxer, max_pixels) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        time_base = stream.time_base or Fraction(1, 1)
        proof = _DecordProof(demuxer, stream)
        ticks: list[int] = []
        num_pictures: list[int] = []
        keys: list[tuple[int, int]] = []
        notes: list[str] = []
        first_packet: Any = None
        number, previous_dts, moved, latest = -1, None, 0, -_FAR
        try:
            for number, packet in _packets(container, stream):
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
        why_not = proof.why_not or _why_not_decord(stream, len(ticks), increasing=increasing, by_order=by_order)
        shape = None
        if why_not is None:
            shape = _shape_of_first_frame(stream.codec_context, first_packet)
            why_not = "the first frame is turned or does not decode" if shape is None else None
        order = np.argsort(times, kind="stable")
        return _Index(
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


_VOP = b"\x00\x00\x01\xb6"  # the start code of a picture in MPEG-4 part 2


def _pictures_of(codec: str, data: memoryview, context: Any) -> int | None:
    """How many pictures a packet gives when decoded, or None where it is never shown."""
    if codec == "vp8" and not data[0] & 0x10:  # show_frame of the frame tag (RFC 6386, 9.1)
        return None
    if codec == "mpeg4":
        # A packed AVI holds a B-frame behind a P-frame, and a stub in the place of the B-frame. A stub ("not coded")
        # gives no picture. A coded frame takes a bit for each macroblock, so 19 bytes cannot hold more than 152.
        is_stub = len(data) <= 19 and context.width * context.height > 152 * 256
        return 0 if is_stub else max(1, bytes(data).count(_VOP))
    return 1


# Where decord is right -----------------------------------------------------------------------------------------------


class _DecordProof:
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
        header, vop, picture = bytes(data).partition(_VOP)
        if not vop or not picture or _VOP in picture:
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


# About 2 s of decoding at 640x480. Below that decord is hardly faster (8 of 90 frames, XviD, key frame every 12: 34
# against 39 ms; H.264: 89 against 86), and it conceals damage: of 98 clips with a few flipped bits that passed every
# check here, it gave other pictures than PyAV in 15 and reported none.
_WORTH_FRAMES = 1000
# decord 0.6.0 took 140 MiB more than PyAV for a film of 122 MB, and gave them back at its end.
_MOST_DECORD_BYTES = 2**26
_PROVABLE = {("h264", "mov"), ("h264", "matroska"), ("mpeg4", "avi"), ("mpeg4", "mov"), ("mpeg4", "matroska")}


def _why_not_decord(stream: Any, num_frames: int, *, increasing: bool, by_order: bool) -> str | None:
    """What the stream as a whole says against decord, beside `_DecordProof`."""
    if not increasing or by_order:
        return "frames may be reordered (B-frames)"
    if len(stream.container.streams.video) != 1:
        return "more than one video stream"
    if stream.frames not in (0, num_frames):  # decord aborts the process where a header claims 10^9
        return f"the header claims {stream.frames} frames, the file holds {num_frames}"
    if stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p"):
        return f"pixel format {stream.codec_context.pix_fmt}"
    return None


def _shape_of_first_frame(context: Any, packet: Any) -> tuple[int, ...] | None:
    """(height, width, 3) of the first frame, or None where it has a display matrix or does not decode."""
    try:
        frames = context.decode(packet) + context.decode(None)
        if len(frames) != 1 or _display_matrix(frames[0]) is not None:
            return None
    except FFmpegError:
        return None
    return (frames[0].height, frames[0].width, 3)


def _is_worth_it(index: _Index, wanted: np.ndarray, *, high: int) -> bool:
    """Whether seeking decodes at least _WORTH_FRAMES fewer frames than a sequential decode up to `high`."""
    keys = np.searchsorted(index.ticks, index.key_ticks)
    from_key = keys[np.searchsorted(keys, wanted, side="right") - 1]
    begin = np.maximum(from_key, np.concatenate(([0], wanted[:-1] + 1)))
    return high - int((wanted - begin + 1).sum()) >= _WORTH_FRAMES


# Decoding ------------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    num_decoded: int = 0
    num_corrupt: int = 0
    num_repeated: int = 0
    num_errors: int = 0
    notes: list[str] = field(default_factory=list)


class _DecordError(Exception):
    """decord failed, or disagrees with the index; the message says how."""


def _decode(
    path: Path,
    index: _Index,
    wanted: np.ndarray,
    *,
    low: int,
    high: int,
    decoder: str,
    limits: tuple[int, int],
) -> Generator[Frame, None, DecodeReport]:
    max_pixels, max_bytes = limits
    used, reason = "pyav", "asked for"
    if decoder != "pyav":
        if index.why_not_decord:
            reason = index.why_not_decord
        elif decoder == "auto" and not _is_worth_it(index, wanted, high=high):
            reason = "short enough to decode in sequence, which sees damage"
        elif decoder == "auto" and path.stat().st_size > _MOST_DECORD_BYTES:
            reason = "too large for decord, which holds all packets of a file at once"
        else:
            used, reason = (
                "decord",
                "its seeking is exact here, and spares a long decode"
                if decoder == "auto"
                else "asked for, and exact here",
            )
    tally = _Tally()
    num_given, num_expected = 0, len(wanted)
    with _opened_file(path, max_bytes) as file:
        if used == "decord":
            try:
                for frame in _decord_frames(file, index, wanted):
                    tally.num_decoded += 1
                    num_given += 1
                    yield frame
            except _DecordError as error:
                used, reason, tally = "pyav", f"decord failed: {error}", _Tally()
        if used == "pyav":
            start = _run_in(index, low)
            rest = wanted[num_given:]
            for frame in _pyav_frames(
                file, index, rest, low=low, high=high, max_pixels=max_pixels, tally=tally, from_packet=start
            ):
                num_given += 1
                yield frame
            num_expected = int(index.num_pictures[low:high].sum())
    notes = (*index.notes, *tally.notes)
    if num_given == 0:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise VideoError(
            "undecodable",
            f"none of its {high - low} frames in the range decodes as {index.codec}{why}; it is damaged, "
            "lacks its first key frame or passes the limit of pixels: encode it again",
        )
    num_missing = max(0, num_expected - tally.num_decoded)
    whole = max(0, tally.num_decoded - tally.num_corrupt - tally.num_repeated)
    return DecodeReport(
        decoder=used,
        decoder_reason=reason,
        container=index.demuxer,
        codec=index.codec,
        num_frames=len(index.ticks),
        num_decoded=tally.num_decoded,
        num_corrupt=tally.num_corrupt,
        num_repeated=tally.num_repeated,
        num_missing=num_missing,
        decode_integrity=whole / (tally.num_decoded + num_missing),
        notes=notes,
    )


def _decord_frames(file: BinaryIO, index: _Index, wanted: np.ndarray) -> Iterator[Frame]:
    """The wanted frames by decord. Raises _DecordError where it fails or disagrees with the index."""
    import decord

    failures = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, StopIteration)
    decord.logging.set_level(decord.logging.QUIET)
    file.seek(0)
    seconds = index.seconds
    try:
        # By descriptor: the file's own name could be read as a pattern, a protocol or not as UTF-8.
        reader = decord.VideoReader(f"/dev/fd/{file.fileno()}", ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        starts = reader.get_frame_timestamp(wanted)[:, 0]
    except failures as error:
        raise _DecordError(f"it cannot open the file ({_first_line(error)})") from error
    if len(reader) != len(index.ticks):
        raise _DecordError(f"it counts {len(reader)} frames, the file holds {len(index.ticks)}")
    if not np.allclose(starts - starts[0], seconds[wanted] - seconds[wanted[0]], atol=2e-3):
        raise _DecordError("its times differ from the container's")
    for number in wanted.tolist():
        try:
            image = reader[number].asnumpy()
        except failures as error:
            raise _DecordError(f"at frame {number} ({_first_line(error)})") from error
        if image.shape != index.shape:
            raise _DecordError(f"frame {number} has shape {image.shape}, the first has {index.shape}")
        yield Frame(frame_index=number, pts_seconds=float(seconds[number]), image=image)


def _first_line(error: BaseException) -> str:
    """The first line of decord's message, without the time and source file that it starts with."""
    line = (str(error).splitlines() or [""])[0]
    return (line.partition(": ")[2] or line or type(error).__name__)[:200]


def _pyav_frames(
    file: BinaryIO,
    index: _Index,
    wanted: np.ndarray,
    *,
    low: int,
    high: int,
    max_pixels: int,
    tally: _Tally,
    from_packet: int,
) -> Iterator[Frame]:
    """The wanted frames by a sequential decode up to frame `high`; where one is lost the next one stands in."""
    ticks: list[int] = index.ticks.tolist()
    number, previous_pts, position, sizes = -1, None, 0, set()
    rotation, matrix = None, None
    with _opened_container(file, index.demuxer, max_pixels) as (container, stream):
        for num_packets, frame in _decoded(container, stream, index, from_packet=from_packet, tally=tally):
            # The rank of its time, so that a frame keeps its index where frames before it were lost. A rank beyond
            # the packets that were read so far is a damaged timestamp.
            by_rank = 0 if index.by_order or frame.pts is None else bisect_left(ticks, frame.pts)
            is_first, number = number < 0, max(number + 1, by_rank if by_rank < num_packets else 0)
            if is_first and from_packet and number > low:
                break  # the run-in was too short: start again below
            if low <= number < high:
                tally.num_decoded += 1
                tally.num_corrupt += frame.is_corrupt
                tally.num_repeated += frame.pts is not None and frame.pts == previous_pts
                sizes.add((frame.width, frame.height))
                if position < len(wanted) and number >= wanted[position]:
                    position = int(np.searchsorted(wanted, number, side="right"))
                    image = _rgb(frame, number)
                    if frame.rotation != rotation:
                        rotation, matrix = frame.rotation, _display_matrix(frame)
                    seconds = float(index.seconds[number])
                    yield Frame(frame_index=number, pts_seconds=seconds, image=_upright(image, matrix))
            previous_pts = frame.pts
            if number >= high - 1:
                break
    if from_packet and not sizes:
        yield from _pyav_frames(
            file, index, wanted, low=low, high=high, max_pixels=max_pixels, tally=tally, from_packet=0
        )
    if len(sizes) > 1:
        tally.notes.append(f"the size changes in the middle: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")


def _run_in(index: _Index, low: int) -> int:
    """The packet to start decoding at, for a range that starts at frame `low`.

    One key frame more than needed: where the last one before the range only opens a group of pictures or starts an
    intra refresh, the group before it makes the picture whole. If even that gives no frame by `low` (a long intra
    refresh took 26 frames), `_pyav_frames` starts again from the file's beginning.
    """
    if low == 0 or index.by_order:
        return 0
    before = np.flatnonzero(index.key_ticks <= index.ticks[low])
    return int(index.key_packets[before[-2]]) if len(before) > 1 else 0


def _decoded(
    container: Any, stream: Any, index: _Index, *, from_packet: int, tally: _Tally
) -> Iterator[tuple[int, Any]]:
    """(packets read, frame) of every frame that decodes, in presentation order.

    After an error it goes on at the next key frame: what lies between would be drawn on a lost picture. Where
    frames are known by their order only, nothing after an error can be placed, and decoding ends.
    """
    context = stream.codec_context
    number, lost = -1, False
    try:
        for number, packet in _packets(container, stream):
            if number < from_packet or (lost and not packet.is_keyframe):
                continue
            if lost:
                context.flush_buffers()
                lost = False
            try:
                frames = context.decode(packet)
            except FFmpegError as error:
                tally.num_errors += 1
                if tally.num_errors == 1:
                    tally.notes.append(f"packet {number} does not decode ({error.strerror})")
                lost = True
                frames = _drained(context)
            yield from ((number + 1, frame) for frame in frames)
            if lost and index.by_order:
                return
    except FFmpegError:  # the container is damaged from here on; the index noted it
        pass
    if not lost:
        yield from ((number + 1, frame) for frame in _drained(context))


def _drained(context: Any) -> list[Any]:
    """The frames that the decoder still holds."""
    try:
        return context.decode(None)
    except FFmpegError:
        return []


def _rgb(frame: Any, number: int) -> np.ndarray:
    try:
        return frame.to_ndarray(format="rgb24")
    except FFmpegError as error:
        raise VideoError(
            "undecodable",
            f"frame {number} ({frame.width}x{frame.height}, {frame.format.name}) does not convert to RGB "
            f"({error.strerror}); encode the video again",
        ) from error


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of the frame's display matrix, which maps a stored x, y to a shown x' = a x + c y, y' = b x + d y.

    None where there is none (ISO 14496-12, 6.2.2).
    """
    # From a tiny copy: PyAV 18.1 holds a frame whose side data was read until the next full garbage collection,
    # 7 MB a clip of 640x480 when each sampled frame was asked.
    data = frame.reformat(width=16, height=16).side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return a, b, c, d


def _upright(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """An image turned and mirrored as its display matrix says; an angle between quarter turns becomes the nearest."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


# Still images --------------------------------------------------------------------------------------------------------


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> DecodedClip:
    """A PNG or JPEG file as a clip of one frame at 0 s, turned as its EXIF says. Raises VideoError."""
    path = Path(path)
    with _opened_file(path, max_bytes) as file, warnings.catch_warnings():
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
    yield Frame(frame_index=0, pts_seconds=0.0, image=pixels)
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
