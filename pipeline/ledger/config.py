"""The settings of `jobs/quarantine.py` and `jobs/forget.py`."""

from __future__ import annotations

import re
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


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """Deletes clips from an output: their rows, pictures, copies and pages; their ids stay as `forgotten`."""

    output: Annotated[str, Setting("input", common=True)]
    """Output folder of jobs/preprocess.py or jobs/score.py; a path or any fsspec URL."""
    clip: Annotated[tuple[str, ...], Setting("input", common=True)] = ()
    """Ids of clips to forget."""
    path: Annotated[str | None, Setting("input", common=True)] = None
    """Pattern of paths to forget, like 'uploads/anna/*' (`*` passes slashes, in every case of letters as written)."""
    person: Annotated[tuple[str, ...], Setting("input", common=True)] = ()
    """Persons of labels to forget: CLIP:N, the id or path of a clip and the number of the person as pages and tables
    show it, from 1."""
    older_than: Annotated[str | None, Setting("input", common=True)] = None
    """Forget what was planned longer ago than this: days, like 90d, by the clock of the output's store."""
    checkpoints: Annotated[tuple[str, ...], Setting("input", common=True)] = ()
    """Outputs of jobs/train.py in which to look for checkpoints that were trained on what is forgotten."""
    dry_run: Annotated[bool, Setting("work", common=True)] = False
    """Say what would be forgotten; change nothing."""

    def __post_init__(self) -> None:
        if not (self.clip or self.path or self.older_than or self.person):
            raise ValueError("nothing is named; give --clip, --path or --older-than, or --person for one of a clip")
        for name in self.person:
            if not re.fullmatch(r".+:[1-9]\d{0,8}", name, re.DOTALL):
                raise ValueError(f"--person is {name!r}; give CLIP:N, as 0123456789abcdef0123:2; persons count from 1")
        if self.older_than is not None and not re.fullmatch(r"\d{1,5}d", self.older_than):
            raise ValueError(f"--older-than is {self.older_than!r}; give days, like 90d")

    @property
    def max_age_seconds(self) -> float:
        """--older-than in seconds."""
        return 86400.0 * int((self.older_than or "0d")[:-1])

    @property
    def persons(self) -> tuple[tuple[str, int], ...]:
        """--person as clip (id or path) and number."""
        return tuple((clip, int(number)) for clip, _, number in (name.rpartition(":") for name in self.person))
