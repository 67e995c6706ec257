"""Probabilities of faces in, rows of faces, persons and clips out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.faces.persons import linked, numbered
from pipeline.faces.same_person import joined
from pipeline.models.sidecar import AFFECT
from pipeline.records.clips import Clip, whole_id
from pipeline.records.columns import classes_of, columns_of, flat_columns, table_of, with_classes
from pipeline.records.faces import (
    CLIP_LABEL_SCHEMA,
    EMBEDDING_SCHEMA,
    FRAME_SCHEMA,
    SHOT_SCHEMA,
    TRACK_SCHEMA,
    Box,
    ClipLabel,
    Example,
    FaceEmbedding,
    FaceRow,
    Prediction,
    Shot,
    TrackLabel,
)
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.score.drift import unit_facts
from pipeline.score.linking import FaceKey, key_of, rows_of
from pipeline.score.shots import shots_of
from pipeline.score.tracks import STRAY, emotion_of, entropies, num_changes, summarised
from pipeline.video.frames import Cuts


class UnitLabels:
    """The rows of one unit, clip by clip."""

    def __init__(
        self,
        checkpoint_sha256: str,
        *,
        abstain_below: float,
        day: str,
        classes: tuple[str, ...] = EMOTIONS,
        keep_embeddings: bool = False,
    ) -> None:
        self._sha256, self._abstain_below, self._day = checkpoint_sha256, abstain_below, day
        self._classes = classes
        self._keep_embeddings, self._embeddings = keep_embeddings, list[FaceEmbedding]()
        self._model = checkpoint_sha256[:12]
        self._faces: list[Prediction] = []
        self._tracks: list[TrackLabel] = []
        self._clips: list[ClipLabel] = []
        self._shots: list[Shot] = []
        self._shares: list[np.ndarray] = []

    def add(
        self,
        clip: Clip,
        outcome: Outcome,
        faces: Sequence[Example | Prediction],
        probabilities: np.ndarray,
        *,
        affect: np.ndarray | None = None,
        cuts: Cuts | None = None,
        embeddings: Mapping[FaceKey, np.ndarray] | None = None,
    ) -> None:
        """Label one clip.

        Args:
            faces: all of it, in order of time.
            probabilities: (len(faces), classes).
            affect: valence and arousal (len(faces), 2), NaN for what the model does not give; None: it gives neither.
            cuts: where its shots begin, None where that is not known.
            embeddings: of some faces of each track, by which persons are linked over cuts; None: they are not.
        """
        found = predictions_of(
            faces,
            probabilities,
            abstain_below=self._abstain_below,
            num_frames=outcome.num_frames,
            path=clip.path,
            model=self._model,
            cuts=cuts.frames if cuts else (),
            affect=affect,
            embeddings=embeddings,
            classes=self._classes,
        )
        deciding = {"abstain_below": self._abstain_below, "classes": self._classes}
        persons = track_labels_of(found, **deciding)
        clip_id = whole_id(clip.clip_id)
        shots = shots_of(cuts, clip_id=clip_id, path=clip.path, model=self._model) if cuts else []
        self._shots += shots
        if embeddings is not None and self._keep_embeddings:
            self._embeddings += rows_of(found, embeddings, path=clip.path, model=self._model)
        self._faces += found
        self._tracks += persons
        if outcome.state in (State.DONE, State.NO_FACE, State.QUARANTINED):  # Else it ends elsewhere, or later.
            label = clip_label_of(clip, outcome, found, persons, **deciding)
            self._clips.append(replace(label, model=self._model, num_shots=len(shots)))
        if faces:
            self._shares.append(
                np.array(summarised(probabilities, abstain_below=0.0, classes=self._classes).emotion_shares)
            )

    def tables(self) -> dict[str, pa.Table]:
        """The rows so far by table, each table with the checkpoint's sha256 in its metadata."""
        found = {
            "frames": table_of(self._faces, with_classes(FRAME_SCHEMA, self._classes)),
            "tracks": table_of(self._tracks, with_classes(TRACK_SCHEMA, self._classes)),
            "clips": table_of(self._clips, with_classes(CLIP_LABEL_SCHEMA, self._classes)),
            "shots": table_of(self._shots, SHOT_SCHEMA),
        }
        if self._embeddings:
            found["embeddings"] = table_of(self._embeddings, EMBEDDING_SCHEMA)
        sha256 = {b"checkpoint_sha256": self._sha256.encode()}
        return {
            name: table.replace_schema_metadata({**(table.schema.metadata or {}), **sha256})
            for name, table in found.items()
        }

    def night_facts(self) -> dict[str, Any]:
        """The figures of the unit for its night's record."""
        shares = np.array(self._shares).reshape(-1, len(self._classes))
        return unit_facts(shares, np.array([face.entropy for face in self._faces]), day=self._day)


def predictions_of(
    examples: Sequence[Example | Prediction],
    probabilities: np.ndarray,
    *,
    abstain_below: float,
    num_frames: int = 0,
    path: str = "",
    model: str | None = None,
    cuts: Sequence[int] = (),
    affect: np.ndarray | None = None,
    embeddings: Mapping[FaceKey, np.ndarray] | None = None,
    classes: tuple[str, ...] = EMOTIONS,
) -> list[Prediction]:
    """The rows of one clip's faces.

    Args:
        probabilities: (len(examples), len(classes)), rows summing to 1.
        abstain_below: a face whose highest probability is below it gets no emotion.
        num_frames: sampled frames of the clip; where they are many, a face that is in one of them is a stray.
        path, model: as they stand in the rows.
        cuts: numbers of the frames that begin a shot.
        affect: valence and arousal (len(examples), 2), NaN or None for what is not known.
        embeddings: of some faces of each track, by which persons are linked over cuts; None: they are not.
    """
    found = []
    shared = [each.name for each in columns_of(FaceRow) if each.name != "path"]
    tracks, num_persons = numbered(linked(examples, cuts=cuts), num_frames=num_frames)
    persons = _linked_persons(examples, tracks, num_persons, embeddings)
    two = np.full((len(examples), 2), np.nan) if affect is None else affect
    for example, row, felt, track_index, entropy in zip(
        examples, probabilities, two, tracks, entropies(probabilities), strict=True
    ):
        is_stray = track_index >= num_persons
        emotion, reason = emotion_of(row, abstain_below=abstain_below, classes=classes)
        found.append(
            Prediction(
                **{name: getattr(example, name) for name in shared},
                path=path,
                track_index=track_index,
                probabilities=tuple(row.tolist()),
                emotion=emotion,
                reason=reason,
                entropy=float(entropy),
                stray=is_stray,
                person=None if is_stray else track_index + 1,
                person_index=persons.get(track_index),
                model=model,
                **known_affect(felt),
            )
        )
    return found


def _linked_persons(
    faces: Sequence[Example | Prediction],
    tracks: Sequence[int],
    num_persons: int,
    embeddings: Mapping[FaceKey, np.ndarray] | None,
) -> dict[int, int]:
    """Track -> person over all shots, of the tracks that are no strays; {} where persons are not linked."""
    if embeddings is None:
        return {}
    seen = [(face, track) for face, track in zip(faces, tracks, strict=True) if track < num_persons]
    known = {place: embeddings[key_of(face)] for place, (face, _) in enumerate(seen) if key_of(face) in embeddings}
    return joined([track for _, track in seen], [face.frame_index for face, _ in seen], known)


def predictions_in(table: pa.Table) -> Iterator[Prediction]:
    """The records of rows of FRAME_SCHEMA, in their order."""
    for row in _without_flat(table).to_pylist():
        yield Prediction(**{**row, "box": Box(**row["box"]), "probabilities": tuple(row["probabilities"].values())})


def _without_flat(table: pa.Table) -> pa.Table:
    return table.drop_columns(list(flat_columns(classes_of(table.schema))))


def track_labels_in(table: pa.Table) -> Iterator[TrackLabel]:
    """The records of rows of TRACK_SCHEMA, in their order."""
    for row in _without_flat(table).to_pylist():
        means = {name: tuple(row[name].values()) for name in ("probabilities", "emotion_shares")}
        yield TrackLabel(**{**row, **means})


def track_labels_of(
    faces: Sequence[Prediction], *, abstain_below: float, classes: tuple[str, ...] = EMOTIONS
) -> list[TrackLabel]:
    """The rows of one clip's persons, in order of appearance. faces: all of the clip, in order of time."""
    tracks, persons = [], defaultdict(list)
    for face in faces:
        if not face.stray:
            persons[face.track_index].append(face)
    for track_index, own in sorted(persons.items()):
        probabilities = np.array([face.probabilities for face in own])
        summary = summarised(probabilities, abstain_below=abstain_below, classes=classes)
        tracks.append(
            TrackLabel(
                clip_id=own[0].clip_id,
                path=own[0].path,
                model=own[0].model,
                track_index=track_index,
                person=track_index + 1,
                person_index=own[0].person_index,
                first_pts_seconds=own[0].pts_seconds,
                last_pts_seconds=own[-1].pts_seconds,
                seconds=own[0].seconds,
                last_seconds=own[-1].seconds,
                num_faces=len(own),
                probabilities=summary.probabilities,
                emotion=summary.emotion,
                reason=summary.reason,
                emotion_shares=summary.emotion_shares,
                num_changes=num_changes([face.emotion for face in own]),
                mean_entropy=summary.mean_entropy,
                agreement=summary.agreement,
                **mean_affect(own),
            )
        )
    return tracks


def clip_label_of(
    clip: Clip,
    outcome: Outcome,
    faces: Sequence[Prediction],
    tracks: Sequence[TrackLabel],
    *,
    abstain_below: float,
    classes: tuple[str, ...] = EMOTIONS,
) -> ClipLabel:
    """The row of one clip: each face of each person counts alike; changes are those of its persons."""
    facts = {
        "clip_id": clip.clip_id,
        "path": clip.path,
        "content_id": clip.content_id,
        "state": outcome.state,
        "num_frames": outcome.num_frames,
    }
    if not faces:
        return ClipLabel(**facts, reason=outcome.reason)
    counted = [face for face in faces if not face.stray]
    linked_persons = {track.person_index for track in tracks if track.person_index is not None}
    probabilities = np.array([face.probabilities for face in counted or faces])
    summary = summarised(probabilities, abstain_below=abstain_below, classes=classes)
    return ClipLabel(
        **facts,
        reason=summary.reason if counted else STRAY,
        num_faces=len(faces),
        num_tracks=len(tracks),
        num_persons=len(linked_persons) or None,
        num_strays=len(faces) - len(counted),
        probabilities=summary.probabilities,
        emotion=summary.emotion if counted else None,
        emotion_shares=summary.emotion_shares,
        num_changes=sum(track.num_changes or 0 for track in tracks),
        mean_entropy=summary.mean_entropy,
        agreement=summary.agreement,
        seconds=(counted or faces)[0].seconds,
        **mean_affect(counted or faces),
    )


def known_affect(two: np.ndarray) -> dict[str, Any]:
    """Valence and arousal (2,) by name, None for NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(AFFECT, two, strict=True)}


def mean_affect(faces: Sequence[Prediction]) -> dict[str, Any]:
    """The mean valence and arousal of some faces by name, None where one of them has none."""
    return known_affect(np.array([[face.valence, face.arousal] for face in faces], np.float64).mean(axis=0))
