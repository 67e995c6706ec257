"""What is wrong with a zip as a whole."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

from pipeline.storage.archives.parts import ArchiveError, FilePart

_MAX_END_BYTES = 2**16 + 22  # the end record of a zip with the longest comment


_LOCAL_HEADER_BYTES = 30  # of a zip's member, without its name


def refuse_last_part(part: FilePart) -> None:
    """Raise ArchiveError for the last part of a zip in several, which alone has the directory."""
    start = max(0, (part.num_bytes or 0) - _MAX_END_BYTES)
    part.seek(start)
    tail = part.read(_MAX_END_BYTES)
    at = tail.rfind(b"PK\x05\x06")
    disk = int.from_bytes(tail[at + 4 : at + 6], "little") if 0 <= at <= len(tail) - 22 else 0
    part.seek(0)
    if disk not in (0, 0xFFFF):  # the latter: the number is in the zip64 record
        raise ArchiveError(
            "split_archive",
            f"it is the last of {disk + 1} parts of a split zip; join them (zip -s 0 NAME.zip --out whole.zip)",
        )


def check_overlaps(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raise ArchiveError for a zip in which two members share bytes: a small one could hold any number of clips."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ArchiveError("overlapping_members", "two of its members lie in the same bytes; pack it again")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
