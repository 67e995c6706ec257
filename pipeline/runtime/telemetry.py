"""What a run tells Ray's Prometheus endpoint while it works: in come units and their entries, out go counters.

Every actor counts its own work; Prometheus adds them up. Ray puts `ray_` before each name.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge


class UnitMetrics:
    """The counters of one actor."""

    def __init__(self) -> None:
        self._clips = Counter("emotion_clips", description="clips that ended, by state", tag_keys=("state",))
        self._frames = Counter("emotion_frames", description="sampled frames decoded")
        self._faces = Counter("emotion_faces", description="faces cropped or scored")
        self._retries = Counter("emotion_retries", description="tries of clips beyond the first")
        self._seconds = Counter("emotion_stage_seconds", description="wall time, by stage", tag_keys=("stage",))
        self._memory = Gauge("emotion_worker_memory_bytes", description="most resident memory of a decoding child")
        self._in_flight = Gauge("emotion_units_in_flight", description="units at work")
        self._seconds_before: Counts[str] = Counts()

    def began(self) -> None:
        """A unit is at work."""
        self._in_flight.set(1)

    def ended(self, entry: Mapping[str, Any]) -> None:
        """The unit is committed. entry: as the ledger has it; its facts are of the actor's whole life."""
        self._in_flight.set(0)
        for state, count in Counts(row["state"] for row in entry["outcomes"]).items():
            self._clips.inc(count, tags={"state": str(state)})
        for counter, column in ((self._frames, "num_frames"), (self._faces, "num_examples")):
            _add(counter, sum(row[column] for row in entry["outcomes"]))
        _add(self._retries, sum(max(0, row["attempts"] - 1) for row in entry["outcomes"]))
        seconds = Counts(entry["facts"].get("stage_seconds", {}))
        for stage, value in (seconds - self._seconds_before).items():
            _add(self._seconds, value, tags={"stage": stage})
        self._seconds_before = seconds
        self._memory.set(entry["facts"].get("peak_child_memory_bytes", 0))


def _add(counter: Counter, value: float, tags: dict[str, str] | None = None) -> None:
    if value > 0:  # Ray refuses to count nothing.
        counter.inc(value, tags=tags or {})
