"""Compares what a container claims to hold with what is there: a file that was cut off is told from a whole one."""

from __future__ import annotations

import os
import re
import struct
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError

from pipeline.video.container import open_streams, packets_of
from pipeline.video.frames import MAX_PACKETS

# Demuxers whose length is what the file's header says, and no estimate from its end or its bit rate.
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_WITH_LENGTHS = ("matroska", "flv", "asf", "mxf", "rm", "ivf")


def num_absent_frames(
    file: BinaryIO, container: Any, stream: Any, demuxer: str, ticks: np.ndarray, *, num_packets: int, max_pixels: int
) -> tuple[int, tuple[str, ...]]:
    """How many frames the header claims after the last one that is there, and what to say of it.

    ticks: the presentation times that are there, sorted, in the stream's time base. A claim of more frames than any
    clip may have is named and not believed. Where only the length of the whole file is claimed, another stream that
    lasts so long explains it, as sound that goes on after the last picture does.
    """
    claimed = stream.frames
    if demuxer == "mov":  # not by its count, which has those that an edit list leaves out
        claimed = len(stream.index_entries)
    words = (f"the header claims {claimed} frames, the file holds {num_packets}",)
    if demuxer == "mov":
        return (claimed - num_packets, words) if 0 < claimed - num_packets <= MAX_PACKETS else (0, ())
    if demuxer == "gif":
        return 0, () if _ends_with(file, b"\x3b") else ("the file has no end mark: it was cut off",)
    frame_ticks = _frame_ticks(stream, ticks)
    if demuxer == "avi":
        num_absent = claimed - round((int(ticks[-1]) + frame_ticks) / frame_ticks)
        if num_absent <= 0:
            return 0, ()
        return (num_absent if num_absent <= MAX_PACKETS else 0), words
    if demuxer not in _WITH_LENGTHS or stream.time_base is None:
        return 0, ()
    claimed_seconds = _asf_seconds(file) if demuxer == "asf" else _claimed_seconds(container, stream)
    last_seconds = float((int(ticks[-1]) + frame_ticks) * stream.time_base)
    frame_seconds = float(frame_ticks * stream.time_base)
    num_absent = round((claimed_seconds - last_seconds) / frame_seconds)
    # A frame more or less is a matter of rounding.
    if num_absent < 2 or num_absent > MAX_PACKETS or _lasts(file, demuxer, claimed_seconds, frame_seconds, max_pixels):
        return 0, ()
    return num_absent, (f"the header claims {claimed_seconds:.2f} s, the file ends at {last_seconds:.2f} s",)


def _frame_ticks(stream: Any, ticks: np.ndarray) -> float:
    """The usual time from one frame to the next, in the stream's time base."""
    steps = np.diff(ticks)
    if len(steps := steps[steps > 0]):
        return float(np.median(steps))
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / (rate * stream.time_base)) if rate and stream.time_base else 1.0


def _claimed_seconds(container: Any, stream: Any) -> float:
    """When the video ends by the header: the least that it says, 0 where it says nothing."""
    lengths = []
    if container.duration is not None:
        lengths.append(container.duration / av.time_base)
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip("\0 ")):
        hours, minutes, seconds = match.groups()
        lengths.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
    return min(lengths, default=0.0)


def _asf_seconds(file: BinaryIO) -> float:
    """The play length in the header of an ASF file, which FFmpeg leaves out where the file is shorter than it says."""
    head = _bytes_at(file, 0, 2**16)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return 0.0
    play, _, preroll, flags = struct.unpack_from("<QQQI", head, at + 64)
    return 0.0 if flags & 1 else play / 1e7 - preroll / 1e3  # 1: a broadcast, whose length is not known


def _ends_with(file: BinaryIO, mark: bytes) -> bool:
    at = file.tell()
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(at)
    return _bytes_at(file, max(0, size_bytes - 512), 512).rstrip(b"\0").endswith(mark)


def _bytes_at(file: BinaryIO, offset: int, count: int) -> bytes:
    at = file.tell()
    file.seek(offset)
    data = file.read(count)
    file.seek(at)
    return data


def _lasts(file: BinaryIO, demuxer: str, seconds: float, frame_seconds: float, max_pixels: int) -> bool:
    """Whether any stream of the file lasts until then."""
    margin = max(2 * frame_seconds, 0.1)
    at = file.tell()
    try:
        with open_streams(file, demuxer, max_pixels) as container:
            for packet in packets_of(container):
                tick = packet.pts if packet.pts is not None else packet.dts
                if tick is None or not packet.time_base:
                    continue
                if float((tick + (packet.duration or 0)) * packet.time_base) >= seconds - margin:
                    return True
    except FFmpegError:
        pass
    finally:
        file.seek(at)
    return False
