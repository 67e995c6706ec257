"""What the page of one clip shows: persons, strips over time, faces of a stretch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.labels.over_time import by_person, probabilities_of
from pipeline.labels.source import Labels
from pipeline.labels.videos import step_of
from pipeline.records.arrow import pc
from pipeline.records.columns import classes_of
from pipeline.records.vocabulary import EMOTIONS

MAX_BINS = 400
MAX_PERSONS = 24
MAX_FACES = 20_000


def _numbered(faces: pa.Table, classes: Sequence[str]) -> np.ndarray:
    """(N, len(classes)) float64: `probabilities_of` in the order of these classes, 0 for what the model has not."""
    own = classes_of(faces.schema)
    found = np.zeros((faces.num_rows, len(classes)))
    found[:, [classes.index(name) for name in own]] = probabilities_of(faces)
    return found


def strips_of(
    faces: pa.Table, *, start: float, end: float, step: float, classes: Sequence[str] = EMOTIONS
) -> list[dict[str, Any]]:
    """For each person, of those seen most, its emotion and probability in even stretches of [start, end) seconds.

    A stretch is at least as long as the time between two sampled frames. Each is [emotion's number in `classes`,
    probability], or None where there is no face.
    """
    num_bins = max(1, min(MAX_BINS, int(np.ceil((end - start) / step - 1e-6))))
    found = []
    for person, own in by_person(faces).items():
        seconds, rows = own["pts_seconds"].to_numpy(), _numbered(own, classes)
        places = np.clip(((seconds - start) / (end - start) * num_bins + 1e-6).astype(int), 0, num_bins - 1)
        bins: list[list[float] | None] = [None] * num_bins
        for place in np.unique(places):
            mean = rows[places == place].mean(axis=0)
            best = int(mean.argmax())
            bins[place] = [best, round(float(mean[best]), 3)]
        found.append({"person": person, "num_faces": own.num_rows, "bins": bins})
    most = sorted(found, key=lambda each: (-each["num_faces"], each["person"]))[:MAX_PERSONS]
    return sorted(most, key=lambda each: each["person"])


def faces_between(
    faces: pa.Table, *, start: float, end: float, classes: Sequence[str] = EMOTIONS
) -> list[dict[str, Any]]:
    """Each person's faces in [start, end) seconds and the one before and after: times, boxes and probabilities."""
    found = []
    for person, own in by_person(faces).items():
        seconds = own["pts_seconds"].to_numpy()
        low = max(0, int(np.searchsorted(seconds, start)) - 1)
        high = min(len(seconds), int(np.searchsorted(seconds, end)) + 1, low + MAX_FACES)
        some = own.slice(low, high - low)
        if not some.num_rows:
            continue
        boxes = some["box"].to_pylist()
        found.append(
            {
                "person": person,
                "times": [round(each, 6) for each in some["pts_seconds"].to_pylist()],
                "boxes": [[box["x_min"], box["y_min"], box["x_max"], box["y_max"]] for box in boxes],
                "rows": [[round(float(each), 4) for each in row] for row in _numbered(some, classes)],
                "emotions": some["emotion"].to_pylist(),
            }
        )
    return found


def clip_page(labels: Labels, clip: dict[str, Any], *, classes: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """The row of a clip, its persons and where cuts lie, as JSON takes them."""
    persons = labels.persons(clip)
    faces = labels.faces(clip)
    seconds = faces["pts_seconds"]
    shown = {
        name: clip[name]
        for name in ("clip_id", "path", "state", "reason", "detail", "emotion", "probability", "mean_entropy")
    }
    shown |= {name: clip[name] for name in ("agreement", "num_tracks", "num_faces", "day", "show", "same_as")}
    shares = clip["probabilities"]
    return {
        **shown,
        "probabilities": None if shares is None else [round(shares.get(name, 0.0), 4) for name in classes],
        "persons": [
            {
                "person": row["track_index"],
                "emotion": row["emotion"],
                "probability": round(max(row["probabilities"].values()), 4),
                "entropy": round(row["mean_entropy"], 4),
                "agreement": round(row["agreement"], 4),
                "num_faces": row["num_faces"],
                "first": row["first_pts_seconds"],
                "last": row["last_pts_seconds"],
            }
            for row in persons.to_pylist()
        ],
        "step": step_of(faces, labels.info["config"]),
        "cuts": [row["start_pts_seconds"] for row in labels.shots(clip).to_pylist() if row["begins_with_cut"]],
        "first": pc.min(seconds).as_py() if faces.num_rows else None,
        "last": pc.max(seconds).as_py() if faces.num_rows else None,
    }
