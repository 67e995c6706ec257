"""Labels as tidy CSV tables with a codebook, and the list of what is least certain."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from pipeline.labels.over_time import by_person, moments_of, shot_times
from pipeline.labels.source import Labels
from pipeline.records.columns import FLAT_COLUMNS, PER_CLASS
from pipeline.records.evolution import from_first_frame
from pipeline.records.faces import CLIP_LABEL_SCHEMA, TRACK_SCHEMA
from pipeline.records.vocabulary import EMOTIONS

_ELSEWHERE = ("probabilities", "emotion_shares", "model", *FLAT_COLUMNS)
CLIP_COLUMNS = [name for name in CLIP_LABEL_SCHEMA.names if name not in _ELSEWHERE]
PERSON_COLUMNS = [name for name in TRACK_SCHEMA.names if name not in (*_ELSEWHERE, "person", "path")]
MEANINGS = {
    "clip": "path of the clip relative to the input root",
    "person": "which person of the clip, from 1 in order of appearance",
    "second": "start of the interval, seconds of the clip's own timeline; an interval without a face has no row",
    "valence": "pleasant or unpleasant, -1 to 1; empty where the model gives none",
    "arousal": "excited or calm, -1 to 1; empty where the model gives none",
    "num_faces": "faces of the sampled frames in it",
    "day": "day under which the label is filed",
    "rank": "1 is to be looked at first",
    "shot": "which shot of the clip, from 1",
    "start": "where the shot begins, seconds from the clip's first frame",
    "end": "where it ends (exclusive), seconds from the clip's first frame",
    "length": "how long it is, seconds",
}


SHOT_COLUMNS = ["clip", "clip_id", "shot", "start", "end", "length"]


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n"):
        return f"'{value}"
    if isinstance(value, float):
        return round(value, 6)  # Of 32 bits a number has no more.
    return "" if value is None else value


def csv_parts(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """A CSV file, some rows at a time: UTF-8 with a byte order mark, without which Excel reads Latin-1."""
    yield "﻿".encode()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([harmless(value) for value in row])
        if buffer.tell() > 2**20:
            yield buffer.getvalue().encode("utf-8", "backslashreplace")
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode("utf-8", "backslashreplace")


def _of_classes(values: Any, classes: Sequence[str]) -> list[Any]:
    return [None] * len(classes) if values is None else [round(values[name], 6) for name in classes]


def clip_rows(labels: Labels, *, pattern: str, clip_ids: Sequence[str] | None) -> Iterator[list[Any]]:
    """A row for every input, with or without a label."""
    sql = (
        "select * from clips where (path glob $pattern or clip_id = $pattern)"
        " and ($ids is null or clip_id in (select unnest($ids::varchar[]))) order by path, clip_id"
    )
    ids = None if clip_ids is None else list(clip_ids)
    for row in map(labels.seen, labels.database.rows(sql, pattern=pattern, ids=ids)):
        own = [row[name] for name in CLIP_COLUMNS]
        shares = (_of_classes(row[name], labels.classes) for name in PER_CLASS)
        yield [*own, row["day"], *chain.from_iterable(shares)]


def person_rows(labels: Labels, chosen: dict[str, Any]) -> Iterator[list[Any]]:
    """A row for every person of every clip."""
    for clip, _, persons in labels.labelled(**chosen):
        for person in persons.to_pylist():
            own = {**person, "clip_id": clip["clip_id"]}
            values = [own[name] + 1 if name == "track_index" else own[name] for name in PERSON_COLUMNS]
            shares = (_of_classes(person[name], labels.classes) for name in PER_CLASS)
            yield [clip["path"], *values, *chain.from_iterable(shares)]


def moment_rows(labels: Labels, chosen: dict[str, Any], *, every: float) -> Iterator[list[Any]]:
    """A row for every person and interval in which it has a face."""
    abstain_below = labels.abstain_below
    for clip, faces, _ in labels.labelled(**chosen):
        for person, own in by_person(faces).items():
            for moment in moments_of(from_first_frame(own), every=every, abstain_below=abstain_below):
                shares = [round(value, 6) for value in moment.probabilities]
                where = [clip["path"], clip["clip_id"], person + 1, moment.second]
                two = [moment.valence, moment.arousal]
                yield [*where, *shares, moment.emotion, *two, moment.num_faces]


def shot_rows(labels: Labels, chosen: dict[str, Any]) -> Iterator[list[Any]]:
    """A row for every shot of every clip with faces."""
    for clip, _, _ in labels.labelled(**chosen):
        for number, (start, end) in enumerate(shot_times(labels.shots(clip)), start=1):
            times = (round(value, 6) for value in (start, end, end - start))
            yield [clip["path"], clip["clip_id"], number, *times]


def csv_files(labels: Labels, chosen: dict[str, Any], *, every: float) -> dict[str, Iterator[bytes]]:
    """The files of the format csv, by name; each is made when it is read."""
    of_classes = [*labels.classes, *(f"share_{name}" for name in labels.classes)]
    clip_columns = [*CLIP_COLUMNS, "day", *of_classes]
    person_columns = ["clip", *("person" if name == "track_index" else name for name in PERSON_COLUMNS)]
    person_columns += of_classes
    time_columns = [
        "clip",
        "clip_id",
        "person",
        "second",
        *labels.classes,
        "emotion",
        "valence",
        "arousal",
        "num_faces",
    ]
    clips = clip_rows(labels, pattern=chosen["pattern"], clip_ids=chosen["clip_ids"])
    tables = {
        "persons_over_time.csv": (time_columns, moment_rows(labels, chosen, every=every)),
        "persons.csv": (person_columns, person_rows(labels, chosen)),
        "clips.csv": (clip_columns, clips),
        "shots.csv": (SHOT_COLUMNS, shot_rows(labels, chosen)),
    }
    book = [
        [name, column, meaning(column, labels.classes)] for name, (columns, _) in tables.items() for column in columns
    ]
    tables["codebook.csv"] = (["table", "column", "meaning"], iter(book))
    return {name: csv_parts(columns, rows) for name, (columns, rows) in tables.items()}


def meaning(column: str, classes: Sequence[str] = EMOTIONS) -> str:
    """What a column of these tables holds, with its unit. classes: of the model."""
    if column in classes:
        return f"mean probability of {column} in the interval, the person or the clip, 0 to 1"
    if column.removeprefix("share_") in classes:
        name = column.removeprefix("share_")
        return f"share of the sampled faces whose most probable emotion is {name}, 0 to 1"
    for schema in (CLIP_LABEL_SCHEMA, TRACK_SCHEMA):
        if column not in MEANINGS and column in schema.names:
            return schema.field(column).metadata[b"meaning"].decode()
    return MEANINGS[column]


UNCERTAIN_COLUMNS = ["rank", "clip", "clip_id", "person", "mean_entropy", "emotion", "agreement"]


def most_uncertain(labels: Labels, *, count: int, pattern: str) -> list[dict[str, Any]]:
    """The persons that are worth a look first: by mean entropy, one a clip while there are clips, then the second.

    Read from the most uncertain clips on, and no further than is needed.
    """
    sql = (
        "select clip_id from clips where num_faces > 0 and (path glob $pattern or clip_id = $pattern)"
        " and same_as is null order by mean_entropy desc, path limit $count"
    )
    ids = [row["clip_id"] for row in labels.database.rows(sql, pattern=pattern, count=count)]
    found = []
    for clip, _, persons in labels.labelled(clip_ids=ids):
        own = sorted(persons.to_pylist(), key=lambda row: (-row["mean_entropy"], row["track_index"]))
        found += [
            {**row, "clip_id": clip["clip_id"], "clip": clip["path"], "turn": turn} for turn, row in enumerate(own)
        ]
    found.sort(key=lambda row: (row["turn"], -row["mean_entropy"], row["clip"], row["track_index"]))
    return found[:count]


def uncertain_rows(persons: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    """The rows of most_uncertain.csv."""
    for rank, row in enumerate(persons, start=1):
        own = {**row, "rank": rank, "person": row["track_index"] + 1, "mean_entropy": round(row["mean_entropy"], 6)}
        yield [own[name] for name in UNCERTAIN_COLUMNS]
