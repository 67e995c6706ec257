"""The settings of the export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pipeline.records.settings import Setting

Format = Literal["csv", "webvtt", "elan"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes labels in a format that other programs read."""

    labels: Annotated[str, Setting("input", common=True)]
    """Output of jobs/score.py, or the folder model=... in it; a path or any fsspec URL."""
    format: Annotated[Format, Setting("labels", common=True)]
    """csv, webvtt or elan."""
    output: Annotated[str, Setting("input", common=True)]
    """Folder of the files; a path or any fsspec URL. Run the same command again to go on where it stopped."""
    model: Annotated[str | None, Setting("input", common=True)] = None
    """Which model's labels: the beginning of its sha256. Needed where the output holds several."""
    clips: Annotated[str, Setting("input", common=True)] = "*"
    """Only clips whose path fits this pattern (like 'show/*.mp4'), or the one of this id."""
    every: Annotated[float, Setting("labels", common=True)] = 1.0
    """Length of a moment (seconds)."""
    most_uncertain: Annotated[int | None, Setting("labels", common=True)] = None
    """Only this many persons, those of the highest entropy, one a clip as far as the clips go (count); csv lists
    them in most_uncertain.csv."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"--format is {self.format!r}; give one of {', '.join(FORMATS)}")
        if not (math.isfinite(self.every) and self.every > 0):
            raise ValueError(f"--every is {self.every}; give a length above 0, in seconds")
        if self.most_uncertain is not None and self.most_uncertain < 1:
            raise ValueError(f"--most-uncertain is {self.most_uncertain}; give 1 or more")
