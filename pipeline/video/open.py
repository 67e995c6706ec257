"""Opens a video file for its sampled frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.records.vocabulary import DECODERS
from pipeline.video.container import open_container, open_file, sniff_container
from pipeline.video.decode import decode_frames
from pipeline.video.frames import MAX_BYTES, MAX_PACKETS, MAX_PIXELS, DecodedClip, Sampling, VideoError
from pipeline.video.index import index_of


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
    with open_file(path, max_bytes) as file:
        index = index_of(file, max_pixels=max_pixels, max_packets=max_packets)
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
        decode_frames(path, index, wanted, low=low, high=high, decoder=decoder, limits=(max_pixels, max_bytes))
    )


def claimed_range(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[float, float] | None:
    """The times of a local video's first and last frame by its header (seconds), None where it tells none.

    Not to be trusted. Raises VideoError for a file that is no video.
    """
    with (
        open_file(Path(path), MAX_BYTES) as file,
        open_container(file, sniff_container(file.read(4096)), max_pixels) as (container, stream),
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
        open_file(Path(path), MAX_BYTES) as file,
        open_container(file, sniff_container(file.read(4096)), max_pixels) as (container, stream),
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
