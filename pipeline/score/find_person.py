"""Who is meant by a clip and the number of a person, in the labels of one or several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.ledger.forget import UnfinishedError
from pipeline.ledger.forgotten import ForgottenPerson, contents_of, read_record
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_of, whole_id
from pipeline.records.evolution import read_shard
from pipeline.records.faces import FRAME_SCHEMA, TRACK_SCHEMA, Prediction, TrackLabel
from pipeline.records.outcomes import Outcome, State, outcome_of
from pipeline.records.vocabulary import UsageError
from pipeline.score.forgotten import tracks_of
from pipeline.score.labels import predictions_in, track_labels_in


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """A clip as one ledger has it, or the one with its bytes that was scored in its place.

    Attributes:
        clip, outcome, unit: of the clip that was scored.
        kin: ids of that clip and of its copies, sorted. contents: what says that other files have their bytes.
        faces, tracks: its rows. noted: persons of it who are forgotten, or about to be.
        url: of the ledger.
    """

    clip: Clip
    outcome: Outcome
    unit: str
    kin: tuple[str, ...]
    contents: tuple[str, ...]
    faces: tuple[Prediction, ...]
    tracks: tuple[TrackLabel, ...]
    noted: tuple[ForgottenPerson, ...]
    url: str

    def person(self, number: int) -> ForgottenPerson | None:
        """The person of this number, or who had it before it was forgotten."""
        for each in self.noted:
            if number in each.numbers:
                return each
        numbers = self._linked_with(number)
        faces = tuple((face.pts_seconds, face.box) for face in self.faces if number_of(face) in numbers)
        if not faces:
            return None
        return ForgottenPerson(clip_ids=self.kin, contents=self.contents, numbers=numbers, faces=faces)

    def _linked_with(self, number: int) -> tuple[int, ...]:
        """The number, and those of the same person in other shots, where persons were linked."""
        linked = {track.track_index + 1: track.person_index for track in self.tracks}
        person = linked.get(number)
        return (number,) if person is None else tuple(sorted(each for each in linked if linked[each] == person))

    def as_here(self, person: ForgottenPerson) -> ForgottenPerson:
        """A person with the numbers that it has here, by where its faces are."""
        seen = [face for face in self.faces if not face.stray]
        numbers = {track + 1 for track in tracks_of(person, seen, [face.track_index for face in seen])}
        numbers |= {number for each in self.noted if each.faces == person.faces for number in each.numbers}
        ids = tuple(sorted({*self.kin, *person.clip_ids}))
        return replace(person, clip_ids=ids, contents=self.contents, numbers=tuple(sorted(numbers)))


def find_person(
    ledgers: Sequence[tuple[Ledger, Snapshot]], name: str, number: int
) -> list[tuple[LabelledClip, ForgottenPerson] | None]:
    """The clip and the person in the labels of each model; None where these do not have the clip.

    Args:
        name: id or path of a clip.
        number: of the person, from 1, in the labels of any of the models; in those of others it may have another.

    Raises:
        UnfinishedError: where its clip is not finished.
        UsageError: for what is not there, where models give the number to two persons, and where there are no labels.
    """
    for ledger, _ in ledgers:
        if ledger.run_info()["kind"] != "labels":
            raise UsageError(
                f"{ledger.storage.url} holds examples, which have no persons, and the context of each shows everybody "
                "who is in its frame; forget the whole clip, with --clip ID"
            )
    views = [labelled_clip(ledger, snapshot, name) for ledger, snapshot in ledgers]
    there = [view for view in views if view is not None]
    if not there:
        raise UsageError(f"{name!r} is no id or path of a clip in {ledgers[0][0].storage.url}; see outcomes.jsonl")
    person = _one_person(there, number)
    return [view and (view, view.as_here(person)) for view in views]


def _one_person(views: Sequence[LabelledClip], number: int) -> ForgottenPerson:
    for view in views:  # Cut off, an earlier run has noted who it was.
        for each in view.noted:
            if number in each.numbers:
                return each
    people = [(view, person) for view in views if (person := view.person(number)) is not None]
    if not people and views[0].outcome.state is State.RETRYABLE:
        raise UnfinishedError(
            f"{views[0].clip.path} in {views[0].url} is not finished, so its persons have no numbers yet; run the job "
            "to its end first"
        )
    if not people:
        numbers = ", ".join(str(track.track_index + 1) for track in views[0].tracks) or "none"
        raise UsageError(f"{views[0].clip.path} has no person {number} in {views[0].url}; its persons: {numbers}")
    (first, person), *others = people
    for view, _ in others:
        if number not in view.as_here(person).numbers:
            raise UsageError(
                f"person {number} of {view.clip.path} is another one in {first.url} than in {view.url}; give one of "
                "these folders"
            )
    return person


def labelled_clip(ledger: Ledger, snapshot: Snapshot, name: str) -> LabelledClip | None:
    """The clip of an id or path; None where the ledger has none. Raises UsageError where several have the path."""
    database = snapshot.settle("planned", "latest").database
    rows = list(database.rows("select clip_id, same_as from planned where $name in (clip_id, path)", name=name))
    if not rows:
        return None
    if len(rows) > 1:
        raise UsageError(f"{len(rows)} clips have the path {name!r}; give the id of one")
    original = rows[0]["same_as"] or rows[0]["clip_id"]
    kin = [clip_of(row) for row in snapshot.kin_of([original]).select(CLIP_SCHEMA.names).to_pylist()]
    clip = min((each for each in kin if whole_id(each.clip_id) == original), key=lambda each: len(each.clip_id))
    (row,) = snapshot.latest("clip_id = $id", id=original).to_pylist()
    tables = {}
    for table, record, schema in (("frames", Prediction, FRAME_SCHEMA), ("tracks", TrackLabel, TRACK_SCHEMA)):
        shards = snapshot.shards('s.unit = $unit and s."table" = $name', unit=row["unit"], name=table)
        parts = [_rows_of(ledger, shard["path"], record, schema, original) for shard in shards]
        tables[table] = pa.concat_tables(parts) if parts else schema.empty_table()
    return LabelledClip(
        clip=replace(clip, clip_id=original),
        outcome=outcome_of(row),
        unit=row["unit"],
        kin=tuple(sorted({whole_id(each.clip_id) for each in kin})),
        contents=tuple(sorted(contents_of(kin))),
        faces=tuple(predictions_in(tables["frames"])),
        tracks=tuple(track_labels_in(tables["tracks"])),
        noted=tuple(each for each in read_record(ledger.storage).persons if original in each.clip_ids),
        url=ledger.storage.url,
    )


def _rows_of(ledger: Ledger, path: str, record: type[Any], schema: pa.Schema, clip_id: str) -> pa.Table:
    rows = read_shard(ledger.storage.read(path), record, schema, filters=pc.field("clip_id") == clip_id)
    return rows.replace_schema_metadata(None)


def number_of(face: Prediction) -> int | None:
    """The number of a face's person, as people count; None for a stray."""
    return None if face.stray else face.track_index + 1
