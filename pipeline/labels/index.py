"""The table of clips of one model's labels as one Parquet file: made from the ledger, and kept beside the labels, so
that a large collection opens at once the next time.

    LABELS/model=.../view/clips-v5-LEDGER-CONTENT.parquet

It is used only while the ledger's entries are those that it was made from (LEDGER) and its bytes are those that were
written (CONTENT). After a night the rows of shards that it knows are taken from it, and only new shards are read. It
can be deleted: it is made again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.database import DatabaseError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.columns import classes_in, with_classes
from pipeline.records.evolution import read_shard
from pipeline.records.faces import CLIP_LABEL_SCHEMA, ClipLabel
from pipeline.runtime.console import log_status
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

INDEX_VERSION = 5
# Some at a time: a join of a million whole rows does not fit into the memory that the database may have.
SHARDS_AT_ONCE, BATCHES_AT_ONCE = 2048, 4
_NAME = re.compile(r"view/clips-v(\d+)-([0-9a-f]{16})-([0-9a-f]{16})\.parquet")
_BEGIN = """
create or replace table shards_of as select unit,
  max(path) filter ("table" = 'clips') as clips_shard, max(path) filter ("table" = 'frames') as frames_shard,
  max(path) filter ("table" = 'tracks') as tracks_shard, max(path) filter ("table" = 'shots') as shots_shard
  from shards group by unit;
create or replace table labelled (clip_id varchar);
"""
# The rows of the inputs in `here` (clip_id, unit); a copy's faces lie where those of its original do.
_ROWS = """
select l.clip_id, l.path, l.state, coalesce(c.reason, l.reason) as reason, l.detail,
  {columns}, l.unit,
  regexp_extract(s.clips_shard, 'day=([0-9-]+)', 1) as day, s.clips_shard,
  coalesce(o.frames_shard, s.frames_shard) as frames_shard, coalesce(o.tracks_shard, s.tracks_shard) as tracks_shard,
  coalesce(o.shots_shard, s.shots_shard) as shots_shard, p.url, p.size_bytes,
  coalesce(c.same_as, l.clip_id) as original, {highest} as probability,
  if(contains(l.path, '/'), split_part(l.path, '/', 1), '') as show
  from (from latest semi join here using (clip_id, unit)) l
  left join label_rows c on c.clip_id = l.clip_id and c.unit = l.unit
  left join shards_of s on s.unit = l.unit
  left join (from planned semi join here using (clip_id)) p on p.clip_id = l.clip_id
  left join (select clip_id, unit from latest semi join (select same_as as clip_id from label_rows) using (clip_id)) a
    on a.clip_id = c.same_as
  left join shards_of o on o.unit = a.unit
  order by l.path, l.clip_id
"""
# Of an older file the shards all of whose rows it has: content_id is null where a clip has no label.
_KNOWN = """
create or replace table known as select s.path, s.unit from shards s join
  (select clips_shard, count(*) as num from old where content_id is not null group by clips_shard) o
  on o.clips_shard = s.path and o.num = s.rows where s."table" = 'clips'
"""
_TAKEN_OVER = """
select {columns}, unit from old semi join known on known.path = old.clips_shard
  where content_id is not null
"""


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


def digest_of(ledger: Ledger) -> str:
    """16 digits that change whenever an entry of the ledger is written."""
    digest = hashlib.sha256()
    for name, stamp in sorted(ledger.storage.stamps("ledger")):
        digest.update(f"{name} {stamp}\n".encode())
    return digest.hexdigest()[:16]


def clips_file(ledger: Ledger, digest: str, folder: Path) -> Path:
    """A Parquet file in the local `folder` with the table of clips as the ledger has it now, sorted by path.

    digest: `digest_of` the ledger. Raises LedgerError, StorageError.
    """
    kept = {name: match for name in ledger.storage.sizes("view") if (match := _NAME.fullmatch(name))}
    kept = {name: match for name, match in kept.items() if match[1] == str(INDEX_VERSION)}
    path, old = folder / "clips.parquet", None
    for name, match in kept.items():
        if match[2] == digest and _copied(ledger.storage, name, match[3], path):
            return path
    for name, match in kept.items():
        if match[2] != digest and _copied(ledger.storage, name, match[3], folder / "old.parquet"):
            old = folder / "old.parquet"
    _make(ledger, path, old)
    if old is not None:
        old.unlink()
    _keep(ledger.storage, digest, path)
    return path


def _copied(storage: Storage, name: str, content: str, to: Path) -> bool:
    """Whether a kept file was copied, and is whole."""
    try:
        data = storage.read(name)
    except FileNotFoundError:
        return False
    if hashlib.sha256(data).hexdigest()[:16] != content:
        return False
    to.write_bytes(data)
    return True


def _make(ledger: Ledger, to: Path, old: Path | None) -> None:
    snapshot, queries = ledger.snapshot(), _Queries(classes_in(ledger.run_info()))
    database = snapshot.settle("latest", "planned").database
    database.execute(_BEGIN)
    known = _known(snapshot, old, queries) if old is not None else set()
    shards = snapshot.shards("\"table\" = 'clips' and rows > 0")
    paths = {shard["path"]: shard["unit"] for shard in shards if shard["path"] not in known}
    if len(paths) > SHARDS_AT_ONCE:
        log_status(f"reading the labels of {len(paths)} shards; the next time it is done")
    taken_over = _tables_of(database.batches(queries.taken_over)) if known else ()
    writer: pq.ParquetWriter | None = None
    for rows in chain(taken_over, _label_tables(ledger.storage, paths), [None]):
        database.create("label_rows", queries.label_rows)
        if rows is None:  # The inputs that have no label.
            database.execute(
                "create or replace table here as select clip_id, unit from latest anti join labelled using (clip_id)"
            )
        else:
            database.insert("label_rows", rows)
            database.execute("create or replace table here as select clip_id, unit from label_rows")
        table = database.table(queries.rows)
        database.insert("labelled", table.select(["clip_id"]))
        writer = writer or pq.ParquetWriter(to, table.schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))
    assert writer is not None
    writer.close()
    database.close()


def _known(snapshot: Snapshot, old: Path, queries: _Queries) -> set[str]:
    """The shards whose rows an older file has."""
    try:
        snapshot.database.execute(f"create or replace view old as select * from read_parquet('{old}')")
        snapshot.database.execute(_KNOWN)
        snapshot.database.table(f"select * from ({queries.taken_over}) limit 0")
    except DatabaseError:  # Its columns are others.
        return set()
    return {row["path"] for row in snapshot.database.rows("select path from known")}


def _tables_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    while some := list(islice(batches, BATCHES_AT_ONCE)):
        yield pa.Table.from_batches(some)


def _label_tables(storage: Storage, paths: dict[str, str]) -> Iterator[pa.Table]:
    names = list(paths)
    for start in range(0, len(names), SHARDS_AT_ONCE):
        tables = []
        for name, data in storage.read_many(names[start : start + SHARDS_AT_ONCE]).items():
            rows = read_shard(data, ClipLabel, CLIP_LABEL_SCHEMA).replace_schema_metadata(None)
            tables.append(rows.append_column("unit", pa.repeat(pa.scalar(paths[name]), rows.num_rows)))
        yield pa.concat_tables(tables)


def _keep(storage: Storage, digest: str, path: Path) -> None:
    data = path.read_bytes()
    name = f"view/clips-v{INDEX_VERSION}-{digest}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    try:
        for old in storage.sizes("view"):
            if old.startswith("view/clips-"):
                storage.delete(old)
        storage.put(name, data)
    except (OSError, StorageError):
        return  # Labels that may only be read are indexed each time.
