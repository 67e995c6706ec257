"""Takes the rows of clips out of committed shards: of those that other bytes replaced, or that are to be forgotten.

The shards without the rows are written first, then the entry that names them, then the old shards are deleted. Cut off
between any two of these, the same call goes on: what no entry names is swept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
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
    for unit_id in units:
        (entry,) = ledger.entries([unit_id])
        shards = [_without(ledger, shard, clip_ids) for shard in entry["shards"]]
        outcomes = [
            {**row, "state": str(state), "reason": reason, **dict.fromkeys(COUNTED.values(), 0)}
            if whole_id(row["clip_id"]) in clip_ids
            else row
            for row in entry["outcomes"]
        ]
        ledger.storage.put(f"ledger/{unit_id}.json", json_bytes({**entry, "shards": shards, "outcomes": outcomes}))
        kept = {shard["path"] for shard in shards}
        for shard in entry["shards"]:
            if shard["path"] not in kept:
                ledger.storage.delete(shard["path"])
    snapshot.forget_entries(units)
    ledger.refresh(snapshot)


def _without(ledger: Ledger, shard: dict[str, Any], clip_ids: Sequence[str]) -> dict[str, Any]:
    """A shard without the rows of these clips, written if it had any; as its entry names it."""
    table = pq.read_table(io.BytesIO(ledger.storage.read(shard["path"])))
    ids = table["clip_id"].cast(pa.string())
    left = table.filter(pc.invert(pc.is_in(ids, value_set=pa.array(clip_ids, pa.string()))))
    if left.num_rows == table.num_rows:
        return shard
    data = parquet_bytes(left)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{shard['path'].rpartition('/')[0]}/{shard['unit']}-{sha256[:12]}.parquet"
    ledger.storage.put(path, data)
    return {**shard, "path": path, "rows": left.num_rows, "bytes": len(data), "sha256": sha256}
