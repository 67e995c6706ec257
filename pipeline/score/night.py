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
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pipeline.corpus.types import Corpus
from pipeline.ledger.files import SETTLED
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import NOT_FINISHED, Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_table, whole_clips
from pipeline.records.faces import CLIP_LABEL_SCHEMA, FRAME_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import UsageError
from pipeline.score.drift import DRIFT_NIGHTS, drift, night_record, read_nights

# Measured: 0.6 core-seconds a clip of a second, 8 frames, Dlib's CNN in bf16. Used until a night was measured.
DEFAULT_SECONDS_PER_CLIP = 0.6


_MD5 = r"^[0-9a-f]{32}(-[0-9]+)?$"


_SAME_AS = CLIP_SCHEMA.get_field_index("same_as")


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a run has to do: the clips for the plan (known, new and copies), and how many there are of each kind.

    clips: rows of CLIP_SCHEMA, by path. outcomes: of all that is planned, before this run, the columns of
    `ledger.SETTLED`. num_cut_off: planned before, never finished. num_older: not scored, and not modified since
    --since. num_later: not scored, and left to the next run by --limit. is_settled: nothing is to be done, and the last
    run ended with _SUCCESS.
    """

    clips: pa.Table
    outcomes: pa.Table
    is_settled: bool
    num_known: int
    num_new: int = 0
    num_copies: int = 0
    num_retryable: int = 0
    num_cut_off: int = 0
    num_older: int = 0
    num_later: int = 0

    @property
    def num_to_score(self) -> int:
        return self.num_new + self.num_retryable + self.num_cut_off

    def __str__(self) -> str:
        rest = {
            f"{self.num_copies} with the bytes of a scored one": self.num_copies,
            f"{self.num_retryable} retryable": self.num_retryable,
            f"{self.num_cut_off} cut off before": self.num_cut_off,
            f"{self.num_older} older than --since (left)": self.num_older,
            f"{self.num_later} beyond --limit (left)": self.num_later,
        }
        return f"{self.num_known} known to this model, {self.num_new} new" + "".join(
            f", {text}" for text, count in rest.items() if count
        )


def partition_of(output: str, checkpoint_sha256: str) -> str:
    """The folder of one model's labels in an output."""
    return f"{output.rstrip('/')}/model={checkpoint_sha256[:12]}"


def parse_since(text: str) -> float:
    """Seconds of the epoch of a date or time, UTC unless it names a zone. Raises ValueError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--since is {text!r}; give a date or time like 2026-11-22 or 2026-11-22T18:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def contents_of(clips: pa.Table, *, paths_matter: bool = False) -> pa.ChunkedArray:
    """What two clips (rows of CLIP_SCHEMA) share whose result must be the same, as text.

    Only an MD5, which S3's etags also are, tells that two files are alike; where a store gives anything else (a time, a
    generation), or where the path itself decides (given boxes), a clip is like no other.
    """
    if paths_matter:
        return clips["clip_id"]
    names = ("size_bytes", "start_pts_seconds", "end_pts_seconds")
    facts = [clips["content_id"], *(pc.fill_null(clips[name].cast(pa.string()), "") for name in names)]
    is_hash = pc.match_substring_regex(clips["content_id"], _MD5)
    return pc.if_else(is_hash, pc.binary_join_element_wise(*facts, " "), clips["clip_id"])


def plan_night(
    ledger: Ledger, corpus: Corpus, *, since: float | None = None, limit: int | None = None, paths_matter: bool = False
) -> Night:
    """What this model has not scored of the corpus. Reads only; a settled output costs a listing and three objects.

    since: seconds of the epoch; clips whose store gives no time count as modified just now. limit: new contents to
    score, first by path; what is retryable or was cut off is done besides.
    """
    clips, outcomes = clip_table(corpus.table), ledger.settled()
    was_settled = outcomes is not None and not _retryable(outcomes).num_rows
    if outcomes is not None and was_settled and _is_among(clips["clip_id"], outcomes["clip_id"]).all():
        return Night(clips=clips, outcomes=outcomes, is_settled=True, num_known=clips.num_rows)
    if outcomes is None:
        found = ledger.snapshot()
        planned, outcomes = whole_clips(found.clips), found.latest.select(SETTLED)
    else:
        planned = whole_clips(ledger.planned())
    content, planned_content = (contents_of(each, paths_matter=paths_matter) for each in (clips, planned))
    original = _original_ids(planned, planned_content, outcomes, content=content)

    is_known = _is_among(clips["clip_id"], planned["clip_id"])
    is_copy = ~is_known & np.asarray(pc.is_valid(original))
    is_rest = ~is_known & ~is_copy
    is_older = is_rest & _is_older(corpus.table, since=since)
    place, leader = np.arange(clips.num_rows), _leaders(content, is_rest & ~is_older)
    leads = leader == place
    is_new = leads & (np.cumsum(leads) <= (clips.num_rows if limit is None else limit))
    follows = is_rest & (leader < place) & np.append(is_new, False)[leader]
    is_older &= ~follows

    leader_ids = clips["clip_id"].take(pa.array(np.where(follows, leader, 0), mask=~follows))
    same_as = pc.if_else(pa.array(is_copy), original, leader_ids)
    chosen = clips.set_column(_SAME_AS, CLIP_SCHEMA.field(_SAME_AS), same_as)
    chosen = chosen.filter(pa.array(is_known | is_copy | is_new | follows))
    chosen = pa.concat_tables([chosen, _renamed(planned, planned_content, clips, content)])
    unfinished, copies = _retryable(outcomes), planned["clip_id"].filter(pc.is_valid(planned["same_as"]))
    to_try = unfinished.filter(pa.array(~_is_among(unfinished["clip_id"], copies)))
    num_cut_off = to_try.filter(pc.field("reason") == NOT_FINISHED).num_rows
    num_new, num_copies = int(is_new.sum()), int((is_copy | follows).sum())
    return Night(
        clips=chosen.sort_by([("path", "ascending"), ("clip_id", "ascending")]),
        outcomes=outcomes,
        is_settled=was_settled and not num_new and not num_copies,
        num_known=int(is_known.sum()),
        num_new=num_new,
        num_copies=num_copies + unfinished.num_rows - to_try.num_rows,
        num_retryable=to_try.num_rows - num_cut_off,
        num_cut_off=num_cut_off,
        num_older=int(is_older.sum()),
        num_later=int((is_rest & ~is_new & ~follows & ~is_older).sum()),
    )


def _original_ids(
    planned: pa.Table, planned_content: pa.ChunkedArray, outcomes: pa.Table, *, content: pa.ChunkedArray
) -> pa.ChunkedArray:
    """For each content the id of the first planned clip that has it and is no copy, or null. What could not be fetched
    has no result to share."""
    unread = (pc.field("state") == State.QUARANTINED.value) & (pc.field("stage") == "fetch")
    is_unread = _is_among(planned["clip_id"], outcomes.filter(unread)["clip_id"])
    may_lead = pa.array(np.asarray(pc.is_null(planned["same_as"])) & ~is_unread)
    known = pc.index_in(content, value_set=_whole(planned_content.filter(may_lead)))
    return planned["clip_id"].filter(may_lead).take(known)


def _leaders(content: pa.ChunkedArray, may_lead: np.ndarray) -> np.ndarray:
    """For each row the place of the first row of its content that may lead; the number of rows where none may."""
    codes = np.asarray(pc.index_in(content, value_set=_whole(pc.unique(content))))
    first = np.full(len(codes), len(codes))
    np.minimum.at(first, codes[may_lead], np.flatnonzero(may_lead))
    return first[codes]


def _is_older(clips: pa.Table, *, since: float | None) -> np.ndarray:
    if since is None:
        return np.zeros(clips.num_rows, bool)
    return np.asarray(clips["modified_seconds"].fill_null(since)) < since


def _renamed(
    planned: pa.Table, planned_content: pa.ChunkedArray, clips: pa.Table, content: pa.ChunkedArray
) -> pa.Table:
    """The planned clips whose bytes lie under another name now, where they are to be read if they are not done."""
    place = pc.index_in(planned_content, value_set=_whole(content))
    is_gone = ~_is_among(planned["clip_id"], clips["clip_id"]) & np.asarray(pc.is_null(planned["same_as"]))
    moved = pa.array(is_gone & np.asarray(pc.is_valid(place)))
    urls, number = clips["url"].take(place.filter(moved)), CLIP_SCHEMA.get_field_index("url")
    return planned.filter(moved).set_column(number, CLIP_SCHEMA.field(number), urls)


def _retryable(outcomes: pa.Table) -> pa.Table:
    return outcomes.filter(pc.field("state") == State.RETRYABLE.value)


def _is_among(column: pa.ChunkedArray, values: pa.ChunkedArray) -> np.ndarray:
    """Whether each value of `column` is one of `values`."""
    return np.asarray(pc.is_in(column, value_set=_whole(values)))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def estimated_seconds(ledger: Ledger, night: Night) -> tuple[float, str]:
    """Core-seconds of what is to be scored, and where the figure comes from in words."""
    records = read_nights(ledger)
    num_clips = sum(record["clips"] for record in records)
    if num_clips:
        each = sum(record["core_seconds"] for record in records) / num_clips
        return each * night.num_to_score, f"{each:.2f} core-seconds a clip, measured in {len(records)} nights"
    each = DEFAULT_SECONDS_PER_CLIP
    return each * night.num_to_score, f"{each:.2f} core-seconds a clip, a guess until a night was measured"


def close_night(ledger: Ledger, found: Snapshot, *, day: str) -> dict[str, Any]:
    """The end of a night, once every unit was tried: rows of copies, the night's record, and its drift.

    found: all that is committed. Returns what the summary says of it. A night in which nothing was scored has no
    record.
    """
    told: dict[str, Any] = {"same_content": commit_copies(ledger, found, day=day)}
    heads: dict[str, list[dict[str, Any]]] = {}
    for head in found.heads:
        if "day" in head["facts"]:
            heads.setdefault(head["facts"]["day"], []).append(head)
    # Not tonight's alone: a night whose driver was killed has no record yet, or an old one.
    for each in {*sorted(heads)[-DRIFT_NIGHTS:], *({day} & heads.keys())}:
        outcomes = found.outcomes_of(head["unit"] for head in heads[each])
        record = night_record([head["facts"] for head in heads[each]], outcomes, day=each)
        ledger.storage.put(f"nights/{each}.json", (json.dumps(record, indent=1) + "\n").encode())
    if day in heads:
        nights = {record["day"]: record for record in read_nights(ledger, until=day)}
        tonight = nights.pop(day)
        told |= {"night": tonight, "drift": drift(tonight, list(nights.values()))}
    return told


def commit_copies(ledger: Ledger, found: Snapshot, *, day: str) -> int:
    """Commit the planned copies of clips that have ended; returns how many got their row."""
    units = found.pending.of_copies()
    if not units:
        return 0
    originals = found.latest_of(units.clips["same_as"])
    clip_ids = pc.unique(originals["clip_id"])
    heads = {head["unit"]: head for head in found.heads}
    tables: dict[str, pa.Table] = {}
    num_copies, start = 0, 0
    for unit in units:
        ended = originals.slice(start, len(unit.clips)).to_pylist()
        start += len(unit.clips)
        if any(row["unit"] not in heads for row in ended):
            continue  # The original waits for the next run, and so do the copies.
        rows = []
        for clip, row in zip(unit.clips, ended, strict=True):
            path = next(shard["path"] for shard in heads[row["unit"]]["shards"] if shard["table"] == "clips")
            if path not in tables:
                labels = pq.read_table(pa.BufferReader(ledger.storage.read(path)))
                tables[path] = labels.filter(pc.field("clip_id").isin(clip_ids))
            for label in tables[path].filter(pc.field("clip_id") == clip.same_as).to_pylist():
                rows.append({**label, "clip_id": clip.clip_id, "path": clip.path, "same_as": clip.same_as})
        metadata = next(iter(tables.values())).schema.metadata
        labels = pa.Table.from_pylist(rows, schema=CLIP_LABEL_SCHEMA).replace_schema_metadata(metadata)
        ledger.commit(
            unit,
            tables={"frames": FRAME_SCHEMA.empty_table(), "clips": labels},
            outcomes=[_outcome_of_copy(clip, row) for clip, row in zip(unit.clips, ended, strict=True)],
            facts={},
            partition=f"day={day}",
        )
        num_copies += len(rows)
    return num_copies


def _outcome_of_copy(clip: Clip, ended: Mapping[str, Any]) -> Outcome:
    return Outcome(
        clip_id=clip.clip_id,
        path=clip.path,
        state=State(ended["state"]),
        reason=ended["reason"],
        stage=ended["stage"],
        detail=f"the same bytes as {ended['path']}",
        attempts=0,
    )


def check_day(text: str) -> str:
    """The day as it stands in paths, YYYY-MM-DD. Raises UsageError."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).strftime("%Y-%m-%d")
    except ValueError:
        raise UsageError(f"--day is {text!r}; give a day like 2026-11-22") from None
