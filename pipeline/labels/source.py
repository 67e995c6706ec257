"""Labels of one model, opened for reading: a table of clips that can be queried, and the faces and persons of a clip.

The table is made from the ledger's entries once, and kept beside the labels as `view/clips-*.parquet`, so that a large
collection opens at once the next time. It can be deleted: it is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.database import Database
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outputs import model_folders
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.documents import DocumentError, parquet_table
from pipeline.records.evolution import read_shard
from pipeline.records.faces import (
    CLIP_LABEL_SCHEMA,
    FRAME_SCHEMA,
    SHOT_SCHEMA,
    TRACK_SCHEMA,
    ClipLabel,
    Prediction,
    Shot,
    TrackLabel,
)
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import absolute_url
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

INDEX_VERSION = 3
SHARDS_AT_ONCE = 256
SHARDS_KEPT = 16
_HIGHEST = f"greatest({', '.join(f'probabilities.{name}' for name in EMOTIONS)})"
_LABEL_ROWS = CLIP_LABEL_SCHEMA.append(pa.field("unit", pa.string()))
_COLUMNS = [name for name in CLIP_LABEL_SCHEMA.names if name not in ("clip_id", "path", "state", "reason")]
_INDEX = f"""
create or replace table shards_of as select unit,
  max(path) filter ("table" = 'clips') as clips_shard, max(path) filter ("table" = 'frames') as frames_shard,
  max(path) filter ("table" = 'tracks') as tracks_shard, max(path) filter ("table" = 'shots') as shots_shard
  from shards group by unit;
create or replace table clips_here as select l.clip_id, l.path, l.state,
  coalesce(c.reason, l.reason) as reason, l.detail, {", ".join(f"c.{name}" for name in _COLUMNS)},
  l.unit, regexp_extract(s.clips_shard, 'day=([0-9-]+)', 1) as day, s.frames_shard, s.tracks_shard, s.shots_shard,
  p.url, p.size_bytes,
  coalesce(c.same_as, l.clip_id) as original
  from latest l left join label_rows c on c.clip_id = l.clip_id and c.unit = l.unit
  left join shards_of s on s.unit = l.unit left join planned p on p.clip_id = l.clip_id;
create or replace table clips as select c.* exclude (frames_shard, tracks_shard, shots_shard),
  coalesce(o.frames_shard, c.frames_shard) as frames_shard, coalesce(o.tracks_shard, c.tracks_shard) as tracks_shard,
  coalesce(o.shots_shard, c.shots_shard) as shots_shard,
  {_HIGHEST.replace("probabilities", "c.probabilities")} as probability,
  if(contains(c.path, '/'), split_part(c.path, '/', 1), '') as show
  from clips_here c left join clips_here o on o.clip_id = c.same_as;
"""


class Labels:
    """The labels of one model.

    Attributes:
        database: holds the table `clips`: a row for each input with its label (columns of CLIP_LABEL_SCHEMA, state and
            reason of every input), `day`, `unit`, `original` (the clip whose faces are its own), the shards in which
            its faces lie, `url` and `size_bytes` as they were planned, `probability` (the highest of its seven) and
            `show` (the first folder of its path).
        info: kind, config and versions with which they were made.
        digest: changes whenever a unit is committed.
    """

    def __init__(self, url: str) -> None:
        self.ledger = Ledger(url)
        self.storage = self.ledger.storage
        self.info = self.ledger.run_info()
        if self.info["kind"] != "labels":
            raise UsageError(f"{url} holds {self.info['kind']}, not labels; give the output of jobs/score.py")
        listing = json.dumps(self.ledger.committed_units()).encode()
        self.digest = hashlib.sha256(listing).hexdigest()[:16]
        self.database = Database()
        self._shard = lru_cache(maxsize=SHARDS_KEPT)(self.storage.read)
        self._open_index()

    @property
    def model(self) -> str:
        """The first 12 digits of the checkpoint's sha256."""
        return self.info["config"]["checkpoint_sha256"][:12]

    @property
    def abstain_below(self) -> float:
        """The probability below which a face, person or clip got no emotion."""
        return self.info["config"].get("abstain_below", 0.0)

    def clip(self, clip_id: str) -> dict[str, Any] | None:
        """The row of one clip, or None."""
        return next(self.database.rows("select * from clips where clip_id = $id", id=clip_id), None)

    def faces(self, clip: dict[str, Any]) -> pa.Table:
        """Rows of FRAME_SCHEMA of a clip, in order of time."""
        return self._rows(clip, "frames_shard", Prediction, FRAME_SCHEMA).sort_by(
            [("pts_seconds", "ascending"), ("face_index", "ascending")]
        )

    def persons(self, clip: dict[str, Any]) -> pa.Table:
        """Rows of TRACK_SCHEMA of a clip, in order of appearance."""
        return self._rows(clip, "tracks_shard", TrackLabel, TRACK_SCHEMA).sort_by("track_index")

    def shots(self, clip: dict[str, Any]) -> pa.Table:
        """Rows of SHOT_SCHEMA of a clip, in order; none where nobody looked for them."""
        return self._rows(clip, "shots_shard", Shot, SHOT_SCHEMA).sort_by("shot_index")

    def labelled(
        self, *, pattern: str = "*", clip_ids: Sequence[str] | None = None
    ) -> Iterator[tuple[dict[str, Any], pa.Table, pa.Table]]:
        """Every clip with faces whose path fits a pattern (or whose id is it): its row, faces and persons.

        In the order of the shards, so that each is read once; clips of one shard by path.
        """
        sql = (
            "select * from clips where num_faces > 0 and (path glob $pattern or clip_id = $pattern)"
            " and ($ids is null or clip_id in (select unnest($ids::varchar[]))) order by frames_shard, path, clip_id"
        )
        ids = None if clip_ids is None else list(clip_ids)
        rows = self.database.rows(sql, pattern=pattern, ids=ids)
        for _, group in groupby(rows, key=lambda row: row["frames_shard"]):
            for row in group:
                yield row, self.faces(row), self.persons(row)

    def _rows(self, clip: dict[str, Any], place: str, record: type, schema: pa.Schema) -> pa.Table:
        if clip[place] is None:
            return schema.empty_table()
        try:
            data = self._shard(clip[place])
        except FileNotFoundError:
            raise StorageError(f"{self.storage.url}/{clip[place]} is gone; score the clips of it again ") from None
        return read_shard(data, record, schema, filters=pc.field("clip_id") == clip["original"])

    def _open_index(self) -> None:
        name = f"view/clips-v{INDEX_VERSION}-{self.digest}.parquet"
        try:
            table = parquet_table(self.storage.read(name), name)
        except (FileNotFoundError, DocumentError):
            table = self._made_index()
            self._keep_index(name, table)
        self.database.create("clips", table.schema)
        self.database.insert("clips", table)

    def _made_index(self) -> pa.Table:
        snapshot = self.ledger.snapshot()
        snapshot.settle("latest", "planned")
        paths = {shard["path"]: shard["unit"] for shard in snapshot.shards("\"table\" = 'clips' and rows > 0")}
        if len(paths) > SHARDS_AT_ONCE:
            log_status(f"reading the labels of {len(paths)} shards; the next time it is done")
        snapshot.database.create("label_rows", _LABEL_ROWS)
        for table in _label_tables(self.storage, paths):
            snapshot.database.insert("label_rows", table)
        return _index_of(snapshot)

    def _keep_index(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        try:
            for old in self.storage.sizes("view"):
                if old.startswith("view/clips-"):
                    self.storage.delete(old)
            self.storage.put(name, buffer.getvalue())
        except (OSError, StorageError):
            return  # Labels that may only be read are indexed each time.


def _label_tables(storage: Storage, paths: dict[str, str]) -> Iterator[pa.Table]:
    names = list(paths)
    for start in range(0, len(names), SHARDS_AT_ONCE):
        for name, data in storage.read_many(names[start : start + SHARDS_AT_ONCE]).items():
            rows = read_shard(data, ClipLabel, CLIP_LABEL_SCHEMA).replace_schema_metadata(None)
            yield rows.append_column("unit", pa.repeat(pa.scalar(paths[name]), rows.num_rows))


def _index_of(snapshot: Snapshot) -> pa.Table:
    snapshot.database.execute(_INDEX)
    return snapshot.database.table("select * from clips order by path, clip_id")


def models_of(url: str) -> list[str]:
    """The folders of models in an output of jobs/score.py (or the one given itself), sorted. Raises UsageError."""
    storage = Storage(url)
    if storage.exists("plan/run.json"):
        return [storage.url]
    models = [f"{storage.url}/{name}" for name in model_folders(storage)]
    if not models and not storage.filesystem.isdir(storage.path()):
        raise UsageError(f"{url} is not there; give the --output of jobs/score.py")
    if not models:
        raise UsageError(f"{url} holds no labels (no folder model=...); give the --output of jobs/score.py")
    return models


def open_labels(url: str, *, model: str | None = None) -> Labels:
    """The labels of one model in an output of jobs/score.py.

    Args:
        url: the output, or the folder `model=...` in it; a path or any fsspec URL.
        model: the beginning of the checkpoint's sha256, where there are several.

    Raises:
        UsageError: where there are none, or several and no choice.
    """
    models = models_of(absolute_url(url))
    fitting = [each for each in models if model is None or each.rpartition("model=")[2].startswith(model)]
    if len(fitting) != 1:
        names = ", ".join(each.rpartition("model=")[2] for each in models)
        raise UsageError(f"--model is {model!r}; {url} holds the labels of {names}: give one of them")
    return Labels(fitting[0])
