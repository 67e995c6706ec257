"""The counter of a run as a Ray actor: what its driver and its other actors hold of it."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.runtime.unit_counter import CounterLostError, UnitCounter

# The first answer to an actor waits for the counter's start.
FIRST_ANSWER_SECONDS, ANSWER_SECONDS = 30.0, 2.0


class RemoteCounter:
    """Asks a `UnitCounter` in a process of its own. Raises CounterLostError where it does not answer in time."""

    def __init__(self) -> None:
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(UnitCounter)
        self._actor = remote.remote()
        self._tell_seconds = FIRST_ANSWER_SECONDS

    def tell(self, unit_id: str, counts: dict[str, Any] | None) -> bool:
        """As of UnitCounter."""
        seconds, self._tell_seconds = self._tell_seconds, ANSWER_SECONDS
        return _answer(self._actor.tell.remote(unit_id, counts), seconds)

    def take(self) -> dict[str, dict[str, Any]]:
        """As of UnitCounter."""
        return _answer(self._actor.take.remote(), ANSWER_SECONDS)

    def stop(self) -> int:
        """As of UnitCounter."""
        return _answer(self._actor.stop.remote(), ANSWER_SECONDS)


def _answer(asked: Any, seconds: float) -> Any:
    try:
        return ray.get(asked, timeout=seconds)
    except RayError as error:
        raise CounterLostError(str(error)) from None
