"""The settings of the export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pipeline.records.settings import Setting

Format = Literal["csv", "webvtt", "elan", "video", "label-studio", "cvat", "hf", "figure"]
FORMATS: tuple[str, ...] = get_args(Format)
IMPORTED = ("label-studio", "cvat")


def check_otherwise(abstain_below: float | None, min_track_faces: int) -> None:
    """Raise ValueError for a threshold or a least length that is none."""
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise ValueError(f"--abstain-below is {abstain_below}; give a probability, 0 to 1")
    if min_track_faces < 1:
        raise ValueError(f"--min-track-faces is {min_track_faces}; give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes labels in a format that other programs read."""

    labels: Annotated[str, Setting("input", common=True)]
    """Output of jobs/score.py, or the folder model=... in it; a path or any fsspec URL."""
    format: Annotated[Format, Setting("labels", common=True)]
    """csv, webvtt, elan, video (MP4 with the boxes drawn), label-studio, cvat, hf (faces for datasets.load_dataset) or
    figure (SVG and PDF)."""
    output: Annotated[str | None, Setting("input", common=True)] = None
    """Folder of the files; a path or any fsspec URL. Run the same command again to go on where it stopped."""
    input: Annotated[str | None, Setting("input", common=True)] = None
    """Where the videos lie now (folder or URL), for formats that need them; default: where they were scored."""
    allow_private_hosts: Annotated[bool, Setting("input")] = False
    """Read videos that a manifest named on hosts of this machine, of its link or of a private network."""
    import_: Annotated[str | None, Setting("input", common=True)] = None
    """What comes back from label-studio or cvat (file or folder): each change becomes a correction of the labels, and
    nothing is exported."""
    annotator: Annotated[str | None, Setting("input")] = None
    """Name beside the corrections that are imported; default: the one that the file names."""
    model: Annotated[str | None, Setting("input", common=True)] = None
    """Which model's labels: the beginning of its sha256. Needed where the output holds several."""
    clips: Annotated[str, Setting("input", common=True)] = "*"
    """Only clips whose path fits this pattern (like 'show/*.mp4'), or the one of this id."""
    every: Annotated[float, Setting("labels", common=True)] = 1.0
    """Length of a moment (seconds)."""
    abstain_below: Annotated[float | None, Setting("labels", common=True)] = None
    """A face, person or clip whose highest probability is below this (0 to 1) has no emotion; default: as labelled.
    Nothing is scored again."""
    min_track_faces: Annotated[int, Setting("labels", common=True)] = 1
    """A person of fewer faces (count) is left out, as a stray is."""
    blur_faces: Annotated[bool, Setting("labels", common=True)] = False
    """video and hf: make faces unrecognisable, and the rest of a video's picture coarse."""
    most_uncertain: Annotated[int | None, Setting("labels", common=True)] = None
    """Only this many persons, those of the highest entropy, one a clip as far as the clips go (count); csv lists
    them in most_uncertain.csv."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"--format is {self.format!r}; give one of {', '.join(FORMATS)}")
        if self.import_ is not None and self.format not in IMPORTED:
            raise ValueError(f"--import is given with --format {self.format}; give {' or '.join(IMPORTED)}")
        if self.import_ is None and not self.output:
            raise ValueError("--output is missing; give a folder, or --import what came back")
        if self.blur_faces and self.format not in ("video", "hf"):
            raise ValueError(f"--blur-faces is given with --format {self.format}, which shows no face; leave it out")
        if not (math.isfinite(self.every) and self.every > 0):
            raise ValueError(f"--every is {self.every}; give a length above 0, in seconds")
        check_otherwise(self.abstain_below, self.min_track_faces)
        if self.most_uncertain is not None and self.most_uncertain < 1:
            raise ValueError(f"--most-uncertain is {self.most_uncertain}; give 1 or more")
