"""Decodes the wanted frames of an indexed file by PyAV or decord, and counts damage.

PyAV decodes in sequence, is right for every file and sees damage. decord seeks; it is used only where that is exact
(`DecordProof`, `why_not_decord`) and where it spares a long decode (`_WORTH_FRAMES`). Both give the same frames: the
index of every sampled frame is fixed before either opens the file.

Still for the reader of a file to fear are time and memory: run this in a supervised child process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from av.error import FFmpegError

from pipeline.video.container import open_container, open_file, packets_of
from pipeline.video.frames import Budget, Cuts, DecodeReport, Frame, VideoError
from pipeline.video.index import FrameIndex
from pipeline.video.order import FrameNumbers
from pipeline.video.pixels import display_matrix, shown_size, to_rgb, upright
from pipeline.video.shots import CONTEXT_FRAMES, CutFinder, small_picture

# About 2 s of decoding at 640x480. Below that decord is hardly faster (8 of 90 frames, XviD, key frame every 12: 34
# against 39 ms; H.264: 89 against 86), and it conceals damage: of 98 clips with a few flipped bits that passed every
# check here, it gave other pictures than PyAV in 15 and reported none.
_WORTH_FRAMES = 1000


# decord 0.6.0 took 140 MiB more than PyAV for a film of 122 MB, and gave them back at its end.
_MAX_DECORD_BYTES = 2**26


def _is_worth_it(index: FrameIndex, wanted: np.ndarray, *, high: int) -> bool:
    """Whether seeking decodes at least _WORTH_FRAMES fewer frames than a sequential decode up to `high`."""
    return high - int((wanted - _begins(index, wanted) + 1).sum()) >= _WORTH_FRAMES


def _begins(index: FrameIndex, wanted: np.ndarray) -> np.ndarray:
    """The first frame that is decoded for each that is wanted, where the decoder seeks."""
    keys = np.searchsorted(index.ticks, index.key_ticks)
    from_key = keys[np.searchsorted(keys, wanted, side="right") - 1]
    return np.maximum(from_key, np.concatenate(([0], wanted[:-1] + 1)))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an indexed file: the frames `wanted` (increasing) of the range from frame `low` to `high`.

    num_absent: frames of the range that lie after the end of a file that was cut off. finds_cuts: every frame is looked
    at for where shots begin, and some before and after the range.
    """

    path: Path
    index: FrameIndex
    wanted: np.ndarray
    low: int
    high: int
    num_absent: int
    decoder: str
    max_pixels: int
    max_bytes: int
    budget: Budget
    finds_cuts: bool = False


@dataclass
class _Tally:
    num_given: int = 0
    num_decoded: int = 0
    num_corrupt: int = 0
    num_repeated: int = 0
    num_errors: int = 0
    notes: list[str] = field(default_factory=list)
    cuts: list[int] | None = None


class _DecordError(Exception):
    """decord failed, or disagrees with the index; the message says how."""


def decode_frames(request: Request) -> Generator[Frame, None, DecodeReport]:
    """The wanted frames, in order. Raises VideoError where none decodes."""
    index = request.index
    used, reason = _decoder_of(request)
    tally = _Tally()
    num_expected = len(request.wanted)
    with open_file(request.path, request.max_bytes) as file:
        if used == "decord":
            try:
                for frame in _decord_frames(file, request):
                    tally.num_decoded += 1
                    tally.num_given += 1
                    yield frame
            except _DecordError as error:
                used, reason, tally = "pyav", f"decord failed: {error}", _Tally(num_given=tally.num_given)
        if used == "pyav":
            around = CONTEXT_FRAMES if request.finds_cuts else 0
            yield from _pyav_frames(file, request, tally, from_packet=_run_in(index, max(0, request.low - around)))
            num_expected = int(index.num_pictures[request.low : request.high].sum())
    notes = (*index.notes, *tally.notes)
    over = request.budget.over
    if over is not None:
        left = f"{tally.num_given} of {len(request.wanted)} frames were taken of it"
        notes = (f"the budget of {over} for a clip was used up, {left}", *notes)
    if tally.num_given == 0 and over is not None:
        raise VideoError(
            "over_budget", f"{notes[0]}: give --max-clip-seconds or --max-clip-gigapixels more, or sample fewer frames"
        )
    if tally.num_given == 0:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise VideoError(
            "undecodable",
            f"none of its {request.high - request.low} frames in the range decodes as {index.codec}{why}; it is "
            "damaged, lacks its first key frame or passes the limit of pixels: encode it again",
        )
    num_missing = max(0, num_expected - tally.num_decoded) + request.num_absent
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
        num_over_budget=len(request.wanted) - tally.num_given if over is not None else 0,
        cuts=None if tally.cuts is None else _cuts_of(request, tally.cuts),
    )


def _cuts_of(request: Request, numbers: list[int]) -> Cuts:
    seconds, high = request.index.seconds, request.high
    usual = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
    end = float(seconds[high]) if high < len(seconds) else float(seconds[high - 1]) + usual
    frames = tuple(number for number in numbers if request.low <= number < high and number > 0)
    times = tuple(float(seconds[number]) for number in frames)
    start = float(seconds[request.low])
    return Cuts(start_frame=request.low, start_seconds=start, end_seconds=end, frames=frames, times=times)


def _decoder_of(request: Request) -> tuple[str, str]:
    """Which decoder to use, and why."""
    if request.decoder == "pyav":
        return "pyav", "asked for"
    if request.index.why_not_decord:
        return "pyav", request.index.why_not_decord
    if request.decoder == "decord":
        return "decord", "asked for, and exact here"
    if request.finds_cuts:
        return "pyav", "every frame is decoded, to see where shots begin"
    if not _is_worth_it(request.index, request.wanted, high=request.high):
        return "pyav", "short enough to decode in sequence, which sees damage"
    if request.path.stat().st_size > _MAX_DECORD_BYTES:
        return "pyav", "too large for decord, which holds all packets of a file at once"
    return "decord", "its seeking is exact here, and spares a long decode"


def _decord_frames(file: BinaryIO, request: Request) -> Iterator[Frame]:
    """The wanted frames by decord. Raises _DecordError where it fails or disagrees with the index."""
    import decord

    index, wanted = request.index, request.wanted
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
    # What it decodes unseen for a frame: from the key frame before it, or from the frame that it gave last.
    for number, since_key in zip(wanted.tolist(), (wanted - _begins(index, wanted) + 1).tolist(), strict=True):
        try:
            image = reader[number].asnumpy()
        except failures as error:
            raise _DecordError(f"at frame {number} ({_first_line(error)})") from error
        if image.shape != index.shape:
            raise _DecordError(f"frame {number} has shape {image.shape}, the first has {index.shape}")
        if not request.budget.spend(image.shape[0] * image.shape[1] * since_key):
            return
        yield _frame_of(index, number, image)


def _frame_of(index: FrameIndex, number: int, image: np.ndarray) -> Frame:
    return Frame(
        frame_index=number,
        pts_seconds=float(index.seconds[number]),
        seconds=float(index.clock[number]),
        image=image,
        sample_aspect_ratio=float(index.pixel_aspect),
    )


def _first_line(error: BaseException) -> str:
    """The first line of decord's message, without the time and source file that it starts with."""
    line = (str(error).splitlines() or [""])[0]
    return (line.partition(": ")[2] or line or type(error).__name__)[:200]


def _pyav_frames(file: BinaryIO, request: Request, tally: _Tally, *, from_packet: int) -> Iterator[Frame]:
    """The wanted frames by a sequential decode up to frame `high`; where one is lost the next one stands in."""
    index, wanted, low, high = request.index, request.wanted, request.low, request.high
    numbers, position, sizes = FrameNumbers(index), tally.num_given, set()
    finder, after = (CutFinder(), CONTEXT_FRAMES) if request.finds_cuts else (None, 0)
    previous_tick, is_first, rotation, matrix = None, True, None, None
    with open_container(file, index.demuxer, request.max_pixels, number=index.stream) as (container, stream):
        for frame in _decoded(container, stream, numbers, from_packet=from_packet, tally=tally, budget=request.budget):
            number, in_order = numbers.number_of(frame.pts)
            if is_first and from_packet and number > low:
                break  # the run-in was too short: start again below
            is_first = False
            if finder is not None and in_order and (picture := small_picture(frame)) is not None:
                finder.add(number, picture)
            if low <= number < high:
                tick = int(index.ticks[number])
                tally.num_decoded += 1
                tally.num_corrupt += frame.is_corrupt
                tally.num_repeated += tick == previous_tick
                previous_tick = tick
                sizes.add((frame.width, frame.height))
                if in_order and position < len(wanted) and number >= wanted[position]:
                    position = int(np.searchsorted(wanted, number, side="right"))
                    if frame.rotation != rotation:
                        rotation, matrix = frame.rotation, display_matrix(frame)
                    size = shown_size(frame.width, frame.height, index.pixel_aspect, max_pixels=request.max_pixels)
                    tally.num_given += 1
                    yield _frame_of(index, number, upright(to_rgb(frame, number, size=size), matrix))
            if in_order and number >= high - 1 + after:
                break
    tally.cuts = None if finder is None else finder.cuts()
    if from_packet and not sizes and request.budget.over is None:
        yield from _pyav_frames(file, request, tally, from_packet=0)
    if len(sizes) > 1:
        tally.notes.append(f"the size changes in the middle: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")


def _run_in(index: FrameIndex, low: int) -> int:
    """The packet to start decoding at, for a range that starts at frame `low`.

    One key frame more than needed: where the last one before the range only opens a group of pictures or starts an
    intra refresh, the group before it makes the picture whole. If even that gives no frame by `low` (a long intra
    refresh took 26 frames), `_pyav_frames` starts again from the file's beginning.
    """
    if low == 0:
        return 0
    before = np.flatnonzero(index.key_ticks <= index.ticks[low])
    return int(index.key_packets[before[-2]]) if len(before) > 1 else 0


def _decoded(
    container: Any, stream: Any, numbers: FrameNumbers, *, from_packet: int, tally: _Tally, budget: Budget
) -> Iterator[Any]:
    """Every frame that decodes, in presentation order; the pts of each is the number of the packet that it came in.

    Ends where the budget is used up, by frames that are wanted or not. After an error it goes on at the next key frame:
    what lies between would be drawn on a lost picture, as what lies before the first key frame would be.
    """
    context = stream.codec_context
    lost = numbers.begins_without_key and not context.codec.intra_only
    drain = partial(_decode, context, None)
    try:
        for number, packet in enumerate(packets_of(container, stream)):
            if number < from_packet or (lost and not packet.is_keyframe):
                continue
            if lost:
                if tally.num_errors:
                    context.flush_buffers()
                lost = False
            numbers.feed(number, is_key=packet.is_keyframe)
            packet.pts = number
            if not budget.spend():
                return
            frames, error = _decode(context, packet)
            if error is not None:
                tally.num_errors += 1
                if tally.num_errors == 1:
                    tally.notes.append(f"packet {number} does not decode ({error.strerror})")
                lost = True
                numbers.lose(number)
                frames = drain()[0] if numbers.are_sure else []
            for frame in frames:
                if not budget.spend(frame.width * frame.height):
                    return
                yield frame
    except FFmpegError:  # the container is damaged from here on; the index noted it
        pass
    if not lost:
        yield from drain()[0]


def _decode(context: Any, packet: Any) -> tuple[list[Any], FFmpegError | None]:
    """The frames that a packet brings out (None: those that the decoder still holds), or the error."""
    try:
        return context.decode(packet), None
    except FFmpegError as error:
        return [], error
