"""A local video and its persons' boxes in; a video with them drawn on it, or crops of faces, out.

For files of foreign origin: run this in a sandboxed child process.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.video.boxes import Track, without_faces
from pipeline.video.convert import SOUND_RATE, TICKS, encodable, frames_of, sound_stream_of, sounds_of, video_stream
from pipeline.video.frames import VideoError
from pipeline.video.open import Source, open_video

PERSON_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
# Sounds that go into MP4 as they are.
COPIED_SOUNDS = ("aac", "mp3")


def drawn_frame(image: np.ndarray, tracks: Sequence[Track], seconds: float) -> np.ndarray:
    """The frame (H, W, 3) with the boxes, numbers and labels of the persons seen at a time; dashed between samples."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    wide = max(2, round(max(picture.size) / 320))
    font = ImageFont.load_default(size=max(11, round(max(picture.size) / 40)))
    for track in tracks:
        found = track.at(seconds)
        if found is None:
            continue
        box, label, is_between = found
        left, top, right, bottom = (round(float(each)) for each in box)
        colour = PERSON_COLOURS[(track.number - 1) % len(PERSON_COLOURS)]
        for line in ((left, top, right, top), (right, top, right, bottom), (right, bottom, left, bottom),
                     (left, bottom, left, top)):  # fmt: skip
            _line(pen, line, colour, wide, dashed=is_between)
        text = f"{track.number} {label}"
        _, _, width, height = pen.textbbox((0, 0), text, font=font)
        y = top - height - 4 if top >= height + 4 else min(bottom, picture.height - height - 4)
        x = max(0, min(left, picture.width - round(width) - 6))
        pen.rectangle((x, y, x + width + 6, y + height + 4), fill=(0, 0, 0))
        pen.text((x + 3, y + 1), text, fill=(255, 255, 255), font=font)
    return np.asarray(picture)


def _line(pen: Any, line: tuple[int, int, int, int], colour: tuple[int, int, int], wide: int, *, dashed: bool) -> None:
    x0, y0, x1, y1 = line
    if not dashed:
        pen.line(line, fill=colour, width=wide)
        return
    length = max(abs(x1 - x0), abs(y1 - y0), 1)
    for start in range(0, length, 6 * wide):
        a, b = start / length, min(start + 3 * wide, length) / length
        ends = (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0))
        pen.line(ends, fill=colour, width=wide)


def drawn_video(
    source: Source, *, tracks: Sequence[Track], blur: bool, tell: Callable[[float], None] = lambda _: None
) -> memoryview:
    """The whole video as MP4: H.264 with the persons drawn on it, and its own sound. It lies in memory once.

    Args:
        tracks: the persons. blur: their faces are made unrecognisable, and the picture coarse.
        tell: called with the time of each frame.

    Raises VideoError where no frame can be read.
    """
    buffer = io.BytesIO()
    with (
        open_video(source) as (file, container, stream, _),
        av.open(buffer, "w", format="mp4") as writer,
    ):
        sounds = sounds_of(container)
        pictures, sound, first = None, None, 0.0
        packets = []
        for pts_seconds, shown in frames_of(file, container, stream, 0.0):
            tell(pts_seconds)
            image = shown
            if blur:
                image = without_faces(
                    image, [box for each in tracks if (box := each.hidden_at(pts_seconds)) is not None]
                )
            image = drawn_frame(image, tracks, pts_seconds)
            if pictures is None:
                first = pts_seconds
                pictures = video_stream(writer, image)
                sound = _sound_of(writer, sounds[0]) if sounds else None
            frame = encodable(image, pictures)
            frame.pts, frame.time_base = round((pts_seconds - first) * TICKS), Fraction(1, TICKS)
            packets += pictures.encode(frame)
        if pictures is None:
            raise VideoError("no_frames", "no frame of the video can be decoded")
        packets += pictures.encode()
        packets += [] if sound is None else list(_sound_packets(container, sounds[0], sound, first))
        packets.sort(key=lambda each: -float(each.dts * each.time_base))
        while packets:
            writer.mux(packets.pop())
    return buffer.getbuffer()


def _sound_of(writer: Any, sound: Any) -> Any:
    if sound.codec_context.codec.canonical_name in COPIED_SOUNDS:
        return writer.add_stream_from_template(sound)
    return sound_stream_of(writer)


def _sound_packets(container: Any, sound: Any, target: Any, first: float) -> Iterator[Any]:
    """The sound's own packets, moved so that the first frame is at 0 s; encoded as AAC where MP4 does not take them."""
    container.seek(0)
    if sound.codec_context.codec.canonical_name in COPIED_SOUNDS:
        moved = round(first / sound.time_base)
        for packet in container.demux(sound):
            # AAC begins with a packet before 0 s, without which the first would be heard wrong.
            if packet.dts is None or (packet.pts - moved) * sound.time_base < -0.1:
                continue
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
            packet.stream = target
            yield packet
        return
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
    start: int | None = None
    for piece in container.decode(sound):
        for ready in resampler.resample(piece):
            if start is None:
                start = max(0, round(((piece.time or 0.0) - first) * SOUND_RATE))
            ready.pts, ready.time_base = start, Fraction(1, SOUND_RATE)
            start += ready.samples
            yield from target.encode(ready)
    yield from target.encode()


def crops_at(
    source: Source, *, wanted: Sequence[tuple[float, Sequence[float]]], px: int, blur: bool
) -> Iterator[bytes]:
    """A JPEG of px x px for each (seconds, box xyxy) in order of time: the face squashed to a square.

    A time is that of a frame. Raises VideoError.
    """
    with open_video(source) as (file, container, stream, _):
        frames = frames_of(file, container, stream, 0.0)
        held = next(frames, None)
        following = next(frames, None)
        for seconds, box in wanted:
            while following is not None and following[0] <= seconds + 1e-4:
                held, following = following, next(frames, None)
            if held is None:
                raise VideoError("no_frames", "no frame of the video can be decoded")
            left, top, right, bottom = (round(each) for each in box)
            picture = Image.fromarray(held[1]).crop((left, top, right, bottom))
            if blur:
                picture = picture.resize((6, 6), Image.Resampling.BOX)
            buffer = io.BytesIO()
            picture.resize((px, px), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=92)
            yield buffer.getvalue()
