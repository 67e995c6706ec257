"""Rows of the table of clips, from the ledger: all of them, or those that units of a night add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.database import Database, DatabaseError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.columns import classes_in, with_classes
from pipeline.records.evolution import read_shard
from pipeline.records.faces import CLIP_LABEL_SCHEMA, ClipLabel
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

# Some at a time: a join of a million whole rows does not fit into the memory that the database may have.
SHARDS_AT_ONCE, BATCHES_AT_ONCE = 2048, 4
_BEGIN = """
create or replace table shards_of as select unit,
  max(path) filter ("table" = 'clips') as clips_shard, max(path) filter ("table" = 'frames') as frames_shard,
  max(path) filter ("table" = 'tracks') as tracks_shard, max(path) filter ("table" = 'shots') as shots_shard
  from shards group by unit;
create or replace table labelled (clip_id varchar);
"""
# Rows of a table that was made earlier, of which only some units are added to it.
_NONE_BEFORE = """
create or replace table before (clip_id varchar, unit varchar, original varchar, frames_shard varchar,
  tracks_shard varchar, shots_shard varchar);
"""
_OF_BEFORE = """
create or replace view before as
  select clip_id, unit, original, frames_shard, tracks_shard, shots_shard from {old};
"""
_OF_CLIPS = "\"table\" = 'clips' and rows > 0"
# The rows of the inputs in `here` (clip_id, unit); a copy's faces lie where those of its original do, which `before`
# says of one that is in no unit of the snapshot.
_ROWS = """
select l.clip_id, l.path, l.state, coalesce(c.reason, l.reason) as reason, l.detail,
  {columns}, l.unit,
  regexp_extract(s.clips_shard, 'day=([0-9-]+)', 1) as day, s.clips_shard,
  coalesce(o.frames_shard, x.frames_shard, s.frames_shard) as frames_shard,
  coalesce(o.tracks_shard, x.tracks_shard, s.tracks_shard) as tracks_shard,
  coalesce(o.shots_shard, x.shots_shard, s.shots_shard) as shots_shard, p.url, p.size_bytes,
  coalesce(c.same_as, l.clip_id) as original, {highest} as probability,
  if(contains(l.path, '/'), split_part(l.path, '/', 1), '') as show
  from (from latest semi join here using (clip_id, unit)) l
  left join label_rows c on c.clip_id = l.clip_id and c.unit = l.unit
  left join shards_of s on s.unit = l.unit
  left join (from planned semi join here using (clip_id)) p on p.clip_id = l.clip_id
  left join (select clip_id, unit from latest semi join (select same_as as clip_id from label_rows) using (clip_id)) a
    on a.clip_id = c.same_as
  left join shards_of o on o.unit = a.unit
  left join (from before semi join (select same_as as clip_id from label_rows) using (clip_id)) x
    on x.clip_id = c.same_as and a.unit is null
  order by l.path, l.clip_id
"""
# Of an older table the shards all of whose rows it has: content_id is null where a clip has no label.
_KNOWN = """
create or replace table known as select s.path, s.unit from shards s join
  (select clips_shard, count(*) as num from old where content_id is not null group by clips_shard) o
  on o.clips_shard = s.path and o.num = s.rows where s."table" = 'clips'
"""
_TAKEN_OVER = """
select {columns}, unit from old semi join known on known.path = old.clips_shard
  where content_id is not null
"""
# What new units may change in rows that were there before, beside those of their own clips: of a clip that they
# replace, and of one that was cut, some segments of which were there.
_TOUCHES = """
select exists(from before semi join (select replaces as clip_id from plan) using (clip_id)) or exists(
  from before semi join (select split_part(clip_id, '.', 1) as clip_id from plan where contains(clip_id, '.'))
  using (clip_id))
"""
# A later unit decides: g000-u000000, g000-u000001, ..., g001-u000000.
_PLACE = """
create or replace macro place_of(unit) as
  1000000000 * regexp_extract(unit, '^g(\\d+)-u(\\d+)$', 1)::bigint
  + regexp_extract(unit, '^g(\\d+)-u(\\d+)$', 2)::bigint;
"""
_SUPERSEDES = "select exists(from before semi join planned using (clip_id))"
_STANDING = """
select * from {rows} anti join (
  select r.clip_id from {rows} r join before b using (clip_id)
  where place_of(b.unit) > place_of(r.unit)) using (clip_id)
"""
_COPIES_OF_IT = """
select exists(from before b where b.original <> b.clip_id and b.original in (select clip_id from {rows})
  and b.clip_id not in (select clip_id from {rows}))
"""


class StoppedError(Exception):
    """Somebody asked for the reading to end."""


class OtherRowsError(Exception):
    """Units change rows of other clips than their own."""


class _Queries:
    """The queries for the classes of one model."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        schema = with_classes(CLIP_LABEL_SCHEMA, classes)
        own = [name for name in schema.names if name not in ("clip_id", "path", "state", "reason")]
        highest = ", ".join(f"c.probabilities.{_quoted(name)}" for name in classes)
        self.label_rows = schema.append(pa.field("unit", pa.string()))
        self.rows = _ROWS.format(
            columns=", ".join(f"c.{_quoted(name)}" for name in own), highest=f"greatest({highest})"
        )
        self.taken_over = _TAKEN_OVER.format(columns=", ".join(map(_quoted, schema.names)))


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


class Reading:
    """How far a reading is; for other threads, which may also end it."""

    def __init__(self) -> None:
        self.num_read, self.num_shards = 0, 0
        self.stop = threading.Event()

    def check(self) -> None:
        """Raise StoppedError where it is to end."""
        if self.stop.is_set():
            raise StoppedError


def write_all(
    ledger: Ledger,
    to: Path,
    *,
    old: str | None,
    metadata: dict[bytes, bytes],
    reading: Reading,
) -> None:
    """Write the whole table of clips, in parts each of which is sorted by path.

    Args:
        old: SQL of a table that was made earlier, of which rows are taken over.
        metadata: written into the file.

    Raises LedgerError, StorageError, StoppedError.
    """
    snapshot, queries = ledger.snapshot(), _Queries(classes_in(ledger.run_info()))
    reading.check()
    database = snapshot.settle("latest", "planned").database
    try:
        database.execute(_BEGIN + _NONE_BEFORE)
        known = _known(snapshot, old, queries) if old is not None else set()
        shards = snapshot.shards(_OF_CLIPS)
        paths = {shard["path"]: shard["unit"] for shard in shards if shard["path"] not in known}
        reading.num_shards = len(paths)
        if len(paths) > SHARDS_AT_ONCE:
            log_status(f"reading the labels of {len(paths)} shards; the next time it is done")
        taken_over = _tables_of(database.batches(queries.taken_over)) if known else ()
        _write(
            chain(taken_over, _label_tables(ledger.storage, paths, reading), [None]), database, queries, to, metadata
        )
    finally:
        database.close()


def write_units(
    ledger: Ledger,
    to: Path,
    unit_ids: Collection[str],
    *,
    since: int,
    old: str | None,
    metadata: Callable[[bool], dict[bytes, bytes]],
    reading: Reading,
) -> None:
    """Write the rows of the clips of some units, and of all that were planned from a generation on.

    Args:
        old: SQL of the table as it was before these units; rows of clips that it has from a later unit are left out.
        metadata: written into the file; called with whether the old table has rows of some of these clips.

    Raises OtherRowsError where they change other rows of the old table too, LedgerError, StorageError, StoppedError.
    """
    snapshot, queries = ledger.snapshot_of(unit_ids, since=since), _Queries(classes_in(ledger.run_info()))
    database = snapshot.settle("latest", "planned").database
    try:
        database.execute(_BEGIN + _PLACE + (_NONE_BEFORE if old is None else _OF_BEFORE.format(old=old)))
        if database.value(_TOUCHES):
            raise OtherRowsError
        footer = metadata(database.value(_SUPERSEDES))
        paths = {each["path"]: each["unit"] for each in snapshot.shards(_OF_CLIPS)}
        reading.num_shards = len(paths)
        _write(chain(_label_tables(ledger.storage, paths, reading), [None]), database, queries, to, footer)
        rows = f"read_parquet('{to}')"
        if database.value(_COPIES_OF_IT.format(rows=rows)):
            raise OtherRowsError
        standing = database.table(_STANDING.format(rows=rows))
        if standing.num_rows < pq.read_metadata(to).num_rows:
            pq.write_table(standing.replace_schema_metadata(footer), to, compression="zstd")
    finally:
        database.close()


def write_merged(to: Path, sql: str, *, metadata: dict[bytes, bytes]) -> None:
    """Write a table that lies in several files as one."""
    database = Database()
    try:
        writer: pq.ParquetWriter | None = None
        for rows in _tables_of(database.batches(f"select * from {sql} order by path, clip_id")):
            writer = writer or pq.ParquetWriter(to, rows.schema.with_metadata(metadata), compression="zstd")
            writer.write_table(rows.cast(writer.schema))
        if writer is not None:
            writer.close()
    finally:
        database.close()


def _write(
    tables: Iterator[pa.Table | None], database: Database, queries: _Queries, to: Path, metadata: dict[bytes, bytes]
) -> None:
    """Write rows as they come; None stands for the inputs that have no label."""
    writer: pq.ParquetWriter | None = None
    for rows in tables:
        database.create("label_rows", queries.label_rows)
        if rows is None:
            database.execute(
                "create or replace table here as select clip_id, unit from latest anti join labelled using (clip_id)"
            )
        else:
            database.insert("label_rows", rows)
            database.execute("create or replace table here as select clip_id, unit from label_rows")
        table = database.table(queries.rows)
        database.insert("labelled", table.select(["clip_id"]))
        schema = table.schema.with_metadata(metadata)
        writer = writer or pq.ParquetWriter(to, schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))
    assert writer is not None
    writer.close()


def _known(snapshot: Snapshot, old: str, queries: _Queries) -> set[str]:
    """The shards whose rows an older table has."""
    try:
        snapshot.database.execute(f"create or replace view old as select * from {old}")
        snapshot.database.execute(_KNOWN)
        snapshot.database.table(f"select * from ({queries.taken_over}) limit 0")
    except DatabaseError:  # Its columns are others.
        return set()
    return {row["path"] for row in snapshot.database.rows("select path from known")}


def _tables_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    while some := list(islice(batches, BATCHES_AT_ONCE)):
        yield pa.Table.from_batches(some)


def _label_tables(storage: Storage, paths: dict[str, str], reading: Reading) -> Iterator[pa.Table]:
    names = list(paths)
    for start in range(0, len(names), SHARDS_AT_ONCE):
        tables = []
        for name, data in storage.read_many(names[start : start + SHARDS_AT_ONCE]).items():
            reading.check()
            rows = read_shard(data, ClipLabel, CLIP_LABEL_SCHEMA).replace_schema_metadata(None)
            tables.append(rows.append_column("unit", pa.repeat(pa.scalar(paths[name]), rows.num_rows)))
            reading.num_read += 1
        yield pa.concat_tables(tables)
