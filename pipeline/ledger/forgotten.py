"""What was deleted on request, so that no later run computes it again: `forgotten.json` of a run.

Of a clip it holds the id and what says that another file has its bytes, of a person the boxes of its faces: without
these nothing could tell that a later run, or another model, has found it again. It holds no picture and no label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.ledger.files import json_bytes
from pipeline.ledger.lock import LedgerError
from pipeline.ledger.outputs import model_folders
from pipeline.records.clips import Clip, whole_id
from pipeline.records.documents import DocumentError, parse_json
from pipeline.records.faces import Box
from pipeline.storage.contents import HASHED_ID, UNTOLD_URL, WEB_URL
from pipeline.storage.store import Storage

RECORD = "forgotten.json"
# Of a million clips it has 60 MB; parsed, ten times as much.
MAX_RECORD_BYTES = 2**27


@dataclass(frozen=True, kw_only=True)
class ForgottenPerson:
    """A person of a clip who was deleted.

    Attributes:
        clip_ids: of the clip and its copies, sorted.
        contents: see `content_keys`.
        numbers: of the person in the labels beside the record, from 1; where a track was lost there may be several.
        faces: time in seconds and box (x_min, y_min, x_max, y_max) of each, in order of time.
    """

    clip_ids: tuple[str, ...]
    contents: tuple[str, ...]
    numbers: tuple[int, ...]
    faces: tuple[tuple[float, Box], ...]

    def is_in(self, clip: Clip) -> bool:
        """Whether the person was in this clip, or in the one that it is a segment of."""
        return whole_id(clip.clip_id) in self.clip_ids or not content_keys(clip).isdisjoint(self.contents)


@dataclass(frozen=True, kw_only=True)
class ForgottenRecord:
    """All that was deleted. manifests: sha256 of those that had some of it, from which checkpoints may have learned."""

    clip_ids: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    persons: tuple[ForgottenPerson, ...] = ()
    manifests: frozenset[str] = frozenset()

    def holds(self, clip: Clip) -> bool:
        """Whether a clip, or the one that it is a segment of, or one with the same bytes was deleted."""
        return whole_id(clip.clip_id) in self.clip_ids or not content_keys(clip).isdisjoint(self.contents)

    def persons_of(self, clip: Clip) -> list[ForgottenPerson]:
        """The persons of a clip, or of one with the same bytes, who were deleted."""
        return [person for person in self.persons if person.is_in(clip)]

    def joined(self, other: ForgottenRecord) -> ForgottenRecord:
        """What is in either. A person who is in both is the other's."""
        known = {(person.clip_ids, person.faces) for person in other.persons}
        return ForgottenRecord(
            clip_ids=self.clip_ids | other.clip_ids,
            contents=self.contents | other.contents,
            persons=(*(each for each in self.persons if (each.clip_ids, each.faces) not in known), *other.persons),
            manifests=self.manifests | other.manifests,
        )


def content_keys(clip: Clip) -> frozenset[str]:
    """What another clip with the same bytes and range has, too; empty where nothing says so."""
    span = (None, None) if whole_id(clip.clip_id) != clip.clip_id else (clip.start_pts_seconds, clip.end_pts_seconds)
    told = ((clip.content_id, UNTOLD_URL), (clip.bytes_id or "", WEB_URL))
    ids = [each for each, unless in told if re.fullmatch(HASHED_ID, each) and not re.search(unless, clip.url)]
    return frozenset(" ".join(map(str, (each, clip.size_bytes, *span))) for each in ids)


def contents_of(clips: Iterable[Clip]) -> frozenset[str]:
    """The keys of whole clips, of those that have one."""
    return frozenset().union(*map(content_keys, clips))


def read_record(storage: Storage) -> ForgottenRecord:
    """What was deleted from one run. Raises LedgerError where the record cannot be read: what it says must hold."""
    try:
        data = storage.read(RECORD)
    except FileNotFoundError:
        return ForgottenRecord()
    what = f"{storage.url}/{RECORD}"
    try:
        saved = parse_json(data, what, max_bytes=MAX_RECORD_BYTES)
        return ForgottenRecord(
            clip_ids=frozenset(map(str, saved["clip_ids"])),
            contents=frozenset(map(str, saved.get("contents", ()))),
            persons=tuple(map(_person_of, saved.get("persons", ()))),
            manifests=frozenset(map(str, saved["manifests"])),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, DocumentError) else f"{what} is no record of what was deleted"
        raise LedgerError(
            f"{reason}; put it back, or move it away: what was deleted may then be computed again"
        ) from None


def read_records(storage: Storage) -> ForgottenRecord:
    """What was deleted from a run and, in an output of jobs/score.py, from the labels of its other models."""
    found = read_record(storage)
    parent, _, name = storage.url.rstrip("/").rpartition("/")
    if name.startswith("model="):
        for other in model_folders(Storage(parent)):
            if other != name:
                found = read_record(Storage(f"{parent}/{other}")).joined(found)
    return found


def store_record(storage: Storage, record: ForgottenRecord) -> None:
    """Write the record of one run."""
    persons = [
        {
            "clip_ids": list(each.clip_ids),
            "contents": list(each.contents),
            "numbers": list(each.numbers),
            "faces": [[time, box.x_min, box.y_min, box.x_max, box.y_max] for time, box in each.faces],
        }
        for each in record.persons
    ]
    saved = {"clip_ids": sorted(record.clip_ids), "contents": sorted(record.contents), "persons": persons}
    storage.put(RECORD, json_bytes({**saved, "manifests": sorted(record.manifests)}))


def _person_of(saved: Mapping[str, Any]) -> ForgottenPerson:
    return ForgottenPerson(
        clip_ids=tuple(map(str, saved["clip_ids"])),
        contents=tuple(map(str, saved["contents"])),
        numbers=tuple(map(int, saved["numbers"])),
        faces=tuple((float(time), Box(*map(int, box))) for time, *box in saved["faces"]),
    )
