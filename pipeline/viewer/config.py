"""The settings of the viewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pipeline.labels.config import check_otherwise
from pipeline.records.settings import Setting


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Shows labels in a browser of this machine: clips, their videos with boxes, and corrections."""

    labels: Annotated[str, Setting("input", common=True)]
    """Output of jobs/score.py, or the folder model=... in it; a path or any fsspec URL."""
    input: Annotated[str | None, Setting("input", common=True)] = None
    """Where the videos lie now (folder or URL); default: where they lay when they were scored."""
    allow_private_hosts: Annotated[bool, Setting("input")] = False
    """Read videos that a manifest named on hosts of this machine, of its link or of a private network."""
    model: Annotated[str | None, Setting("input", common=True)] = None
    """Which model's labels: the beginning of its sha256, or of two, separated by a comma, which are shown side by side.
    Needed where the output holds more than two."""
    clip: Annotated[str | None, Setting("input", common=True)] = None
    """Open at this clip: its path or clip_id; default: at the list of all."""
    at: Annotated[float, Setting("input", common=True)] = 0.0
    """With --clip: the second from its first frame at which its video begins."""
    abstain_below: Annotated[float | None, Setting("labels", common=True)] = None
    """A face, person or clip whose highest probability is below this (0 to 1) has no emotion; default: as labelled.
    Nothing is scored again."""
    min_track_faces: Annotated[int, Setting("labels", common=True)] = 1
    """A person of fewer faces (count) is left out, as a stray is."""
    blur_faces: Annotated[bool, Setting("pages", common=True)] = False
    """Show no face: pictures and videos are sent without them."""
    port: Annotated[int, Setting("machine", common=True)] = 0
    """Port on 127.0.0.1; 0 takes a free one."""
    no_browser: Annotated[bool, Setting("pages", common=True)] = False
    """Print the address and open no browser."""
    cache_gib: Annotated[float, Setting("machine")] = 4.0
    """Room for converted videos and copies of remote ones in the temporary folder (GiB)."""

    def __post_init__(self) -> None:
        check_otherwise(self.abstain_below, self.min_track_faces)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}; give 0 to 65535")
        if not (math.isfinite(self.at) and self.at >= 0):
            raise ValueError(f"--at is {self.at}; give seconds from the clip's first frame, 0 or more")
        if self.at and self.clip is None:
            raise ValueError(f"--at is {self.at} without --clip; say which clip")
        if not (math.isfinite(self.cache_gib) and self.cache_gib > 0):
            raise ValueError(f"--cache-gib is {self.cache_gib}; give a size above 0, in GiB")
        if self.model is not None and len(self.model.split(",")) > 2:
            raise ValueError(f"--model is {self.model!r}; give one, or two separated by a comma")
