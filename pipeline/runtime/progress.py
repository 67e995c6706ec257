"""Shows the progress of a run: how many clips have ended and how, how fast, and how long the rest will take."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from pipeline.runtime.console import is_json, log_event, log_status
from pipeline.runtime.describe import clips_per_second

if TYPE_CHECKING:
    from pipeline.ledger.units import PendingUnits

# Where there is no terminal: the first line comes soon, and the gaps double up to this.
FIRST_LINE_SECONDS, LINE_SECONDS = 3.0, 30.0
WAVES_COUNTED = 4


class TimeLeft:
    """How long the rest of the clips takes, by the second half of those that have ended: before the first one actors
    start, and what the machine did long ago says little."""

    def __init__(self, num_clips: int, *, actors: int) -> None:
        self._num_clips, self._actors = num_clips, actors
        self._marks: deque[tuple[int, float]] = deque()
        self._ends_at: float | None = None
        self._last_at: float | None = None  # When a clip last ended; None once all have.

    def update(self, num_ended: int, *, now: float, seconds_of_clips: float) -> None:
        """So many clips have ended, which took their actors so many seconds in all."""
        if not num_ended:
            return
        self._marks.append((num_ended, now))
        # Actors that began together end together: fewer than some of these waves would swing.
        num_counted = max(num_ended / 2, WAVES_COUNTED * self._actors)
        while len(self._marks) > 2 and self._marks[1][0] <= num_ended - num_counted:
            self._marks.popleft()
        ended, at = self._marks[0]
        per_clip = seconds_of_clips / num_ended / self._actors
        if num_ended > ended:
            per_clip = (now - at) / (num_ended - ended)
        self._ends_at = now + per_clip * max(0, self._num_clips - num_ended)
        self._last_at = now if num_ended < self._num_clips else None

    def seconds(self, now: float) -> float | None:
        """Seconds that are left; None before the first clip has ended."""
        if self._ends_at is None:
            return None
        # Of a last clip that takes longer than the others nothing is known but how long it has taken.
        waited = 0.0 if self._last_at is None else now - self._last_at
        return max(0.0, self._ends_at - now, waited / 2)


class ProgressDisplay:
    """Progress: live in a terminal, an event a second as JSON, else a line every 30 s.

    Counts come from the entries of units and, of those at work, from their actors; never from Ray. The memory is the
    most that a decoding child has held.
    """

    def __init__(
        self,
        num_clips: int,
        *,
        what: str = "clips",
        actors: int = 1,
        started: float | None = None,
        terminal: Console | None = None,
    ) -> None:
        """started: when the run began, by the monotonic clock; default now."""
        self._num_clips, self._what = num_clips, what
        self._ended = _Counts()
        self._at_work: dict[str, _Counts] = {}
        self._peak_bytes = 0
        now = time.monotonic()
        self._started, self._last_told = now if started is None else started, now
        self._gap_seconds = 1.0 if is_json() else min(FIRST_LINE_SECONDS, LINE_SECONDS)
        self._left = TimeLeft(num_clips, actors=actors)
        self._num_shown = 0
        self._lock = threading.Lock()
        terminal = terminal or Console(stderr=True)
        self._is_live = terminal.is_terminal and not is_json()
        self._words = "actors are loading; the first clips take longest"
        texts = (f"{{task.completed}}/{{task.total}} {what}", "{task.fields[spent]}", "{task.fields[left]}")
        columns = [TextColumn(text, table_column=Column(no_wrap=True)) for text in texts]
        self._bar = Progress(BarColumn(None, table_column=Column(ratio=1)), *columns, console=terminal, expand=True)
        self._task = self._bar.add_task(what, total=num_clips, spent="", left="")
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
        now = time.monotonic()
        seconds_left = self._left.seconds(now)
        left = "" if seconds_left is None else f"{in_words(seconds_left)} left"
        self._bar.update(self._task, spent=in_words(now - self._started), left=left)
        return Group(self._bar, Text(self._words))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count one committed unit."""
        outcomes = entry["outcomes"]
        with self._lock:
            self._at_work.pop(entry.get("unit", ""), None)
            self._ended.add(
                Counter(str(row["state"]) for row in outcomes),
                sum(row["num_examples"] for row in outcomes),
                sum(row.get("seconds", 0.0) for row in outcomes),
            )
            self._peak_bytes = max(self._peak_bytes, entry["facts"].get("peak_child_memory_bytes", 0))
            self._tell()

    def note(self, counts: Mapping[str, Mapping[str, Any]], waiting: Collection[str]) -> None:
        """Show what units at work have so far. waiting: those that are not committed; others are counted already."""
        with self._lock:
            for unit_id, each in counts.items():
                if unit_id in waiting:
                    self._at_work[unit_id] = _Counts()
                    self._at_work[unit_id].add(each["states"], each["num_examples"], each["seconds"])
            if counts:
                self._tell()

    def _tell(self) -> None:
        now, counts = time.monotonic(), _Counts()
        for each in (self._ended, *self._at_work.values()):
            counts.add(each.states, each.num_examples, each.seconds)
        done = counts.states.total()
        rate = clips_per_second(done, now - self._started)
        if done != self._num_shown:
            self._left.update(done, now=now, seconds_of_clips=counts.seconds)
            self._num_shown = done
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.states.items()))
        memory = f", a worker {self._peak_bytes / 2**20:.0f} MiB at most" if self._peak_bytes else ""
        if done:
            self._words = f"{states}, {counts.num_examples} examples, {rate:.2f} {self._what}/s{memory}"
        self._bar.update(self._task, completed=done)
        is_last = done == self._num_clips and not self._at_work
        if self._is_live or not done or (now - self._last_told < self._gap_seconds and not (is_json() and is_last)):
            return
        self._last_told = now
        left = self._left.seconds(now) or 0.0
        if not is_json():
            self._gap_seconds = min(2 * self._gap_seconds, LINE_SECONDS)
            log_status(f"{done} of {self._num_clips} {self._what}: {self._words}, about {in_words(left)} left")
        log_event(
            "progress",
            clips=done,
            clips_in_all=self._num_clips,
            states=dict(counts.states),
            examples=counts.num_examples,
            clips_per_second=round(rate, 3),
            seconds_left=round(left, 1),
            peak_worker_memory_mib=round(self._peak_bytes / 2**20),
        )


def display_of(units: PendingUnits, *, actors: int, started: float | None) -> ProgressDisplay:
    """What shows these units while so many actors are at them."""
    what = "clips and segments" if units.num_segments else "clips"
    return ProgressDisplay(units.num_parts, what=what, actors=actors, started=started)


class _Counts:
    """Clips by state, their examples, and the seconds that actors spent on them."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.num_examples, self.seconds = 0, 0.0

    def add(self, states: Mapping[str, int], num_examples: int, seconds: float) -> None:
        """Count these too."""
        self.states.update(states)
        self.num_examples += num_examples
        self.seconds += seconds


def in_words(seconds: float) -> str:
    """A length of time as a person says it: 45 s, 12 min, 3 h 20 min, 5 days."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 100 else f"{round(seconds / 86400)} days"
