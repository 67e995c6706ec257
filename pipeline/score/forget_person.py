"""Forgets one person of a clip of labels: its rows, what follows from them and its pictures; the others stay.

In the order in which it is done: who it is (the boxes of its faces) is noted; the shards of segments and then those of
the clip are written without it, the figures of clip, copies and night counted anew from the faces that are left; what
follows is deleted. Cut off between any two of these, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.ledger.beside import clear_beside
from pipeline.ledger.forget import (
    Forgotten,
    check_finished,
    clear,
    forget,
    remember,
    table_in,
    units_with,
    unreadable,
    without_rows,
)
from pipeline.ledger.forgotten import ForgottenPerson, ForgottenRecord
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.removal import change_unit
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.arrow import pc
from pipeline.records.clips import whole_id
from pipeline.records.columns import classes_in, table_of, with_classes
from pipeline.records.documents import parse_json
from pipeline.records.faces import CLIP_LABEL_SCHEMA, Box
from pipeline.score.find_person import LabelledClip, number_of
from pipeline.score.labels import clip_label_of

# What a copy's row does not share with that of the clip that was scored.
_OWN_COLUMNS = ("clip_id", "path", "content_id", "same_as", "model")


def describe_person(clip: LabelledClip, person: ForgottenPerson) -> str:
    """Who it is, in words."""
    faces = [face for face in clip.faces if number_of(face) in person.numbers]
    named = " and ".join(map(str, person.numbers)) or "none"
    others = ", ".join(str(each.track_index + 1) for each in clip.tracks if each.track_index + 1 not in person.numbers)
    span = f", {faces[0].pts_seconds:.2f} to {faces[-1].pts_seconds:.2f} s" if faces else ""
    return f"{clip.clip.path}: person {named} ({len(faces)} faces{span}); its other persons: {others or 'none'}"


def forget_person(ledger: Ledger, snapshot: Snapshot, clip: LabelledClip, person: ForgottenPerson) -> Forgotten:
    """Take a person out of everything in the labels of one model. The caller holds its lock.

    A clip of which no other face is left is forgotten whole. Raises LedgerError where a unit with the clip is not
    finished, and where the ledger does not hold afterwards.
    """
    check_finished(ledger, snapshot, clip.kin)
    noted = remember(ledger.storage, ForgottenRecord(persons=(person,)))
    if person.numbers and all(number_of(face) in person.numbers for face in clip.faces):
        return forget(ledger, snapshot, clip.kin)
    work = _Removal(ledger=ledger, clip=clip, person=person)
    ledger.reopen()
    ledger.drop_compacted()
    units = units_with(snapshot, clip.kin)
    for unit in sorted(units, key=lambda unit: unit == clip.unit):  # Last: its rows tell which those of segments are.
        change_unit(ledger, unit, change=work.changed, outcomes=work.outcomes)
    work.find_corrections()
    names, num_deleted = clear(ledger, units, work.clear)
    num_deleted += clear_beside(ledger.storage.url, ()).num_deleted
    return Forgotten(
        clip_ids=clip.kin,
        num_units=len(units),
        num_rows=work.num_rows,
        num_deleted=num_deleted,
        num_read=len(names),
        left=tuple(name for name in names if work.holds(name)),
        alike=(),
        unread=unreadable(ledger.storage, names),
        manifests=tuple(sorted(noted.manifests)),
    )


@dataclass(kw_only=True)
class _Removal:
    """What becomes of each table and object. num_rows: how many rows of faces and persons were taken out."""

    ledger: Ledger
    clip: LabelledClip
    person: ForgottenPerson
    num_rows: int = 0
    _num_removed: int = 0
    _corrections: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        own = [face for face in self.clip.faces if number_of(face) in self.person.numbers]
        self._faces = {*self.person.faces, *((face.pts_seconds, face.box) for face in own)}
        self._tracks = pa.array([number - 1 for number in self.person.numbers], pa.int32())
        info = self.ledger.run_info()
        classes = classes_in(info)
        label = clip_label_of(
            self.clip.clip,
            self.clip.outcome,
            [face for face in self.clip.faces if number_of(face) not in self.person.numbers],
            [track for track in self.clip.tracks if track.track_index + 1 not in self.person.numbers],
            abstain_below=info["config"].get("abstain_below", 0.0),
            classes=classes,
        )
        (self._label,) = table_of([label], with_classes(CLIP_LABEL_SCHEMA, classes)).to_pylist()

    def changed(self, name: str, table: pa.Table) -> pa.Table:
        """The rows of a table without the person; the same table where it has nothing of it."""
        if name == "clips":
            return self._with_label(table)
        if name == "segments":  # Who is who is not known in them yet.
            is_own = pa.array(list(self._is_face(table)), pa.bool_())
        elif "track_index" in table.schema.names:
            is_clip = pc.equal(table["clip_id"], self.clip.clip.clip_id)
            is_own = pc.and_(is_clip, pc.is_in(table["track_index"], value_set=self._tracks))
            if "stray" in table.schema.names:
                is_own = pc.and_(is_own, pc.invert(pc.fill_null(table["stray"], False)))
        else:
            return table
        num_own = pc.sum(pc.cast(is_own, pa.int64())).as_py() or 0
        if not num_own:
            return table
        self.num_rows += num_own
        self._num_removed += num_own if name in ("frames", "segments") else 0
        return table.filter(pc.invert(is_own))

    def outcomes(self, rows: list[dict[str, Any]], tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
        """The outcomes of a unit, with the rows that are left counted."""
        del tables
        gone, self._num_removed = self._num_removed, 0
        return [
            {**row, "num_examples": max(0, row["num_examples"] - gone)}
            if gone and whole_id(row["clip_id"]) == self.clip.clip.clip_id
            else row
            for row in rows
        ]

    def find_corrections(self) -> None:
        """Find what was said of the person, and what took that back."""
        storage = self.ledger.storage
        said = {name: self._correction(name) for name in storage.sizes("corrections") if name.endswith(".json")}
        own = {name: each for name, each in said.items() if each.get("clip_id") in self.person.clip_ids}
        tracks = set(self._tracks.to_pylist())
        gone = {name for name, each in own.items() if each.get("track_index") in tracks}
        left = {each.get("correction_id") for name, each in said.items() if name not in gone}
        undone = {name for name, each in own.items() if each.get("undoes") and each["undoes"] not in left}
        self._corrections = gone | undone

    def clear(self, name: str) -> bool:
        """Delete or rewrite an object that has something of the person; whether it was."""
        if not self.holds(name):
            return False
        without_rows(self.ledger.storage, name, self.person.clip_ids)
        return True

    def holds(self, name: str) -> bool:
        """Whether an object has a face of the person, a picture of the clip, or what was said of the person."""
        if name in self._corrections or name.endswith(".html"):
            return True
        table = table_in(name, self.ledger.storage.read(name)) if name.endswith((".arrow", ".parquet")) else None
        if table is None or "clip_id" not in table.schema.names or name.startswith("plan/"):
            return False
        if any(pa.types.is_binary(each.type) for each in table.schema):  # Frames show everybody who is in them.
            return bool({whole_id(each) for each in table["clip_id"].to_pylist()} & set(self.person.clip_ids))
        if "first_pts_seconds" in table.schema.names:
            own = table.filter(pc.equal(table["clip_id"], self.clip.clip.clip_id)).to_pylist()
            own = [row for row in own if row["track_index"] + 1 in self.person.numbers]
            return any(row["first_pts_seconds"] == time for row in own for time, _ in self._faces)
        return any(self._is_face(table))

    def _is_face(self, table: pa.Table) -> Iterator[bool]:
        """Whether each row of a table is one of the person's faces."""
        if not {"pts_seconds", "box"} <= set(table.schema.names):
            yield from [False] * table.num_rows
            return
        for row in table.select(["clip_id", "pts_seconds", "box"]).to_pylist():
            is_clip = whole_id(row["clip_id"]) in self.person.clip_ids
            yield is_clip and (row["pts_seconds"], Box(**row["box"])) in self._faces

    def _with_label(self, table: pa.Table) -> pa.Table:
        kept = {name: value for name, value in self._label.items() if name not in _OWN_COLUMNS}
        rows = table.to_pylist()
        new = [
            {**row, **{name: value for name, value in kept.items() if name in row}}
            if row["clip_id"] in self.clip.kin
            else row
            for row in rows
        ]
        return table if new == rows else pa.Table.from_pylist(new, schema=table.schema)

    def _correction(self, name: str) -> dict[str, Any]:
        try:
            said = parse_json(self.ledger.storage.read(name), name)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}
