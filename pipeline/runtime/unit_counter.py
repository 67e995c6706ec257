"""The Ray actor that stands between the actors of a run and its driver.

A module of its own that imports next to nothing: its process starts beside those that do the work.
"""

from __future__ import annotations

from typing import Any


class UnitCounter:
    """One Ray actor of a run, between its actors and its driver."""

    def __init__(self) -> None:
        self._new: dict[str, dict[str, Any]] = {}
        self._at_work: set[str] = set()
        self._is_stopping = False

    def tell(self, unit_id: str, counts: dict[str, Any] | None) -> bool:
        """Take what a unit has so far, None once it has ended; whether its actor is to stop."""
        if counts is None:
            self._at_work.discard(unit_id)
        else:
            self._new[unit_id] = counts
            self._at_work.add(unit_id)
        return self._is_stopping

    def take(self) -> dict[str, dict[str, Any]]:
        """What was told since the last time, by unit."""
        new, self._new = self._new, {}
        return new

    def stop(self) -> int:
        """From now on actors are to stop; units that are still at work."""
        self._is_stopping = True
        return len(self._at_work)
