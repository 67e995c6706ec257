"""Takes the rows of clips out of committed shards: of those that other bytes replaced, or that are to be forgotten.

The shards without the rows are written first, then the entry that names them, then the old shards are deleted. Cut off
between any two of these, the same call goes on: what no entry names is swept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.files import json_bytes
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import whole_id
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
    (entry,) = ledger.entries([unit_id])
    ids = frozenset(clip_ids)
    values = pa.array(sorted(ids), pa.string())
    shards, found = [], Rewritten([], [])
    for shard in entry["shards"]:
        table = pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"])))
        is_own = pc.is_in(table["clip_id"].cast(pa.string()), value_set=values)
        own = table.filter(is_own)
        if own.num_rows == 0:
            shards.append(shard)
            continue
        folder = shard["path"].rpartition("/")[0]
        shards.append({**shard, **ledger.put_shard(folder, unit_id, table.filter(pc.invert(is_own)))})
        found.removed.append(own)
        found.old_shards.append(shard["path"])
    outcomes = [ended(row) if {row["clip_id"], whole_id(row["clip_id"])} & ids else row for row in entry["outcomes"]]
    if shards != entry["shards"] or outcomes != entry["outcomes"]:
        ledger.storage.put(f"ledger/{unit_id}.json", json_bytes({**entry, "shards": shards, "outcomes": outcomes}))
    return found
