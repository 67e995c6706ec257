"""From seconds a clip to hours, cost and the bottleneck on N nodes: a calculation, and a simulation where cores lack.

Everything that it rests on is a flag with the figure that was measured for it; nothing here runs a clip.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.tables import table
from pipeline.runtime.pool import units_at_once
from pipeline.storage.store import Storage

SCALING = (1, 2, 4, 8, 16, 64, 256, 1024)
# One prefix of S3 answers so many requests a second before it slows down.
S3_GETS_PER_SECOND, S3_PUTS_PER_SECOND = 5500, 3500
# Objects that a committed unit writes: a shard and its entry.
PUTS_PER_UNIT = 2


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Hours and cost of preprocessing a corpus on N nodes, what binds, and how it scales (SIMULATED)."""

    study: str
    """plan."""
    output: str = "build/plan"
    """Folder of plan.json; a path or any fsspec URL."""
    clips: int = 13_201
    """Clips of the corpus (count)."""
    mean_seconds: float = 3.0
    """Mean length of a clip (seconds)."""
    fps: float = 25.0
    """Frames a second of the clips (1/s)."""
    frames: int = 8
    """Frames sampled from each clip (count)."""
    nodes: int = 1
    """Nodes that work (count)."""
    cpus_per_node: int = 8
    """Actors of one node, one a core (count)."""
    dollars_per_node_hour: float = 0.36
    """Price of a node."""
    detect_ms: float = 55.0
    """Core-milliseconds of detection a sampled frame (`benchmark.py detect`; 712x400, bf16)."""
    decode_ms: float = 1.0
    """Core-milliseconds of decoding a frame of the clip (`benchmark.py decode`)."""
    other_ms: float = 110.0
    """Core-milliseconds a clip of everything else: crops, JPEG, shards, Ray (`benchmark.py preprocess`)."""
    clips_per_shard: int = 32
    """Clips in one unit of work (count)."""
    parts: int = 1
    """Outputs among which the corpus is divided (`--shard`), each with a driver of its own (count)."""
    start_seconds: float = 15.0
    """Until the first actor is at work (seconds)."""
    driver_ms: float = 20.0
    """Milliseconds of the driver for each unit it hands out."""
    block_ms: float = 2.0
    """Milliseconds of the driver for each unit before the first is handed out."""
    plan_us: float = 25.0
    """Microseconds of the driver for each clip: plan, reading entries, audit, last files (`benchmark.py ledger`)."""
    list_us: float = 140.0
    """Microseconds of the driver for each clip of the listing of a bucket (`benchmark.py listing`)."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int | float) and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give more than 0")

    @property
    def core_seconds_per_clip(self) -> float:
        decoded = self.mean_seconds * self.fps * self.decode_ms
        return (self.frames * self.detect_ms + decoded + self.other_ms) / 1000

    @property
    def driver_seconds(self) -> float:
        """What a driver does alone, before the actors and after them: each lists all, and plans what is of its part."""
        return self.clips * (self.plan_us / self.parts + self.list_us) / 1e6


def plan(config: PlanConfig) -> dict[str, Any]:
    """The calculation for the asked size, SIMULATED time and scaling curve; writes plan.json, returns what it holds."""
    actors = config.nodes * config.cpus_per_node
    limits = clips_per_second_limits(config, actors=actors)
    bottleneck = min(limits, key=lambda name: limits[name])
    seconds = simulated_seconds(config, actors=actors)
    one = simulated_seconds(config, actors=1)
    found = {
        "settings": asdict(config),
        "core_seconds_per_clip": config.core_seconds_per_clip,
        "core_hours": config.clips * config.core_seconds_per_clip / 3600,
        "clips_per_second_limits": limits,
        "bottleneck": bottleneck,
        "hours": seconds / 3600,
        "driver_hours": config.driver_seconds / 3600,
        "dollars": seconds / 3600 * config.nodes * config.dollars_per_node_hour,
        "scaling": [
            {"actors": count, "seconds": (took := simulated_seconds(config, actors=count)), "speedup": one / took}
            for count in SCALING
        ],
    }
    Storage(config.output).put("plan.json", (json.dumps(found, indent=1) + "\n").encode())
    return found


def clips_per_second_limits(config: PlanConfig, *, actors: int) -> dict[str, float]:
    """Clips a second at which each part of the way would be fully busy."""
    return {
        "the actors' cores": actors / config.core_seconds_per_clip,
        "the driver, handing out units": config.parts * config.clips_per_shard * 1000 / config.driver_ms,
        "S3 GET requests of one prefix": float(S3_GETS_PER_SECOND),
        "S3 PUT requests of one prefix": S3_PUTS_PER_SECOND / PUTS_PER_UNIT * config.clips_per_shard,
    }


def simulated_seconds(config: PlanConfig, *, actors: int) -> float:
    """SIMULATED wall time: units of unequal length, handed out one after the other by one driver to free actors.

    As in `pool`, so many units at once: then all wait for the last, the next are made into blocks, and actors start.
    Of several parts one is simulated, on its share of the actors: the others do as much beside it.
    """
    actors = max(1, actors // config.parts)
    num_units = -(-config.clips // (config.clips_per_shard * config.parts))
    # Clips differ by half their mean (as CAER's, 30 to 120 frames), units of 32 of them by a tenth.
    spread = 0.5 / np.sqrt(config.clips_per_shard)
    lengths = np.random.default_rng(0).normal(1.0, spread, num_units).clip(0.2)
    lengths *= config.clips / config.parts / num_units * config.core_seconds_per_clip
    now, at_once = 0.0, units_at_once(actors)
    for first in range(0, num_units, at_once):
        some = lengths[first : first + at_once].tolist()
        driver = now + config.start_seconds + len(some) * config.block_ms / 1000
        free = [driver] * min(actors, len(some))
        for length in some:
            driver = max(driver, heapq.heappop(free)) + config.driver_ms / 1000
            heapq.heappush(free, driver + length)
        now = max(free)
    return now + config.driver_seconds


def print_plan(found: Mapping[str, Any]) -> None:
    """Print the calculation and the scaling curve."""
    settings = found["settings"]
    console = Console(width=120)
    console.print(
        f"{settings['clips']:,} clips of {settings['mean_seconds']:g} s, {settings['frames']} frames each: "
        f"{found['core_seconds_per_clip']:.2f} core-seconds a clip, {found['core_hours']:,.1f} core-hours"
    )
    console.print(
        f"on {settings['nodes']} nodes of {settings['cpus_per_node']} cores: {found['hours']:,.2f} h, "
        f"${found['dollars']:,.2f}; bound by {found['bottleneck']}; {found['driver_hours']:,.2f} h of it are the "
        "driver's listing, planning and audit"
    )
    limits = [[name, f"{value:,.0f}"] for name, value in found["clips_per_second_limits"].items()]
    console.print(table("Where each part would be fully busy", ("part", "clips/s"), limits))
    rows = [
        [f"{row['actors']:,}", f"{row['seconds'] / 3600:,.2f}", f"{row['speedup']:,.1f}"] for row in found["scaling"]
    ]
    console.print(table("Scaling, SIMULATED", ("actors", "hours", "times one actor"), rows))
