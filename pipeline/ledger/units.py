"""Units of work: fixed, sorted groups of clips; one unit is one shard a table and one ledger entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.ledger.database import Database
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_of, whole_id
from pipeline.storage.redaction import without_secrets

# A plan's rows: clips with their unit, and the earlier input at the same path whose place they take, or null.
PLAN_SCHEMA = CLIP_SCHEMA.append(pa.field("replaces", pa.string())).append(pa.field("unit", pa.string()))
KINDS = ("compute", "copies", "joins")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The clips of one shard: all of one split, or all of them copies of others, in a fixed order.

    replaced: ids of those whose path holds other bytes now; nothing is to be computed for them.
    """

    unit_id: str
    clips: tuple[Clip, ...]
    replaced: frozenset[str] = frozenset()

    @property
    def split(self) -> str | None:
        """The split of its clips."""
        return self.clips[0].split

    @property
    def number(self) -> int:
        """Which one of its generation, from 0."""
        return int(self.unit_id.rpartition("u")[2])

    @property
    def is_segment(self) -> bool:
        """Whether it is one segment of a clip that was cut."""
        return whole_id(self.clips[0].clip_id) != self.clips[0].clip_id


def units_of(rows: Iterator[Mapping[str, Any]]) -> Iterator[Unit]:
    """Units from rows of a plan, those of one unit beside one another."""
    for unit_id, group in groupby(rows, key=lambda row: row["unit"]):
        own = list(group)
        yield Unit(
            unit_id=unit_id,
            clips=tuple(clip_of({name: row[name] for name in CLIP_SCHEMA.names}) for row in own),
            replaced=frozenset(row["clip_id"] for row in own if row.get("is_replaced")),
        )


class PendingUnits:
    """Planned units without an entry, in the order of the plan; of their clips some are objects at a time.

    kinds: those to "compute", those of "copies" of other clips, those of clips that are "joins" of their segments.
    """

    def __init__(self, database: Database, *, kinds: tuple[str, ...] = KINDS) -> None:
        self._database, self._kinds = database, list(kinds)
        counts = next(database.rows("pending_counts", kinds=self._kinds))
        self.num_units: int = counts["units"]
        self.num_parts: int = counts["parts"]  # clips that are whole, and segments of the others
        self.num_segments: int = counts["segments"]
        self.num_clips: int = counts["clips"]

    def of(self, *kinds: str) -> PendingUnits:
        """Those of these kinds alone."""
        return PendingUnits(self._database, kinds=kinds)

    def __len__(self) -> int:
        return self.num_units

    def __iter__(self) -> Iterator[Unit]:
        end = 2**62
        return units_of(self._database.rows("pending_rows", kinds=self._kinds, start=0, end=end))

    def chunks(self, num_units: int) -> Iterator[list[Unit]]:
        """The units of one kind, so many at a time."""
        for start in range(0, self.num_units, num_units):
            rows = self._database.rows("pending_rows", kinds=self._kinds, start=start, end=start + num_units)
            yield list(units_of(rows))


def without_addresses(clips: pa.Table) -> pa.Table:
    """Clips with urls that may be written down: a signed address is a password, and dead the day after."""
    has_secret = pc.match_substring_regex(clips["url"], "(?i)://.*(@|[^/][?]|#|;|%(25)*(40|3F|23|3B))")
    if not pc.any(has_secret).as_py():
        return clips
    urls = [
        without_secrets(url) if secret else url
        for url, secret in zip(clips["url"].to_pylist(), has_secret.to_pylist(), strict=True)
    ]
    place = clips.schema.get_field_index("url")
    return clips.set_column(place, clips.schema.field(place), pa.array(urls, pa.string()))
