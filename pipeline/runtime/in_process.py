"""One actor in the job's own process, which needs no Ray."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
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


def run_in_process(ledger: Ledger, snapshot: Snapshot, spec: ActorSpec, *, started: float | None = None) -> list[str]:
    """Do every pending unit that must be computed, one after the other; as `pool.run_units`, without Ray.

    Raises what that raises, and for the same reasons. A unit on which the actor itself fails is begun 3 times, each
    time by a new one, and is then left pending.
    """
    units = snapshot.pending().of("compute")
    receiver = Receiver(ledger, snapshot, num_clips=units.num_parts)
    display = display_of(units, actors=1, started=started)
    at_work = UnitsAtWork(display, actors=1, counter=UnitCounter())
    worker = _Worker(spec, ledger.storage.url, at_work.teller())
    errors: list[str] = []
    with _kept_settings(), closing(worker), display, at_work.watched():
        for unit in units:
            at_work.show_of([unit.unit_id])
            for _ in range(ROUNDS):
                try:
                    entry = _beside(lambda unit=unit: worker.entry(unit))
                except (StorageError, UsageError):
                    raise
                except Exception as error:  # noqa: BLE001 - of whatever kind: told, and the unit stays pending
                    errors.append(first_line(error))
                    continue
                at_work.show_of(())
                display.add(entry)
                receiver.add(entry)
                break
    receiver.flush()
    return errors


class _Worker:
    """Builds the actor, and another one after one that failed."""

    def __init__(self, spec: ActorSpec, ledger_url: str, teller: UnitTeller) -> None:
        self._spec, self._ledger_url, self._teller = spec, ledger_url, teller
        self._actor: Actor | None = None

    def entry(self, unit: Unit) -> dict[str, Any]:
        """The unit's entry, committed."""
        actor, self._actor = self._actor, None
        if actor is None:
            actor = self._spec.build(ledger_url=self._ledger_url)
            actor.clip_ended = self._teller.clip_ended
        self._teller.began(unit)
        try:
            entry = actor.run(unit)
        except Exception:
            actor.close()
            raise
        finally:
            self._teller.ended()
        self._actor = actor
        return entry

    def close(self) -> None:
        """End what the actor has started."""
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


def _beside(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What work returns or raises, in a thread beside this one, which hears signals meanwhile."""
    answer: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result()
