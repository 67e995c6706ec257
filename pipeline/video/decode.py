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

from bisect import bisect_left
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from av.error import FFmpegError

from pipeline.video.container import open_container, open_file, packets_of
from pipeline.video.frames import DecodeReport, Frame, VideoError
from pipeline.video.index import FrameIndex
from pipeline.video.pixels import display_matrix, to_rgb, upright

# About 2 s of decoding at 640x480. Below that decord is hardly faster (8 of 90 frames, XviD, key frame every 12: 34
# against 39 ms; H.264: 89 against 86), and it conceals damage: of 98 clips with a few flipped bits that passed every
# check here, it gave other pictures than PyAV in 15 and reported none.
_WORTH_FRAMES = 1000


# decord 0.6.0 took 140 MiB more than PyAV for a film of 122 MB, and gave them back at its end.
_MAX_DECORD_BYTES = 2**26


def _is_worth_it(index: FrameIndex, wanted: np.ndarray, *, high: int) -> bool:
    """Whether seeking decodes at least _WORTH_FRAMES fewer frames than a sequential decode up to `high`."""
    keys = np.searchsorted(index.ticks, index.key_ticks)
    from_key = keys[np.searchsorted(keys, wanted, side="right") - 1]
    begin = np.maximum(from_key, np.concatenate(([0], wanted[:-1] + 1)))
    return high - int((wanted - begin + 1).sum()) >= _WORTH_FRAMES


@dataclass
class _Tally:
    num_decoded: int = 0
    num_corrupt: int = 0
    num_repeated: int = 0
    num_errors: int = 0
    notes: list[str] = field(default_factory=list)


class _DecordError(Exception):
    """decord failed, or disagrees with the index; the message says how."""


def decode_frames(
    path: Path,
    index: FrameIndex,
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
        elif decoder == "auto" and path.stat().st_size > _MAX_DECORD_BYTES:
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
    with open_file(path, max_bytes) as file:
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


def _decord_frames(file: BinaryIO, index: FrameIndex, wanted: np.ndarray) -> Iterator[Frame]:
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
    index: FrameIndex,
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
    with open_container(file, index.demuxer, max_pixels) as (container, stream):
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
                    image = to_rgb(frame, number)
                    if frame.rotation != rotation:
                        rotation, matrix = frame.rotation, display_matrix(frame)
                    seconds = float(index.seconds[number])
                    yield Frame(frame_index=number, pts_seconds=seconds, image=upright(image, matrix))
            previous_pts = frame.pts
            if number >= high - 1:
                break
    if from_packet and not sizes:
        yield from _pyav_frames(
            file, index, wanted, low=low, high=high, max_pixels=max_pixels, tally=tally, from_packet=0
        )
    if len(sizes) > 1:
        tally.notes.append(f"the size changes in the middle: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")


def _run_in(index: FrameIndex, low: int) -> int:
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
    container: Any, stream: Any, index: FrameIndex, *, from_packet: int, tally: _Tally
) -> Iterator[tuple[int, Any]]:
    """(packets read, frame) of every frame that decodes, in presentation order.

    After an error it goes on at the next key frame: what lies between would be drawn on a lost picture. Where
    frames are known by their order only, nothing after an error can be placed, and decoding ends.
    """
    context = stream.codec_context
    number, lost = -1, False
    try:
        for number, packet in packets_of(container, stream):
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
