"""The actor that labels units of clips."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import report
from pipeline.faces.detector import Detect
from pipeline.ledger.files import arrow_bytes, json_bytes
from pipeline.ledger.forgotten import ForgottenRecord, read_records
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.records.clips import Clip, whole_id
from pipeline.records.columns import table_of
from pipeline.records.evolution import read_shard
from pipeline.records.faces import (
    FRAME_SCHEMA,
    SHOT_SCHEMA,
    THUMBNAIL_SCHEMA,
    Example,
    Prediction,
    Shot,
    Thumbnail,
)
from pipeline.records.outcomes import Outcome, State, forgotten_outcome, outcome_of
from pipeline.records.vocabulary import EMOTIONS
from pipeline.runtime.job import go_on, unread
from pipeline.sandbox.limits import SandboxLimits
from pipeline.score.forgotten import Seen, without_persons
from pipeline.score.labels import UnitLabels, predictions_in
from pipeline.score.linking import (
    FaceKey,
    PersonEmbedder,
    drop_joined,
    keep_for_join,
    kept_for_join,
    rows_of,
)
from pipeline.score.shots import joined_cuts
from pipeline.storage.web import let_reach
from pipeline.video.frames import Cuts

# The frames of segments, before their clip is joined.
PARTS = "segments"
# Their shots, likewise.
PART_SHOTS = "segment_shots"


class ScoreActor:
    """Turns one unit of clips into one committed shard each of faces, persons and clips."""

    def __init__(
        self,
        *,
        ledger_url: str,
        config: ExtractConfig,
        limits: SandboxLimits,
        reach: frozenset[str] | None = None,
        checkpoint: str,
        which: Any,
        device: str,
        batch_size: int,
        abstain_below: float,
        day: str,
        num_pictured: int = 0,
        pictured_every: int = 1,
        blur_faces: bool = False,
        shots: bool = True,
        link_persons: bool = False,
        keep_embeddings: bool = False,
        shared_detect: Detect | None = None,
    ) -> None:
        import torch  # Not with the module: a night that has nothing to score does without.

        from pipeline.models.predict import Predictor

        torch.set_num_threads(1)
        let_reach(reach)
        self._ledger = Ledger(ledger_url)
        self._forgotten = read_records(self._ledger.storage)
        self._extractor = ClipExtractor(
            config, limits=limits, shared_detect=shared_detect, finds_cuts=shots, chips=link_persons
        )
        self._embedder = PersonEmbedder(device=device) if link_persons else None
        self._keep_embeddings = keep_embeddings
        self._predictor = Predictor(checkpoint, which=which, device=device, batch_size=batch_size)
        self._abstain_below = abstain_below
        self._day = day
        self._num_pictured = num_pictured  # clips of a unit whose frames the page may show
        self._pictured_every = pictured_every  # of so many units one
        self._blur_faces = blur_faces
        self._box_margin = config.box_margin
        self.clip_ended = go_on

    def close(self) -> None:
        self._extractor.close()

    def run(self, unit: Unit) -> dict[str, Any]:
        labels = UnitLabels(
            self._predictor.sha256,
            abstain_below=self._abstain_below,
            day=self._day,
            classes=self._predictor.classes,
            keep_embeddings=self._keep_embeddings and not unit.is_segment,
        )
        outcomes: list[Outcome] = []
        pictured: list[list[Thumbnail]] = []
        num_pictured = 0 if unit.number % self._pictured_every else self._num_pictured
        goes_on = True
        for clip in unit.clips:
            started = time.monotonic()
            examples, cuts = [], None
            outcome = unread(clip, unit, self._forgotten, goes_on=goes_on)
            if outcome is None:
                examples, outcome = self._extractor.extract(clip)
                cuts = self._extractor.cuts
                examples, outcome = _without_forgotten(clip, examples, outcome, self._forgotten, cuts)
            probabilities, affect = self._predictor.predict_with_affect(examples)
            embeddings = self._embedded(unit, examples, cuts)
            labels.add(clip, outcome, examples, probabilities, affect=affect, cuts=cuts, embeddings=embeddings)
            outcomes.append(replace(outcome, seconds=round(time.monotonic() - started, 3)))
            goes_on = goes_on and self.clip_ended(outcomes[-1])
            if examples and len(pictured) < num_pictured:
                margin, blur = self._box_margin, self._blur_faces
                pictured.append(report.thumbnails_of(examples, box_margin=margin, blur_faces=blur))
        self._keep(unit, pictured)
        facts = self._extractor.facts()
        if unit.is_segment:  # Who is who, and the night's figures, come with the whole clip.
            found = labels.tables()
            tables = {PARTS: found["frames"], PART_SHOTS: found["shots"]}
        else:
            tables, facts = labels.tables(), {**facts, **labels.night_facts()}
        return self._ledger.commit(unit, tables=tables, outcomes=outcomes, facts=facts, partition=f"day={self._day}")

    def _embedded(self, unit: Unit, examples: Sequence[Example], cuts: Cuts | None) -> dict[FaceKey, np.ndarray] | None:
        """What persons of a clip are linked by, None where they are not: those of a film are with its join."""
        if self._embedder is None:
            return None
        found = self._embedder.embeddings(examples, cuts=cuts.frames if cuts else ())
        if not unit.is_segment:
            return found
        rows = list(rows_of(examples, found, path=unit.clips[0].path, model=self._predictor.sha256[:12]))
        keep_for_join(self._ledger.storage, unit.unit_id, rows)
        return None

    def _keep(self, unit: Unit, pictured: Sequence[Sequence[Thumbnail]]) -> None:
        """Small frames for the page; of a segment one, under its whole clip. Not as Parquet: a query of all Parquet
        files below the output finds labels and nothing else."""
        if unit.is_segment:
            pictured = [[replace(found[0], clip_id=whole_id(found[0].clip_id))] for found in pictured]
        thumbnails = [thumbnail for found in pictured for thumbnail in found]
        if thumbnails:
            name = f"{thumbnails_folder(self._day)}/{unit.unit_id}.arrow"
            self._ledger.storage.put(name, arrow_bytes(table_of(thumbnails, THUMBNAIL_SCHEMA)))


def join_segments(
    ledger: Ledger,
    snapshot: Snapshot,
    *,
    checkpoint_sha256: str,
    abstain_below: float,
    day: str,
    classes: tuple[str, ...] = EMOTIONS,
    link_persons: bool = False,
    keep_embeddings: bool = False,
) -> None:
    """Commit the clips that were cut and of which every segment has ended.

    Their faces are those of their segments, linked to persons over the whole clip. link_persons, keep_embeddings: as of
    `ScoreConfig`.
    """
    units = {unit.clips[0].clip_id: unit for unit in snapshot.pending().of("joins")}
    if not units:
        drop_joined(ledger.storage, waiting=set())
        return
    shards, shots = (_paths_of(snapshot, name) for name in (PARTS, PART_SHOTS))
    entries, forgotten, waiting = [], read_records(ledger.storage), set(units)
    # A film at a time: its rows lie beside one another.
    for row in snapshot.joined_segments(list(units)):
        outcome = outcome_of(row)
        if outcome.state is State.RETRYABLE:
            continue  # It waits for the next run.
        unit, parts = units[outcome.clip_id], list(snapshot.segments_of([outcome.clip_id]))
        faces = [face for part in parts if part["num_examples"] for face in _faces_of(ledger, shards[part["unit"]])]
        parts_shots = [
            shot for part in parts if part["unit"] in shots for shot in _shots_of(ledger, shots[part["unit"]])
        ]
        cuts = joined_cuts(parts_shots)
        faces, outcome = _without_forgotten(unit.clips[0], faces, outcome, forgotten, cuts)
        probabilities = np.array([face.probabilities for face in faces], np.float32).reshape(-1, len(classes))
        options = {"abstain_below": abstain_below, "day": day, "classes": classes}
        labels = UnitLabels(checkpoint_sha256, **options, keep_embeddings=keep_embeddings)
        embeddings = kept_for_join(ledger.storage, outcome.clip_id) if link_persons else None
        affect = np.array([(face.valence, face.arousal) for face in faces], np.float32).reshape(-1, 2)
        labels.add(unit.clips[0], outcome, faces, probabilities, affect=affect, cuts=cuts, embeddings=embeddings)
        facts = labels.night_facts()
        entries.append(
            ledger.commit(unit, tables=labels.tables(), outcomes=[outcome], facts=facts, partition=f"day={day}")
        )
        waiting.discard(outcome.clip_id)
    drop_joined(ledger.storage, waiting=waiting)
    snapshot.add_entries({entry["unit"]: json_bytes(entry) for entry in entries})


def _paths_of(snapshot: Snapshot, name: str) -> dict[str, str]:
    """The shard of a table of each unit that has one."""
    return {row["unit"]: row["path"] for row in snapshot.shards('s."table" = $name', name=name)}


def _shots_of(ledger: Ledger, path: str) -> Iterator[Shot]:
    """The shots of one segment, in order of time."""
    for row in read_shard(ledger.storage.read(path), Shot, SHOT_SCHEMA).to_pylist():
        yield Shot(**row)


def _without_forgotten(
    clip: Clip, faces: Sequence[Seen], outcome: Outcome, forgotten: ForgottenRecord, cuts: Cuts | None
) -> tuple[list[Seen], Outcome]:
    """The faces of a clip and its outcome without the persons who were deleted on request."""
    kept = without_persons(faces, forgotten.persons_of(clip), cuts=cuts.frames if cuts else ())
    if faces and not kept:
        return [], forgotten_outcome(clip.clip_id, clip.path)
    return kept, replace(outcome, num_examples=outcome.num_examples - len(faces) + len(kept))


def _faces_of(ledger: Ledger, path: str) -> Iterator[Prediction]:
    """The faces of one segment, in order of time."""
    return predictions_in(read_shard(ledger.storage.read(path), Prediction, FRAME_SCHEMA))


def thumbnails_folder(day: str) -> str:
    return f"thumbnails/day={day}"
