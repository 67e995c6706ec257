"""The driver's memory over a run of many clips: made-up clips in, resident memory while they are done out.

Ray, the driver and the ledger are real. An actor answers at once: it reads no clip and commits an empty shard, so that
a million clips are done in minutes and what a run leaves in the driver is seen.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.scaling import made_corpus, waiting_job
from benchmarks.tables import table
from benchmarks.timing import sampled
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.run import run
from pipeline.storage.store import Storage

# What starting and the first units take is growth of another kind.
WARM_UP_SHARE = 0.2
SHOWN = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    """Runs made-up clips through actors that answer at once, and records the driver's memory."""

    study: str
    """driver."""
    output: str = "build/driver"
    """Local folder of driver.json; the ledger is made in it and deleted afterwards."""
    clips: int = 1_000_000
    """Clips (count)."""
    clips_per_shard: int = 32
    """Clips in one unit (count)."""
    actors: int = 2
    """Actors (count)."""
    sample_seconds: float = 1.0
    """Time between two looks at the driver (seconds)."""

    def __post_init__(self) -> None:
        if min(self.clips, self.clips_per_shard, self.actors) < 1:
            raise ValueError("--clips, --clips-per-shard, --actors: give 1 or more")
        if self.sample_seconds <= 0:
            raise ValueError(f"--sample-seconds is {self.sample_seconds}; give more than 0")


def driver(config: DriverConfig) -> dict[str, Any]:
    """Run the clips once; writes driver.json and returns what it holds."""
    storage = Storage(config.output)
    folder = Path(storage.path("made"))
    shutil.rmtree(folder, ignore_errors=True)
    corpus = made_corpus(config.clips)
    pool = PoolConfig(actors=config.actors, clips_per_shard=config.clips_per_shard)
    cpu = time.process_time()
    own = psutil.Process()
    with sampled(lambda: (time.time(), own.memory_info().rss / 2**20), every_seconds=config.sample_seconds) as samples:
        found = run(waiting_job(0.0), lambda: corpus, str(folder), config=pool)
    cpu = time.process_time() - cpu
    rows = found.snapshot.database.rows("select facts from entries")
    ends = np.sort([json.loads(row["facts"])["ended"] for row in rows])
    # Units are of one size, but for the last.
    done = [(float(np.searchsorted(ends, when) / len(ends) * config.clips), mib) for when, mib in samples]
    results = {
        "machine": machine(),
        "clips": config.clips,
        "units": len(ends),
        "seconds": found.summary["seconds"],
        "driver_cpu_seconds": cpu,
        "audit_holds": found.audit.holds,
        "mib_per_100_000_clips": growth(done, num_clips=config.clips),
        "peak_mib": max(mib for _, mib in done),
        "samples": done,
    }
    found.snapshot.database.close()
    shutil.rmtree(folder)
    storage.put("driver.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def growth(samples: Sequence[tuple[float, float]], *, num_clips: int) -> float | None:
    """Least squares over clips done and MiB, after the warm-up and before the last is done: MiB for 100,000 clips more.

    None where fewer than three samples lie there.
    """
    seen = [each for each in samples if WARM_UP_SHARE * num_clips <= each[0] < num_clips]
    if len(seen) < 3:
        return None
    clips, mib = np.array(seen).T
    return float(np.polyfit(clips, mib, 1)[0] * 100_000)


def print_driver(results: Mapping[str, Any]) -> None:
    """Print the memory at some places of the run."""
    done = [clips for clips, _ in results["samples"]]
    rows = []
    for share in SHOWN:
        place = min(int(np.searchsorted(done, share * results["clips"])), len(done) - 1)
        clips, mib = results["samples"][place]
        rows.append([f"{clips:,.0f}", f"{mib:,.0f}"])
    title = f"Driver of {results['clips']:,} clips in {results['units']:,} units, whose actors answer at once"
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(title, ("clips done", "resident MiB"), rows))
    slope = results["mib_per_100_000_clips"]
    console.print(
        f"peak {results['peak_mib']:,.0f} MiB; for 100,000 clips more {'-' if slope is None else f'{slope:.1f}'} MiB; "
        f"{results['seconds']:.0f} s, {results['driver_cpu_seconds']:.0f} CPU s of the driver"
    )
