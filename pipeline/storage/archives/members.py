"""Members of archives, and the URLs that name them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

_KINDS = {".zip": "zip", ".tar": "tar", ".tar.gz": "gz", ".tgz": "gz", ".tar.zst": "zst", ".tzst": "zst"}


MEMBERS_START = "archive://?"
# A regular expression that finds the CRC-32 of a member of a zip in its URL.
ZIP_CRC = "[?&]zip=(?:[0-9]+%2C){4}([0-9]+)$"


# How a part of a file is cut out: gz, zst (), tar (offset, bytes), zip (header offset, bytes packed, bytes, method,
# CRC-32).
Step = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in an archive, or what cannot be read of it and why; `name` is "" where that is the whole archive.

    name: names of the nested archives and of the member, joined by "!"; may hold surrogates for undecodable bytes.
    content_id: the MD5 of the bytes in a compressed tar; else from the archive's own content, the name, the place and
    the size, so that another archive with the same bytes in it gives another.
    bytes_id: what tells the bytes wherever they lie: their MD5 where they were read, else "crc" with the CRC-32 that a
    zip has of them, or "head" with the MD5 of their first `HEAD_BYTES`; None where nothing does, or content_id does.
    """

    name: str
    size_bytes: int
    content_id: str
    steps: tuple[Step, ...]
    reason: str | None = None
    detail: str | None = None
    bytes_id: str | None = None


def kind_of(name: str) -> str | None:
    """The kind of archive that a file's name tells (zip, tar, gz or zst), or None."""
    return next((kind for suffix, kind in _KINDS.items() if name.lower().endswith(suffix)), None)


def member_url(archive_url: str, archive_bytes: int, member: Member, *, content_id: str) -> str:
    """Where a member is read: `archive://?file=<url of the archive>&bytes=...` and its steps, or its reason.

    content_id: of the archive, which it must still have when the member is read.
    """
    fields: list[tuple[str, Any]] = [("file", archive_url), ("bytes", archive_bytes), ("content", content_id)]
    if member.reason is not None:
        fields += [("reason", member.reason), ("detail", member.detail)]
    else:
        fields += [(kind, ",".join(map(str, numbers))) for kind, numbers in member.steps]
    return MEMBERS_START + urlencode(fields, errors="backslashreplace")


def is_member(url: str) -> bool:
    """Whether the URL is one of `member_url`."""
    return url.startswith(MEMBERS_START)


def archive_of(url: str) -> str:
    """The URL of the archive that a member lies in."""
    return place_of(url).file


def reading_order(url: str) -> tuple[Any, ...]:
    """What clips are sorted by, so that members that lie in one compressed stream follow one another; () for others."""
    if not is_member(url):
        return ()
    place = place_of(url)
    return (place.file, *(step[1] for step in place.steps)) if place.is_stream else ()


@dataclass(frozen=True, kw_only=True)
class Place:
    file: str
    num_bytes: int
    steps: tuple[Step, ...]
    problem: tuple[str, str] | None
    content_id: str  # of the archive; "" in urls that are older than it

    @property
    def is_stream(self) -> bool:
        """Whether it can be reached only by decompressing what lies before it."""
        return any(
            kind in ("gz", "zst") or (kind == "zip" and n[3] != zipfile.ZIP_STORED) for kind, n in self.steps[:-1]
        )


def place_of(url: str) -> Place:
    """Where the bytes of a member lie, read from its URL."""
    fields = parse_qsl(url.removeprefix(MEMBERS_START), keep_blank_values=True)
    named = dict(fields)
    steps = [(k, tuple(map(int, filter(None, v.split(","))))) for k, v in fields if k in ("gz", "zst", "tar", "zip")]
    problem = (named["reason"], named["detail"]) if "reason" in named else None
    return Place(
        file=named["file"],
        num_bytes=int(named["bytes"]),
        steps=tuple(steps),
        problem=problem,
        content_id=named.get("content", ""),
    )
