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

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ledger.audit import Audit, table_names
from pipeline.ledger.files import arrow_bytes, json_bytes, outcome_lines, outcomes_of, parquet_bytes, settled_outcomes
from pipeline.ledger.lock import LedgerError, RunLock
from pipeline.ledger.planning import (
    COPIES,
    UNSPLIT,
    describe_differences,
    ids_to_retry,
    reading_ranks,
    without_addresses,
)
from pipeline.ledger.snapshot import COMPACT_SCHEMA, Snapshot, in_unit_order, outcome_table
from pipeline.ledger.units import PLAN_SCHEMA, UNIT_FIELD, Unit, Units, each_once, pending_of, some_of
from pipeline.records.arrow import combined, is_among, only_rows, pc, runs_of
from pipeline.records.clips import Clip, clip_table, is_segment, joins_segments, uncut, whole_ids
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import SCHEMA_VERSION
from pipeline.storage.store import Storage

# Entries in one object, for ledgers whose entries would take minutes to fetch one by one: a copy, made anew from them.
COMPACT = "compact/entries.arrow"


ENTRIES_AT_ONCE = 1000


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
        if not self.storage.create("plan/run.json", json_bytes(info)):
            saved = self.run_info()
            self._refuse_other(saved, info)
            changed = describe_differences(saved["versions"], info["versions"])
            if changed:
                told.append(f"versions differ from those the run began with: {changed}")
        found = self.snapshot()
        if found.is_compact_stale:
            self.storage.delete(COMPACT)
        planned, given = found.inputs, uncut(parts)
        # A clip stays cut as it was planned, whatever is asked now.
        new = only_rows(parts, pc.invert(is_among(whole_ids(parts["clip_id"]), planned["clip_id"])))
        if planned.num_rows:
            place = pc.index_in(planned["clip_id"], value_set=combined(given["clip_id"]))
            gone = planned.filter(pc.is_null(place))
            kept, theirs = planned.filter(pc.is_valid(place)), given.take(pc.drop_null(place))
            differs = [
                pc.not_equal(kept[name].fill_null(""), theirs[name].fill_null("")) for name in ("label", "split")
            ]
            relabelled = kept.filter(pc.or_(*differs))
            if new.num_rows:
                told.append(f"{uncut(new).num_rows} new inputs added to the plan of {planned.num_rows}")
            if gone.num_rows:
                told.append(
                    f"{gone.num_rows} inputs of the plan are no longer in the input (kept): {some_of(gone['path'])}"
                )
            if relabelled.num_rows:
                told.append(
                    f"{relabelled.num_rows} inputs changed label or split (the plan's are kept): "
                    f"{some_of(relabelled['path'])}"
                )
        retried = found.clips_of(ids_to_retry(found))
        if retried.num_rows:
            num_retried = pc.count_distinct(whole_ids(retried["clip_id"])).as_py()
            told.append(f"{num_retried} retryable inputs are tried again")
        added = self.add_generation(pa.concat_tables([new, retried]), clips_per_shard=clips_per_shard)
        # Not joined to an empty plan: that would be another copy of it all once it is read unit by unit.
        plan = pa.concat_tables([found.plan, added]) if found.plan.num_rows else added
        return told, pending_of(plan, found.committed, parts)

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
            "rest": pc.if_else(pc.or_(is_segment(table["clip_id"]), joins_segments(table)), 0, 1),
            "order": reading_ranks(table["url"]),
            "clip_id": table["clip_id"],
        }
        place = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
        units, num_units = [], 0
        is_rest = keys["rest"].take(place)
        for group in runs_of(keys["group"].take(place)):
            rest = np.cumsum(is_rest[group.start : group.stop].to_numpy())
            numbers = np.arange(len(group)) - rest + (rest - 1) // clips_per_shard + 1 + num_units
            num_units = int(numbers[-1]) + 1
            units.append(numbers)
        names = pa.array([f"g{generation:03d}-u{number:06d}" for number in range(num_units)], pa.string())
        table = without_addresses(table).take(place).append_column(UNIT_FIELD, names.take(np.concatenate(units)))
        table = table.cast(PLAN_SCHEMA)
        self.reopen()  # First: _SUCCESS must never stand beside a plan with more to do.
        if not self.storage.create(f"plan/g{generation:03d}.arrow", arrow_bytes(table)):
            raise LedgerError(f"{self.storage.url}: another run has just extended the plan; start again")
        return table

    def units(self) -> Units:
        """Every planned unit, generation by generation."""
        return Units(self._plan())

    def planned(self) -> pa.Table:
        """Every planned clip, or segment of one, once: rows of CLIP_SCHEMA."""
        return each_once(self._plan())

    def planned_ids(self) -> pa.ChunkedArray | pa.Array:
        """The ids of all planned clips; of one that was cut, that of the whole."""
        return whole_ids(self._plan()["clip_id"])

    def pending_units(self, current: Sequence[Clip] | pa.Table = ()) -> Units:
        """Planned units without an entry. `current` clips tell where the bytes of the same ids lie today."""
        return pending_of(self._plan(), pa.array(self.committed_units(), pa.string()), clip_table(current))

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
            data = parquet_bytes(table)
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
        if self.storage.create(f"ledger/{unit.unit_id}.json", json_bytes(entry)):
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
        kept = only_rows(compact, is_among(compact["unit"], pa.array(order, pa.string())))
        heads = {head["unit"]: head for head in map(json.loads, pc.drop_null(kept["head"]).to_pylist())}
        tables = [kept.drop_columns("head")]
        missing = [unit for unit in order if unit not in heads]
        for start in range(0, len(missing), ENTRIES_AT_ONCE):
            rows: list[dict[str, Any]] = []
            for entry in self.entries(missing[start : start + ENTRIES_AT_ONCE]):
                rows += ({**row, "unit": entry["unit"]} for row in entry.pop("outcomes"))
                heads[entry["unit"]] = entry
            tables.append(outcome_table(rows))
        outcomes = pa.concat_tables(tables)
        if len(tables) > 1 and kept.num_rows:  # Else they are in the plan's order already.
            outcomes = in_unit_order(outcomes, order)
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
        return settled_outcomes(found["outcomes.jsonl"])

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
        stored = {name: size for table in table_names(found.heads) for name, size in self.storage.sizes(table).items()}
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
            problems.append(f"{len(twice)} clips are done in more than one unit: {some_of(twice)}")
        inputs = found.inputs["clip_id"]
        missing = inputs.filter(pc.invert(is_among(inputs, found.latest["clip_id"])))
        if len(missing):
            problems.append(
                f"{len(missing)} inputs have no state: {some_of(pc.take(missing, pc.sort_indices(missing)))}"
            )
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
        tables = table_names(heads) | {"examples", "frames", "tracks", "clips"}
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
        self.storage.put_stream("outcomes.jsonl", outcome_lines(found.latest))
        shards = [shard for head in found.heads for shard in head["shards"]]
        num_rows = sum(shard["rows"] for shard in shards)
        manifest = {
            **info,
            "input": input_description,
            "counts": {"inputs": audit.num_inputs, **audit.num_by_state, "rows": num_rows},
            "shards": shards,
        }
        self.storage.put("manifest.json", json_bytes(manifest))
        if found.num_read_singly > ENTRIES_AT_ONCE:
            self.storage.put(COMPACT, arrow_bytes(found.compacted()))
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
        changed = describe_differences(saved["config"], asked["config"])
        if changed:
            raise LedgerError(
                f"{self.storage.url} was begun under another config: {changed}; "
                "give the same flags, another --output, or --force-new"
            )
