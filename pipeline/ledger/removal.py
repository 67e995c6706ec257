"""Takes the rows of clips out of committed shards: of those that other bytes replaced, or that are to be forgotten.

The shards without the rows are written first, then the entry that names them, then the old shards are deleted. Cut off
between any two of these, the same call goes on: what no entry names is swept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.files import json_bytes, parquet_bytes
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import whole_id
from pipeline.records.outcomes import COUNTED, State


def remove_replaced(ledger: Ledger, snapshot: Snapshot) -> int:
    """Take out the rows of planned clips whose paths hold other bytes now; returns how many clips had some.

    Only the holder of the lock may.
    """
    replaced = snapshot.database.rows("replaced_with_rows")
    ids = sorted({whole_id(row["clip_id"]) for row in replaced})
    remove_clips(ledger, snapshot, ids, state=State.CHANGED, reason="replaced")
    return len(ids)


def remove_clips(ledger: Ledger, snapshot: Snapshot, clip_ids: Sequence[str], *, state: State, reason: str) -> None:
    """Take the rows of whole clips out of all shards, and end the clips in this state.

    Args:
        clip_ids: of whole clips; those of their segments follow.
    """
    if not clip_ids:
        return
    sql = "select distinct unit from outcomes where split_part(clip_id, '.', 1) in (select unnest($ids)) order by unit"
    units = [row["unit"] for row in snapshot.database.rows(sql, ids=list(clip_ids))]
    ledger.reopen()  # First: _SUCCESS must never stand beside shards that change.
    ledger.drop_compacted()
    ended = {"state": str(state), "reason": reason, **dict.fromkeys(COUNTED.values(), 0)}
    for unit_id in units:
        (before,) = ledger.entries([unit_id])
        rewrite(ledger, unit_id, clip_ids, lambda row: {**row, **ended})
        (after,) = ledger.entries([unit_id])
        kept = {shard["path"] for shard in after["shards"]}
        for shard in before["shards"]:
            if shard["path"] not in kept:
                ledger.storage.delete(shard["path"])
    snapshot.forget_entries(units)
    ledger.refresh(snapshot)


def rewrite(
    ledger: Ledger, unit_id: str, clip_ids: Collection[str], ended: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[pa.Table]:
    """Write a unit's shards without the rows of these whole clips, and then its entry; the rows that were taken out.

    Args:
        ended: gives for the outcome of such a clip, or of a segment of one, another.

    The old shards stay, and no entry names them any more.
    """
    (entry,) = ledger.entries([unit_id])
    shards, removed = [], []
    for shard in entry["shards"]:
        table = pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"])))
        is_own = pc.is_in(table["clip_id"].cast(pa.string()), value_set=pa.array(sorted(clip_ids), pa.string()))
        own = table.filter(is_own)
        removed.append(own)
        shards.append(_put_again(ledger, shard, table.filter(pc.invert(is_own))) if own.num_rows else shard)
    outcomes = [
        ended(row) if {row["clip_id"], whole_id(row["clip_id"])} & set(clip_ids) else row for row in entry["outcomes"]
    ]
    if shards != entry["shards"] or outcomes != entry["outcomes"]:
        ledger.storage.put(f"ledger/{unit_id}.json", json_bytes({**entry, "shards": shards, "outcomes": outcomes}))
    return removed


def _put_again(ledger: Ledger, shard: dict[str, Any], table: pa.Table) -> dict[str, Any]:
    """Write other rows of a shard beside it; as an entry names them."""
    data = parquet_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{shard['path'].rpartition('/')[0]}/{shard['unit']}-{sha256[:12]}.parquet"
    ledger.storage.put(path, data)
    return {**shard, "path": path, "rows": table.num_rows, "bytes": len(data), "sha256": sha256}
