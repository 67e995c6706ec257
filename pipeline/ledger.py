"""The ledger: what was planned, what is committed, what is left, and whether the sum holds.

In go clips, a config and, unit by unit, tables and outcomes; out come shards that readers may trust, a manifest and a
summary. One unit is a fixed group of clips of one split; one unit gives one shard a table and one ledger entry. A
worker writes its shard under a name of its own attempt and then creates the unit's entry; the first entry wins, and a
shard that no entry names is invisible.

    OUTPUT/plan/run.json            kind, config, versions: written first, compared on every resume
    OUTPUT/plan/g000.arrow          the clips of generation 0 with their units; later generations add, never change
    OUTPUT/ledger/g000-u000000.json the entry of a committed unit: attempt, shards with sha256, an outcome for each clip
    OUTPUT/examples/<split>/...     the shards (frames/, tracks/ and clips/ with day=.../ for scoring)
    OUTPUT/outcomes.jsonl, summary.json, manifest.json, _SUCCESS: written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.archives import MEMBERS_START, reading_order
from pipeline.records import (
    CLIP_SCHEMA,
    OUTCOME_SCHEMA,
    SCHEMA_VERSION,
    Clip,
    Outcome,
    State,
    UsageError,
    clip_of,
    clip_table,
    outcome_of,
    segment_id,
    whole_id,
)
from pipeline.storage import Storage, StorageError, without_secrets

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.
_UNIT = pa.field("unit", pa.string(), nullable=False)
PLAN_SCHEMA = CLIP_SCHEMA.append(_UNIT)
UNIT_OUTCOME_SCHEMA = OUTCOME_SCHEMA.append(_UNIT)
COMPACT_SCHEMA = UNIT_OUTCOME_SCHEMA.append(pa.field("head", pa.large_string()))
# Entries in one object, for ledgers whose entries would take minutes to fetch one by one: a copy, made anew from them.
COMPACT = "compact/entries.arrow"
ENTRIES_AT_ONCE = 1000
ROWS_AT_ONCE = 2**16
ROWS_PER_GROUP = 256
UNSPLIT = "unsplit"
COPIES = "copies"
HEARTBEAT_SECONDS = 10.0
LOCK_EXPIRES_SECONDS = 60.0
NOT_FINISHED = "not_finished"
SETTLED = ("clip_id", "state", "reason", "stage")
# Reasons of segments that a header which claims too much has made.
NOT_THERE = ("range_past_end", "no_frames")


class LedgerError(UsageError):
    """The output folder cannot be used as asked; the message names it and the cure."""


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


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Whether the ledger holds: `problems` says in words what does not."""

    num_inputs: int
    num_by_state: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        states = " + ".join(f"{count} {state}" for state, count in self.num_by_state.items())
        if self.holds:
            return f"audit: {self.num_inputs} inputs = {states}; nothing is missing"
        return f"audit FAILED: {self.num_inputs} inputs, {states}: " + "; ".join(self.problems)


class Units(Sequence[Unit]):
    """Units as a list of them reads; the clips of one are made when it is asked for.

    clips: rows of PLAN_SCHEMA, those of one unit beside one another.
    """

    def __init__(self, table: pa.Table) -> None:
        self.clips: pa.Table = table.combine_chunks()
        self._runs = _runs(self.clips["unit"])

    @property
    def num_clips(self) -> int:
        return self.num_parts - self.num_segments + pc.count_distinct(_whole_ids(self._segments)).as_py()

    @property
    def num_parts(self) -> int:
        """Clips that are whole, and segments of the others."""
        return self.clips.num_rows

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    @property
    def _segments(self) -> pa.ChunkedArray:
        return self.clips["clip_id"].filter(_is_part(self.clips["clip_id"]))

    @property
    def unit_ids(self) -> list[str]:
        return [self.clips["unit"][run.start].as_py() for run in self._runs]

    def without_copies(self) -> Units:
        """Those whose results must be computed."""
        return Units(_only(self.clips, pc.is_null(self.clips["same_as"])))

    def of_copies(self) -> Units:
        """Those of clips with the bytes of others."""
        return Units(self.clips.filter(pc.and_(pc.is_valid(self.clips["same_as"]), pc.invert(_joins(self.clips)))))

    def of_joins(self) -> Units:
        """Those of clips whose result is to be joined from their segments."""
        return Units(self.clips.filter(_joins(self.clips)))

    def without(self, unit_ids: Iterable[str]) -> Units:
        """Those that are not named."""
        return Units(_only(self.clips, pc.invert(_among(self.clips["unit"], pa.array(unit_ids, pa.string())))))

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
        outcomes = pa.concat_tables([self.outcomes, _outcome_rows(rows)])
        order = [unit for unit in pc.unique(self.plan["unit"]).to_pylist() if unit in heads]
        return replace(self, heads=[heads[unit] for unit in order], outcomes=_in_order(outcomes, order))

    @cached_property
    def clips(self) -> pa.Table:
        """Every planned clip, or segment of one, once."""
        return _each_once(self.plan)

    @cached_property
    def inputs(self) -> pa.Table:
        """Every planned clip once, and whole: its clip_id, path, label and split."""
        return _uncut(self.clips)

    def clips_of(self, clip_ids: Sequence[str] | pa.ChunkedArray) -> pa.Table:
        """The planned clips of these ids."""
        ids = clip_ids if isinstance(clip_ids, pa.ChunkedArray) else pa.array(clip_ids, pa.string())
        return self.clips.filter(_among(self.clips["clip_id"], ids))

    @cached_property
    def latest(self) -> pa.Table:
        """One row of UNIT_OUTCOME_SCHEMA for each whole clip: `latest_parts`, joined."""
        parts = self.segments
        if not parts.num_rows:
            return self.latest_parts
        rows = self.latest_parts.filter(pc.invert(_is_part(self.latest_parts["clip_id"])))
        # What a clip of its own unit joins has its outcome there.
        ids = _whole_ids(parts["clip_id"])
        has_unit = rows["clip_id"].filter(_among(rows["clip_id"], pc.unique(ids)))
        return pa.concat_tables([rows, _joined_rows(parts.filter(pc.invert(_among(ids, has_unit))))])

    @cached_property
    def segments(self) -> pa.Table:
        """The rows of `latest_parts` that are of segments, in the order of their clips and times."""
        return self.latest_parts.filter(_is_part(self.latest_parts["clip_id"])).sort_by("clip_id")

    @cached_property
    def latest_parts(self) -> pa.Table:
        """One row of UNIT_OUTCOME_SCHEMA for each clip or segment: of its latest unit, or retryable if that has no
        entry."""
        rows, repeated = pa.concat_tables([self.outcomes, _not_finished(self._waiting)]), _repeated(self.plan)
        if not len(repeated):
            return rows
        is_again = _among(rows["clip_id"], repeated)
        again = rows.filter(is_again)
        place = pc.index_in(again["unit"], value_set=pc.unique(self.plan["unit"])).to_pylist()
        last: dict[str, tuple[int, int]] = {}
        for row, (clip_id, unit) in enumerate(zip(again["clip_id"].to_pylist(), place, strict=True)):
            last[clip_id] = max(last.get(clip_id, (-1, -1)), (-1 if unit is None else unit, row))
        return pa.concat_tables([rows.filter(pc.invert(is_again)), again.take([row for _, row in last.values()])])

    def kin_of(self, clip_ids: Iterable[str]) -> pa.Table:
        """The planned clips whose results hang together with these whole clips': their segments, what joins them, and
        all that have the same bytes."""
        ids = _whole_ids(self.clips["clip_id"])
        originals = pc.coalesce(self.clips["same_as"], ids)
        return self.clips.filter(_among(originals, originals.filter(_among(ids, pa.array(clip_ids, pa.string())))))

    def segments_of(self, clip_ids: Iterable[str]) -> pa.Table:
        """The rows of `segments` of these whole clips."""
        ids = pa.array(clip_ids, pa.string())
        return self.segments.filter(_among(_whole_ids(self.segments["clip_id"]), ids))

    def outcomes_of(self, unit_ids: Iterable[str]) -> pa.Table:
        """The rows of `outcomes` of these units."""
        return self.outcomes.filter(_among(self.outcomes["unit"], pa.array(unit_ids, pa.string())))

    def latest_of(self, clip_ids: pa.ChunkedArray) -> pa.Table:
        """The row of `latest` of each of these clips, in their order."""
        return self.latest.take(pc.index_in(clip_ids, value_set=_whole(self.latest["clip_id"])))

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
        units = units.filter(_among(units, self.committed))
        came = _among(self.latest["unit"], units)
        joined = _whole_ids(self.segments.filter(_among(self.segments["unit"], units))["clip_id"])
        return _only(self.latest, pc.or_(came, _among(self.latest["clip_id"], joined)) if len(joined) else came)

    def not_planned(self, clips: pa.Table) -> list[str]:
        """What to say of inputs that the plan does not have: nothing, or one line."""
        clips = _uncut(clips)
        missing = clips.filter(pc.invert(_among(clips["clip_id"], _whole_ids(self.plan["clip_id"]))))
        return [f"{missing.num_rows} inputs are not in the plan: {_some(missing['path'])}"] if missing.num_rows else []

    def unaccounted(self) -> list[str]:
        """Committed units whose outcomes are not those of exactly the clips planned for them."""
        columns = ["unit", "clip_id"]
        planned = _only(self.plan.select(columns), _among(self.plan["unit"], self.committed))
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
        for head, run in zip(self.heads, _runs(self.outcomes["unit"]), strict=True):
            heads[run.start] = json.dumps(head)
        return self.outcomes.append_column(COMPACT_SCHEMA.field("head"), pa.array(heads, pa.large_string()))

    @cached_property
    def committed(self) -> pa.Array:
        return pa.array([head["unit"] for head in self.heads], pa.string())

    @cached_property
    def _waiting(self) -> pa.Table:
        return _only(self.plan, pc.invert(_among(self.plan["unit"], self.committed)))


class Ledger:
    """The ledger in one output folder. Reads are of what is stored, never of what this process remembers."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    # Plan

    @property
    def is_planned(self) -> bool:
        return self.storage.exists("plan/run.json")

    def run_info(self) -> dict[str, Any]:
        """kind, config, versions and input of the saved plan. Raises LedgerError if there is none."""
        try:
            return json.loads(self.storage.read("plan/run.json"))
        except FileNotFoundError:
            raise LedgerError(
                f"{self.storage.url} holds no plan (plan/run.json); give the --output folder of a run, for labels the "
                "folder model=... in it"
            ) from None

    def check(self, *, kind: str, config: Mapping[str, Any]) -> None:
        """Raise LedgerError if a run of another kind or config is here."""
        if self.is_planned:
            self._refuse_other(self.run_info(), {"kind": kind, "config": dict(config)})

    def accepts(self, *, kind: str, config: Mapping[str, Any]) -> bool:
        """Whether a run of this kind and config may begin or go on here."""
        try:
            self.check(kind=kind, config=config)
        except LedgerError:
            return False
        return True

    def plan(
        self,
        clips: Sequence[Clip] | pa.Table,
        *,
        kind: str,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        clips_per_shard: int,
    ) -> tuple[list[str], Units]:
        """Save the plan, or add to the saved one what is new; then the units without an entry, as `pending_units`.

        clips: or a table of CLIP_SCHEMA. Returns also what a person should be told, a line each. Raises LedgerError if
        the saved plan was made for another kind of job or under another config.
        """
        parts = clip_table(clips)
        info = {"schema_version": SCHEMA_VERSION, "kind": kind, "config": dict(config), "versions": dict(versions)}
        told = []
        if not self.storage.create("plan/run.json", _json(info)):
            saved = self.run_info()
            self._refuse_other(saved, info)
            changed = _differences(saved["versions"], info["versions"])
            if changed:
                told.append(f"versions differ from those the run began with: {changed}")
        found = self.snapshot()
        if found.is_compact_stale:
            self.storage.delete(COMPACT)
        planned, given = found.inputs, _uncut(parts)
        # A clip stays cut as it was planned, whatever is asked now.
        new = _only(parts, pc.invert(_among(_whole_ids(parts["clip_id"]), planned["clip_id"])))
        if planned.num_rows:
            place = pc.index_in(planned["clip_id"], value_set=_whole(given["clip_id"]))
            gone = planned.filter(pc.is_null(place))
            kept, theirs = planned.filter(pc.is_valid(place)), given.take(pc.drop_null(place))
            differs = [
                pc.not_equal(kept[name].fill_null(""), theirs[name].fill_null("")) for name in ("label", "split")
            ]
            relabelled = kept.filter(pc.or_(*differs))
            if new.num_rows:
                told.append(f"{_uncut(new).num_rows} new inputs added to the plan of {planned.num_rows}")
            if gone.num_rows:
                told.append(
                    f"{gone.num_rows} inputs of the plan are no longer in the input (kept): {_some(gone['path'])}"
                )
            if relabelled.num_rows:
                told.append(
                    f"{relabelled.num_rows} inputs changed label or split (the plan's are kept): "
                    f"{_some(relabelled['path'])}"
                )
        retried = found.clips_of(_to_retry(found))
        if retried.num_rows:
            num_retried = pc.count_distinct(_whole_ids(retried["clip_id"])).as_py()
            told.append(f"{num_retried} retryable inputs are tried again")
        added = self.add_generation(pa.concat_tables([new, retried]), clips_per_shard=clips_per_shard)
        # Not joined to an empty plan: that would be another copy of it all once it is read unit by unit.
        plan = pa.concat_tables([found.plan, added]) if found.plan.num_rows else added
        return told, _pending(plan, found.committed, parts)

    def add_generation(self, clips: Sequence[Clip] | pa.Table, *, clips_per_shard: int) -> pa.Table:
        """Append units for `clips` to the plan; the rows of PLAN_SCHEMA added. A clip's latest unit decides its
        state."""
        table = clip_table(clips)
        if not table.num_rows:
            return PLAN_SCHEMA.empty_table()
        generation = len(self._generations())
        # By id, which mixes the classes; but what lies in one compressed stream is read in its order. Each segment is a
        # unit by itself, so that a film spreads over all actors; so is the clip that joins them.
        keys = {
            "group": pc.if_else(pc.is_valid(table["same_as"]), COPIES, pc.fill_null(table["split"], UNSPLIT)),
            "rest": pc.if_else(pc.or_(_is_part(table["clip_id"]), _joins(table)), 0, 1),
            "order": _ranks(table["url"]),
            "clip_id": table["clip_id"],
        }
        place = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
        units, num_units = [], 0
        is_rest = keys["rest"].take(place)
        for group in _runs(keys["group"].take(place)):
            rest = np.cumsum(is_rest[group.start : group.stop].to_numpy())
            numbers = np.arange(len(group)) - rest + (rest - 1) // clips_per_shard + 1 + num_units
            num_units = int(numbers[-1]) + 1
            units.append(numbers)
        names = pa.array([f"g{generation:03d}-u{number:06d}" for number in range(num_units)], pa.string())
        table = _without_addresses(table).take(place).append_column(_UNIT, names.take(np.concatenate(units)))
        table = table.cast(PLAN_SCHEMA)
        self.reopen()  # First: _SUCCESS must never stand beside a plan with more to do.
        if not self.storage.create(f"plan/g{generation:03d}.arrow", _arrow(table)):
            raise LedgerError(f"{self.storage.url}: another run has just extended the plan; start again")
        return table

    def units(self) -> Units:
        """Every planned unit, generation by generation."""
        return Units(self._plan())

    def planned(self) -> pa.Table:
        """Every planned clip, or segment of one, once: rows of CLIP_SCHEMA."""
        return _each_once(self._plan())

    def planned_ids(self) -> pa.ChunkedArray | pa.Array:
        """The ids of all planned clips; of one that was cut, that of the whole."""
        return _whole_ids(self._plan()["clip_id"])

    def pending_units(self, current: Sequence[Clip] | pa.Table = ()) -> Units:
        """Planned units without an entry. `current` clips tell where the bytes of the same ids lie today."""
        return _pending(self._plan(), pa.array(self.committed_units(), pa.string()), clip_table(current))

    def take_back(self, unit_ids: Iterable[str]) -> None:
        """Make units pending again whose rows hold no more; the shards are swept once there are others."""
        self.reopen()  # First: _SUCCESS must never stand beside a plan with more to do.
        for unit_id in unit_ids:
            self.storage.delete(f"ledger/{unit_id}.json")

    # Commit

    def commit(
        self,
        unit: Unit,
        *,
        tables: Mapping[str, pa.Table],
        outcomes: Sequence[Outcome],
        facts: Mapping[str, Any],
        partition: str | None = None,
    ) -> dict[str, Any]:
        """Write the unit's shards and then its entry; returns the entry that stands (another attempt's, if first).

        partition: folder of the shards in that of their table, in place of the unit's split.
        """
        if [outcome.clip_id for outcome in outcomes] != [clip.clip_id for clip in unit.clips]:
            raise AssertionError(f"unit {unit.unit_id}: the outcomes are not those of its clips, one each")
        attempt = secrets.token_hex(6)
        shards = []
        for name, table in tables.items():
            data = _parquet(table)
            path = f"{name}/{partition or unit.split or UNSPLIT}/{unit.unit_id}-{attempt}.parquet"
            shards.append(
                {
                    "path": path,
                    "table": name,
                    "split": unit.split,
                    "unit": unit.unit_id,
                    "rows": table.num_rows,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
            self.storage.put(path, data)
        entry = {
            "unit": unit.unit_id,
            "attempt": attempt,
            "facts": dict(facts),
            "shards": shards,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        if self.storage.create(f"ledger/{unit.unit_id}.json", _json(entry)):
            return entry
        for shard in shards:
            self.storage.delete(shard["path"])
        return self.entries([unit.unit_id])[0]

    def entries(self, unit_ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The entries of committed units, sorted by unit."""
        names = self.storage.sizes("ledger") if unit_ids is None else [f"ledger/{unit_id}.json" for unit_id in unit_ids]
        found = self.storage.read_many(names)
        return [json.loads(found[name]) for name in sorted(names)]

    # Read

    def snapshot(self) -> Snapshot:
        """The plan and every committed entry, as they are stored now."""
        plan, committed = self._plan(), set(self.committed_units())
        order = pc.unique(plan["unit"]).to_pylist()
        order = [unit for unit in order if unit in committed] + sorted(committed - set(order))
        compact = self._compact()
        kept = _only(compact, _among(compact["unit"], pa.array(order, pa.string())))
        heads = {head["unit"]: head for head in map(json.loads, pc.drop_null(kept["head"]).to_pylist())}
        tables = [kept.drop_columns("head")]
        missing = [unit for unit in order if unit not in heads]
        for start in range(0, len(missing), ENTRIES_AT_ONCE):
            rows: list[dict[str, Any]] = []
            for entry in self.entries(missing[start : start + ENTRIES_AT_ONCE]):
                rows += ({**row, "unit": entry["unit"]} for row in entry.pop("outcomes"))
                heads[entry["unit"]] = entry
            tables.append(_outcome_rows(rows))
        outcomes = pa.concat_tables(tables)
        if len(tables) > 1 and kept.num_rows:  # Else they are in the plan's order already.
            outcomes = _in_order(outcomes, order)
        return Snapshot(
            plan=plan,
            heads=[heads[unit] for unit in order],
            outcomes=outcomes,
            num_read_singly=len(missing),
            is_compact_stale=kept.num_rows < compact.num_rows,
        )

    def outcomes(self) -> list[Outcome]:
        """One outcome for every planned clip, sorted by path: that of its latest unit, or retryable if that is not
        committed."""
        return list(outcomes_of(self.snapshot().latest))

    def settled(self) -> pa.Table | None:
        """The outcomes of a run with nothing left to do, without reading its entries; None if there may be some.

        The columns of `SETTLED` in outcomes.jsonl, where _SUCCESS stands and every shard of the manifest is there
        with its bytes.
        """
        if not self.storage.exists("_SUCCESS"):
            return None
        found = self.storage.read_many(["manifest.json", "outcomes.jsonl"])
        shards = json.loads(found["manifest.json"])["shards"]
        tables = {shard["table"] for shard in shards}
        stored = {name: size for table in tables for name, size in self.storage.sizes(table).items()}
        if any(stored.get(shard["path"]) != shard["bytes"] for shard in shards):
            return None
        return _outcomes_in(found["outcomes.jsonl"])

    def shards(self, table: str | None = None) -> list[dict[str, Any]]:
        """Every committed shard, sorted by unit; of one table only if named."""
        found = [shard for head in self.snapshot().heads for shard in head["shards"]]
        return [shard for shard in found if table in (None, shard["table"])]

    def audit(self, found: Snapshot | None = None) -> Audit:
        """Check that every planned clip has one state, and that every committed shard is there with its rows."""
        found = found or self.snapshot()
        problems = [
            f"unit {unit} does not account for exactly the clips planned for it" for unit in found.unaccounted()
        ]
        stored = {name: size for table in _tables(found.heads) for name, size in self.storage.sizes(table).items()}
        sums = found.outcomes.group_by("unit").aggregate([("num_examples", "sum")])
        num_examples = dict(zip(sums["unit"].to_pylist(), sums["num_examples_sum"].to_pylist(), strict=True))
        for head in found.heads:
            for shard in head["shards"]:
                if stored.get(shard["path"]) != shard["bytes"]:
                    problems.append(
                        f"shard {shard['path']} has {stored.get(shard['path'], 'no')} bytes, not {shard['bytes']} "
                        f"(put it back, or delete ledger/{head['unit']}.json and run again)"
                    )
            num_rows = num_examples.get(head["unit"], 0)
            if head["shards"] and head["shards"][0]["rows"] != num_rows:
                problems.append(f"unit {head['unit']} wrote {head['shards'][0]['rows']} rows for {num_rows} examples")
        done = found.outcomes["clip_id"].filter(pc.equal(found.outcomes["state"], State.DONE.value))
        if pc.count_distinct(done).as_py() < len(done):
            count = pc.value_counts(done)
            twice = count.field("values").filter(pc.greater(count.field("counts"), 1))
            problems.append(f"{len(twice)} clips are done in more than one unit: {_some(twice)}")
        inputs = found.inputs["clip_id"]
        missing = inputs.filter(pc.invert(_among(inputs, found.latest["clip_id"])))
        if len(missing):
            problems.append(f"{len(missing)} inputs have no state: {_some(pc.take(missing, pc.sort_indices(missing)))}")
        count = found.count("state")
        return Audit(
            num_inputs=len(inputs),
            num_by_state={str(state): count.get(state.value, 0) for state in State},
            problems=tuple(problems),
        )

    # Finish

    def sweep(self, found: Snapshot | None = None) -> list[str]:
        """Delete shards of committed units that their entries don't name, left by attempts that were killed.

        Only the holder of the lock may. What belongs to a unit without an entry stays: an actor that outlived its
        driver, or was cut off from it, may be about to commit it.
        """
        heads = (found or self.snapshot()).heads
        tables = _tables(heads) | {"examples", "frames", "tracks", "clips"}
        named = {shard["path"] for head in heads for shard in head["shards"]}
        committed = {head["unit"] for head in heads}
        orphans = [
            name
            for table in sorted(tables)
            for name in self.storage.sizes(table)
            if name not in named and PurePosixPath(name).stem.rpartition("-")[0] in committed
        ]
        for name in orphans:
            self.storage.delete(name)
        return orphans

    def finish(self, audit: Audit, *, input_description: str, found: Snapshot | None = None) -> dict[str, Any]:
        """Write outcomes.jsonl, manifest.json and, if the audit holds and nothing is pending, _SUCCESS.

        Returns the manifest.

        The manifest names neither a time nor a run, so that a rerun with nothing to do leaves it byte for byte.
        """
        found = found or self.snapshot()
        info = self.run_info()
        self.storage.put_stream("outcomes.jsonl", _lines(found.latest))
        shards = [shard for head in found.heads for shard in head["shards"]]
        num_rows = sum(shard["rows"] for shard in shards)
        manifest = {
            **info,
            "input": input_description,
            "counts": {"inputs": audit.num_inputs, **audit.num_by_state, "rows": num_rows},
            "shards": shards,
        }
        self.storage.put("manifest.json", _json(manifest))
        if found.num_read_singly > ENTRIES_AT_ONCE:
            self.storage.put(COMPACT, _arrow(found.compacted()))
        if audit.holds and not found.is_pending:
            self.storage.put("_SUCCESS", b"")
        else:
            self.reopen()
        return manifest

    def reopen(self) -> None:
        """Take back _SUCCESS before work that may change the output."""
        self.storage.delete("_SUCCESS")

    def lock(self) -> RunLock:
        """A lock on this output; use it as a context manager around everything that writes."""
        return RunLock(self.storage)

    def _generations(self) -> dict[str, int]:
        names = {name: size for name, size in self.storage.sizes("plan").items() if name.endswith(".arrow")}
        return dict(sorted(names.items(), key=lambda item: (len(item[0]), item[0])))  # g999 comes before g1000.

    def _plan(self) -> pa.Table:
        parts = [
            pa.ipc.open_file(self.storage.read(name, size_bytes=size_bytes)).read_all()
            for name, size_bytes in self._generations().items()
        ]
        return pa.concat_tables([PLAN_SCHEMA.empty_table(), *parts])

    def committed_units(self) -> list[str]:
        """The ids of the units that have an entry, sorted."""
        return [name.removeprefix("ledger/").removesuffix(".json") for name in self.storage.sizes("ledger")]

    def _compact(self) -> pa.Table:
        try:
            return pa.ipc.open_file(self.storage.read(COMPACT)).read_all()
        except FileNotFoundError:
            return COMPACT_SCHEMA.empty_table()

    def _refuse_other(self, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        if saved["kind"] != asked["kind"]:
            raise LedgerError(
                f"{self.storage.url} holds a run of kind {saved['kind']!r}, not {asked['kind']!r}; "
                "give another --output"
            )
        changed = _differences(saved["config"], asked["config"])
        if changed:
            raise LedgerError(
                f"{self.storage.url} was begun under another config: {changed}; "
                "give the same flags, another --output, or --force-new"
            )


class RunLock:
    """One run at a time on one output: an object with a heartbeat, taken over when its owner is dead or silent.

    Raises LedgerError on entry if another run holds it. An owner on this host is known to be dead at once by its
    process id and start time; one elsewhere after LOCK_EXPIRES_SECONDS of silence. A run that was silent for so long
    (its store was out of reach) and finds another's lock leaves it there, and `require` then refuses.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._hasty = Storage(storage.url, num_tries=2)  # The next heartbeat is the next try.
        process = psutil.Process()
        self._owner = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RunLock:
        if not self._storage.create("lock.json", self._body()):
            held = self._read()
            if held is not None and not _is_gone(held):
                raise LedgerError(
                    f"another run (pid {held['pid']} on {held['host']}) is writing {self._storage.url}; wait until it "
                    f"ends; if it is gone, its lock expires {LOCK_EXPIRES_SECONDS:.0f} s after its last sign of life"
                )
            self._storage.put("lock.json", self._body())
            time.sleep(0.2)  # Two runs that take over the same dead lock: the last write stands, the other sees it.
            standing = self._read()
            if standing is None or standing["token"] != self._owner["token"]:
                raise LedgerError(f"another run has just taken {self._storage.url}; wait until it ends")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # The lock then expires, and what ended the run is told.
            held = self._read()
            if held is not None and held["token"] == self._owner["token"]:
                self._hasty.delete("lock.json")

    def require(self) -> None:
        """Raise LedgerError if the lock was lost to another run, which took this one for dead."""
        held = self._read()
        if held is None or held["token"] != self._owner["token"]:
            by = f"by pid {held['pid']} on {held['host']}" if held else "by hand"
            raise LedgerError(
                f"the lock of {self._storage.url} was taken {by} while this run could not reach it; what was "
                "committed is kept; wait until the other run ends, then run the same command again"
            )

    def _body(self) -> bytes:
        return _json({**self._owner, "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._hasty.read("lock.json"))
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                held = self._read()
                if held is not None and held["token"] == self._owner["token"]:
                    self._hasty.put("lock.json", self._body())
            except (OSError, ValueError):
                continue  # A store that is down for a moment; the commits themselves will say so.


def _is_gone(held: Mapping[str, Any]) -> bool:
    if held["host"] != socket.gethostname():
        return time.time() - held["heartbeat"] > LOCK_EXPIRES_SECONDS
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    images = {field.name for field in table.schema if pa.types.is_binary(field.type)}
    # JPEG does not compress further: 0.3 % for a tenth of the speed.
    compression = {name: "none" if name in images else "zstd" for name in _leaf_columns(table.schema)}
    options: dict[str, Any] = {"compression": compression, "use_dictionary": ["clip_id", "label", "split"]}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return sink.getvalue().to_pybytes()


def _leaf_columns(schema: pa.Schema) -> list[str]:
    names = []
    for field in schema:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{child.name}" for child in field.type]
        else:
            names.append(field.name)
    return names


def _tables(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {shard["table"] for entry in entries for shard in entry["shards"]}


def _without_addresses(clips: pa.Table) -> pa.Table:
    """The clips with urls that may be written down: a signed address would be a password in a file, and is dead the day
    after; `pending_units` takes today's."""
    has_secret = pc.match_substring_regex(clips["url"], "@|%40|^https?:|https?%3A")
    if not pc.any(has_secret).as_py():
        return clips
    urls = pa.array(map(without_secrets, clips["url"].filter(has_secret).to_pylist()), pa.string())
    urls = pc.replace_with_mask(_whole(clips["url"]), _whole(has_secret), urls)
    place = clips.schema.get_field_index("url")
    return clips.set_column(place, clips.schema.field(place), urls)


def _ranks(urls: pa.ChunkedArray) -> pa.Array:
    """The place of each URL by its `reading_order`; 0 for those of files, most often all."""
    is_ordered = _whole(pc.starts_with(urls, MEMBERS_START))
    orders = [reading_order(url) for url in urls.filter(is_ordered).to_pylist()]
    rank = {order: number for number, order in enumerate(sorted({(), *orders}))}
    found = pa.array([rank[order] for order in orders], pa.int64())
    return pc.replace_with_mask(pa.repeat(pa.scalar(0, pa.int64()), len(urls)), is_ordered, found)


def _to_retry(found: Snapshot) -> pa.ChunkedArray | pa.Array:
    """The ids of clips and segments whose latest unit ended retryable."""
    is_retryable = pc.field("state") == State.RETRYABLE.value
    if not found.outcomes.filter(is_retryable).num_rows:
        return pa.array([], pa.string())  # `latest_parts` has a row for each that is not finished: maybe millions.
    return found.latest_parts.filter(is_retryable & (pc.field("reason") != NOT_FINISHED))["clip_id"]


def _pending(plan: pa.Table, committed: pa.Array, given: pa.Table) -> Units:
    waiting = _only(plan, pc.invert(_among(plan["unit"], committed)))
    place = pc.index_in(_whole_ids(waiting["clip_id"]), value_set=_whole(_whole_ids(given["clip_id"])))
    urls = given["url"].take(place)
    place = PLAN_SCHEMA.get_field_index("url")
    return Units(waiting.set_column(place, PLAN_SCHEMA.field("url"), pc.coalesce(urls, waiting["url"])))


def joined(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome for each whole clip, in the order given, out of those of its segments.

    retryable while any segment is; else done, if any gave examples: `detail` names what is missing of it.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(whole_id(outcome.clip_id), []).append(outcome)
    return [_joined(clip_id, parts) for clip_id, parts in groups.items()]


def _joined(clip_id: str, parts: Sequence[Outcome]) -> Outcome:
    if [part.clip_id for part in parts] == [clip_id]:
        return parts[0]
    real = [part for part in parts if part.reason not in NOT_THERE] or list(parts)
    by_state = {state: [part for part in real if part.state is state] for state in State}
    order = (State.RETRYABLE, State.DONE, State.QUARANTINED, State.NO_FACE)
    state = next(state for state in order if by_state[state])
    first = by_state[state][0]
    failed = by_state[State.QUARANTINED]
    told = first.detail
    if failed:
        told = (
            f"{len(failed)} of {len(real)} segments are quarantined, the first: {failed[0].reason}: {failed[0].detail}"
        )
    weights = [(part.decode_integrity, max(1, part.num_frames)) for part in real if part.decode_integrity is not None]
    return replace(
        first,
        clip_id=clip_id,
        detail=told,
        num_frames=sum(part.num_frames for part in real),
        num_faceless_frames=sum(part.num_faceless_frames for part in real),
        num_examples=sum(part.num_examples for part in parts),
        num_examples_dropped=sum(part.num_examples_dropped for part in real),
        num_boxes_clamped=sum(part.num_boxes_clamped for part in real),
        attempts=max(part.attempts for part in real),
        seconds=round(sum(part.seconds for part in parts), 3),
        decode_integrity=sum(a * b for a, b in weights) / sum(b for _, b in weights) if weights else None,
    )


def _joined_rows(parts: pa.Table) -> pa.Table:
    """`joined` of sorted rows of UNIT_OUTCOME_SCHEMA, under the unit of the first segment of each."""
    units = {whole_id(row["clip_id"]): row["unit"] for row in reversed(parts.select(["clip_id", "unit"]).to_pylist())}
    whole = joined(map(outcome_of, parts.select(OUTCOME_SCHEMA.names).to_pylist()))
    return _outcome_rows([{**asdict(outcome), "unit": units[outcome.clip_id]} for outcome in whole])


def outcomes_of(table: pa.Table) -> Iterator[Outcome]:
    """The outcomes of a table of OUTCOME_SCHEMA, sorted by path."""
    return map(outcome_of, _rows(table))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    return rows_of(table.select(OUTCOME_SCHEMA.names).sort_by([("path", "ascending"), ("clip_id", "ascending")]))


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table of any length, one after the other, of which only some are objects at a time."""
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _lines(table: pa.Table) -> Iterator[bytes]:
    return (f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in _rows(table))


def _outcomes_in(lines: bytes) -> pa.Table:
    """The columns of `SETTLED` from outcomes.jsonl."""
    schema = pa.schema([OUTCOME_SCHEMA.field(name) for name in SETTLED])
    if not lines:
        return schema.empty_table()
    parsing = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema([(field.name, field.type) for field in schema]), unexpected_field_behavior="ignore"
    )
    # In larger blocks and threads it took twice the memory for 100,000 clips, and no less time.
    reading = pyarrow.json.ReadOptions(block_size=2**20, use_threads=False)
    return pyarrow.json.read_json(pa.BufferReader(lines), read_options=reading, parse_options=parsing).cast(schema)


def _outcome_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    # JSON may hold lone surrogates, of a name that is no UTF-8; a column may not.
    clean = [
        {
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    return pa.Table.from_pylist(clean, schema=UNIT_OUTCOME_SCHEMA)


def _in_order(outcomes: pa.Table, unit_ids: Sequence[str]) -> pa.Table:
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


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=ROWS_AT_ONCE)
    return sink.getvalue().to_pybytes()


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _among(column: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Whether each value of `column` is one of `values`."""
    return pc.is_in(column, value_set=_whole(values))


def _only(table: pa.Table, mask: pa.ChunkedArray | pa.Array) -> pa.Table:
    """The rows where `mask` is true: the table itself, and no copy of it, where all are."""
    return table if pc.all(mask, skip_nulls=False).as_py() else table.filter(mask)


def _is_part(clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each id is that of a segment."""
    return pc.match_substring(clip_ids, ".")


def _joins(clips: pa.Table) -> pa.ChunkedArray:
    """`Clip.joins_segments` of each row."""
    return pc.fill_null(pc.equal(clips["same_as"], clips["clip_id"]), False)


def _whole_ids(clip_ids: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """`whole_id` of each."""
    is_part = _is_part(clip_ids)
    if not pc.any(is_part).as_py():
        return clip_ids
    ids = pa.array(map(whole_id, clip_ids.filter(is_part).to_pylist()), pa.string())
    return pc.replace_with_mask(_whole(clip_ids), _whole(is_part), ids)


def whole_clips(clips: pa.Table) -> pa.Table:
    """The rows of CLIP_SCHEMA that are of whole clips; one that joins its segments has no `same_as` in them."""
    is_part = _is_part(clips["clip_id"])
    if not pc.any(is_part).as_py():
        return clips  # Not a copy of what may be a million rows.
    place = CLIP_SCHEMA.get_field_index("same_as")
    same_as = pc.if_else(_joins(clips), pa.scalar(None, pa.string()), clips["same_as"])
    return clips.set_column(place, CLIP_SCHEMA.field(place), same_as).filter(pc.invert(is_part))


def _repeated(plan: pa.Table) -> pa.Array:
    """The ids of clips that were planned more than once, as only later generations do."""
    later = plan.filter(pc.invert(pc.starts_with(plan["unit"], "g000-")))["clip_id"]
    found = pc.value_counts(plan["clip_id"].filter(_among(plan["clip_id"], later)))
    return found.field("values").filter(pc.greater(found.field("counts"), 1))


def _each_once(plan: pa.Table) -> pa.Table:
    """The rows of the plan without their units, each clip or segment once."""
    clips, repeated = plan.drop_columns("unit"), _repeated(plan)
    if not len(repeated):
        return clips
    again = _among(clips["clip_id"], repeated)
    first = pc.index_in(repeated, value_set=_whole(clips["clip_id"]))
    return pa.concat_tables([clips.filter(pc.invert(again)), clips.take(first)])


def _uncut(clips: pa.Table) -> pa.Table:
    """One row for each whole clip: its clip_id, path, label and split."""
    joins, clips = _joins(clips), clips.select(["clip_id", "path", "label", "split"])
    is_part = _is_part(clips["clip_id"])
    if not pc.any(is_part).as_py():
        return clips
    is_whole = pc.invert(pc.or_(is_part, joins))
    clips = clips.filter(pc.or_(is_whole, pc.ends_with(clips["clip_id"], segment_id("", 0))))
    return clips.set_column(0, clips.schema.field(0), _whole_ids(clips["clip_id"]))


def _runs(column: pa.ChunkedArray) -> list[range]:
    """The ranges of rows of equal neighbours."""
    ends = pc.run_end_encode(_whole(column)).run_ends.to_pylist() if len(column) else []
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = sorted(set(saved) | set(asked))
    return ", ".join(
        f"{name} {saved.get(name)!r} -> {asked.get(name)!r}" for name in names if saved.get(name) != asked.get(name)
    )


def _some(names: pa.ChunkedArray | pa.Array, *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most].to_pylist()) + more


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=True, default=os.fspath) + "\n").encode()
