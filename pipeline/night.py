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
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus import Corpus
from pipeline.ledger import NOT_FINISHED, Ledger, Snapshot
from pipeline.records import CLIP_LABEL_SCHEMA, EMOTIONS, FRAME_SCHEMA, Clip, Outcome, State, UsageError, whole_id

# Measured: 0.6 core-seconds a clip of a second, 8 frames, Dlib's CNN in bf16. Used until a night was measured.
DEFAULT_SECONDS_PER_CLIP = 0.6
DRIFT_NIGHTS = 7
# Fewer nights have no spread, fewer clips no shares: 30 clips differ by 0.15 by chance alone.
LEAST_NIGHTS, LEAST_CLIPS = 3, 30
SPREADS = 3.0
# What a figure may move by in any case.
FLOORS = {"emotions": 0.15, "mean_entropy": 0.15, "face_rate": 0.1, "decode_integrity": 0.02}
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a run has to do: the clips for the plan (known, new and copies), and how many there are of each kind.

    num_cut_off: planned before, never finished. num_older: not scored, and not modified since --since. num_later:
    not scored, and left to the next run by --limit. outcomes: of all that is planned, before this run. is_settled:
    nothing is to be done, and the last run ended with _SUCCESS.
    """

    corpus: Corpus
    outcomes: Sequence[Outcome]
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


def content_of(clip: Clip, *, paths_matter: bool = False) -> tuple[Any, ...]:
    """What two clips share whose result must be the same.

    Only an MD5, which S3's etags also are, tells that two files are alike; where a store gives anything else (a time, a
    generation), or where the path itself decides (given boxes), a clip is like no other.
    """
    if paths_matter or not _MD5.fullmatch(clip.content_id):
        return (clip.clip_id,)
    return (clip.content_id, clip.size_bytes, clip.start_pts_seconds, clip.end_pts_seconds)


def plan_night(
    ledger: Ledger, corpus: Corpus, *, since: float | None = None, limit: int | None = None, paths_matter: bool = False
) -> Night:
    """What this model has not scored of the corpus. Reads only; a settled output costs a listing and three objects.

    since: seconds of the epoch; clips whose store gives no time count as modified just now. limit: new contents to
    score, first by path; what is retryable or was cut off is done besides.
    """
    settled = ledger.settled()
    if settled is not None and all(outcome.state is not State.RETRYABLE for outcome in settled):
        known = {outcome.clip_id for outcome in settled}
        if all(clip.clip_id in known for clip in corpus.clips):
            return Night(corpus=corpus, outcomes=settled, is_settled=True, num_known=len(corpus.clips))
    known_outcomes = settled or (ledger.outcomes() if ledger.is_planned else [])
    outcomes = {outcome.clip_id: outcome for outcome in known_outcomes}
    planned = {
        clip_id: replace(clip, same_as=None) if clip.joins_segments else clip
        for clip_id, clip in (ledger.planned_clips() if ledger.is_planned else {}).items()
        if whole_id(clip_id) == clip_id
    }
    first: dict[tuple[Any, ...], Clip] = {}
    for clip in planned.values():
        ended = outcomes[clip.clip_id]
        was_read = ended.state is not State.QUARANTINED or ended.stage != "fetch"
        if clip.same_as is None and was_read:
            first.setdefault(content_of(clip, paths_matter=paths_matter), clip)
    count: Counter[str] = Counter()
    chosen: list[Clip] = []
    here: dict[tuple[Any, ...], Clip] = {}
    for clip in corpus.clips:
        content = content_of(clip, paths_matter=paths_matter)
        here.setdefault(content, clip)
        original = first.get(content)
        if clip.clip_id in planned:
            count["known"] += 1
            chosen.append(clip)
        elif original is not None:
            count["copies"] += 1
            chosen.append(replace(clip, same_as=original.clip_id))
        elif since is not None and corpus.modified.get(clip.clip_id, since) < since:
            count["older"] += 1
        elif limit is not None and count["new"] >= limit:
            count["later"] += 1
        else:
            count["new"] += 1
            chosen.append(clip)
            first[content] = clip
    given = {clip.clip_id for clip in chosen}
    for clip in planned.values():
        # Renamed before it was done: its bytes lie under the new name.
        content = content_of(clip, paths_matter=paths_matter)
        if clip.clip_id not in given and content in here and clip.same_as is None:
            chosen.append(replace(clip, url=here[content].url))
    unfinished = [outcome for outcome in known_outcomes if outcome.state is State.RETRYABLE]
    to_try = [outcome for outcome in unfinished if planned[outcome.clip_id].same_as is None]
    num_cut_off = sum(outcome.reason == NOT_FINISHED for outcome in to_try)
    return Night(
        corpus=replace(corpus, clips=tuple(sorted(chosen, key=lambda clip: (clip.path, clip.clip_id)))),
        outcomes=known_outcomes,
        is_settled=settled is not None and not unfinished and not count["new"] and not count["copies"],
        num_known=count["known"],
        num_new=count["new"],
        num_copies=count["copies"] + len(unfinished) - len(to_try),
        num_retryable=len(to_try) - num_cut_off,
        num_cut_off=num_cut_off,
        num_older=count["older"],
        num_later=count["later"],
    )


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


# --- drift -----------------------------------------------------------------------------------------------------------


def unit_facts(shares: np.ndarray, entropies: np.ndarray, *, day: str) -> dict[str, Any]:
    """What one unit adds to its night. shares: (clips with a face, 7), of their faces; entropies: (faces,), nats."""
    return {
        "day": day,
        "labelled_clips": len(shares),
        "emotion_share_sums": shares.sum(axis=0).tolist(),
        "faces": len(entropies),
        "entropy_sum": float(entropies.sum()),
    }


def night_record(facts: Sequence[Mapping[str, Any]], outcomes: pa.Table, *, day: str) -> dict[str, Any]:
    """The figures of one night, as they are stored in nights/, from its units' facts and rows of OUTCOME_SCHEMA.

    emotions: mean over the clips with a face of the share of their faces whose most probable emotion it is.
    mean_entropy: over the faces, nats. face_rate: share of the sampled frames with a face. decode_integrity: mean over
    the clips where it is known. Each is None where there is nothing to count.
    """
    num_labelled = sum(each["labelled_clips"] for each in facts)
    num_faces = sum(each["faces"] for each in facts)
    num_frames, num_faceless = _sum(outcomes["num_frames"]), _sum(outcomes["num_faceless_frames"])
    integrities = outcomes["decode_integrity"].drop_null()
    sums = np.sum([np.zeros(len(EMOTIONS)), *(each["emotion_share_sums"] for each in facts)], axis=0)
    return {
        "day": day,
        "clips": outcomes.num_rows,
        "labelled_clips": num_labelled,
        "frames": num_frames,
        "faces": num_faces,
        "core_seconds": round(_sum(outcomes["seconds"]), 3),
        "emotions": dict(zip(EMOTIONS, (sums / num_labelled).tolist(), strict=True)) if num_labelled else None,
        "mean_entropy": sum(each["entropy_sum"] for each in facts) / num_faces if num_faces else None,
        "face_rate": 1 - num_faceless / num_frames if num_frames else None,
        "decode_integrity": _sum(integrities) / len(integrities) if len(integrities) else None,
    }


def _sum(column: pa.ChunkedArray) -> Any:
    """In Python: Arrow's sum depends on how the rows lie in chunks, and a record is written anew for 7 nights."""
    return sum(column.to_pylist())


def read_nights(ledger: Ledger, *, until: str = "9999-12-31") -> list[dict[str, Any]]:
    """The records of the last 8 nights up to that day, oldest first."""
    names = [name for name in ledger.storage.sizes("nights") if name <= f"nights/{until}.json"][-DRIFT_NIGHTS - 1 :]
    return [json.loads(data) for data in ledger.storage.read_many(names).values()]


def drift(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tonight's figures against those of earlier nights, and a line for each that jumped.

    A figure jumps where it is further from the mean of the earlier nights than 3 of their standard deviations and than
    its floor (`FLOORS`). For the emotions the distance is the total variation (half the sum of the absolute
    differences of the shares), and the spread the root mean square of the earlier nights' own distances. Nights of
    fewer than 30 clips with a face are not compared, nor is anything before there are 3.
    """
    usable = [night for night in earlier if night["labelled_clips"] >= LEAST_CLIPS]
    found: dict[str, Any] = {"nights": len(usable), "figures": {}, "warnings": []}
    if len(usable) < LEAST_NIGHTS or tonight["labelled_clips"] < LEAST_CLIPS:
        return found
    for name, floor in FLOORS.items():
        if tonight[name] is None or any(night[name] is None for night in usable):
            continue
        values = np.array([_vector(night[name]) for night in usable])  # (nights, 1 or 7)
        mean, now = values.mean(axis=0), _vector(tonight[name])
        distance = _distance(now, mean)
        limit = max(floor, SPREADS * float(np.sqrt(np.mean([_distance(value, mean) ** 2 for value in values]))))
        found["figures"][name] = {
            "tonight": tonight[name],
            "before": dict(zip(EMOTIONS, mean.tolist(), strict=True)) if name == "emotions" else float(mean[0]),
            "distance": distance,
            "limit": limit,
            "jumped": distance > limit,
        }
        if distance > limit:
            found["warnings"].append(_jump(name, now, mean, distance=distance, limit=limit, num_nights=len(usable)))
    return found


def _vector(value: Any) -> np.ndarray:
    return np.array([value[emotion] for emotion in EMOTIONS] if isinstance(value, Mapping) else [value], np.float64)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum() / (2 if len(a) > 1 else 1))


def _jump(name: str, now: np.ndarray, mean: np.ndarray, *, distance: float, limit: float, num_nights: int) -> str:
    if len(now) == 1:
        what = f"{name} is {now[0]:.3f}, {mean[0]:.3f}"
    else:
        index = int(np.abs(now - mean).argmax())
        what = f"the share of {EMOTIONS[index]} is {now[index]:.2f}, {mean[index]:.2f}"
    return f"drift: {what} in {num_nights} nights before (distance {distance:.3f}, limit {limit:.3f})"


def check_day(text: str) -> str:
    """The day as it stands in paths, YYYY-MM-DD. Raises UsageError."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).strftime("%Y-%m-%d")
    except ValueError:
        raise UsageError(f"--day is {text!r}; give a day like 2026-11-22") from None
