"""Recognises a container by its content, and opens it."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.video.frames import VideoError

_MAGIC = (  # (offset, bytes, demuxer)
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"OggS", "ogg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "mxf"),
)


_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid")


_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif")


_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*", b"8BPS", b"\x00\x00\x00\x0cjP")


_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"<asx", b"<smil", b"v=0", b"[reference]")


_URLS = (b"http:", b"https:", b"rtsp:", b"rtmp:", b"ftp:", b"file:", b"mms:", b"udp:", b"concat:", b"subfile:")


def sniff_container(head: bytes) -> str:
    """FFmpeg's name of the demuxer for a file that starts with `head`. Raises VideoError for all that is no video.

    Nothing here asks FFmpeg: its own probe takes playlists (HLS, DASH, ffconcat, SDP) in a file of any name, and
    then opens what they point to.
    """
    for offset, magic, demuxer in _MAGIC:
        if head[offset:].startswith(magic):
            return demuxer
    if head[4:8] in _MOV_BOXES and head[8:12] not in _STILL_BRANDS:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX", b"AVI\x19", b"AMV "):
        return "avi"
    # 188 bytes a packet, or 192 and 204 with a time stamp or a checksum; a cut file may start inside a packet.
    for size in (188, 192, 204):
        if any(len(syncs := head[start::size][:5]) == 5 and set(syncs) == {0x47} for start in range(size)):
            return "mpegts"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    if text.startswith(_PLAYLISTS + _URLS):
        raise VideoError(
            "playlist",
            f"the file is a playlist or a link (it starts with {text[:12].decode('latin-1')!r}), not a video; "
            "give the videos that it points to",
        )
    if head.startswith(_IMAGES) or head[8:12] in (*_STILL_BRANDS, b"WEBP"):
        raise VideoError("image", "the file is a still image, not a video; give it an image's name, or leave it out")
    raise VideoError(
        "not_a_video",
        f"the file is no video container that is known here (it starts with {head[:8].hex(' ')}); "
        "give mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf or gif",
    )


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


@contextmanager
def open_container(file: BinaryIO, demuxer: str, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, ready to decode on one thread. Raises VideoError."""
    file.seek(0)
    options = {"max_pixels": str(max_pixels), "protocol_whitelist": "none"}
    try:
        container = av.open(file, "r", format=demuxer, options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise VideoError(
            "undecodable",
            f"its {demuxer} container cannot be read ({error.strerror}): it is damaged or was cut off; copy it again",
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError("no_video_stream", "the file holds no video stream (only sound, text or a cover picture)")
        best = container.streams.best("video")
        stream: Any = best if best in streams else streams[0]
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


def packets_of(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """The packets of the stream, numbered. Raises FFmpegError where the container is damaged."""
    number = -1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # PyAV 18.1, at the end of a file in which another stream appeared on the way
            packet = None
        if packet is None:
            return
        if packet.size:  # an empty one is a dropped frame of an AVI, or the end; it would end the decode
            number += 1
            yield number, packet
