"""The one table of containers: the names they go by, the bytes that they begin with, the demuxer that reads them.

Planning and decoding both take it from here, so what is planned as a video is what a decoder is given. Nothing here
asks FFmpeg: its own probe takes playlists (HLS, DASH, ffconcat, SDP) in a file of any name, and then opens what they
point to.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from pipeline.video.frames import VideoError

HEAD_BYTES = 4096  # what is read of a file to recognise it


@dataclass(frozen=True, kw_only=True)
class Container:
    """One kind of container.

    demuxer: FFmpeg's name. names: extensions without the dot. starts: (offset, bytes), of which one must be there.
    has_presentation_times: False where the container gives the order of packets alone.
    """

    demuxer: str
    names: str
    starts: tuple[tuple[int, bytes], ...] = ()
    has_presentation_times: bool = True


_MOV_BOXES = (
    b"ftyp",
    b"moov",
    b"moof",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"pnot",
    b"styp",
    b"sidx",
    b"uuid",
    b"prft",
)
_START_CODES = (b"\x00\x00\x00\x01", b"\x00\x00\x01")
# First units of a raw stream: parameter sets or access unit delimiter.
_H264_UNITS = (b"\x67", b"\x27", b"\x47", b"\x09\x10", b"\x09\x30", b"\x09\x50", b"\x09\x70", b"\x09\xf0")
_HEVC_UNITS = (b"\x40\x01", b"\x42\x01", b"\x46\x01")

CONTAINERS = (
    Container(
        demuxer="mov",
        names="3g2 3gp f4v m4v mj2 mov mp4 qt",
        starts=(*((4, box) for box in _MOV_BOXES), (16, b"ftypmjp2"), (16, b"ftypmj2s")),
    ),
    Container(demuxer="matroska", names="mkv webm", starts=((0, b"\x1a\x45\xdf\xa3"),)),
    Container(
        demuxer="avi",
        names="avi divx",
        starts=tuple((8, kind) for kind in (b"AVI ", b"AVIX", b"AVI\x19", b"AMV ")),
        has_presentation_times=False,
    ),
    Container(demuxer="mpegts", names="m2t m2ts mts ts"),
    Container(demuxer="mpeg", names="mpe mpeg mpg vob", starts=((0, b"\x00\x00\x01\xba"),)),
    Container(
        demuxer="mpegvideo",
        names="m1v m2v",
        starts=((0, b"\x00\x00\x01\xb3"), (0, b"\x00\x00\x00\x01\xb3")),
    ),
    Container(
        demuxer="h264",
        names="264 h264",
        starts=tuple((0, code + unit) for code in _START_CODES for unit in _H264_UNITS),
        has_presentation_times=False,
    ),
    Container(
        demuxer="hevc",
        names="265 h265 hevc",
        starts=tuple((0, code + unit) for code in _START_CODES for unit in _HEVC_UNITS),
        has_presentation_times=False,
    ),
    Container(
        demuxer="m4v",
        names="",
        starts=((0, b"\x00\x00\x01\xb0"), (0, b"\x00\x00\x01\x00\x00\x00\x01\x20")),
    ),
    Container(demuxer="flv", names="flv", starts=((0, b"FLV\x01"),)),
    Container(demuxer="asf", names="asf wmv", starts=((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    Container(demuxer="ogg", names="ogm ogv", starts=((0, b"OggS"),)),
    Container(demuxer="gif", names="gif", starts=((0, b"GIF87a"), (0, b"GIF89a"))),
    Container(demuxer="mxf", names="mxf", starts=((0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02"),)),
    Container(demuxer="rm", names="rm rmvb", starts=((0, b".RMF"),)),
    Container(demuxer="ivf", names="ivf", starts=((0, b"DKIF"),)),
    Container(demuxer="yuv4mpegpipe", names="y4m", starts=((0, b"YUV4MPEG2 "),)),
    Container(
        demuxer="dv",
        names="dif dv",
        starts=((0, b"\x1f\x07\x00\x3f"), (0, b"\x1f\x07\x00\xbf")),
    ),
    Container(demuxer="nut", names="nut", starts=((0, b"nut/multimedia container\0"),)),
)
VIDEO_NAMES = frozenset(name for each in CONTAINERS for name in each.names.split())
IMAGE_NAMES = frozenset({"png", "jpg", "jpeg"})

_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*", b"8BPS", b"\x00\x00\x00\x0cjP")
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"<asx", b"<smil", b"v=0", b"[reference]")
_URLS = (b"http:", b"https:", b"rtsp:", b"rtmp:", b"ftp:", b"file:", b"mms:", b"udp:", b"concat:", b"subfile:")
_BY_DEMUXER = {each.demuxer: each for each in CONTAINERS}


def extension_of(path: str) -> str:
    """The ending of a path, lower case, without its dot."""
    return posixpath.splitext(path)[1].lower().removeprefix(".")


def is_named_as_clip(path: str) -> bool:
    """Whether a path ends as those of videos and images do."""
    return extension_of(path) in VIDEO_NAMES | IMAGE_NAMES


def container_of(head: bytes) -> Container | None:
    """The container of a file that begins with `head`, or None where it is none of the table."""
    if head[8:12] in _STILL_BRANDS and head[4:8] == b"ftyp":
        return None
    for each in CONTAINERS:
        is_there = any(head[offset:].startswith(start) for offset, start in each.starts)
        if is_there and (each.demuxer != "avi" or head[:4] == b"RIFF"):
            return each
    # 188 bytes a packet, or 192 and 204 with a time stamp or a checksum; a cut file may start inside a packet.
    for size in (188, 192, 204):
        for start in range(size):
            syncs = head[start::size][:5]
            if set(syncs) == {0x47} and (len(syncs) == 5 or (len(syncs) >= 3 and start in (0, 4))):
                return _BY_DEMUXER["mpegts"]
    return None


def sniff_container(head: bytes) -> Container:
    """The container of a file that begins with `head`. Raises VideoError for all that is no video.

    The error never quotes the file: it may be one that whoever named it must not see.
    """
    if (found := container_of(head)) is not None:
        return found
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    if text.startswith(_PLAYLISTS + _URLS):
        raise VideoError("playlist", "the file is a playlist or a link, not a video; give the videos that it points to")
    if head.startswith(_IMAGES) or head[8:12] in (*_STILL_BRANDS, b"WEBP"):
        raise VideoError(
            "image",
            "the file is a still image, not a video; PNG and JPEG are read under a name that ends in .png or .jpg, "
            "other kinds are not: convert it, or leave it out",
        )
    raise VideoError(
        "not_a_video",
        "the file is no video container that is known here; "
        "give mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf, rm, ivf, y4m, dv or gif",
    )
