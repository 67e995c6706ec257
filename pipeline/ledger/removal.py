"""Takes the rows of clips out of committed shards: of those that other bytes replaced, or that are to be forgotten.

The shards without the rows are written first, then the entry that names them, then the old shards are deleted. Cut off
between any two of these, the same call goes on: what no entry names is swept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.ledger.files import json_bytes
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import whole_id
from pipeline.records.documents import parquet_table
from pipeline.records.outcomes import COUNTED, State


def remove_replaced(ledger: Ledger, snapshot: Snapshot) -> int:
    """Take the rows of planned clips whose paths hold other bytes now out of all shards, and end them as changed;
    returns how many had some.

    Only the holder of the lock may.
    """
    ids = sorted({whole_id(row["clip_id"]) for row in snapshot.database.rows("replaced_with_rows")})
    if not ids:
        return 0
    sql = "select distinct unit from outcomes where split_part(clip_id, '.', 1) in (select unnest($ids)) order by unit"
    units = [row["unit"] for row in snapshot.database.rows(sql, ids=ids)]
    ledger.reopen()  # First: _SUCCESS must never stand beside shards that change.
    ledger.drop_compacted()
    ended = {"state": str(State.CHANGED), "reason": "replaced", **dict.fromkeys(COUNTED.values(), 0)}
    for unit_id in units:
        for path in rewrite(ledger, unit_id, ids, lambda row: {**row, **ended}).old_shards:
            ledger.storage.delete(path)
    snapshot.forget_entries(units)
    ledger.refresh(snapshot)
    return len(ids)


class Rewritten(NamedTuple):
    """What was taken out of a unit's shards, a table a shard, and the old shards, which no entry names any more."""

    removed: list[pa.Table]
    old_shards: list[str]


def rewrite(
    ledger: Ledger, unit_id: str, clip_ids: Collection[str], ended: Callable[[dict[str, Any]], dict[str, Any]]
) -> Rewritten:
    """Write a unit's shards without the rows of these whole clips, and then its entry. The old shards stay.

    Args:
        ended: gives for the outcome of such a clip, or of a segment of one, another.
    """
    ids = frozenset(clip_ids)
    values = pa.array(sorted(ids), pa.string())
    removed = list[pa.Table]()

    def without(_: str, table: pa.Table) -> pa.Table:
        is_own = pc.is_in(table["clip_id"].cast(pa.string()), value_set=values)
        if not pc.any(is_own).as_py():
            return table
        removed.append(table.filter(is_own))
        return table.filter(pc.invert(is_own))

    def ended_rows(rows: list[dict[str, Any]], _: dict[str, pa.Table]) -> list[dict[str, Any]]:
        return [ended(row) if {row["clip_id"], whole_id(row["clip_id"])} & ids else row for row in rows]

    return Rewritten(removed, change_unit(ledger, unit_id, change=without, outcomes=ended_rows))


def change_unit(
    ledger: Ledger,
    unit_id: str,
    *,
    change: Callable[[str, pa.Table], pa.Table],
    outcomes: Callable[[list[dict[str, Any]], dict[str, pa.Table]], list[dict[str, Any]]],
) -> list[str]:
    """Write other shards of a unit where they change, and then its entry; the names of the old ones, which stay.

    Args:
        change: gives for the name of a table and its rows the new rows; the same table where nothing changes.
        outcomes: gives for the entry's outcomes and the new tables the new outcomes.
    """
    (entry,) = ledger.entries([unit_id])
    shards, tables, old_shards = [], dict[str, pa.Table](), []
    for shard in entry["shards"]:
        table = parquet_table(ledger.storage.read(shard["path"]), f"{ledger.storage.url}/{shard['path']}")
        tables[shard["table"]] = changed = change(shard["table"], table)
        if changed is table:
            shards.append(shard)
            continue
        folder = shard["path"].rpartition("/")[0]
        shards.append({**shard, **ledger.put_shard(folder, unit_id, changed)})
        old_shards.append(shard["path"])
    new = {**entry, "shards": shards, "outcomes": outcomes(entry["outcomes"], tables)}
    if old_shards:
        new["facts"] = figures_left(entry["facts"], tables)
    if new != entry:
        ledger.storage.put(f"ledger/{unit_id}.json", json_bytes(new))
    return old_shards


def figures_left(facts: dict[str, Any], tables: dict[str, pa.Table]) -> dict[str, Any]:
    """The facts of a unit of labels, with the figures that it adds to its night counted anew from its faces."""
    if "emotion_share_sums" not in facts or "frames" not in tables:
        return facts
    faces = defaultdict[str, Counter[int]](Counter)
    entropy_sum = 0.0
    for row in tables["frames"].select(["clip_id", "probabilities", "entropy"]).to_pylist():
        values = list(row["probabilities"].values())
        faces[row["clip_id"]][values.index(max(values))] += 1
        entropy_sum += row["entropy"]
    shares = [
        sum(counts[place] / counts.total() for counts in faces.values())
        for place in range(len(facts["emotion_share_sums"]))
    ]
    num_faces = tables["frames"].num_rows
    own = {"labelled_clips": len(faces), "emotion_share_sums": shares, "faces": num_faces, "entropy_sum": entropy_sum}
    return {**facts, **own}
