"""Units of work: fixed groups of clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa

from pipeline.records.arrow import combined, is_among, only_rows, pc, runs_of
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_of, is_segment, joins_segments, whole_id, whole_ids

UNIT_FIELD = pa.field("unit", pa.string(), nullable=False)


PLAN_SCHEMA = CLIP_SCHEMA.append(UNIT_FIELD)


ROWS_AT_ONCE = 2**16


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The clips of one shard: all of one split, or all of them copies of others, in a fixed order."""

    unit_id: str
    clips: tuple[Clip, ...]

    @property
    def split(self) -> str | None:
        return self.clips[0].split

    @property
    def number(self) -> int:
        """Which one of its generation, from 0."""
        return int(self.unit_id.rpartition("u")[2])

    @property
    def is_of_copies(self) -> bool:
        """Whether its clips have the bytes of others, whose results count for them: nothing is to be computed."""
        return self.clips[0].same_as is not None

    @property
    def joins_segments(self) -> bool:
        """Whether its one clip was cut, so that its result is to be joined when its segments have ended."""
        return self.clips[0].joins_segments

    @property
    def is_segment(self) -> bool:
        return whole_id(self.clips[0].clip_id) != self.clips[0].clip_id


class Units(Sequence[Unit]):
    """Units as a list of them reads; the clips of one are made when it is asked for.

    clips: rows of PLAN_SCHEMA, those of one unit beside one another.
    """

    def __init__(self, table: pa.Table) -> None:
        self.clips: pa.Table = table.combine_chunks()
        self._runs = runs_of(self.clips["unit"])

    @property
    def num_clips(self) -> int:
        return self.num_parts - self.num_segments + pc.count_distinct(whole_ids(self._segments)).as_py()

    @property
    def num_parts(self) -> int:
        """Clips that are whole, and segments of the others."""
        return self.clips.num_rows

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    @property
    def _segments(self) -> pa.ChunkedArray:
        return self.clips["clip_id"].filter(is_segment(self.clips["clip_id"]))

    @property
    def unit_ids(self) -> list[str]:
        return [self.clips["unit"][run.start].as_py() for run in self._runs]

    def without_copies(self) -> Units:
        """Those whose results must be computed."""
        return Units(only_rows(self.clips, pc.is_null(self.clips["same_as"])))

    def of_copies(self) -> Units:
        """Those of clips with the bytes of others."""
        return Units(
            self.clips.filter(pc.and_(pc.is_valid(self.clips["same_as"]), pc.invert(joins_segments(self.clips))))
        )

    def of_joins(self) -> Units:
        """Those of clips whose result is to be joined from their segments."""
        return Units(self.clips.filter(joins_segments(self.clips)))

    def without(self, unit_ids: Iterable[str]) -> Units:
        """Those that are not named."""
        return Units(only_rows(self.clips, pc.invert(is_among(self.clips["unit"], pa.array(unit_ids, pa.string())))))

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> Units: ...
    def __getitem__(self, index: int | slice) -> Unit | Units:
        if isinstance(index, slice):
            parts = [self.clips[run.start : run.stop] for run in self._runs[index]]
            return Units(pa.concat_tables(parts) if parts else self.clips[:0])
        run = self._runs[index]
        rows = self.clips[run.start : run.stop].to_pylist()
        return Unit(
            unit_id=rows[0]["unit"],
            clips=tuple(clip_of({name: row[name] for name in CLIP_SCHEMA.names}) for row in rows),
        )


def pending_of(plan: pa.Table, committed: pa.Array, given: pa.Table) -> Units:
    waiting = only_rows(plan, pc.invert(is_among(plan["unit"], committed)))
    place = pc.index_in(whole_ids(waiting["clip_id"]), value_set=combined(whole_ids(given["clip_id"])))
    urls = given["url"].take(place)
    place = PLAN_SCHEMA.get_field_index("url")
    return Units(waiting.set_column(place, PLAN_SCHEMA.field("url"), pc.coalesce(urls, waiting["url"])))


def repeated_ids(plan: pa.Table) -> pa.Array:
    """The ids of clips that were planned more than once, as only later generations do."""
    later = plan.filter(pc.invert(pc.starts_with(plan["unit"], "g000-")))["clip_id"]
    found = pc.value_counts(plan["clip_id"].filter(is_among(plan["clip_id"], later)))
    return found.field("values").filter(pc.greater(found.field("counts"), 1))


def each_once(plan: pa.Table) -> pa.Table:
    """The rows of the plan without their units, each clip or segment once."""
    clips, repeated = plan.drop_columns("unit"), repeated_ids(plan)
    if not len(repeated):
        return clips
    again = is_among(clips["clip_id"], repeated)
    first = pc.index_in(repeated, value_set=combined(clips["clip_id"]))
    return pa.concat_tables([clips.filter(pc.invert(again)), clips.take(first)])


def some_of(names: pa.ChunkedArray | pa.Array, *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most].to_pylist()) + more
