"""A local video in; what a browser can show of it out: facts, pictures, and stretches of it as H.264 and AAC.

For files of foreign origin: run this in a sandboxed child process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from pipeline.video.boxes import Track, without_faces
from pipeline.video.frames import MAX_PACKETS, MAX_PIXELS, VideoError
from pipeline.video.index import index_of
from pipeline.video.listed import times_of_pictures
from pipeline.video.open import Source, open_video
from pipeline.video.pixels import display_matrix, pixel_aspect_of, shown_size, to_rgb, upright

SOUND_RATE = 48_000
SOUND_FRAME = 1024  # Samples of one AAC packet.
TICKS = 90_000
MAX_CONVERTED_PX = 1280
# Each stretch stands at its own time (tfdt), whatever was converted before it.
FRAGMENT = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}
SOUGHT_BACK_SECONDS = (2, 10, 40)
SOUGHT_BY_CLOCK = ("mpeg", "mpegts")
# What browsers play as it is. (container, video codec); any of these sounds with it.
PLAYED = {("mov", "h264"), ("matroska", "vp8"), ("matroska", "vp9"), ("matroska", "av1"), ("mov", "av1")}
PLAYED_SOUNDS = {None, "aac", "mp3", "opus", "vorbis", "flac"}
PLAYED_PIXELS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What is known of a video before it is played.

    width, height: of an upright frame in square pixels, those of the boxes. start, end: seconds of the file's own
    timeline. stream: which of its video streams is read. is_played: whether browsers play the file itself, with its
    first frame at 0 s.
    """

    stream: int
    width: int
    height: int
    start: float
    end: float
    container: str
    codec: str
    sound: str | None
    is_played: bool


def video_facts(source: Source) -> VideoFacts:
    """Facts of a local video. Raises VideoError."""
    with open_video(source) as (file, container, stream, kind):
        sounds = sounds_of(container)
        sound = sounds[0].codec_context.codec.canonical_name if sounds else None
        demuxer, codec, pixels = kind.demuxer, stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
        rate, number = stream.average_rate, container.streams.video.index(stream)
        claimed = None if container.duration is None else container.duration / av.time_base
        start = float((stream.start_time or 0) * stream.time_base)
        first = next(iter(frames_of(file, container, stream, None)), None)
        if first is None:
            raise VideoError("no_frames", "no frame of the video can be decoded")
        height, width = first[1].shape[:2]
        end = start + claimed if claimed is not None and claimed > 0 else None
        if end is None:
            seconds = index_of(file, max_pixels=MAX_PIXELS, max_packets=MAX_PACKETS).seconds
            start, end = float(seconds[0]), float(seconds[-1]) + (float(1 / rate) if rate else 0.04)
    is_played = (demuxer, codec) in PLAYED and sound in PLAYED_SOUNDS and pixels in PLAYED_PIXELS
    is_played = is_played and abs(start) < 0.001 and number == 0
    return VideoFacts(
        stream=number,
        width=width,
        height=height,
        start=start,
        end=end,
        container=demuxer,
        codec=codec,
        sound=sound,
        is_played=is_played,
    )


def _packets_from(container: Any, stream: Any, seconds: float) -> Iterator[Any]:
    """The packets of the stream from a key frame before a time on.

    Transport and program streams are sought by their clock, and land between key frames: from ever earlier on.
    """
    has_index = container.format.name not in SOUGHT_BY_CLOCK
    for back in (*([0] if has_index else []), *SOUGHT_BACK_SECONDS, math.inf):
        place = max(0.0, seconds - back)
        try:
            container.seek(math.floor(place / stream.time_base), stream=stream)
        except FFmpegError:
            container.seek(0)  # No index to seek by: from the start.
        packets = container.demux(stream)
        key = next(packets, None) if place == 0.0 else _key_frame_until(packets, stream, seconds)
        if key is not None:
            yield key
            yield from packets
            return


def _key_frame_until(packets: Iterator[Any], stream: Any, seconds: float) -> Any:
    """The next packet with a key frame that is shown no later than at a time, or None."""
    for packet in packets:
        tick = packet.dts if packet.pts is None else packet.pts
        if tick is not None and packet.is_keyframe:
            return packet if tick * stream.time_base <= seconds + 1e-6 else None
        if packet.dts is not None and packet.dts * stream.time_base > seconds:
            return None
    return None


def sounds_of(container: Any) -> list[Any]:
    """The audio streams of a container that can be decoded."""
    return [each for each in container.streams.audio if each.codec_context is not None]


def picture_at(source: Source, seconds: float, *, max_px: int, hidden: Sequence[Track] = (), blur: bool) -> bytes:
    """The frame that is shown at a time (seconds of the file's timeline), as a JPEG of at most `max_px` a side.

    hidden: with `blur`, the tracks whose faces are hidden. Raises VideoError.
    """
    with open_video(source) as (file, container, stream, _):
        image = None
        for pts_seconds, frame in frames_of(file, container, stream, seconds):
            if image is not None and pts_seconds > seconds + 1e-4:
                break
            image = frame
        if image is None:
            raise VideoError("no_frames", f"no frame can be decoded at {seconds:.3f} s")
    if blur:
        image = _blurred(image, hidden, seconds)
    picture = Image.fromarray(image)
    picture.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def frames_of(file: Any, container: Any, stream: Any, seconds: float | None) -> Iterator[tuple[float, np.ndarray]]:
    """Upright RGB frames from the key frame before a time on (None: from where it stands), with their times."""
    matrix: Any = ()
    for pts_seconds, frame in _timed(file, container, stream, seconds):
        if matrix == ():
            matrix = display_matrix(frame)
        yield pts_seconds, _shown(frame, stream, matrix)


def _shown(frame: Any, stream: Any, matrix: Any) -> np.ndarray:
    size = shown_size(frame.width, frame.height, pixel_aspect_of(stream), max_pixels=MAX_PIXELS)
    return upright(to_rgb(frame, 0, size=size), matrix)


def _timed(file: Any, container: Any, stream: Any, seconds: float | None) -> Iterator[tuple[float, Any]]:
    """Frames as they are stored from the key frame before a time on, with their times.

    Where an AVI has B-frames its times are in decoding order: the i-th frame that comes out takes the i-th time.
    """
    times: np.ndarray | None = None
    if container.format.name == "avi" and seconds is not None:
        times = times_of_pictures(file, container, stream)
    packets = container.demux(stream) if seconds is None else _packets_from(container, stream, seconds)
    rank: int | None = None
    try:
        for packet in packets:
            if rank is None and times is not None and packet.dts is not None:
                rank = int(np.searchsorted(times, float(packet.dts * stream.time_base) - 1e-6))
            for frame in packet.decode():
                if times is None:
                    if frame.time is not None:
                        yield frame.time, frame
                elif rank is not None and rank < len(times):
                    yield float(times[rank]), frame
                    rank += 1
    except (FFmpegError, IndexError):
        return  # Cut off or damaged from here on.


def converted(
    source: Source,
    *,
    start: float,
    end: float,
    offset: float,
    number: int | None = None,
    hidden: Sequence[Track] = (),
    blur: bool = False,
) -> bytes:
    """The frames of [start, end) of a video and their sound, as one fragment of MP4 that MediaSource takes.

    Args:
        start, end, offset: seconds of the file's own timeline; the result's timeline begins at `offset`, so that
            fragments of neighbouring stretches join.
        number: which video stream, where it is known.
        hidden, blur: as for `picture_at`.

    Raises VideoError where the file cannot be read. A stretch without a frame is empty.
    """
    buffer = io.BytesIO()
    with (
        open_video(source, stream=number) as (file, container, stream, _),
        av.open(buffer, "w", format="mp4", options=FRAGMENT) as writer,
    ):
        sounds = sounds_of(container)
        pictures, sound, packets = None, None, []
        for pts_seconds, until, shown in _stretch(file, container, stream, start, end):
            image = _blurred(shown, hidden, pts_seconds) if blur else shown
            if pictures is None:
                pictures = video_stream(writer, image)
                sound = sound_stream_of(writer) if sounds else None
            frame = encodable(image, pictures)
            frame.pts = max(0, round((pts_seconds - offset) * TICKS))
            frame.time_base = Fraction(1, TICKS)
            for packet in pictures.encode(frame):
                packet.duration = max(1, round((until - pts_seconds) * TICKS))
                packets.append(packet)
        if pictures is None:
            return b""
        packets += pictures.encode()
        if sound is not None:
            edges = {"start": start - offset, "end": end - offset, "offset": offset}
            packets += sound_packets(container, sounds[0], sound, **edges)
        for packet in sorted(packets, key=lambda each: float(each.dts * each.time_base)):
            writer.mux(packet)
    return buffer.getvalue()


def _blurred(image: np.ndarray, hidden: Sequence[Track], pts_seconds: float) -> np.ndarray:
    return without_faces(image, [box for track in hidden if (box := track.hidden_at(pts_seconds)) is not None])


def _stretch(
    file: Any, container: Any, stream: Any, start: float, end: float
) -> Iterator[tuple[float, float, np.ndarray]]:
    """(time, time of the next, image) of each frame of [start, end)."""
    held: tuple[float, Any] | None = None
    matrix: Any = ()
    step = float(1 / stream.average_rate) if stream.average_rate else 0.04
    for pts_seconds, frame in _timed(file, container, stream, start):
        if matrix == ():
            matrix = display_matrix(frame)
        if held is not None and pts_seconds > held[0]:
            yield held[0], pts_seconds, _shown(held[1], stream, matrix)
            held = None
        if pts_seconds >= end - 1e-6:
            return
        if pts_seconds >= start - 1e-6:
            held = pts_seconds, frame
    if held is not None:
        yield held[0], held[0] + step, _shown(held[1], stream, matrix)


def video_stream(writer: Any, image: np.ndarray) -> Any:
    """An H.264 stream for frames like this one: no B-frames, so that its times are those of the frames.

    image: (H, W, 3) RGB uint8.
    """
    height, width = image.shape[:2]
    scale = min(1.0, MAX_CONVERTED_PX / max(width, height))
    stream = writer.add_stream("libx264", rate=Fraction(TICKS, 1))
    stream.width, stream.height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
    stream.codec_context.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "bf": "0"}
    stream.codec_context.thread_count = 2
    return stream


def encodable(image: np.ndarray, stream: Any) -> Any:
    """A frame for the stream, scaled to it. image: (H, W, 3) RGB uint8."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=stream.width, height=stream.height, format="yuv420p")


def sound_stream_of(writer: Any) -> Any:
    """An AAC stream: 48 kHz, two channels."""
    stream = writer.add_stream("aac", rate=SOUND_RATE, layout="stereo")
    stream.codec_context.bit_rate = 128_000
    return stream


def sound_packets(container: Any, sound: Any, stream: Any, *, start: float, end: float, offset: float) -> list[Any]:
    """AAC packets of [start, end) seconds after `offset`, on one grid of 1024 samples for all stretches of a video.

    The encoder starts some packets earlier, so that stretches join without a click; those packets are dropped.
    """
    first, last = (math.ceil(round(edge * SOUND_RATE, 3) / SOUND_FRAME) for edge in (start, end))
    if last <= first:
        return []
    begin = first - 2
    samples = np.zeros((2, (last + 1 - begin) * SOUND_FRAME), np.float32)
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
    at = None
    for piece in _sound_frames(container, sound, begin * SOUND_FRAME / SOUND_RATE + offset):
        if piece.time is None or piece.time - offset > end + 0.1:
            break
        place: int = round((piece.time - offset) * SOUND_RATE) - begin * SOUND_FRAME if at is None else at
        for ready in resampler.resample(piece):
            data = ready.to_ndarray()
            low, high = max(0, place), min(samples.shape[1], place + data.shape[1])
            if low < high:
                samples[:, low:high] = data[:, low - place : high - place]
            place += data.shape[1]
        at = place
    packets = []
    for number in range(begin, last + 1):
        place = (number - begin) * SOUND_FRAME
        block = np.ascontiguousarray(samples[:, place : place + SOUND_FRAME])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, number * SOUND_FRAME, Fraction(1, SOUND_RATE)
        packets += stream.encode(frame)
    packets += stream.encode()
    return [each for each in packets if each.pts is not None and first <= each.pts // SOUND_FRAME < last]


def _sound_frames(container: Any, sound: Any, seconds: float) -> Iterator[Any]:
    try:
        container.seek(max(0, math.floor(max(0.0, seconds - 0.1) / sound.time_base)), stream=sound)
        yield from container.decode(sound)
    except (FFmpegError, IndexError):
        return  # No sound from here on.
