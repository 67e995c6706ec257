"""Answers with a part of a remote video, as a player asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from starlette.responses import Response, StreamingResponse

from pipeline.storage.kept import KeptFile

# A part may be shorter than was asked for; a player then asks for the rest.
MAX_PART_BYTES = 2**21


def part_of(video: KeptFile, asked: str | None, *, kind: str) -> Response:
    """The answer to a request for a file of this media type.

    asked: the request's Range, of which one of one range is understood; any other is answered with the whole file.
    Raises what `KeptFile.read` raises.
    """
    total = video.size_bytes
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (asked or "").strip(), re.ASCII)
    if match is None or not any(match.groups()):
        headers = {"accept-ranges": "bytes", "content-length": str(total)}
        return StreamingResponse(_all_of(video), media_type=kind, headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, total - int(last))
    end = min(total, int(last) + 1) if first and last else total
    if not start < end:
        return Response(status_code=416, headers={"content-range": f"bytes */{total}"})
    data = video.read(start, min(end, start + MAX_PART_BYTES))
    headers = {"accept-ranges": "bytes", "content-range": f"bytes {start}-{start + len(data) - 1}/{total}"}
    return Response(data, status_code=206, media_type=kind, headers=headers)


def _all_of(video: KeptFile) -> Iterator[bytes]:
    for start in range(0, video.size_bytes, MAX_PART_BYTES):
        yield video.read(start, start + MAX_PART_BYTES)
