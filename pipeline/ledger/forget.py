"""Forgets clips: their rows leave every shard, their ids stay as `forgotten`, and a scan proves it.

Each unit's new shards are written first, then its entry in place of the old one, and only then are old objects deleted,
so that a kill at any moment leaves a ledger that holds; the same command then goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.listing import remote_modified
from pipeline.ledger.audit import audit
from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.files import arrow_bytes, json_bytes
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.removal import rewrite
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import whole_id
from pipeline.records.outcomes import Outcome, State
from pipeline.storage.store import Storage

RECORD = "forgotten.json"
EXPORT = "export.json"
# What holds the ids, and no more of a clip than its path: that it is forgotten must be known.
_KEEPS_IDS = re.compile(r"(plan|ledger|compact)/.*|outcomes\.jsonl|forgotten\.json|lock\.json")


class UnfinishedError(LedgerError):
    """Units with these clips are planned and not committed: the job that does them comes first."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What was done, and what the proof read: objects, those of them that still hold something of the clips (`left`),
    and those that hold the same pictures as other clips' (`alike`)."""

    clip_ids: tuple[str, ...]
    num_units: int
    num_rows: int
    num_deleted: int
    num_read: int
    left: tuple[str, ...]
    alike: tuple[str, ...]
    manifests: tuple[str, ...]


def clips_to_forget(ledger: Ledger, snapshot: Snapshot, config: ForgetConfig) -> tuple[str, ...]:
    """The ids of the clips that are meant, of their copies, and of all that these are cut into, sorted."""
    before = None if config.older_than is None else time.time() - config.max_age_seconds
    planned = _planned_at(ledger) if before is not None else {}
    named = set(config.clip)
    rows = snapshot.database.rows("select clip_id, path, generation from plan order by ordinal")
    ids = {
        whole_id(row["clip_id"])
        for row in rows
        if {row["clip_id"], whole_id(row["clip_id"])} & named
        or (config.path is not None and fnmatchcase(row["path"], config.path))
        or (before is not None and planned[row["generation"]] < before)
    }
    return tuple(sorted(snapshot.kin_of(ids)["clip_id"].to_pylist())) if ids else ()


def _planned_at(ledger: Ledger) -> dict[int, float]:
    """When each generation of the plan was written, seconds of the epoch, by the clock of its store."""
    found = {}
    for name in ledger.storage.sizes("plan"):
        if match := re.fullmatch(r"plan/g(\d+)\.arrow", name):
            found[int(match[1])] = remote_modified(ledger.storage.filesystem.info(ledger.storage.path(name))) or 0.0
    return found


def forget(ledger: Ledger, snapshot: Snapshot, clip_ids: Collection[str]) -> Forgotten:
    """Take these clips out of everything in an output. The caller holds its lock.

    Raises LedgerError where a unit with one of them is not finished, and where the ledger does not hold afterwards.
    """
    ids = frozenset(clip_ids)
    waiting = snapshot.database.value(
        "select count(distinct unit) from waiting where clip_id in (select unnest($ids))", ids=sorted(ids)
    )
    if waiting:
        raise UnfinishedError(
            f"{ledger.storage.url}: {waiting} units with these clips are not finished; run the job to its end first"
        )
    manifests = _remember(ledger.storage, ids)
    ledger.reopen()
    ledger.drop_compacted()  # They are copies of the old entries.
    units = snapshot.database.table(
        "select distinct unit from plan where clip_id in (select unnest($ids)) order by unit", ids=sorted(ids)
    )["unit"].to_pylist()
    num_rows, faces = 0, set[bytes]()
    for unit in units:
        for table in rewrite(ledger, unit, ids, lambda row: asdict(_forgotten(row["clip_id"], row["path"]))).removed:
            num_rows += table.num_rows
            faces |= _images(table)
    fresh = ledger.snapshot()
    committed = {shard["path"] for shard in fresh.shards()}
    names = list(ledger.storage.sizes(""))
    # What an export says of a clip may name neither its id nor be told apart from the others': it is made again.
    exports = tuple(name.removesuffix(EXPORT) for name in names if name.endswith(f"/{EXPORT}"))
    num_deleted = sum(_clear(ledger.storage, name, ids, keep=committed, exports=exports) for name in names)
    _finish(ledger, fresh)
    names = list(ledger.storage.sizes(""))
    left = tuple(name for name in names if _holds(ledger.storage, name, ids))
    alike = tuple(name for name in names if _shows(ledger.storage, name, faces))
    return Forgotten(
        clip_ids=tuple(sorted(ids)),
        num_units=len(units),
        num_rows=num_rows,
        num_deleted=num_deleted,
        num_read=len(names),
        left=left,
        alike=alike,
        manifests=manifests,
    )


def checkpoints_of(urls: Collection[str], manifests: Collection[str], *, data: str = "") -> Iterator[str]:
    """The checkpoints in these folders that were trained on what is forgotten: on data of one of these manifests, by
    their sha256, or on any of the output at `data`, whose earlier manifests nobody kept."""
    for url in urls:
        storage = Storage(url)
        for name in storage.sizes(""):
            if name.endswith(".json"):
                text = storage.read(name).decode("utf-8", "replace")
                is_of_data = bool(data) and re.search(rf'"data":\s*{re.escape(json.dumps(data))}', text)
                if is_of_data or any(re.search(rf'"manifest_sha256":\s*"{each}"', text) for each in manifests):
                    yield f"{storage.url}/{name}"


def _remember(storage: Storage, ids: frozenset[str]) -> tuple[str, ...]:
    """Note, before anything changes, what is forgotten and of which manifests it was a part."""
    try:
        saved = json.loads(storage.read(RECORD))
    except (FileNotFoundError, ValueError):
        saved = {"clip_ids": [], "manifests": []}
    manifests = set(saved["manifests"])
    if ids - set(saved["clip_ids"]):
        with contextlib.suppress(FileNotFoundError):
            manifests.add(hashlib.sha256(storage.read("manifest.json")).hexdigest())
    storage.put(RECORD, json_bytes({"clip_ids": sorted(ids | set(saved["clip_ids"])), "manifests": sorted(manifests)}))
    return tuple(sorted(manifests))


def _forgotten(clip_id: str, path: str) -> Outcome:
    return Outcome(
        clip_id=clip_id,
        path=path,
        state=State.FORGOTTEN,
        reason="forgotten",
        stage="forget",
        detail="deleted on request",
        attempts=0,
    )


def _images(table: pa.Table) -> set[bytes]:
    names = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    return {hashlib.sha256(value).digest() for name in names for value in table[name].to_pylist() if value is not None}


def _clear(
    storage: Storage, name: str, ids: frozenset[str], *, keep: Collection[str], exports: tuple[str, ...]
) -> bool:
    """Delete an object that follows from the clips' results (or rewrite it, where others are in it); whether it was."""
    if name in keep or _KEEPS_IDS.fullmatch(name):
        return False
    if not name.startswith(exports) and not name.endswith(".html") and not _holds(storage, name, ids):
        return False
    table = _table(name, storage.read(name)) if name.endswith(".arrow") and not name.startswith(exports) else None
    if table is not None and "clip_id" in table.schema.names:
        own = pc.is_in(table["clip_id"], value_set=pa.array(sorted(ids), table["clip_id"].type))
        if (others := table.filter(pc.invert(own))).num_rows:
            storage.put(name, arrow_bytes(others))
            return True
    storage.delete(name)
    return True


def _holds(storage: Storage, name: str, ids: frozenset[str]) -> bool:
    """Whether an object has more of these clips than may stay of them."""
    data = storage.read(name)
    if name.startswith("ledger/") and name.endswith(".json"):
        entry = json.loads(data)
        rows = entry.pop("outcomes")
        if any(row["clip_id"] in ids and row["state"] != State.FORGOTTEN for row in rows):
            return True
    elif _KEEPS_IDS.fullmatch(name):
        return False
    else:
        entry = None
    text = json.dumps(entry).encode() if entry is not None else data
    if any(each in name or each.encode() in text for each in ids):
        return True
    table = _table(name, data)
    if table is None:
        return False
    strings = (table[field.name] for field in table.schema if pa.types.is_string(field.type))
    values = pa.array(sorted(ids), pa.string())
    return any(pc.any(pc.is_in(column, value_set=values)).as_py() for column in strings)


def _shows(storage: Storage, name: str, faces: Collection[bytes]) -> bool:
    table = _table(name, storage.read(name)) if faces and name.endswith((".parquet", ".arrow")) else None
    return table is not None and bool(_images(table) & set(faces))


def _table(name: str, data: bytes) -> pa.Table | None:
    try:
        if name.endswith(".parquet"):
            return pq.read_table(pa.BufferReader(data))
        return pa.ipc.open_file(data).read_all() if name.endswith(".arrow") else None
    except (pa.ArrowException, OSError, ValueError):
        return None


def _finish(ledger: Ledger, snapshot: Snapshot) -> None:
    """Make outcomes, manifest and _SUCCESS again. Raises LedgerError where the ledger does not hold."""
    try:
        description = str(json.loads(ledger.storage.read("manifest.json")).get("input", ""))
    except (FileNotFoundError, ValueError, AttributeError):
        description = ""
    ledger.store_listing(snapshot)
    found = audit(snapshot)
    if not found.holds:
        raise LedgerError(f"{ledger.storage.url}: the ledger does not hold; see `quarantine.py verify` for its shards")
    ledger.finish(snapshot, found, input_description=description)
