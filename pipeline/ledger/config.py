"""The settings of `jobs/quarantine.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pipeline.records.settings import Setting

ACTIONS = ("list", "show", "retry", "verify")


@dataclass(frozen=True, kw_only=True)
class QuarantineConfig:
    """Lists, shows or retries the clips of a run that are quarantined or retryable; verifies its shards."""

    action: Annotated[str, Setting("input", common=True)]
    """list (a line each), show (everything known of each, as JSON), retry (plan them again), or verify (read every
    shard of the run and compare its sha256)."""
    output: Annotated[str, Setting("input", common=True)]
    """Output folder of jobs/preprocess.py or jobs/score.py; a path or any fsspec URL."""
    names: Annotated[tuple[str, ...], Setting("input", common=True)] = ()
    """Only these: clip ids, paths or reasons; default: all but clips without a face (no_face_found)."""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action is {self.action!r}; give one of {', '.join(ACTIONS)}")
        if self.action == "verify" and self.names:
            raise ValueError(f"verify reads every shard, and was given {' '.join(self.names)}; leave the names out")
