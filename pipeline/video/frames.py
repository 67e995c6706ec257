"""What a decoder gives: sampled frames, a report, errors; and which frames are sampled."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.records.columns import Share

MAX_PIXELS = 4096 * 4096  # 50 MB as RGB; a 772 KB file can claim 16384 x 16000 and want 7 to 12 GB


MAX_BYTES = 8 * 2**30


MAX_PACKETS = 2_000_000  # 18 hours at 30 frames/s


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of the range to take: exactly one way is set, the others are None or False.

    frames_per_clip: k evenly spaced frames, the i-th at index floor((i + 0.5) * n / k) of the n frames in the range;
    all frames where n < k. min_fps: where these would be fewer a second, frames are taken as by sample_fps at this
    rate. sample_fps: the first frame at or after t0 + i / sample_fps for i = 0, 1, ..., where t0 is the start of the
    range (or the first frame); no frame twice. every_frame: all of them. Raises ValueError.
    """

    frames_per_clip: int | None = 8
    sample_fps: float | None = None
    every_frame: bool = False
    min_fps: float = 0.0

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
        if not 0 <= self.min_fps < float("inf"):
            raise ValueError(f"min_fps is {self.min_fps}; it must be a number, 0 or more, in frames per second")

    def choose(self, seconds: np.ndarray, *, start_seconds: float | None = None) -> np.ndarray:
        """Positions, increasing, to take of frames shown at `seconds` (sorted, the range only)."""
        num = len(seconds)
        if self.every_frame or num == 0:
            return np.arange(num)
        sample_fps = self.sample_fps
        if self.frames_per_clip is not None and (seconds[-1] - seconds[0]) * self.min_fps > self.frames_per_clip:
            sample_fps = self.min_fps
        if sample_fps is None:
            k = self.frames_per_clip
            assert k is not None
            return np.arange(num) if num < k else np.array([(2 * i + 1) * num // (2 * k) for i in range(k)])
        start = seconds[0] if start_seconds is None else start_seconds
        # A frame is taken when a target lies after the frame before it and not after the frame itself. The allowance
        # keeps a frame whose pts, as a binary fraction, falls a hair before its target.
        targets_passed = np.floor((seconds - start) * sample_fps + 1e-6)
        return np.flatnonzero(np.diff(targets_passed, prepend=-1) > 0)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One sampled frame: `image` is RGB uint8 (height, width, 3), upright.

    frame_index counts the frames of the file in presentation order from 0, by the container's timestamps, so that it
    is the same after a damaged stretch. pts_seconds is in the file's own timeline, seconds counts from the clip's
    first frame. Alpha is dropped and interlaced frames stay woven; pixels are square, and sample_aspect_ratio says how
    wide one was by its height as stored.
    """

    frame_index: int
    pts_seconds: float
    seconds: float
    image: np.ndarray
    sample_aspect_ratio: float = 1.0


@dataclass(kw_only=True)
class Budget:
    """What the decoding of a clip may cost, over all passes: pixels of its decoded frames, and the time by
    `time.monotonic`. `over` says what of it was used up, None while there is some left."""

    left_pixels: float = math.inf
    until: float = math.inf
    over: str | None = None

    def spend(self, num_pixels: int = 0) -> bool:
        """Count decoded pixels; whether there is some left of all."""
        self.left_pixels -= num_pixels
        if self.over is None and self.left_pixels < 0:
            self.over = "pixels"
        if self.over is None and time.monotonic() > self.until:
            self.over = "time"
        return self.over is None


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where shots begin within what was decoded of a clip: the frames' numbers and times, increasing.

    start_frame, start_seconds, end_seconds: its first frame, and the end of its last one. All times are in the file's
    own timeline (`pts_seconds`). The first frame is among `frames` only where a cut lies before it, as in a part of a
    film.
    """

    start_frame: int
    start_seconds: float
    end_seconds: float
    frames: tuple[int, ...] = ()
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        bounds = (self.start_seconds, *self.times, self.end_seconds)
        is_sound = len(self.frames) == len(self.times) and all(map(math.isfinite, bounds))
        is_sound = is_sound and all(a <= b for a, b in pairwise(bounds))
        numbers = (self.start_frame - 1, *self.frames)
        if not is_sound or self.start_frame < 0 or any(a >= b for a, b in pairwise(numbers)):
            raise ValueError(f"cuts at {len(self.frames)} frames and {len(self.times)} times are not in order")


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """How one clip was decoded, and how whole it was.

    num_frames: frames of the whole file by its packets, without those that an edit list hides. The other counts are of
    the frames that were decoded to get the samples: with PyAV every frame of the range, sampled or not; with decord
    the sampled ones, since it conceals damage. num_missing: frames that the packets promise and the decoder did not
    give, and those that the header claims after the last packet. num_repeated: frames with the timestamp of the frame
    before. decode_integrity: the share of num_decoded + num_missing that is neither corrupt nor repeated, 0 to 1.
    num_over_budget: sampled frames that were not decoded, because the budget was used up; all that follows is missing.
    cuts: where shots begin; None where nobody looked, as where not every frame was decoded.
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
    decode_integrity: Share
    notes: tuple[str, ...] = ()
    num_over_budget: int = 0
    cuts: Cuts | None = None


class VideoError(Exception):
    """A file that gives no frames: `reason` is a short stable word, the message is for people.

    Reasons: unreadable, not_a_file, empty_file, too_large, playlist, image, not_a_video, undecodable,
    no_video_stream, unsupported_codec, encrypted, too_many_pixels, no_frames, range_past_end, over_budget.
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
