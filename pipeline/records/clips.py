"""Clips: the record of an input, and tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, overload

import pyarrow as pa

from pipeline.records.arrow import combined, pc
from pipeline.records.columns import column, schema_of
from pipeline.records.vocabulary import SPLITS, is_class_name

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One input video (or image), or one time range of it.

    clip_id is stable across runs and machines: it is made from `path`, `size_bytes`, `content_id` and the time range,
    never from an absolute path. The range is half-open; None is the clip's own start or end. `same_as` is the clip's
    own id where its result is joined from its segments. `bytes_id`: see `storage.archives.members.Member`; it is part
    of no id, so that a clip's id and results do not depend on whether its archive was read when it was listed.
    """

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path relative to the input root")
    url: str = column("where the bytes are read")
    size_bytes: int = column("size of the file, bytes")
    content_id: str = column("the store's etag, or the MD5 of the bytes")
    label: str | None = column("true emotion, or null", default=None)
    split: str | None = column("train, validation or test, or null", default=None)
    start_pts_seconds: float | None = column("start of the range after the first frame, seconds, or null", default=None)
    end_pts_seconds: float | None = column(
        "end of the range (exclusive) after the first frame, seconds, or null", default=None
    )
    same_as: str | None = column("clip_id of a clip with the same bytes, or null", default=None)
    group_name: str | None = column("film, show or person whose clips lie in one split, or null", default=None)
    bytes_id: str | None = column(
        "where content_id does not tell the bytes: their MD5, or 'crc' or 'head' and what else tells them, or null",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.label is not None and not is_class_name(self.label):
            raise ValueError(f"clip {self.path}: label {self.label!r} is the name of no class")
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"clip {self.path}: split {self.split!r} is not one of {', '.join(SPLITS)}")
        start, end = self.start_pts_seconds, self.end_pts_seconds
        if start is not None and end is not None and end <= start:
            raise ValueError(f"clip {self.path}: it ends at {end} s, before it starts at {start} s; check the manifest")


CLIP_SCHEMA = schema_of(Clip, "one row per input clip: the plan")


def segment_id(clip_id: str, number: int) -> str:
    """The id of a segment of a clip, from 0; sorts by its number."""
    return f"{clip_id}.{number:04d}"


def whole_id(clip_id: str) -> str:
    """The id of the whole clip, given that of a segment or its own."""
    return clip_id.partition(".")[0]


def clip_of(row: Mapping[str, Any]) -> Clip:
    """The Clip of one row of a table of `CLIP_SCHEMA`."""
    return Clip(**row)


def clip_table(clips: Sequence[Clip] | pa.Table) -> pa.Table:
    """Clips as a table of CLIP_SCHEMA; of a table that has more columns, these."""
    if isinstance(clips, Clips):
        return clips.table
    if not isinstance(clips, Sequence):
        return clips.select(CLIP_SCHEMA.names)
    return pa.table({name: [getattr(clip, name) for clip in clips] for name in CLIP_SCHEMA.names}, schema=CLIP_SCHEMA)


class Clips(Sequence[Clip]):
    """Clips as a tuple of them reads and compares; each is made when it is asked for: a Clip takes 1 KB, a row 0.2 KB.

    table: rows of CLIP_SCHEMA; further columns are left out.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = clip_table(table)

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Clips: ...
    def __getitem__(self, index: int | slice) -> Clip | Clips:
        rows = range(len(self))[index]
        if isinstance(rows, range):
            return Clips(
                self.table[rows.start : rows.stop] if rows.step == 1 else self.table.take(pa.array(rows, pa.int64()))
            )
        return clip_of(self.table.slice(rows, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from map(clip_of, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Clips):
            return self.table.equals(other.table)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def is_segment(clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each id is that of a segment."""
    return pc.match_substring(clip_ids, ".")


def whole_ids(clip_ids: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """`whole_id` of each."""
    is_part = is_segment(clip_ids)
    if not pc.any(is_part).as_py():
        return clip_ids
    ids = pa.array(map(whole_id, clip_ids.filter(is_part).to_pylist()), pa.string())
    return pc.replace_with_mask(combined(clip_ids), combined(is_part), ids)
