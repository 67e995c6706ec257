"""A ledger at one moment, in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ledger.units import UNIT_FIELD, Units, each_once, repeated_ids, some_of
from pipeline.records.arrow import combined, is_among, only_rows, pc, runs_of
from pipeline.records.clips import is_segment, uncut, whole_id, whole_ids
from pipeline.records.outcomes import OUTCOME_SCHEMA, State, joined, outcome_of

UNIT_OUTCOME_SCHEMA = OUTCOME_SCHEMA.append(UNIT_FIELD)


COMPACT_SCHEMA = UNIT_OUTCOME_SCHEMA.append(pa.field("head", pa.large_string()))


NOT_FINISHED = "not_finished"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A ledger at one moment, in columns: as objects, ten million clips would not fit into memory.

    plan: rows of PLAN_SCHEMA, unit by unit. heads: of each committed unit, in the plan's order, its entry without the
    outcomes. outcomes: rows of UNIT_OUTCOME_SCHEMA of these units, in the same order.
    """

    plan: pa.Table
    heads: list[dict[str, Any]]
    outcomes: pa.Table
    num_read_singly: int
    is_compact_stale: bool

    @property
    def is_pending(self) -> bool:
        """Whether a planned unit has no entry."""
        return bool(self._waiting.num_rows)

    @property
    def pending(self) -> Units:
        """Planned units without an entry."""
        return Units(self._waiting)

    def with_entries(self, entries: Iterable[Mapping[str, Any]]) -> Snapshot:
        """The same with entries that were committed since."""
        heads = {head["unit"]: head for head in self.heads}
        rows: list[dict[str, Any]] = []
        for entry in entries:
            heads[entry["unit"]] = {name: value for name, value in entry.items() if name != "outcomes"}
            rows += ({**row, "unit": entry["unit"]} for row in entry["outcomes"])
        outcomes = pa.concat_tables([self.outcomes, outcome_table(rows)])
        order = [unit for unit in pc.unique(self.plan["unit"]).to_pylist() if unit in heads]
        return replace(self, heads=[heads[unit] for unit in order], outcomes=in_unit_order(outcomes, order))

    @cached_property
    def clips(self) -> pa.Table:
        """Every planned clip, or segment of one, once."""
        return each_once(self.plan)

    @cached_property
    def inputs(self) -> pa.Table:
        """Every planned clip once, and whole: its clip_id, path, label and split."""
        return uncut(self.clips)

    def clips_of(self, clip_ids: Sequence[str] | pa.ChunkedArray) -> pa.Table:
        """The planned clips of these ids."""
        ids = clip_ids if isinstance(clip_ids, pa.ChunkedArray) else pa.array(clip_ids, pa.string())
        return self.clips.filter(is_among(self.clips["clip_id"], ids))

    @cached_property
    def latest(self) -> pa.Table:
        """One row of UNIT_OUTCOME_SCHEMA for each whole clip: `latest_parts`, joined."""
        parts = self.segments
        if not parts.num_rows:
            return self.latest_parts
        rows = self.latest_parts.filter(pc.invert(is_segment(self.latest_parts["clip_id"])))
        # What a clip of its own unit joins has its outcome there.
        ids = whole_ids(parts["clip_id"])
        has_unit = rows["clip_id"].filter(is_among(rows["clip_id"], pc.unique(ids)))
        return pa.concat_tables([rows, _joined_rows(parts.filter(pc.invert(is_among(ids, has_unit))))])

    @cached_property
    def segments(self) -> pa.Table:
        """The rows of `latest_parts` that are of segments, in the order of their clips and times."""
        return self.latest_parts.filter(is_segment(self.latest_parts["clip_id"])).sort_by("clip_id")

    @cached_property
    def latest_parts(self) -> pa.Table:
        """One row of UNIT_OUTCOME_SCHEMA for each clip or segment: of its latest unit, or retryable if that has no
        entry."""
        rows, repeated = pa.concat_tables([self.outcomes, _not_finished(self._waiting)]), repeated_ids(self.plan)
        if not len(repeated):
            return rows
        is_again = is_among(rows["clip_id"], repeated)
        again = rows.filter(is_again)
        place = pc.index_in(again["unit"], value_set=pc.unique(self.plan["unit"])).to_pylist()
        last: dict[str, tuple[int, int]] = {}
        for row, (clip_id, unit) in enumerate(zip(again["clip_id"].to_pylist(), place, strict=True)):
            last[clip_id] = max(last.get(clip_id, (-1, -1)), (-1 if unit is None else unit, row))
        return pa.concat_tables([rows.filter(pc.invert(is_again)), again.take([row for _, row in last.values()])])

    def kin_of(self, clip_ids: Iterable[str]) -> pa.Table:
        """The planned clips whose results hang together with these whole clips': their segments, what joins them, and
        all that have the same bytes."""
        ids = whole_ids(self.clips["clip_id"])
        originals = pc.coalesce(self.clips["same_as"], ids)
        return self.clips.filter(is_among(originals, originals.filter(is_among(ids, pa.array(clip_ids, pa.string())))))

    def segments_of(self, clip_ids: Iterable[str]) -> pa.Table:
        """The rows of `segments` of these whole clips."""
        ids = pa.array(clip_ids, pa.string())
        return self.segments.filter(is_among(whole_ids(self.segments["clip_id"]), ids))

    def outcomes_of(self, unit_ids: Iterable[str]) -> pa.Table:
        """The rows of `outcomes` of these units."""
        return self.outcomes.filter(is_among(self.outcomes["unit"], pa.array(unit_ids, pa.string())))

    def latest_of(self, clip_ids: pa.ChunkedArray) -> pa.Table:
        """The row of `latest` of each of these clips, in their order."""
        return self.latest.take(pc.index_in(clip_ids, value_set=combined(self.latest["clip_id"])))

    def count(self, column: str) -> dict[Any, int]:
        """How many clips have each value of a column of `latest`."""
        found = pc.value_counts(self.latest[column])
        return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))

    def reasons(self) -> dict[tuple[str, str], int]:
        """How many clips ended in each state for each reason, sorted; done has none."""
        told = self.latest.filter(pc.is_valid(self.latest["reason"]))
        found = told.group_by(["state", "reason"]).aggregate([([], "count_all")]).to_pylist()
        return {
            (row["state"], row["reason"]): row["count_all"]
            for row in sorted(found, key=lambda row: (row["state"], row["reason"]))
        }

    def total(self, column: str) -> int:
        """The sum of a column of `latest`."""
        return pc.sum(self.latest[column]).as_py() or 0

    def of_units(self, unit_ids: Iterable[str]) -> pa.Table:
        """The rows of `latest` of which something came with these units, as far as they are committed."""
        units = pa.array(unit_ids, pa.string())
        units = units.filter(is_among(units, self.committed))
        came = is_among(self.latest["unit"], units)
        joined = whole_ids(self.segments.filter(is_among(self.segments["unit"], units))["clip_id"])
        return only_rows(self.latest, pc.or_(came, is_among(self.latest["clip_id"], joined)) if len(joined) else came)

    def not_planned(self, clips: pa.Table) -> list[str]:
        """What to say of inputs that the plan does not have: nothing, or one line."""
        clips = uncut(clips)
        missing = clips.filter(pc.invert(is_among(clips["clip_id"], whole_ids(self.plan["clip_id"]))))
        return (
            [f"{missing.num_rows} inputs are not in the plan: {some_of(missing['path'])}"] if missing.num_rows else []
        )

    def unaccounted(self) -> list[str]:
        """Committed units whose outcomes are not those of exactly the clips planned for them."""
        columns = ["unit", "clip_id"]
        planned = only_rows(self.plan.select(columns), is_among(self.plan["unit"], self.committed))
        ended = self.outcomes.select(columns)
        if ended.equals(planned.cast(ended.schema)):
            return []
        found: tuple[dict[str, list[str]], ...] = ({}, {})
        for table, by_unit in zip((planned, ended), found, strict=True):
            for row in table.to_pylist():
                by_unit.setdefault(row["unit"], []).append(row["clip_id"])
        units = [head["unit"] for head in self.heads]
        return [unit for unit in units if sorted(found[0].get(unit, [])) != sorted(found[1].get(unit, []))]

    def compacted(self) -> pa.Table:
        """Rows of COMPACT_SCHEMA: the outcomes, and beside the first of each unit its head."""
        heads: list[str | None] = [None] * self.outcomes.num_rows
        for head, run in zip(self.heads, runs_of(self.outcomes["unit"]), strict=True):
            heads[run.start] = json.dumps(head)
        return self.outcomes.append_column(COMPACT_SCHEMA.field("head"), pa.array(heads, pa.large_string()))

    @cached_property
    def committed(self) -> pa.Array:
        return pa.array([head["unit"] for head in self.heads], pa.string())

    @cached_property
    def _waiting(self) -> pa.Table:
        return only_rows(self.plan, pc.invert(is_among(self.plan["unit"], self.committed)))


def _joined_rows(parts: pa.Table) -> pa.Table:
    """`joined` of sorted rows of UNIT_OUTCOME_SCHEMA, under the unit of the first segment of each."""
    units = {whole_id(row["clip_id"]): row["unit"] for row in reversed(parts.select(["clip_id", "unit"]).to_pylist())}
    whole = joined(map(outcome_of, parts.select(OUTCOME_SCHEMA.names).to_pylist()))
    return outcome_table([{**asdict(outcome), "unit": units[outcome.clip_id]} for outcome in whole])


def outcome_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    # JSON may hold lone surrogates, of a name that is no UTF-8; a column may not.
    clean = [
        {
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    return pa.Table.from_pylist(clean, schema=UNIT_OUTCOME_SCHEMA)


def in_unit_order(outcomes: pa.Table, unit_ids: Sequence[str]) -> pa.Table:
    """The rows in the order of their units."""
    place = pc.index_in(outcomes["unit"], value_set=pa.array(unit_ids, pa.string()))
    return outcomes.take(np.argsort(place.to_numpy(), kind="stable"))


def _not_finished(clips: pa.Table) -> pa.Table:
    """The outcomes of planned clips whose unit is not committed."""
    fixed = {
        "state": State.RETRYABLE.value,
        "reason": NOT_FINISHED,
        "detail": "the run ended before this clip's unit was committed; run the same command again",
    }
    columns = {}
    for field in UNIT_OUTCOME_SCHEMA:
        if field.name in clips.column_names:
            columns[field.name] = clips[field.name]
        elif field.name in fixed:
            columns[field.name] = pa.repeat(pa.scalar(fixed[field.name]), clips.num_rows)
        elif field.nullable:
            columns[field.name] = pa.nulls(clips.num_rows, field.type)
        else:
            columns[field.name] = pa.repeat(pa.scalar(0, field.type), clips.num_rows)
    return pa.table(columns, schema=UNIT_OUTCOME_SCHEMA)
