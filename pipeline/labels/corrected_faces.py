"""Corrections of labels in, faces with the labels that people gave them out: what training takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from pipeline.labels.corrections import read_corrections, standing
from pipeline.labels.over_time import by_person
from pipeline.labels.source import Labels, models_of
from pipeline.labels.videos import step_of
from pipeline.preprocess.corrected import CorrectedFaces, CorrectedPerson
from pipeline.records.corrections import Correction, Said
from pipeline.records.vocabulary import EMOTIONS, FOUND, UsageError, class_named, classes_found
from pipeline.runtime.console import log_status
from pipeline.storage.remote import absolute_url


def corrected_faces(url: str, *, classes: Sequence[str] = EMOTIONS) -> CorrectedFaces:
    """What stands of all corrections of an output of jobs/score.py, of each of its models.

    "Cannot tell" and "not a face" take a face out; "another person" says nothing of its emotion. classes: those that
    training knows, or FOUND; what was said to be another is left out, which is told. Raises UsageError where nothing
    was corrected.
    """
    ids: list[str] = []
    clips: dict[str, list[CorrectedPerson]] = {}
    for folders in models_of(absolute_url(url)):
        labels = Labels(*folders)
        rows = [each for each in standing(read_corrections(labels.storages)) if each.said != Said.ANOTHER_PERSON]
        said = {each.label for each in rows if each.label is not None}
        names = {name: class_named(name, classes_found(said) if tuple(classes) == FOUND else classes) for name in said}
        if others := sorted(name for name, one in names.items() if one is None):
            told = f"the classes are {', '.join(classes)} (--classes)"
            log_status(f"{labels.model}: what was said to be {', '.join(others)} is left out: {told}")
        rows = [each for each in rows if each.label is None or names[each.label] is not None]
        rows = [replace(each, label=names.get(str(each.label))) for each in rows]
        ids += [each.correction_id for each in rows]
        by_clip: dict[str, list[Correction]] = {}
        for each in rows:
            by_clip.setdefault(each.clip_id, []).append(each)
        for clip_id, said in by_clip.items():
            clips.setdefault(clip_id, []).extend(_persons(labels, clip_id, said))
        labels.database.close()
    if not ids:
        raise UsageError(f"--corrections {url} holds none that stands; correct labels with jobs/view.py first")
    digest = hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:16]
    return CorrectedFaces(digest=digest, correction_ids=sorted(ids), clips=clips)


def _persons(labels: Labels, clip_id: str, said: list[Correction]) -> list[CorrectedPerson]:
    clip = labels.clip(clip_id)
    if clip is None:
        return []
    faces = labels.faces(clip)
    step = step_of(faces, labels.info["config"])
    found = []
    for person, own in by_person(faces).items():
        spans = [
            (each.start_pts_seconds, each.end_pts_seconds, each.label)
            for each in said
            if each.track_index in (None, person)
        ]
        if spans:
            boxes = [[box[side] for side in ("x_min", "y_min", "x_max", "y_max")] for box in own["box"].to_pylist()]
            times = own["pts_seconds"].to_pylist()
            found.append(CorrectedPerson(times=times, boxes=boxes, step_seconds=step, said=spans))
    return found
