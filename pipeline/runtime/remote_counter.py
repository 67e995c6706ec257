"""The counter of a run as a Ray actor: what its driver and its other actors hold of it."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.runtime.unit_counter import CounterLostError, UnitCounter


class RemoteCounter:
    """Asks a `UnitCounter` in a process of its own. Raises CounterLostError where it does not answer in time."""

    def __init__(self) -> None:
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(UnitCounter)
        self._actor = remote.remote()

    def tell(self, unit_id: str, counts: dict[str, Any] | None, *, seconds: float) -> bool:
        """As of UnitCounter."""
        return _answer(self._actor.tell.remote(unit_id, counts), seconds)

    def take(self, *, seconds: float) -> dict[str, dict[str, Any]]:
        """As of UnitCounter."""
        return _answer(self._actor.take.remote(), seconds)

    def stop(self, *, seconds: float) -> int:
        """As of UnitCounter."""
        return _answer(self._actor.stop.remote(), seconds)


def _answer(asked: Any, seconds: float) -> Any:
    try:
        return ray.get(asked, timeout=seconds)
    except RayError as error:
        raise CounterLostError(str(error)) from None
