"""Labels of one model, opened for reading: a table of clips to be queried, and the faces and persons of a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.labels.index import ClipsIndex
from pipeline.labels.index_rows import Reading
from pipeline.labels.otherwise import Otherwise, clip_otherwise, faces_otherwise, persons_otherwise, sql_otherwise
from pipeline.ledger.database import Database
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outputs import model_folders
from pipeline.records.arrow import pc
from pipeline.records.columns import classes_in, with_classes
from pipeline.records.evolution import read_shard
from pipeline.records.faces import (
    FRAME_SCHEMA,
    SHOT_SCHEMA,
    TRACK_SCHEMA,
    Prediction,
    Shot,
    TrackLabel,
)
from pipeline.records.vocabulary import UsageError
from pipeline.storage.parts import parts_of
from pipeline.storage.remote import absolute_url
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

SHARDS_KEPT = 16


class Labels:
    """The labels of one model; of outputs in parts (`labels-*`) those of all of them.

    Attributes:
        database: holds the table `clips`: a row for each input with its label (columns of CLIP_LABEL_SCHEMA, state and
            reason of every input), `day`, `unit`, `original` (the clip whose faces are its own), the shards in which
            its faces lie, `url` and `size_bytes` as they were planned, `probability` (the highest of its classes),
            `show` (the first folder of its path) and `part` (which of `storages` it is in).
        storages: the folders of the model, one a part. Corrections of a clip lie in its own.
        info: kind, config and versions with which they were made.
        digest: changes whenever an entry is written.

    waits: for the whole table of clips. Otherwise, where it is not kept, it has those of an earlier day or some of the
    newest until `finish` was called. abstain_below, min_track_faces: another threshold than the labels were made with,
    and the least faces of a person (`otherwise`).
    """

    def __init__(
        self, *urls: str, waits: bool = True, abstain_below: float | None = None, min_track_faces: int = 1
    ) -> None:
        ledgers = [Ledger(url) for url in urls]
        self.storages = [ledger.storage for ledger in ledgers]
        infos = [ledger.run_info() for ledger in ledgers]
        for url, info in zip(urls, infos, strict=True):
            if info["kind"] != "labels":
                raise UsageError(f"{url} holds {info['kind']}, not labels; give the output of jobs/score.py")
        self.info = infos[0]
        self.otherwise: Otherwise | None = None
        if abstain_below is not None or min_track_faces > 1:
            below = self.abstain_below if abstain_below is None else abstain_below
            self.otherwise = Otherwise(abstain_below=below, min_track_faces=min_track_faces)
        self.database = Database()
        self._shard = lru_cache(maxsize=SHARDS_KEPT)(self._read)
        self._indexes = []
        for part, ledger in enumerate(ledgers):
            folder = self.database.folder / str(part)
            folder.mkdir()
            self._indexes.append(ClipsIndex(ledger, folder))
        digests = [index.digest for index in self._indexes]
        self.digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        if waits:
            self.finish()
        else:
            for index in self._indexes:
                index.begin()
        self.show_read()

    def finish(self) -> None:
        """Read the rest of the table of clips; `show_read` then shows it. Raises what opening raises, StoppedError."""
        for index in self._indexes:
            index.finish()

    def show_read(self) -> None:
        """Make the table `clips` what is read by now. Not while another thread asks."""
        more = "" if self.otherwise is None else f" replace ({sql_otherwise(self.otherwise, self.classes)})"
        tables = [f"select *{more}, {part} as part from {index.sql}" for part, index in enumerate(self._indexes)]
        self.database.execute(f"create or replace view clips as {' union all by name '.join(tables)}")

    @property
    def is_whole(self) -> bool:
        """Whether the table of clips is that of the ledger as it is now."""
        return all(index.is_whole for index in self._indexes)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left for `finish`."""
        return all(index.is_finished for index in self._indexes)

    @property
    def readings(self) -> list[Reading]:
        """How far the table of each part is."""
        return [index.reading for index in self._indexes]

    @property
    def model(self) -> str:
        """The first 12 digits of the checkpoint's sha256."""
        return self.info["config"]["checkpoint_sha256"][:12]

    @property
    def abstain_below(self) -> float:
        """The probability below which a face, person or clip has no emotion."""
        if self.otherwise is not None:
            return self.otherwise.abstain_below
        return self.info["config"].get("abstain_below", 0.0)

    def storage_of(self, clip_id: str) -> Storage:
        """The folder of the part that a clip is in; of one that is in none, the first."""
        clip = self.clip(clip_id)
        return self.storages[0 if clip is None else clip["part"]]

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels may be, in the order of the model."""
        return classes_in(self.info)

    def clip(self, clip_id: str) -> dict[str, Any] | None:
        """The row of one clip, or None."""
        return next(self.database.rows("select * from clips where clip_id = $id", id=clip_id), None)

    def faces(self, clip: dict[str, Any]) -> pa.Table:
        """Rows of FRAME_SCHEMA of a clip, in order of time."""
        faces = self._labelled_faces(clip)
        return faces if self.otherwise is None else faces_otherwise(faces, self.otherwise)

    def persons(self, clip: dict[str, Any]) -> pa.Table:
        """Rows of TRACK_SCHEMA of a clip, in order of appearance."""
        persons = self._rows(clip, "tracks_shard", TrackLabel, TRACK_SCHEMA).sort_by("track_index")
        if self.otherwise is None:
            return persons
        return persons_otherwise(self._labelled_faces(clip), persons, self.otherwise)

    def seen(self, clip: dict[str, Any]) -> dict[str, Any]:
        """A row of the table of clips with the figures that faces and persons give it, looked at otherwise."""
        if self.otherwise is None or not clip["num_faces"]:
            return clip
        return clip_otherwise(clip, self._labelled_faces(clip), self.otherwise)

    def _labelled_faces(self, clip: dict[str, Any]) -> pa.Table:
        return self._rows(clip, "frames_shard", Prediction, FRAME_SCHEMA).sort_by(
            [("pts_seconds", "ascending"), ("face_index", "ascending")]
        )

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
            " and ($ids is null or clip_id in (select unnest($ids::varchar[])))"
            " order by part, frames_shard, path, clip_id"
        )
        ids = None if clip_ids is None else list(clip_ids)
        rows = self.database.rows(sql, pattern=pattern, ids=ids)
        for _, group in groupby(rows, key=lambda row: (row["part"], row["frames_shard"])):
            for row in group:
                yield row, self.faces(row), self.persons(row)

    def _rows(self, clip: dict[str, Any], place: str, record: type, schema: pa.Schema) -> pa.Table:
        if clip[place] is None:
            return with_classes(schema, self.classes).empty_table()
        try:
            data = self._shard(clip["part"], clip[place])
        except FileNotFoundError:
            url = self.storages[clip["part"]].url
            raise StorageError(f"{url}/{clip[place]} is gone; score the clips of it again ") from None
        return read_shard(data, record, schema, filters=pc.field("clip_id") == clip["original"])

    def _read(self, part: int, name: str) -> bytes:
        return self.storages[part].read(name)


def models_of(url: str) -> list[list[str]]:
    """Each model in an output of jobs/score.py (or the folder of one, or a pattern of all parts), sorted: its folders.

    Raises UsageError.
    """
    models: dict[str, list[str]] = {}
    for part in parts_of(url):
        for folder in _models_at(part):
            models.setdefault(folder.rpartition("/")[2], []).append(folder)
    return [models[name] for name in sorted(models)]


def _models_at(url: str) -> list[str]:
    storage = Storage(url)
    if storage.exists("plan/run.json"):
        return [storage.url]
    models = [f"{storage.url}/{name}" for name in model_folders(storage)]
    if not models and not storage.filesystem.isdir(storage.path()):
        raise UsageError(f"{url} is not there; give the --output of jobs/score.py")
    if not models:
        raise UsageError(f"{url} holds no labels (no folder model=...); give the --output of jobs/score.py")
    return models


def open_labels(url: str, *, model: str | None = None, waits: bool = True, **otherwise: Any) -> Labels:
    """The labels of one model in an output of jobs/score.py.

    Args:
        url: the output, the folder `model=...` in it, or a pattern of the outputs of all parts (`labels-*`); a path or
            any fsspec URL.
        model: the beginning of the checkpoint's sha256, where there are several.
        waits, otherwise: see `Labels`.

    Raises:
        UsageError: where there are none, or several and no choice.
    """
    models = models_of(absolute_url(url))
    fitting = [each for each in models if model is None or each[0].rpartition("model=")[2].startswith(model)]
    if len(fitting) != 1:
        raise UsageError(f"--model is {model!r}; {url} holds the labels of {names_of(models)}: give one of them")
    return Labels(*fitting[0], waits=waits, **otherwise)


def otherwise_of(config: Any) -> dict[str, Any]:
    """How a config with these settings looks at labels, as `Labels` takes it."""
    return {"abstain_below": config.abstain_below, "min_track_faces": config.min_track_faces}


def names_of(models: Sequence[Sequence[str]]) -> str:
    """The models' names, for people."""
    return ", ".join(each[0].rpartition("model=")[2] for each in models)
