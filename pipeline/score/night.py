"""One night on a bucket that changes: what is new to a model, copies of what it knows, and how the night went.

A clip is known by its content, not by its name or date: the same bytes under another name get a row of their own,
copied from the first clip's (`Clip.same_as`), and no actor. Each model has a partition of the output, which is a ledger
of its own:

    OUTPUT/model=0123456789ab/{frames,tracks,clips}/day=2026-11-22/*.parquet   by the day of the run
    OUTPUT/model=0123456789ab/nights/2026-11-22.json                           the night's figures, for drift
    OUTPUT/model=0123456789ab/{plan,ledger}/, outcomes.jsonl, summary.json, manifest.json, _SUCCESS
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.ledger.files import json_bytes
from pipeline.ledger.ledger import ENTRIES_AT_ONCE, Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.columns import classes_in, with_classes
from pipeline.records.evolution import read_shard
from pipeline.records.faces import CLIP_LABEL_SCHEMA, FRAME_SCHEMA, ClipLabel
from pipeline.records.outcomes import Outcome, State
from pipeline.score.drift import DRIFT_NIGHTS, drift, night_record, read_nights

# Measured: 0.6 core-seconds a clip of a second, 8 frames, Dlib's CNN in bf16. Used until a night was measured.
DEFAULT_SECONDS_PER_CLIP = 0.6
SHARDS_KEPT = 64


@dataclass(frozen=True, kw_only=True)
class Night:
    """How many clips of each kind a run has to do.

    num_cut_off: planned before, never finished. num_older: not scored, and not modified since --since. num_later: not
    scored, and left to the next run by --limit.
    """

    num_known: int
    num_new: int = 0
    num_copies: int = 0
    num_retryable: int = 0
    num_cut_off: int = 0
    num_older: int = 0
    num_later: int = 0

    @property
    def num_to_score(self) -> int:
        """Clips that actors get."""
        return self.num_new + self.num_retryable + self.num_cut_off


def plan_night(
    snapshot: Snapshot, *, since: float | None = None, limit: int | None = None, paths_matter: bool = False
) -> Night:
    """Leave of the snapshot's given clips those that a night plans.

    Args:
        since: seconds of the epoch; clips whose store gives no time count as modified just now.
        limit: new contents to score, first by path; what is retryable or was cut off is done besides.
        paths_matter: whether the path decides a clip's result too (given boxes), so that no clip is like another.
    """
    counts = snapshot.choose_night(paths_matter=paths_matter, since=since, limit=limit)
    num_copies = counts.pop("num_copies") + counts.pop("num_copies_left")
    return Night(num_copies=num_copies, **counts)


def describe_night(night: Night) -> str:
    """What a night has to do, in one line."""
    again = {
        f"{night.num_retryable} of them tried again": night.num_retryable,
        f"{night.num_cut_off} of them cut off before and done now": night.num_cut_off,
    }
    rest = {
        f"{night.num_copies} with the bytes of a scored one": night.num_copies,
        f"{night.num_older} older than --since (left)": night.num_older,
        f"{night.num_later} beyond --limit (left)": night.num_later,
    }
    of_known, told = ("".join(f", {text}" for text, count in each.items() if count) for each in (again, rest))
    return f"{night.num_known} known to this model{of_known}, {night.num_new} new{told}"


def partition_of(output: str, checkpoint_sha256: str) -> str:
    """The folder of one model's labels in an output."""
    return f"{output.rstrip('/')}/model={checkpoint_sha256[:12]}"


def estimated_seconds(ledger: Ledger, night: Night) -> tuple[float, str]:
    """Core-seconds of what is to be scored, and where the figure comes from in words."""
    records = read_nights(ledger)
    num_clips = sum(record["clips"] for record in records)
    if num_clips:
        each = sum(record["core_seconds"] for record in records) / num_clips
        return each * night.num_to_score, f"{each:.2f} core-seconds a clip, measured in {len(records)} nights"
    each = DEFAULT_SECONDS_PER_CLIP
    return each * night.num_to_score, f"{each:.2f} core-seconds a clip, a guess until a night was measured"


def close_night(ledger: Ledger, snapshot: Snapshot, *, day: str) -> dict[str, Any]:
    """The end of a night, once every unit was tried: rows of copies, the night's record, and its drift.

    Returns what the summary says of it. A night in which nothing was scored has no record.
    """
    summary: dict[str, Any] = {"same_content": commit_copies(ledger, snapshot, day=day)}
    classes = classes_in(ledger.run_info())
    by_day = {row["day"]: row for row in snapshot.database.rows("night_figures")}
    # Not tonight's alone: a night whose driver was killed has no record yet, or an old one, and any may be damaged.
    days = sorted(each for each in by_day if each <= day)[-DRIFT_NIGHTS - 1 :]
    for each in {*days, *sorted(by_day)[-DRIFT_NIGHTS:]}:
        record = night_record(by_day[each], classes=classes)
        ledger.storage.put(f"nights/{each}.json", (json.dumps(record, indent=1) + "\n").encode())
    if day in by_day:
        nights = {record["day"]: record for record in read_nights(ledger, until=day)}
        tonight = nights.pop(day)
        summary |= {"night": tonight, "drift": drift(tonight, list(nights.values()))}
    return summary


def commit_copies(ledger: Ledger, snapshot: Snapshot, *, day: str) -> int:
    """Commit the planned copies of clips that have ended; returns how many got their row."""
    units = snapshot.pending().of("copies")
    if not units:
        return 0
    classes = classes_in(ledger.run_info())
    label_schema, frame_schema = (with_classes(each, classes) for each in (CLIP_LABEL_SCHEMA, FRAME_SCHEMA))

    @lru_cache(maxsize=SHARDS_KEPT)
    def read_labels(path: str) -> pa.Table:
        return read_shard(ledger.storage.read(path), ClipLabel, CLIP_LABEL_SCHEMA)

    entries, num_copies = dict[str, bytes](), 0
    copies = groupby(snapshot.settle("latest").database.rows("copies"), key=lambda row: row["unit"])
    for unit, (_, group) in zip(units, copies, strict=True):  # Both in the order of the plan.
        rows = list(group)
        if any(row["original_unit"] is None and row["state"] != State.CHANGED for row in rows):
            continue  # The original waits for the next run, and so do the copies.
        labels = [label for row in rows for label in _labels_of(row, read_labels)]
        metadata = read_labels(rows[0]["shard"]).schema.metadata if rows[0]["shard"] else {}
        table = pa.Table.from_pylist(labels, schema=label_schema).replace_schema_metadata(metadata)
        entry = ledger.commit(
            unit,
            tables={"frames": frame_schema.empty_table(), "clips": table},
            outcomes=[_outcome_of_copy(row) for row in rows],
            facts={},
            partition=f"day={day}",
        )
        entries[unit.unit_id] = json_bytes(entry)
        num_copies += len(labels)
        if len(entries) >= ENTRIES_AT_ONCE:
            ledger.compact(snapshot.add_entries(entries))
            entries = {}
    snapshot.add_entries(entries)
    return num_copies


def _labels_of(copy: Mapping[str, Any], read_labels: Any) -> Sequence[dict[str, Any]]:
    """The copy's row: its original's under its own id and path. None where the original's bytes were never read."""
    if copy["state"] == State.CHANGED:
        return []
    table = read_labels(copy["shard"])
    own = table.filter(pc.equal(table["clip_id"], copy["same_as"])).to_pylist()
    return [{**row, "clip_id": copy["clip_id"], "path": copy["path"], "same_as": copy["same_as"]} for row in own]


def _outcome_of_copy(copy: Mapping[str, Any]) -> Outcome:
    if copy["state"] == State.CHANGED:
        state, reason = State.RETRYABLE, "original_changed"
        detail = f"{copy['original_path']} has other bytes now: the next run reads this clip itself"
    else:
        state, reason, detail = State(copy["state"]), copy["reason"], f"the same bytes as {copy['original_path']}"
    return Outcome(
        clip_id=copy["clip_id"],
        path=copy["path"],
        state=state,
        reason=reason,
        stage=copy["stage"],
        detail=detail,
        attempts=0,
    )
