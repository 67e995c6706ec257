"""A corpus too large for one output is worked on in parts: `--shard 3/16` takes one, and writes `data-03-of-16`."""

from __future__ import annotations

import hashlib
import re

MAX_PARTS = 100_000
PART = re.compile(r"(.*)-(\d+)-of-(\d+)")


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of `3/16`. Raises ValueError, worded for a user, where the text is no such part."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MAX_PARTS:
        raise ValueError(f"--shard is {text!r}; give a part of a whole, as 3/16 (at most {MAX_PARTS:,} parts)")
    return int(found[1]), int(found[2])


def part_url(output: str, shard: tuple[int, int] | None) -> str:
    """The output of a part: `data` -> `data-03-of-16`; one that is of this part already, or of the whole, stays."""
    if shard is None:
        return output
    number, count = shard
    width = len(str(count))
    tail = f"-{number:0{width}d}-of-{count:0{width}d}"
    output = output.rstrip("/")
    return output if output.endswith(tail) else output + tail


def is_of_part(path: str, shard: tuple[int, int]) -> bool:
    """Whether a file of the input belongs to a part: by a hash of its path, members of an archive by the archive's."""
    number, count = shard
    digest = hashlib.sha256(f"shard {path.partition('!')[0]}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count == number - 1
