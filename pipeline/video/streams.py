"""Chooses the video stream of a file that has several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from av.error import FFmpegError

from pipeline.video.container import open_streams, packets_of, videos_of
from pipeline.video.frames import VideoError


@dataclass
class _Length:
    num_packets: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def seconds(self) -> float:
        return self.last - self.first


def choose_stream(
    file: BinaryIO, demuxer: str, *, asked: int | None, max_pixels: int, max_packets: int
) -> tuple[int, tuple[str, ...]]:
    """The number of the stream to read, among the video streams from 0, and what to say of the others.

    The longest is taken, and of those that last as long the one with the most frames, so that a picture beside the film
    (a cover, a poster, a storyboard) is never the film, whatever its flags say. asked: the number that the user gave.
    Raises VideoError where there is none.
    """
    with open_streams(file, demuxer, max_pixels) as container:
        total = len(container.streams.video)
        if asked is not None:
            if asked >= total:
                raise VideoError(
                    "no_video_stream",
                    f"stream {asked} is asked for, and the file has {total} video streams, counted from 0; "
                    "give another number, or none",
                )
            return asked, ()
        numbers = videos_of(container)
        if not numbers:
            raise VideoError("no_video_stream", "the file holds no video stream (only sound, text or a cover picture)")
        if len(numbers) == 1:
            return numbers[0], ()
        lengths = _lengths(container, numbers, max_packets=max_packets)
        chosen = _longest(container, numbers, lengths)
        others = ", ".join(
            f"{number} ({_described(container.streams.video[number])}, {lengths[number].num_packets} frames)"
            for number in sorted(numbers)
            if number != chosen
        )
        return chosen, (f"of {total} video streams {chosen} is read, and not {others}; the option stream chooses",)


def _lengths(container: Any, numbers: Sequence[int], *, max_packets: int) -> dict[int, _Length]:
    lengths = {number: _Length() for number in numbers}
    of_index = {container.streams.video[number].index: number for number in numbers}
    try:
        for count, packet in enumerate(packets_of(container, *(container.streams.video[each] for each in numbers))):
            if count >= max_packets:
                break
            length = lengths[of_index[packet.stream_index]]
            tick = packet.pts if packet.pts is not None else packet.dts
            time = length.last if tick is None else float(tick * packet.time_base)
            length.first = time if not length.num_packets else min(length.first, time)
            length.last = time if not length.num_packets else max(length.last, time)
            length.num_packets += 1
    except FFmpegError:
        pass  # The index notes it.
    return lengths


def _longest(container: Any, numbers: Sequence[int], lengths: dict[int, _Length]) -> int:
    decodable = [number for number in numbers if container.streams.video[number].codec_context is not None] or numbers
    longest = max(lengths[number].seconds for number in decodable)

    def rank(number: int) -> tuple[int, int]:
        context = container.streams.video[number].codec_context
        return lengths[number].num_packets, context.width * context.height if context else 0

    # One of a storyboard lasts as long as its film; cameras that are cut together differ by a frame or two.
    return max((number for number in decodable if lengths[number].seconds >= 0.9 * longest), key=rank)


def _described(stream: Any) -> str:
    context = stream.codec_context
    return "no decoder" if context is None else f"{context.name} {context.width}x{context.height}"
