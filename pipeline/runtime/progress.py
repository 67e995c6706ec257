"""Shows the progress of a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.runtime.console import is_json, log_event, log_status

LINE_SECONDS = 30.0


class ProgressDisplay:
    """Progress: live in a terminal, an event a second as JSON, else a line every 30 s.

    Counts come from the entries, never from Ray. Rate and time left are this run's. The memory is the most that a
    decoding child has held.
    """

    def __init__(self, num_clips: int, *, what: str = "clips", terminal: Console | None = None) -> None:
        self._num_clips, self._what = num_clips, what
        self._counts: Counter[str] = Counter()
        self._num_examples = 0
        self._peak_bytes = 0
        self._started = self._last_told = time.monotonic()
        terminal = terminal or Console(stderr=True)
        self._is_live = terminal.is_terminal and not is_json()
        self._words = "starting"
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(self._what), TimeElapsedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=terminal)
        self._task = self._bar.add_task(self._what, total=self._num_clips)
        self._live = Live(console=terminal, get_renderable=self._picture, refresh_per_second=4)

    def __enter__(self) -> ProgressDisplay:
        log_event("start", clips=self._num_clips)
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def _picture(self) -> Group:
        return Group(self._bar, Text(self._words))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count one committed unit."""
        self._counts.update(str(row["state"]) for row in entry["outcomes"])
        self._num_examples += sum(row["num_examples"] for row in entry["outcomes"])
        self._peak_bytes = max(self._peak_bytes, entry["facts"].get("peak_child_memory_bytes", 0))
        done, now = self._counts.total(), time.monotonic()
        rate = done / max(now - self._started, 1e-9)
        seconds_left = (self._num_clips - done) / rate if rate else 0.0
        states = ", ".join(f"{count} {state}" for state, count in sorted(self._counts.items()))
        mib = self._peak_bytes / 2**20
        self._words = (
            f"{states}, {self._num_examples} examples, {rate:.2f} {self._what}/s, a worker {mib:.0f} MiB at most"
        )
        self._bar.update(self._task, completed=done)
        every = 1.0 if is_json() else LINE_SECONDS
        if self._is_live or (now - self._last_told < every and not (is_json() and done == self._num_clips)):
            return
        self._last_told = now
        if not is_json():
            log_status(f"{done} of {self._num_clips} {self._what}: {self._words}, about {seconds_left:.0f} s left")
        log_event(
            "progress",
            clips=done,
            clips_in_all=self._num_clips,
            states=dict(self._counts),
            examples=self._num_examples,
            clips_per_second=round(rate, 3),
            seconds_left=round(seconds_left, 1),
            peak_worker_memory_mib=round(mib),
        )
