"""The settings of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pipeline.records.parts import part_url
from pipeline.records.settings import Setting
from pipeline.records.vocabulary import LAYOUTS, UsageError
from pipeline.runtime.config import PoolConfig


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PoolConfig):
    """Labels the people in clips with a model: probabilities a face, one label a person and a clip."""

    input: Annotated[str, Setting("input", common=True)]
    """Folder, manifest (CSV or Parquet), glob or single file; a path or any fsspec URL."""
    checkpoint: Annotated[str, Setting("input", common=True)]
    """Output of jobs/train.py, an .onnx file, a Hugging Face folder (a path or any fsspec URL), or baseline, which
    comes with the package."""
    output: Annotated[str, Setting("input", common=True)]
    """Folder of the labels; a path or any fsspec URL. Run the same command again to score what is new since."""
    which: Annotated[str, Setting("input", common=True)] = "best"
    """Checkpoint of the run: best (by validation top-1 accuracy), last, or an epoch number."""
    follow_links: Annotated[bool, Setting("input")] = False
    """Follow links in the input that lead out of it; without it they are ignored with a reason."""
    allow_private_hosts: Annotated[bool, Setting("input")] = False
    """Let a manifest name hosts of this machine, of its link or of a private network, and one on the web files here."""
    layout: Annotated[str, Setting("input")] = "auto"
    """Layout of the input: auto, caer, caer-s, manifest, folder."""
    since: Annotated[str | None, Setting("input", common=True)] = None
    """Only clips modified since this date or time (UTC, like 2026-11-22 or 2026-11-22T18:00), by the store's clock."""
    limit: Annotated[int | None, Setting("input", common=True)] = None
    """Most new clips to score in this run, first by path (count); the others are left to the next."""
    dry_run: Annotated[bool, Setting("work", common=True)] = False
    """Only say what would be scored, and the core-hours."""
    day: Annotated[str | None, Setting("labels")] = None
    """Day under which the labels are filed (YYYY-MM-DD); default: today, UTC."""
    sample_fps: Annotated[float | None, Setting("sampling", common=True)] = None
    """Frames sampled for each second of a clip (1/s); default: as the model's own data, and of long clips at least 2.

    Which frames are looked at may differ from the model's data; how a face is cut out of them never does."""
    frames_per_clip: Annotated[int | None, Setting("sampling", common=True)] = None
    """Frames sampled from each clip, evenly spaced, however long it is (count)."""
    every_frame: Annotated[bool, Setting("sampling")] = False
    """Take every frame of each clip."""
    faces: Annotated[Literal["all", "largest"], Setting("faces", common=True)] = "all"
    """Faces labelled of each frame."""
    upsample: Annotated[int | None, Setting("faces")] = None
    """Times a frame is doubled before detection (0 or 1; 1 finds faces of 40 px); default: as the model's own data."""
    retry_upsample: Annotated[bool | None, Setting("faces", common=True)] = None
    """Look again with --upsample 1 at clips in which no face was found; default: as the model's own data."""
    detect_every: Annotated[int | None, Setting("faces")] = None
    """Detect on every K-th sampled frame (count, 1 to 32), interpolate between; default: as the model's own data."""
    whole_every: Annotated[int | None, Setting("faces")] = None
    """Search whole only every K-th sampled frame (count, 1 to 32), else near its last faces; default: the model's."""
    min_face_px: Annotated[int | None, Setting("faces")] = None
    """Leave out, and count, faces whose box is narrower or lower (pixels); default: as the model's own data."""
    min_sharpness: Annotated[float | None, Setting("faces")] = None
    """Leave out, and count, faces that are less sharp (0.05: blurred ones); default: as the model's own data."""
    max_yaw: Annotated[float | None, Setting("faces")] = None
    """Leave out, and count, faces turned to a side by more than this (degrees); default: as the model's own data."""
    link_persons: Annotated[bool, Setting("faces", common=True)] = False
    """Follow persons over cuts (column person_index), by an embedding of their faces. It tells persons apart, so it is
    biometric data, for which many laws want consent: it is dropped when its clip is done. Needs scikit-learn."""
    keep_embeddings: Annotated[bool, Setting("faces")] = False
    """Keep the embeddings of --link-persons, in a table embeddings/: with them anybody can find a person again."""
    abstain_below: Annotated[float | None, Setting("labels", common=True)] = None
    """A face, person or clip whose highest probability is below this (0 to 1) is undecided and gets no emotion.

    Default: as the model was calibrated, the probability below which it was right less than half of the time."""
    shots: Annotated[bool, Setting("sampling")] = True
    """Find where shots begin in the frames as they are decoded: the table shots/. A cut ends a track.

    Every frame is decoded for it, so off saves time where few of many frames are sampled and each is a key frame."""
    boxes: Annotated[str | None, Setting("faces")] = None
    """CSV of given boxes (path,label,x1,y1,x2,y2; pixels), path or URL; skips detection."""
    detector_weights: Annotated[str | None, Setting("faces")] = None
    """Path of the detector's weights (for dlib-cnn mmod_human_face_detector.dat); default: the installed package's."""
    batch_size: Annotated[int, Setting("machine")] = 64
    """Faces in one forward pass of the network (count)."""
    device: Annotated[str, Setting("machine", common=True)] = "auto"
    """Where the network runs: auto (cuda if there is one), cpu, cuda."""
    segment_seconds: Annotated[float, Setting("work", common=True)] = 0.0
    """Clips longer than this are cut into segments (seconds), each a unit of work: a film spreads over all actors,
    and memory stays flat; 0: never.

    For models whose examples were sampled by --sample-fps or --every-frame. The labels are the same."""
    segment_at_shots: Annotated[bool, Setting("work")] = False
    """Move each cut of --segment-seconds to the last shot that begins up to 10 s before it.

    The results are the same. Before the work each film that is cut is read once more, in one process (of a remote one
    the whole file), and decoded from the key frame before those 10 s on, a fifth of it or more."""
    page: Annotated[bool, Setting("pages")] = True
    """Write report.html of the night into the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", part_url(self.output, self.part))
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
        if sum((self.sample_fps is not None, self.frames_per_clip is not None, self.every_frame)) > 1:
            raise ValueError("--sample-fps, --frames-per-clip and --every-frame exclude each other; give one of them")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise ValueError(f"--abstain-below is {self.abstain_below}; give a probability, 0 to 1")
        if self.keep_embeddings and not self.link_persons:
            raise ValueError("--keep-embeddings keeps those of --link-persons; give that too, or leave it out")
        if self.since is not None:
            parse_since(self.since)
        if self.day is not None:
            check_day(self.day)

    @property
    def epoch(self) -> Any:
        return int(self.which) if self.which.isdigit() else self.which


def parse_since(text: str) -> float:
    """Seconds of the epoch of a date or time, UTC unless it names a zone. Raises ValueError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--since is {text!r}; give a date or time like 2026-11-22 or 2026-11-22T18:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def check_day(text: str) -> str:
    """The day as it stands in paths, YYYY-MM-DD. Raises UsageError."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).strftime("%Y-%m-%d")
    except ValueError:
        raise UsageError(f"--day is {text!r}; give a day like 2026-11-22") from None
