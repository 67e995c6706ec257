"""Runs units of work through a pool of Ray actors, and bounds every retry.

One Ray Data row is one unit, so whatever Ray loses or repeats is one whole unit that the ledger knows by name.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.config import PoolConfig, num_actors
from pipeline.runtime.counting import UnitsAtWork
from pipeline.runtime.job import ActorSpec
from pipeline.runtime.progress import display_of
from pipeline.runtime.receiver import ROUNDS, Receiver, first_line
from pipeline.runtime.unit_actor import UnitActor, pack
from pipeline.storage.modes import own_umask
from pipeline.storage.retry import StorageError

# Units that one Ray Data run is given, after which all actors wait for the last and new ones start. Each is a block,
# which costs the driver 2 ms before the first of them is begun, and each clip of them some KB of memory.
MIN_UNITS_AT_ONCE, UNITS_AT_ONCE_PER_ACTOR = 2000, 64
MAX_CLIPS_AT_ONCE = 2**17
# How Ray Data calls its threads in the driver, and how long those of a run that was broken off may take to end.
RAY_DATA_THREADS, END_SECONDS = ("StreamingExecutor", "iter_threaded", "ray-data-"), 5.0
# Logical CPUs that an actor asks Ray for.
CPUS_PER_ACTOR, CPUS_PER_GPU_ACTOR = 0.5, 0.25


def units_at_once(actors: int, *, clips_per_unit: int = 1) -> int:
    """Units of one Ray Data run: so many that starting and ending it takes little of its time."""
    return max(min(MIN_UNITS_AT_ONCE, MAX_CLIPS_AT_ONCE // clips_per_unit), UNITS_AT_ONCE_PER_ACTOR * actors)


def run_units(
    ledger: Ledger, snapshot: Snapshot, spec: ActorSpec, *, config: PoolConfig, started: float | None = None
) -> list[str]:
    """Run actors over every pending unit that must be computed, until each is committed.

    An actor that dies takes its unit back to the queue at most 3 times a round; what is still uncommitted after 3
    rounds stays pending, so a unit that kills every actor ends the run instead of looping for ever. Committed entries
    go into the snapshot, and copies of many in one object to the ledger.

    Args:
        started: when the run began, by the monotonic clock, for its rate; default now.

    Returns:
        What went wrong on the way, a line each.

    Raises:
        KeyboardInterrupt: once the clips at work have ended, or after `GRACE_SECONDS`.
        StorageError, UsageError: where an actor meets one; every other would meet it too.
        SystematicFault: where more than a tenth of the clips, and at least 10, met a fault of our own code. Actors are
            still at work then: once they have ended, the caller takes back what met it.
    """
    units = snapshot.pending().of("compute")
    arguments = {"ledger_url": ledger.storage.url, **spec.start_shared()}
    actors = num_actors(config, units.num_units)
    errors: list[str] = []
    receiver = Receiver(ledger, snapshot, num_clips=units.num_parts)
    display = display_of(units, actors=actors, started=started)
    at_work = UnitsAtWork(display, actors=actors)
    with display, at_work.watched():
        clips_per_unit = max(1, units.num_parts // max(1, units.num_units))
        for chunk in units.chunks(units_at_once(actors, clips_per_unit=clips_per_unit)):
            waiting = {unit.unit_id: unit for unit in chunk}
            at_work.show_of(waiting)
            for _ in range(ROUNDS):
                try:
                    options: dict[str, Any] = {"arguments": arguments, "config": config, "at_work": at_work}
                    with closing(_stream(list(waiting.values()), spec, **options)) as entries:
                        for entry in entries:
                            waiting.pop(entry["unit"], None)
                            display.add(entry)
                            receiver.add(entry)
                except RayError as error:
                    errors.append(first_line(error))
                if waiting:  # A listing of 300,000 entries takes a minute: only where some may have been lost.
                    for unit_id in waiting.keys() & ledger.committed_units().keys():
                        del waiting[unit_id]
                if not waiting:
                    break
    receiver.flush()
    return errors


def _stream(
    units: Sequence[Unit],
    spec: ActorSpec,
    *,
    arguments: Mapping[str, Any],
    config: PoolConfig,
    at_work: UnitsAtWork,
) -> Generator[dict[str, Any]]:
    """The entries of units as they are committed. Raises RayError, and StorageError or UsageError of an actor."""
    rows = [{"unit": pack(unit)} for unit in units]
    pool = ActorPoolStrategy(size=num_actors(config, len(units)), max_tasks_in_flight_per_actor=1)
    with warnings.catch_warnings():
        # Ray 2.60 deprecates remote arguments without a name of their own, yet has none for these two, and without
        # them it retries for ever.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        entries = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            UnitActor,
            fn_constructor_args=(spec.build, dict(arguments), own_umask(), at_work.teller()),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=CPUS_PER_GPU_ACTOR if spec.num_gpus else CPUS_PER_ACTOR,
            num_gpus=spec.num_gpus or None,
            max_restarts=20,
            max_task_retries=3,
        )
    try:
        lines: Any = iter(entries.iter_rows())
        with closing(lines) as rows:
            for row in rows:
                entry = json.loads(row["entry"])
                if entry.get("stopped_by") == "interrupt":
                    continue
                if "stopped_by" in entry:
                    raise (StorageError if entry["stopped_by"] == "storage" else UsageError)(entry["message"])
                yield entry
    except BaseException:
        _wait_for_ray_data()
        raise


def _wait_for_ray_data() -> None:
    """Wait for the threads of a Ray Data run that was broken off: one that asks Ray after its end ends this process,
    with code 1 and without a word."""
    until = time.monotonic() + END_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(RAY_DATA_THREADS):
            thread.join(max(0.0, until - time.monotonic()))
