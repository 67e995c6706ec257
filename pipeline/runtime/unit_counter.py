"""How actors tell the driver of the clips that end in their units: by a counter between them.

It imports next to nothing: where the counter is a Ray actor, its process starts beside those that do the work.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pipeline.ledger.units import Unit
    from pipeline.records.outcomes import Outcome

# A counter that does not answer is left alone for a while: its node may be gone.
PAUSE_SECONDS = 10.0


class CounterLostError(Exception):
    """The counter does not answer."""


class Counting(Protocol):
    """The methods of a `UnitCounter`, wherever it is. Each raises CounterLostError where it gives no answer in time."""

    def tell(self, unit_id: str, counts: dict[str, Any] | None) -> bool: ...

    def take(self) -> dict[str, dict[str, Any]]: ...

    def stop(self) -> int: ...


class UnitCounter:
    """One of a run, between its actors and its driver: a Ray actor (`RemoteCounter`), or an object of the driver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: dict[str, dict[str, Any]] = {}
        self._at_work: set[str] = set()
        self._is_stopping = False

    def tell(self, unit_id: str, counts: dict[str, Any] | None) -> bool:
        """Take what a unit has so far, None once it has ended; whether its actor is to stop."""
        with self._lock:
            if counts is None:
                self._at_work.discard(unit_id)
            else:
                self._new[unit_id] = counts
                self._at_work.add(unit_id)
            return self._is_stopping

    def take(self) -> dict[str, dict[str, Any]]:
        """What was told since the last time, by unit."""
        with self._lock:
            new, self._new = self._new, {}
            return new

    def stop(self) -> int:
        """From now on actors are to stop; units that are still at work."""
        with self._lock:
            self._is_stopping = True
            return len(self._at_work)


class UnitTeller:
    """What an actor tells of the unit that it is at."""

    def __init__(self, counter: Counting, *, every_seconds: float) -> None:
        self._counter, self._every_seconds = counter, every_seconds
        self._next = self._silent_until = 0.0
        self._is_stopping = False
        self._begin("")

    def _begin(self, unit_id: str) -> None:
        self._unit_id = unit_id
        self._states: Counter[str] = Counter()
        self._num_examples, self._seconds = 0, 0.0

    def began(self, unit: Unit) -> bool:
        """A unit is taken up; False where it is not to be."""
        self._begin(unit.unit_id)
        self._tell(self._counts())
        return not self._is_stopping

    def clip_ended(self, outcome: Outcome) -> bool:
        """A clip of it has ended; False where those that are left are not to be read."""
        self._states[str(outcome.state)] += 1
        self._num_examples += outcome.num_examples
        self._seconds += outcome.seconds
        if time.monotonic() >= self._next:
            self._tell(self._counts())
        return not self._is_stopping

    def ended(self) -> None:
        """The unit is committed."""
        self._tell(None)

    def _counts(self) -> dict[str, Any]:
        return {"states": dict(self._states), "num_examples": self._num_examples, "seconds": self._seconds}

    def _tell(self, counts: dict[str, Any] | None) -> None:
        now = time.monotonic()
        if now < self._silent_until:
            return
        self._next = now + self._every_seconds
        try:
            self._is_stopping |= self._counter.tell(self._unit_id, counts)
        except CounterLostError:
            self._silent_until = time.monotonic() + PAUSE_SECONDS
