"""Opens a file and its container, and gives the packets of its video."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.video.frames import VideoError

_ERRORS_OF_THE_PATH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


@contextmanager
def open_file(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
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


class _Source:
    """A file for FFmpeg: PyAV raises whatever a seek raises, and FFmpeg takes -1 for a place that there is none of."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # A failing disk is not the clip's fault.
            return -1


@contextmanager
def open_streams(file: BinaryIO, demuxer: str, max_pixels: int) -> Iterator[Any]:
    """The container, of which nothing is decoded yet. Raises VideoError."""
    file.seek(0)
    options = {"max_pixels": str(max_pixels), "protocol_whitelist": "none"}
    try:
        container = av.open(_Source(file), "r", format=demuxer, options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise VideoError(
            "undecodable",
            f"its {demuxer} container cannot be read ({error.strerror}): it is damaged or was cut off; copy it again",
        ) from error
    with container:
        yield container


@contextmanager
def open_container(file: BinaryIO, demuxer: str, max_pixels: int, *, number: int) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream `number` (among the video streams, from 0), ready to decode on one thread.

    Raises VideoError.
    """
    with open_streams(file, demuxer, max_pixels) as container:
        stream: Any = container.streams.video[number]
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


def videos_of(container: Any) -> list[int]:
    """The numbers of the video streams that are no cover pictures; the one a player would show first. May be empty."""
    best = container.streams.best("video")
    numbers = [
        number
        for number, stream in enumerate(container.streams.video)
        if not stream.disposition & Disposition.attached_pic
    ]
    return sorted(numbers, key=lambda number: container.streams.video[number] is not best)


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of the streams that hold bytes. Raises FFmpegError where the container is damaged."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # PyAV 18.1, at the end of a file in which another stream appeared on the way
            packet = None
        if packet is None:
            return
        if packet.size:  # an empty one is a dropped frame of an AVI, or the end; it would end the decode
            yield packet
