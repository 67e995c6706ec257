"""What a Ray actor of a run does: one packed unit in, its entry out, or what must end the run.

A module of its own, so that an actor's process imports what it needs and nothing of the driver's.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.ledger.units import Unit
from pipeline.records.clips import clip_of
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.telemetry import UnitMetrics
from pipeline.runtime.unit_counter import UnitTeller
from pipeline.storage.retry import StorageError

if TYPE_CHECKING:
    from pipeline.runtime.job import Actor


class UnitActor:
    """What Ray Data holds: builds the actor's own work once and maps one unit to its entry, or to what must end the
    run: as an exception Ray would try it again."""

    def __init__(
        self, actor: Callable[..., Actor], arguments: dict[str, Any], umask: int, teller: UnitTeller | None = None
    ) -> None:
        os.umask(umask)  # The driver's: a cluster's own may let others read.
        self._actor, self._arguments, self._teller = actor, arguments, teller
        self._metrics = UnitMetrics()

    @functools.cached_property
    def _work(self) -> Actor:
        # Not in __init__: what fails there, Ray restarts.
        actor = self._actor(**self._arguments)
        if self._teller is not None:
            actor.clip_ended = self._teller.clip_ended
        return actor

    def __call__(self, batch: pa.Table) -> pa.Table:
        entries = [json.dumps(self._entry(_unpack(text))) for text in batch.column("unit").to_pylist()]
        return pa.table({"entry": pa.array(entries, pa.string())})

    def _entry(self, unit: Unit) -> dict[str, Any]:
        if self._teller is None:
            return self._committed(unit)
        try:
            return self._committed(unit) if self._teller.began(unit) else {"stopped_by": "interrupt"}
        finally:
            self._teller.ended()

    def _committed(self, unit: Unit) -> dict[str, Any]:
        self._metrics.began()
        try:
            entry = self._work.run(unit)
        except StorageError as error:
            return {"stopped_by": "storage", "message": str(error)}
        except UsageError as error:
            return {"stopped_by": "usage", "message": str(error)}
        self._metrics.ended(entry)
        return entry


def pack(unit: Unit) -> str:
    """A unit as the text that an actor is given."""
    clips = [asdict(clip) for clip in unit.clips]
    return json.dumps({"unit_id": unit.unit_id, "clips": clips, "replaced": sorted(unit.replaced)})


def _unpack(text: str) -> Unit:
    value = json.loads(text)
    clips = tuple(map(clip_of, value["clips"]))
    return Unit(unit_id=value["unit_id"], clips=clips, replaced=frozenset(value["replaced"]))
