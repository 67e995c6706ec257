"""Members of archives in a store that may have the bytes of another clip: found by their sizes, and then read.

All of a store's archives would be too much to read before the work begins. Members whose size no other clip has are not
read, nor those whose CRC-32 or first bytes another of their size lacks. Only the MD5 says that two are alike.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.corpus.archived import ArchiveLister, md5s_of
from pipeline.corpus.groups import in_parts, with_bytes
from pipeline.corpus.listing import locate, map_in_threads
from pipeline.corpus.types import CORPUS_SCHEMA, ListedFile
from pipeline.records.arrow import pc
from pipeline.storage.archives.members import MEMBERS_START, archive_of, place_of, reading_order
from pipeline.storage.archives.reading import STREAM_BLOCK_BYTES
from pipeline.storage.contents import UNTOLD_URL, WEB_URL, is_md5
from pipeline.storage.remote import RangedFile
from pipeline.storage.retry import ContentChangedError
from pipeline.storage.spool import BatchSpool

_COLUMNS = ("size_bytes", "content_id", "bytes_id", "url")


def key_of_bytes(bytes_id: str, size_bytes: int) -> str:
    """What decides the split of a member by its hash: the same for the same bytes, if they are told in the same way.

    Where two ways meet, the least of their keys decides (`groups.Kin`): that of bytes that were read.
    """
    return bytes_id if is_md5(bytes_id) else f"likely {bytes_id} of {size_bytes}"


def with_bytes_read(rows: BatchSpool) -> BatchSpool:
    """The rows of a listing, with the MD5 of each member that may have the bytes of another clip.

    Objects of S3 that were uploaded in parts, and that a member may be a copy of, get it too: their etag is none.
    Raises OSError where a store fails.
    """
    wanted: dict[str, list[tuple[str, str]]] = defaultdict(list)  # archive -> url and name of each member
    objects: list[dict[str, Any]] = []
    for row in _meeting(rows):
        if row["is_member"]:
            wanted[archive_of(row["url"])].append((row["url"], _name_of(row["url"], row["content_id"])))
        else:
            objects.append(row)
    md5s = {content_id: md5 for content_id, md5 in map_in_threads(_md5_of_object, objects) if md5 is not None}
    with ArchiveLister() as lister:
        for found in map_in_threads(partial(_md5s_of, lister=lister), wanted.values()):
            md5s.update(found)
    return _with_md5s(rows, md5s) if md5s else rows


def _with_md5s(rows: BatchSpool, md5s: Mapping[str, str]) -> BatchSpool:
    """md5s: by the names of members, see `_name_of`, and by the content ids of objects."""
    place, found = CORPUS_SCHEMA.get_field_index("bytes_id"), BatchSpool()
    for batch in rows:
        values = batch["bytes_id"].to_pylist()
        is_open = pc.or_(_is_likely(batch["bytes_id"]), _is_in_parts(batch["content_id"]))
        for row in pc.indices_nonzero(is_open).to_pylist():
            values[row] = md5s.get(_name_of(batch["url"][row].as_py(), batch["content_id"][row].as_py()), values[row])
        found.append(batch.set_column(place, CORPUS_SCHEMA.field(place), pa.array(values, pa.string())))
    return found


def _name_of(url: str, content_id: str) -> str:
    """What tells a member from others: the same for copies of an archive, where its store tells which these are."""
    return url if re.search(UNTOLD_URL, url) else content_id


def _is_likely(bytes_ids: Any) -> Any:
    """Whether each says only that two may be alike: of bytes that were not read."""
    return pc.fill_null(pc.match_substring(bytes_ids, " "), False)


def _is_in_parts(content_ids: Any) -> Any:
    """Whether each is the etag of an object that was uploaded in parts."""
    return pc.match_substring_regex(content_ids, "^[0-9a-f]{32}-")


def _meeting(rows: BatchSpool) -> Iterator[dict[str, Any]]:
    """Each member and object that is to be read; of the same member of two copies of an archive one."""

    def choose(table: pa.Table) -> pa.Table:
        table = with_bytes(table)
        from_web = pc.match_substring_regex(table["url"], WEB_URL)
        return table.filter(pc.or_(pc.is_valid(table["bytes"]), pc.and_not(_is_likely(table["bytes_id"]), from_web)))

    def part_of(table: pa.Table, num_digits: int) -> Any:
        return pc.bit_wise_and(table["size_bytes"], 16**num_digits - 1)

    for part in in_parts(rows, choose, columns=_COLUMNS, part_of=part_of):
        is_likely, is_in_parts = _is_likely(part["bytes_id"]), _is_in_parts(part["content_id"])
        table = part.append_column("is_likely", is_likely).append_column("is_open", pc.or_(is_likely, is_in_parts))
        table = table.append_column("is_member", pc.starts_with(table["url"], MEMBERS_START))
        facts = [("row", "count"), ("is_open", "any"), ("is_member", "any")]
        counts = table.group_by("size_bytes").aggregate(facts)
        is_met = pc.and_(pc.greater(counts["row_count"], 1), pc.and_(counts["is_open_any"], counts["is_member_any"]))
        met = table.join(counts.filter(is_met).select(["size_bytes"]), "size_bytes", join_type="left semi")
        for _, alike in groupby(met.sort_by("size_bytes").to_pylist(), key=lambda row: row["size_bytes"]):
            yield from _to_read(list(alike))


def _to_read(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of rows of one size those whose bytes another may have."""
    opened = {_name_of(row["url"], row["content_id"]): row for row in rows if row["is_open"]}
    by_bytes_id: dict[str, int] = defaultdict(int)
    for row in opened.values():
        by_bytes_id[row["bytes_id"] or ""] += 1
    is_told = any(not row["is_open"] for row in rows)
    has_two_ways = len({bytes_id.partition(" ")[0] for bytes_id in by_bytes_id}) > 1
    for row in opened.values():
        if is_told or has_two_ways or by_bytes_id[row["bytes_id"] or ""] > 1:
            yield row


def _md5_of_object(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The content id of an object, and the MD5 of its bytes, or None where it has others by now."""
    name, store = locate(row["url"])
    size_bytes, content_id, md5 = row["size_bytes"], row["content_id"], hashlib.md5(usedforsecurity=False)
    told = {"what": f"{row['url']} cannot be read", "size_bytes": size_bytes, "content_id": content_id}
    try:
        with RangedFile(store, name, block_bytes=STREAM_BLOCK_BYTES, **told) as file:
            while chunk := file.read(STREAM_BLOCK_BYTES):
                md5.update(chunk)
    except (ContentChangedError, FileNotFoundError):
        return content_id, None  # Whoever reads the clip finds out.
    return content_id, md5.hexdigest()


def _md5s_of(members: list[tuple[str, str]], *, lister: ArchiveLister) -> dict[str, str]:
    """The MD5s of members of one archive (url and name of each) by their names, of those that can be read."""
    members.sort(key=lambda member: reading_order(member[0]))
    place = place_of(members[0][0])
    name, store = locate(place.file)
    archive = ListedFile(path=name, place=name, store=store, size_bytes=place.num_bytes, content_id=place.content_id)
    try:
        md5s = md5s_of(archive, lister, [url for url, _ in members])
    except (ContentChangedError, FileNotFoundError):
        return {}  # Whoever reads the clips finds out.
    return {name: md5 for (_, name), md5 in zip(members, md5s, strict=True) if md5 is not None}
