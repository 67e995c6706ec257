"""Soak: the memory of every process of a run over many clips."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from plotly.graph_objects import Figure
from rich.table import Table

from benchmarks.clips import repeated
from benchmarks.config import BenchmarkConfig
from benchmarks.preprocess import ENDED_WELL, read_timings, run_timed
from benchmarks.tables import table
from benchmarks.timing import sampled
from pipeline.ledger.ledger import Ledger
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import resolved
from pipeline.records.clips import Clip
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

NUM_CLIPS = 2000
ROLES = ("driver", "actor", "fork server", "sandboxed child", "ray")
# Imports, models and first frames are growth of another kind.
WARM_UP_SHARE = 0.2


def measure(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Resident memory of driver, actors, their children and Ray while two actors preprocess the clips, and its slope.

    Writes soak.html, a plot of it, beside benchmark.json.
    """
    clips = repeated(clips, folder / "soak", num=config.num_clips or NUM_CLIPS)
    extract_config = resolved(
        ExtractConfig(frames_per_clip=config.frames_per_clip, detector_precision=config.detector_precision)
    )
    output = str(folder / "soak-output")
    with sampled(_look, every_seconds=config.sample_seconds) as samples:
        run_timed(clips, output, extract_config, PoolConfig(actors=2, clips_per_shard=config.clips_per_shard))
    ledger = Ledger(output)
    outcomes = list(ledger.snapshot().outcomes())
    ends = sorted(
        (row["ended"], row["num_clips"])
        for row in map(json.loads, ledger.storage.read_many(list(ledger.storage.sizes("timings"))).values())
    )
    done = np.interp(
        [sample["time"] for sample in samples],
        [ends[0][0] - 1, *(ended for ended, _ in ends)],
        np.cumsum([0, *(num for _, num in ends)]),
    )
    for sample, num_done in zip(samples, done, strict=True):
        sample["clips_done"] = float(num_done)
    measured = {
        "num_clips": len(clips),
        "num_ended_well": sum(row.state in ENDED_WELL for row in outcomes),
        "frames_per_clip": config.frames_per_clip,
        "clips_per_shard": config.clips_per_shard,
        "warm_up_share": WARM_UP_SHARE,
        "roles": {role: growth(samples, role, num_clips=len(clips)) for role in ROLES},
        "samples": samples,
        **read_timings(ledger),
    }
    storage = Storage(config.output)
    storage.put("soak.html", plot(measured).to_html(include_plotlyjs=True).encode())
    log_status(f"plot: {storage.path('soak.html')}")
    return measured


def _look() -> dict[str, Any]:
    """When, and what this process and all below it hold."""
    return {"time": time.time(), "mib": memory_by_role(psutil.Process())}


def memory_by_role(driver: psutil.Process) -> dict[str, list[float]]:
    """Resident MiB of each process of a role, largest first; of all processes of Ray's own together."""
    found: dict[str, list[float]] = {role: [] for role in ROLES}
    role_of = {driver.pid: "driver"}
    for process in [driver, *driver.children(recursive=True)]:  # parents come before their children
        with contextlib.suppress(psutil.Error):
            if process.pid != driver.pid:
                role_of[process.pid] = _role(process, role_of.get(process.ppid(), "ray"))
            found[role_of[process.pid]].append(process.memory_info().rss / 2**20)
    found = {role: sorted(values, reverse=True) for role, values in found.items()}
    return {**found, "ray": [sum(found["ray"])] if found["ray"] else []}


def _role(process: psutil.Process, parent: str) -> str:
    if parent == "fork server":
        return "sandboxed child"
    if parent == "actor":
        return "fork server" if "forkserver" in " ".join(process.cmdline()) else "ray"
    return "actor" if "UnitActor" in " ".join(process.cmdline()) else "ray"


def growth(samples: Sequence[Mapping[str, Any]], role: str, *, num_clips: int) -> dict[str, float] | None:
    """Least squares over the samples after the warm-up: MiB of one process at its end, and for 1,000 clips more.

    None where fewer than three samples saw a process of that role.
    """
    seen = [
        (sample["clips_done"], float(np.mean(sample["mib"][role])))
        for sample in samples
        if sample["mib"][role] and WARM_UP_SHARE * num_clips <= sample["clips_done"] < num_clips
    ]
    if len(seen) < 3 or seen[0][0] == seen[-1][0]:
        return None
    x, y = np.array(seen).T
    slope, begin = np.polyfit(x, y, 1)
    return {
        "mib_per_1000_clips": float(1000 * slope),
        "mib_at_end": float(begin + slope * x[-1]),
        "least_mib": float(y.min()),
        "most_mib": float(y.max()),
    }


def plot(part: Mapping[str, Any]) -> Figure:
    """Resident memory over the clips done, a line a role."""
    figure = Figure()
    for role in ROLES:
        seen = [
            (sample["clips_done"], float(np.mean(sample["mib"][role])))
            for sample in part["samples"]
            if sample["mib"][role]
        ]
        figure.add_scatter(x=[x for x, _ in seen], y=[y for _, y in seen], name=role, mode="lines")
    figure.update_layout(
        title=f"Resident memory, mean of the processes of a role; {part['num_clips']} clips",
        xaxis_title="clips done",
        yaxis_title="MiB",
    )
    return figure


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The roles, a row each."""
    rows = []
    for role, grown in part["roles"].items():
        names = ("mib_per_1000_clips", "mib_at_end", "least_mib", "most_mib")
        rows.append([role, *("-" if grown is None else f"{grown[name]:.1f}" for name in names)])
    rate = part.get("clips_per_second")
    title = (
        f"Soak: {part['num_ended_well']} of {part['num_clips']} clips, {part['frames_per_clip']} frames each, two "
        f"actors, {'-' if rate is None else f'{rate:.2f}'} clips/s; {part['children_started']} children; slopes after "
        f"the first {part['warm_up_share']:.0%}"
    )
    columns = ("resident memory of one", "MiB a 1,000 clips", "at the end", "least", "most")
    return [table(title, columns, rows)]
