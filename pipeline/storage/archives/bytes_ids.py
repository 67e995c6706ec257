"""What tells the bytes of a member of a zip or tar, wherever they lie, so that two that are alike can be found.

An archive that is packed again, or another one, gives a member another content id. Reading the bytes gives their MD5.
Where that is too dear, a zip's CRC-32, and in a tar the first bytes, tell most members apart: two with other bytes may
have the same, so that they never say that two are alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pipeline.storage.archives.members import Step
from pipeline.storage.archives.parts import ArchiveError, FilePart
from pipeline.storage.archives.reading import cut_error, fault_in_words

HEAD_BYTES = 2**14  # of a member of a tar: mostly in the block in which its header was read


# A regular expression of all that `bytes_id_of` gives; only the first says that two members are alike.
BYTES_ID = "[0-9a-f]{32}|crc [0-9]{1,10}|head [0-9a-f]{32}"


def bytes_id_of(step: Step, container: FilePart, data: FilePart | None, *, has_time: Callable[[], bool]) -> str | None:
    """See `Member.bytes_id`; of one that cannot be read what is known without it: whoever needs its bytes is told why.

    step: to the member from `container`. data: its bytes, where they are not packed. has_time: whether they may be read
    (on).
    """
    kind, numbers = step
    told, size_bytes = (f"crc {numbers[4]}", numbers[2]) if kind == "zip" else (None, numbers[1])
    try:
        with fault_in_words():
            if has_time():
                md5 = _md5_of(data or cut_error(container, step, is_last=True), size_bytes, has_time)
                return md5 or told
            if data is not None:
                head = _md5_of(data, min(size_bytes, HEAD_BYTES), lambda: True)
                return head if head is None or size_bytes <= HEAD_BYTES else f"head {head}"
    except ArchiveError:
        pass
    return told


def _md5_of(source: Any, size_bytes: int, has_time: Callable[[], bool]) -> str | None:
    """The MD5 of the next `size_bytes` of what is open for reading; None where there are fewer, or no time is left."""
    md5, num_bytes = hashlib.md5(usedforsecurity=False), 0
    while chunk := source.read(min(2**20, size_bytes - num_bytes)):
        if not has_time():
            return None
        md5.update(chunk)
        num_bytes += len(chunk)
    return md5.hexdigest() if num_bytes == size_bytes else None
