"""Opens a video file for its sampled frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from pipeline.records.vocabulary import DECODERS
from pipeline.video.container import open_container, open_file, packets_of
from pipeline.video.decode import Request, decode_frames
from pipeline.video.formats import HEAD_BYTES, Container, sniff_container
from pipeline.video.frames import MAX_BYTES, MAX_PACKETS, MAX_PIXELS, Budget, DecodedClip, Sampling, VideoError
from pipeline.video.index import FrameIndex, index_of, zero_tick
from pipeline.video.shots import small_picture
from pipeline.video.streams import choose_stream


def open_clip(
    path: str | Path,
    sampling: Sampling,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    stream: int | None = None,
    decoder: str = "auto",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    max_packets: int = MAX_PACKETS,
    budget: Budget | None = None,
    finds_cuts: bool = False,
) -> DecodedClip:
    """Recognise and index a local video file; iterate over the result to decode the sampled frames.

    The range [start_seconds, end_seconds) counts from the clip's first frame, as players do; None is the file's start
    or end. stream: which of its video streams, from 0; None is the longest. decoder: "auto" (decord where right and
    worth it), "decord" (wherever right), "pyav" (always). Limits: pixels of one frame, bytes of the file, packets of
    the video stream. budget: of all that is decoded; where it is used up the frames end, and the report says so.
    finds_cuts: the report tells where shots begin, for which "auto" decodes every frame. Raises
    VideoError for a file that cannot be used, here or at the first frame, and ValueError for an unknown decoder.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder is {decoder!r}; it must be one of {', '.join(DECODERS)}")
    path = Path(path)
    with open_file(path, max_bytes) as file:
        index = index_of(file, max_pixels=max_pixels, max_packets=max_packets, stream=stream)
    low, high = _range_in(index, start_seconds, end_seconds)
    return DecodedClip(
        decode_frames(
            Request(
                path=path,
                index=index,
                wanted=low + sampling.choose(index.clock[low:high], start_seconds=start_seconds),
                low=low,
                high=high,
                num_absent=_num_absent(index, end_seconds) if high == len(index.ticks) else 0,
                decoder=decoder,
                max_pixels=max_pixels,
                max_bytes=max_bytes,
                budget=budget or Budget(),
                finds_cuts=finds_cuts,
            )
        )
    )


def _range_in(index: FrameIndex, start_seconds: float | None, end_seconds: float | None) -> tuple[int, int]:
    """The first frame of a range, and the one past its last. Raises VideoError where it holds none."""
    seconds = index.clock
    low = 0 if start_seconds is None else int(np.searchsorted(seconds, start_seconds))
    high = len(seconds) if end_seconds is None else int(np.searchsorted(seconds, end_seconds))
    why = f" ({'; '.join(index.notes)})" if index.notes else ""
    if low >= len(seconds):
        raise VideoError(
            "range_past_end",
            f"the range starts at {start_seconds} s, past the last frame ({seconds[-1]:.3f} s){why}; "
            "check the manifest",
        )
    if low >= high:
        raise VideoError(
            "no_frames",
            f"no frame lies in the range {start_seconds} to {end_seconds} s (the file has frames from "
            f"{seconds[0]:.3f} to {seconds[-1]:.3f} s{why}); check the manifest",
        )
    return low, high


def _num_absent(index: FrameIndex, end_seconds: float | None) -> int:
    """How many of the frames that the header claims after the last one lie before the end of the range."""
    if end_seconds is None or not index.num_absent:
        return index.num_absent
    step = float(np.median(np.diff(index.clock))) if len(index.clock) > 1 else 0.0
    past_last = end_seconds - float(index.clock[-1])
    return min(index.num_absent, max(0, math.ceil(past_last / step - 1e-6) - 1)) if step > 0 else index.num_absent


def claimed_range(path: str | Path, *, stream: int | None = None) -> tuple[float, float] | None:
    """The times of a local video's first and last frame by its header, in seconds from its beginning; None where it
    tells none.

    Not to be trusted. Raises VideoError for a file that is no video.
    """
    with open_video(path, stream=stream) as (_, container, video, kind):
        if container.duration is None or not video.time_base:
            return None
        first = next(packets_of(container, video), None)
        tick = video.start_time or 0
        zero = zero_tick(kind, tick, begins_with_key=first is None or first.is_keyframe)
        start = float((tick - zero) * video.time_base)
        return start, start + container.duration / av.time_base


# A local path, or a file that is open for reading: of one that lies elsewhere.
Source = str | Path | BinaryIO


@contextmanager
def open_video(source: Source, *, stream: int | None = None) -> Iterator[tuple[BinaryIO, Any, Any, Container]]:
    """A video: its file, container, the video stream that is read of it (or `stream`), and its kind.

    Raises VideoError.
    """
    with open_file(Path(source), MAX_BYTES) if isinstance(source, (str, Path)) else nullcontext(source) as file:
        file.seek(0)
        kind = sniff_container(file.read(HEAD_BYTES))
        number, _ = choose_stream(file, kind.demuxer, asked=stream, max_pixels=MAX_PIXELS, max_packets=MAX_PACKETS)
        with open_container(file, kind.demuxer, MAX_PIXELS, number=number) as (container, video):
            yield file, container, video, kind


def frames_of_spans(
    path: str | Path, spans: Iterable[tuple[float, float]], *, past_seconds: float, stream: int | None = None
) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
    """For each (start, end) in seconds from the clip's beginning the frames from its start to `past_seconds` past its
    end with their times, each as `shots.small_picture`. Read each to its end before the next.

    Seeks by key frames: for a look at the pictures, where a frame more or less does no harm. Raises VideoError for a
    file that is no video, and FFmpegError where it is damaged.
    """
    with open_video(path, stream=stream) as (_, container, video, kind):
        first = next(packets_of(container, video), None)
        tick = zero_tick(kind, video.start_time or 0, begins_with_key=first is None or first.is_keyframe)
        zero = float(tick * video.time_base)
        for start, end in spans:
            container.seek(round((zero + start) / video.time_base), stream=video)
            frames = _small_frames(container, video, zero + start, zero + end + past_seconds)
            yield ((seconds - zero, image) for seconds, image in frames)


def _small_frames(container: Any, stream: Any, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
    for frame in container.decode(stream):
        if frame.time is None or frame.time < start:
            continue
        if frame.time >= end:
            return
        if (picture := small_picture(frame)) is not None:
            yield frame.time, picture
