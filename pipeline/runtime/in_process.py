"""Actors in the job's own process, which needs no Ray."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.counting import UnitsAtWork
from pipeline.runtime.job import Actor, ActorSpec
from pipeline.runtime.progress import display_of
from pipeline.runtime.receiver import ROUNDS, Receiver, first_line
from pipeline.runtime.unit_counter import UnitCounter, UnitTeller
from pipeline.storage.retry import StorageError


def run_in_process(
    ledger: Ledger, snapshot: Snapshot, spec: ActorSpec, *, actors: int = 1, started: float | None = None
) -> list[str]:
    """Do every pending unit that must be computed; as `pool.run_units`, without Ray.

    Each of the actors has a unit at a time, in a thread of its own: what takes time is done by its sandboxed child, and
    by libraries that let go of Python's lock. Raises what `pool.run_units` raises, and for the same reasons, once no
    unit is at work. A unit on which the actor itself fails is begun 3 times, each time by a new one, and is then left
    pending.
    """
    units = snapshot.pending().of("compute")
    receiver = Receiver(ledger, snapshot, num_clips=units.num_parts)
    display = display_of(units, actors=actors, started=started)
    at_work = UnitsAtWork(display, actors=actors, counter=UnitCounter())
    answers: SimpleQueue[_Answer] = SimpleQueue()
    errors: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_kept_settings())
        idle = [_Worker(spec, ledger.storage.url, at_work.teller(), answers) for _ in range(actors)]
        for worker in idle:
            stack.callback(worker.close)
        stack.enter_context(display)
        stack.enter_context(at_work.watched())
        begun: set[str] = set()
        waiting = iter(units)
        while True:
            while idle and (unit := next(waiting, None)) is not None:
                begun.add(unit.unit_id)
                at_work.show_of(frozenset(begun))
                idle.pop(0).begin(unit)
            if not begun:
                break
            answer = answers.get()
            errors += answer.errors
            try:
                if answer.fatal is not None:
                    raise answer.fatal
                begun.discard(answer.unit_id)
                at_work.show_of(frozenset(begun))
                if answer.entry is not None:
                    display.add(answer.entry)
                    receiver.add(answer.entry)
            except Exception:
                at_work.stop()  # Whoever is told of it may take back what is committed by then.
                raise
            idle.append(answer.worker)
    receiver.flush()
    return errors


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A unit that a worker is done with: its entry, if it has one, what went wrong, and what must end the run."""

    worker: _Worker
    unit_id: str
    entry: dict[str, Any] | None = None
    errors: list[str] = field(default_factory=list)
    fatal: BaseException | None = None


class _Worker:
    """Builds an actor, and another one after one that failed; does a unit in a thread."""

    def __init__(self, spec: ActorSpec, ledger_url: str, teller: UnitTeller, answers: SimpleQueue[_Answer]) -> None:
        self._spec, self._ledger_url, self._teller, self._answers = spec, ledger_url, teller, answers
        self._actor: Actor | None = None

    def begin(self, unit: Unit) -> None:
        """Do a unit beside the caller's thread, which hears signals meanwhile."""
        threading.Thread(target=lambda: self._answers.put(self._answer(unit)), daemon=True).start()

    def _answer(self, unit: Unit) -> _Answer:
        errors: list[str] = []
        found: dict[str, Any] = {}
        for _ in range(ROUNDS):
            try:
                found["entry"] = self._entry(unit)
            except (StorageError, UsageError) as error:
                found["fatal"] = error
            except Exception as error:  # noqa: BLE001 - of whatever kind: told, and the unit stays pending
                errors.append(first_line(error))
                continue
            except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
                found["fatal"] = error
            break
        return _Answer(worker=self, unit_id=unit.unit_id, errors=errors, **found)

    def _entry(self, unit: Unit) -> dict[str, Any] | None:
        """The unit's entry, committed; None where it is not to be begun any more."""
        actor, self._actor = self._actor, None
        if actor is None:
            actor = self._spec.build(ledger_url=self._ledger_url)
            actor.clip_ended = self._teller.clip_ended
        entry = None
        try:
            if self._teller.began(unit):
                entry = actor.run(unit)
        except Exception:
            actor.close()
            raise
        finally:
            self._teller.ended()
        self._actor = actor
        return entry

    def close(self) -> None:
        """End what the actor has started, if it is not at work."""
        if self._actor is not None:
            self._actor.close()


@contextmanager
def _kept_settings() -> Iterator[None]:
    """Take back what an actor sets for its process, which is mostly its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ[name] for name in names if name in os.environ}
    torch = sys.modules.get("torch")
    num_threads = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
        if torch is not None:
            torch.set_num_threads(num_threads)
