"""The way of a unit through Ray, the pool and the ledger, with more and more actors: made-up clips in, a curve out.

Ray, the driver and the ledger are real. The work of a unit is SIMULATED: its actor sleeps for as long, so that more
actors than cores can be at work. What is measured is the share of their time that the actors have work at all.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.ledger import made_batches
from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.corpus.types import Corpus, IgnoredFiles
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.units import Unit
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.runtime.cluster import start_ray
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.console import log_status
from pipeline.runtime.job import ActorSpec, Job, go_on
from pipeline.runtime.pool import CPUS_PER_ACTOR
from pipeline.runtime.run import run
from pipeline.storage.spool import BatchSpool
from pipeline.storage.store import Storage

KIND = "examples"
# Clips differ by half their mean, units of 32 of them by a tenth.
SPREAD = 0.1


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Runs units that only wait (SIMULATED work) on real Ray actors, and tells how much of their time they wait for
    work."""

    study: str
    """scaling."""
    output: str = "build/scaling"
    """Local folder of scaling.json; the ledgers are made in it and deleted afterwards."""
    actors: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Actors of each run (counts)."""
    unit_seconds: float = 16.0
    """Mean time that a unit takes (seconds): 32 clips of half a second."""
    units_per_actor: int = 4
    """Units of a run for each of its actors (count)."""
    clips_per_shard: int = 32
    """Clips in one unit (count)."""

    def __post_init__(self) -> None:
        if not self.actors or min(self.actors) < 1 or self.clips_per_shard < 1:
            raise ValueError("--actors, --clips-per-shard: give 1 or more")
        if self.units_per_actor < 2:
            raise ValueError(f"--units-per-actor is {self.units_per_actor}; give 2 or more: the first is the start")
        if self.unit_seconds <= 0:
            raise ValueError(f"--unit-seconds is {self.unit_seconds}; give more than 0")


@dataclass(frozen=True, kw_only=True)
class Waited:
    """One unit as its actor saw it: `began` to `ended` (seconds of the epoch) it was at work."""

    actor: str
    began: float
    ended: float


class WaitingActor:
    """Commits a unit of made-up clips with an empty shard, after the time that its work would take."""

    def __init__(self, *, ledger_url: str, unit_seconds: float) -> None:
        self._ledger = Ledger(ledger_url)
        self._name = f"{time.time():.6f}"
        self._unit_seconds = unit_seconds
        self.clip_ended = go_on

    def close(self) -> None:
        """Nothing was started."""

    def run(self, unit: Unit) -> dict[str, Any]:
        began = time.time()
        spread = np.random.default_rng(unit.number).normal(1.0, SPREAD)
        time.sleep(self._unit_seconds * max(0.2, spread))
        return self._ledger.commit(
            unit,
            tables={KIND: table_of([], EXAMPLE_SCHEMA)},
            outcomes=[Outcome(clip_id=clip.clip_id, path=clip.path, state=State.DONE) for clip in unit.clips],
            facts={"actor": self._name, "began": began, "ended": time.time()},
        )


def scaling(config: ScalingConfig) -> dict[str, Any]:
    """One run for each number of actors; writes scaling.json and returns what it holds."""
    storage = Storage(config.output)
    rows = []
    for actors in config.actors:
        log_status(f"{actors} actors")
        rows.append(_measured(actors, Path(storage.path("made")), config=config))
    results = {
        "machine": machine(),
        "unit_seconds": config.unit_seconds,
        "clips_per_shard": config.clips_per_shard,
        "driver_cpu_ms_per_unit": driver_ms(rows),
        "rows": [
            {**row, "times_one": row["busy"] * row["actors"] / rows[0]["busy"] / rows[0]["actors"]} for row in rows
        ],
    }
    storage.put("scaling.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def _measured(actors: int, folder: Path, *, config: ScalingConfig) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    corpus = made_corpus(actors * config.units_per_actor * config.clips_per_shard)
    start_ray(least_cpus=int(np.ceil(actors * CPUS_PER_ACTOR)) + 1)
    cpu = time.process_time()
    pool = PoolConfig(actors=actors, clips_per_shard=config.clips_per_shard)
    found = run(waiting_job(config.unit_seconds), lambda: corpus, str(folder), config=pool)
    cpu = time.process_time() - cpu
    rows = found.snapshot.database.rows("select facts from entries order by unit")
    units = [Waited(**json.loads(row["facts"])) for row in rows]
    shutil.rmtree(folder)
    return {
        "actors": actors,
        "units": len(units),
        "audit_holds": found.audit.holds,
        "seconds": found.summary["seconds"],
        "driver_cpu_seconds": cpu,
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "busy": busy_share(units),
    }


def made_corpus(num_clips: int) -> Corpus:
    """Made-up clips, as listed."""
    clips = BatchSpool()
    for batch in made_batches(num_clips):
        clips.append(batch)
    return Corpus(
        layout="folder", root="", description=f"{num_clips:,} made-up clips", rows=clips, ignored=IgnoredFiles()
    )


def waiting_job(unit_seconds: float) -> Job:
    """A job whose actors wait for as long as a unit would take."""
    spec = ActorSpec(build=partial(WaitingActor, unit_seconds=unit_seconds))
    return Job(kind=KIND, plan_config={}, plan_defaults={}, versions={}, build_actor=lambda _: spec)


def busy_share(units: Iterable[Waited]) -> float:
    """Share of their time that the actors are at work: from when the last of them has begun its first unit until the
    last unit has begun, after which there is none to wait for."""
    by_actor: dict[str, list[Waited]] = {}
    for unit in units:
        by_actor.setdefault(unit.actor, []).append(unit)
    start = max(min(unit.began for unit in own) for own in by_actor.values())
    end = max(unit.began for own in by_actor.values() for unit in own)
    if end <= start:
        raise ValueError("every actor had one unit: nothing was handed out while all were at work; give more units")
    busy = sum(max(0.0, min(unit.ended, end) - max(unit.began, start)) for own in by_actor.values() for unit in own)
    return busy / len(by_actor) / (end - start)


def driver_ms(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """CPU time of the driver for one unit more, milliseconds: the slope over runs that took equally long."""
    units, seconds = np.array([(row["units"], row["driver_cpu_seconds"]) for row in rows]).T
    return float(np.polyfit(units, seconds, 1)[0] * 1000) if len(units) > 1 else None


def print_scaling(results: Mapping[str, Any]) -> None:
    """Print the curve."""
    rows = [
        [
            f"{row['actors']}",
            f"{row['units']}",
            f"{row['seconds']:.1f}",
            f"{100 * row['busy']:.1f}",
            f"{row['times_one']:.2f}",
            f"{row['driver_cpu_seconds']:.1f}",
            f"{row['driver_peak_mib']:,}",
        ]
        for row in results["rows"]
    ]
    title = f"Units of {results['unit_seconds']:g} s that wait (SIMULATED work) on real Ray actors"
    console = Console(width=None if sys.stdout.isatty() else 120)
    columns = ("actors", "units", "s in all", "busy, %", "times one", "driver's CPU s", "its peak so far, MiB")
    console.print(table(title, columns, rows))
    if results["driver_cpu_ms_per_unit"] is not None:
        console.print(f"the driver's CPU time for one unit more: {results['driver_cpu_ms_per_unit']:.1f} ms")
