"""Clips labelled by the persons in them: faces linked to persons, each person over time, then over the persons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.dataset import ExampleDataset
from pipeline.faces.persons import linked, numbered
from pipeline.records.faces import Box


@dataclass(frozen=True, kw_only=True)
class ClipPredictions:
    """The clips of a split, in the order of their ids, C of them; groups: None where a clip has none.

    labels: (C,). probabilities: (C, classes). num_persons: (C,), at least 1.
    """

    clip_ids: list[str]
    paths: list[str]
    groups: list[str | None]
    labels: np.ndarray
    probabilities: np.ndarray
    num_persons: np.ndarray


@dataclass(frozen=True, slots=True)
class _Face:
    frame_index: int
    pts_seconds: float
    box: Box


def clips_by_persons(
    examples: ExampleDataset, probabilities: np.ndarray, *, num_frames: Mapping[str, int] | None = None
) -> ClipPredictions:
    """The clips of a split, each labelled by its persons.

    A person's probabilities are the mean over the frames in which it is seen, a clip's the mean over its persons: one
    who is seen longer, or in more sampled frames, does not outvote the others. A stray, as `score` sees it, does not
    count unless a clip has nothing else.

    Args:
        examples: of one split, N of them.
        probabilities: (N, classes) of each example.
        num_frames: sampled frames of clips, by id; else those with a face.
    """
    names = ("clip_id", "path", "group_name", "frame_index", "face_index", "pts_seconds", "box")
    columns = {name: examples.column(name) for name in names}
    rows_of: dict[str, list[int]] = {}
    for row, clip_id in enumerate(columns["clip_id"]):
        rows_of.setdefault(clip_id, []).append(row)
    clip_ids = sorted(rows_of)
    means, num_persons = [], []
    for clip_id in clip_ids:
        rows = sorted(rows_of[clip_id], key=lambda row: (columns["frame_index"][row], columns["face_index"][row]))
        faces = [
            _Face(columns["frame_index"][row], columns["pts_seconds"][row], Box(**columns["box"][row])) for row in rows
        ]
        frames = (num_frames or {}).get(clip_id) or len({face.frame_index for face in faces})
        found, count = numbered(linked(faces), num_frames=frames)
        tracks, own = np.array(found), probabilities[rows]
        if count:  # else strays are all there is
            tracks, own = tracks[tracks < count], own[tracks < count]
        persons = [own[tracks == track].mean(axis=0) for track in np.unique(tracks)]
        means.append(np.mean(persons, axis=0))
        num_persons.append(len(persons))
    first = [rows_of[clip_id][0] for clip_id in clip_ids]
    return ClipPredictions(
        clip_ids=clip_ids,
        paths=[columns["path"][row] for row in first],
        groups=[columns["group_name"][row] for row in first],
        labels=examples.labels[first],
        probabilities=np.array(means),
        num_persons=np.array(num_persons),
    )
