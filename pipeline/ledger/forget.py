"""Forgets clips: their rows leave every shard, their ids stay as `forgotten`, and a scan proves it.

Each unit's new shards are written first, then its entry in place of the old one, and only then are old objects deleted,
so that a kill at any moment leaves a ledger that holds; the same command then goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.corpus.listing import remote_modified
from pipeline.ledger.audit import audit
from pipeline.ledger.beside import EXPORT, clear_beside, exports_in
from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.entries import entry_of
from pipeline.ledger.files import arrow_bytes
from pipeline.ledger.forgotten import ForgottenRecord, contents_of, read_record, store_record
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.removal import rewrite
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA, clip_of, whole_id
from pipeline.records.documents import DocumentError, arrow_table, parquet_table, parse_json
from pipeline.records.outcomes import State, forgotten_outcome
from pipeline.storage.parts import is_named
from pipeline.storage.store import Storage

# It names each shard.
MAX_MANIFEST_BYTES = 2**28
# What holds the ids, and no more of a clip than its path: that it is forgotten must be known.
# Figures and pictures of all clips, which the next run makes again.
_DERIVED = re.compile(r".*\.html|summary\.json|view/.*")
_KEEPS_IDS = re.compile(r"(plan|ledger|compact)/.*|outcomes\.jsonl|forgotten\.json|lock\.json")


class UnfinishedError(LedgerError):
    """Units with these clips are planned and not committed: the job that does them comes first."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What was done, and what the proof read: objects, those of them that still hold something of the clips (`left`),
    those that hold the same pictures as other clips' (`alike`), and tables that could not be read (`unread`)."""

    clip_ids: tuple[str, ...]
    num_units: int
    num_rows: int
    num_deleted: int
    num_read: int
    left: tuple[str, ...]
    alike: tuple[str, ...]
    unread: tuple[str, ...]
    manifests: tuple[str, ...]
    beside: tuple[str, ...] = ()


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
    check_finished(ledger, snapshot, ids)
    clips = map(clip_of, snapshot.kin_of(ids).select(CLIP_SCHEMA.names).to_pylist())
    noted = remember(ledger.storage, ForgottenRecord(clip_ids=ids, contents=contents_of(clips)))
    ledger.reopen()
    ledger.drop_compacted()  # They are copies of the old entries.
    units = units_with(snapshot, ids)
    num_rows, faces = 0, set[bytes]()
    for unit in units:
        for table in rewrite(ledger, unit, ids, _forgotten).removed:
            num_rows += table.num_rows
            faces |= _images(table)
    names, num_deleted = clear(ledger, units, partial(_clear, ledger.storage, ids=ids))
    beside = clear_beside(ledger.storage.url, ids)
    left = tuple(name for name in names if _holds(ledger.storage, name, ids))
    alike = tuple(name for name in names if _shows(ledger.storage, name, faces))
    unread = unreadable(ledger.storage, names)
    return Forgotten(
        clip_ids=tuple(sorted(ids)),
        num_units=len(units),
        num_rows=num_rows,
        num_deleted=num_deleted + beside.num_deleted,
        num_read=len(names) + beside.num_read,
        left=left,
        alike=alike,
        unread=unread,
        manifests=tuple(sorted(noted.manifests)),
        beside=beside.named,
    )


def check_finished(ledger: Ledger, snapshot: Snapshot, clip_ids: Collection[str]) -> None:
    """Raise UnfinishedError where a unit with one of these clips is not committed."""
    waiting = snapshot.database.value(
        "select count(distinct unit) from waiting where split_part(clip_id, '.', 1) in (select unnest($ids))",
        ids=sorted(clip_ids),
    )
    if waiting:
        raise UnfinishedError(
            f"{ledger.storage.url}: {waiting} units with these clips are not finished; run the job to its end first"
        )


def units_with(snapshot: Snapshot, clip_ids: Collection[str]) -> list[str]:
    """The units with one of these clips or with a segment of one; those of segments first."""
    sql = (
        "select unit, bool_and(contains(clip_id, '.')) as is_part from plan "
        "where split_part(clip_id, '.', 1) in (select unnest($ids)) group by unit order by is_part desc, unit"
    )
    return snapshot.database.table(sql, ids=sorted(clip_ids))["unit"].to_pylist()


def clear(ledger: Ledger, units: Sequence[str], clear_one: Callable[[str], bool]) -> tuple[list[str], int]:
    """Delete what follows from results that changed, and make again what every run makes.

    Args:
        units: those whose results changed.
        clear_one: deletes an object, or rewrites it, where it holds of what is forgotten; whether it did.

    Returns:
        The names of all objects that are left, and how many were deleted or rewritten.
    """
    ledger.storage.delete_temporary()
    fresh = ledger.snapshot()
    ledger.store_listing(fresh)
    num_deleted = len(ledger.sweep(fresh))
    keep = {shard["path"] for shard in fresh.shards()}
    sql = "select distinct facts::json ->> 'day' as day from entries where unit in (select unnest($units))"
    nights = {f"nights/{row['day']}.json" for row in fresh.database.rows(sql, units=list(units))}
    names = list(ledger.storage.sizes(""))
    # What an export says of a clip may name neither its id nor be told apart from the others': it is made again.
    exports = exports_in(names)
    for name in sorted(names, key=lambda name: name.endswith(f"/{EXPORT}")):  # These last: they tell what is an export.
        if name in keep or _KEEPS_IDS.fullmatch(name):
            continue
        if name.startswith(exports) or name in nights or _DERIVED.fullmatch(name):
            ledger.storage.delete(name)
            num_deleted += 1
        else:
            num_deleted += clear_one(name)
    _finish(ledger, fresh)
    return list(ledger.storage.sizes("")), num_deleted


def checkpoints_of(urls: Collection[str], manifests: Collection[str], *, data: str = "") -> Iterator[str]:
    """The checkpoints in these folders that were trained on what is forgotten: on data of one of these manifests, by
    their sha256, or on any of the output at `data`, whose earlier manifests nobody kept."""
    for url in urls:
        storage = Storage(url)
        for name in storage.sizes(""):
            if name.endswith(".json"):
                text = storage.read(name).decode("utf-8", "replace")
                named = map(json.loads, re.findall(r'"data":\s*("(?:[^"\\]|\\.)*")', text)) if data else ()
                is_of_data = any(is_named(data, each) for each in named)
                if is_of_data or any(re.search(rf'"manifest_sha256":\s*"{each}"', text) for each in manifests):
                    yield f"{storage.url}/{name}"


def remember(storage: Storage, more: ForgottenRecord) -> ForgottenRecord:
    """Note, before anything changes, what is forgotten and of which manifests it was a part; all that is noted."""
    saved = read_record(storage)
    if more.clip_ids - saved.clip_ids or set(more.persons) - set(saved.persons):
        with contextlib.suppress(FileNotFoundError):
            sha256 = hashlib.sha256(storage.read("manifest.json")).hexdigest()
            more = dataclasses.replace(more, manifests=more.manifests | {sha256})
    found = saved.joined(more)
    store_record(storage, found)
    return found


def _forgotten(row: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(forgotten_outcome(row["clip_id"], row["path"]))


def _images(table: pa.Table) -> set[bytes]:
    columns = [column for column in _leaves(table) if _is_binary(column.type)]
    return {hashlib.sha256(value).digest() for each in columns for value in each.to_pylist() if value is not None}


def _leaves(table: pa.Table) -> Iterator[pa.Array]:
    """The columns of a table, in parts, and in their place the fields of those that have some and the values of those
    that repeat some: other tools write a copy of a table with other types."""
    parts: list[pa.Array] = [part for column in table.columns for part in column.chunks]
    while parts:
        part = parts.pop()
        if isinstance(part, pa.StructArray):
            parts += part.flatten()
        elif isinstance(part, pa.DictionaryArray):
            parts.append(part.dictionary)
        else:
            yield part


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _clear(storage: Storage, name: str, *, ids: frozenset[str]) -> bool:
    """Delete an object that has something of the clips (or rewrite it, where others are in it); whether it was."""
    if not _holds(storage, name, ids):
        return False
    without_rows(storage, name, ids)
    return True


def without_rows(storage: Storage, name: str, clip_ids: Collection[str]) -> None:
    """Delete an object, or write it without the rows of these clips where it is an Arrow table that has others."""
    table = table_in(name, storage.read(name)) if name.endswith(".arrow") else None
    if table is not None and "clip_id" in table.schema.names:
        own = pc.is_in(table["clip_id"], value_set=pa.array(sorted(clip_ids), table["clip_id"].type))
        if (others := table.filter(pc.invert(own))).num_rows:
            storage.put(name, arrow_bytes(others))
            return
    storage.delete(name)


def _holds(storage: Storage, name: str, ids: frozenset[str]) -> bool:
    """Whether an object has more of these clips than may stay of them."""
    data = storage.read(name)
    if name.startswith("ledger/") and name.endswith(".json"):
        entry = entry_of(data)
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
    table = table_in(name, data)
    if table is None:
        return False
    values = pa.array(sorted(ids), pa.large_string())
    return any(
        pc.any(pc.is_in(column.cast(pa.large_string()), value_set=values)).as_py()
        for column in _leaves(table)
        if _is_text(column.type)
    )


def _shows(storage: Storage, name: str, faces: Collection[bytes]) -> bool:
    table = table_in(name, storage.read(name)) if faces and name.endswith((".parquet", ".arrow")) else None
    return table is not None and bool(_images(table) & set(faces))


def unreadable(storage: Storage, names: Iterable[str]) -> tuple[str, ...]:
    """The names of tables that cannot be read, so that nobody knows what they hold."""
    tables = (name for name in names if name.endswith((".parquet", ".arrow")))
    return tuple(name for name in tables if table_in(name, storage.read(name)) is None)


def table_in(name: str, data: bytes) -> pa.Table | None:
    """The table of a Parquet or Arrow object; None where it is none."""
    try:
        if name.endswith(".parquet"):
            return parquet_table(data, name)
        return arrow_table(data, name) if name.endswith(".arrow") else None
    except DocumentError:
        return None


def _finish(ledger: Ledger, snapshot: Snapshot) -> None:
    """Make outcomes, manifest and _SUCCESS again. Raises LedgerError where the ledger does not hold."""
    try:
        manifest = parse_json(ledger.storage.read("manifest.json"), "it", max_bytes=MAX_MANIFEST_BYTES)
        description = str(manifest.get("input", ""))
    except (FileNotFoundError, ValueError, AttributeError):
        description = ""
    ledger.store_listing(snapshot)
    found = audit(snapshot)
    if not found.holds:
        raise LedgerError(f"{ledger.storage.url}: the ledger does not hold; see `quarantine.py verify` for its shards")
    ledger.finish(snapshot, found, input_description=description)
