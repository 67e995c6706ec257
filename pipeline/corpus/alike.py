"""Members of archives in a store that may have the bytes of another clip: found by their sizes, and then read.

All of a store's archives would be too much to read before the work begins. Members whose size no other clip has are not
read, nor those whose CRC-32 or first bytes another of their size lacks. Only the MD5 says that two are alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.corpus.archived import ArchiveLister, members_of
from pipeline.corpus.groups import in_parts, with_bytes
from pipeline.corpus.listing import locate, map_in_threads
from pipeline.corpus.types import CORPUS_SCHEMA, ListedFile
from pipeline.records.arrow import pc
from pipeline.storage.archives.members import Place, place_of
from pipeline.storage.contents import is_md5
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

    Raises OSError where the store of an archive fails.
    """
    if not any(pc.any(_is_likely(batch["bytes_id"])).as_py() for batch in rows):
        return rows
    wanted: dict[str, set[str]] = defaultdict(set)
    places: dict[str, Place] = {}
    for url, content_id in _meeting(rows):
        place = place_of(url)
        places.setdefault(place.file, place)
        wanted[place.file].add(content_id)
    md5s: dict[str, str] = {}
    with ArchiveLister() as lister:
        for found in map_in_threads(
            partial(_md5s_of, lister=lister), [(places[file], wanted[file]) for file in wanted]
        ):
            md5s.update(found)
    if not md5s:
        return rows
    column, read = CORPUS_SCHEMA.get_field_index("bytes_id"), BatchSpool()
    for batch in rows:
        pairs = zip(batch["content_id"].to_pylist(), batch["bytes_id"].to_pylist(), strict=True)
        values = pa.array([each and md5s.get(content_id, each) for content_id, each in pairs], pa.string())
        read.append(batch.set_column(column, CORPUS_SCHEMA.field(column), values))
    return read


def _is_likely(bytes_ids: Any) -> Any:
    """Whether each says only that two may be alike: of bytes that were not read."""
    return pc.fill_null(pc.match_substring(bytes_ids, " "), False)


def _meeting(rows: BatchSpool) -> Iterator[tuple[str, str]]:
    """The url and content id of each member that is to be read; of the same member of two copies of an archive one."""

    def choose(table: pa.Table) -> pa.Table:
        table = with_bytes(table)
        is_md5_of_all = pc.invert(pc.match_substring(table["bytes"], "-"))  # not of an object that came in parts
        return table.filter(pc.or_(_is_likely(table["bytes_id"]), is_md5_of_all))

    def part_of(table: pa.Table, num_digits: int) -> Any:
        return pc.bit_wise_and(table["size_bytes"], 16**num_digits - 1)

    for part in in_parts(rows, choose, columns=_COLUMNS, part_of=part_of):
        table = part.append_column("is_likely", _is_likely(part["bytes_id"]))
        counts = table.group_by("size_bytes").aggregate([("row", "count"), ("is_likely", "any")])
        several = counts.filter(pc.and_(pc.greater(counts["row_count"], 1), counts["is_likely_any"]))
        met = table.join(several.select(["size_bytes"]), "size_bytes", join_type="left semi")
        for _, alike in groupby(met.sort_by("size_bytes").to_pylist(), key=lambda row: row["size_bytes"]):
            yield from _to_read(list(alike))


def _to_read(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Of rows of one size those whose bytes another may have."""
    likely = {row["content_id"]: row for row in rows if row["is_likely"]}
    by_bytes_id: dict[str, int] = defaultdict(int)
    for row in likely.values():
        by_bytes_id[row["bytes_id"]] += 1
    has_read = any(not row["is_likely"] for row in rows)
    has_two_ways = len({bytes_id.partition(" ")[0] for bytes_id in by_bytes_id}) > 1
    for content_id, row in likely.items():
        if has_read or has_two_ways or by_bytes_id[row["bytes_id"]] > 1:
            yield row["url"], content_id


def _md5s_of(item: tuple[Place, set[str]], *, lister: ArchiveLister) -> dict[str, str]:
    """The MD5s of an archive's members by their content ids, of those that can be read."""
    place, content_ids = item
    name, store = locate(place.file)
    archive = ListedFile(
        path=name, place=name, store=store, size_bytes=place.num_bytes, content_id=place.content_id
    )  # fmt: skip
    try:
        members = members_of(archive, lister, read=content_ids)
    except ContentChangedError:
        return {}  # Whoever reads the clips finds out.
    found = {member.content_id: member.bytes_id or "" for member in members}
    return {each: found[each] for each in content_ids if is_md5(found.get(each, ""))}
