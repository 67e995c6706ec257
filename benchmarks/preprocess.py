"""The whole of preprocess: in a plain loop, on Ray's actors, and by the script that one would write today."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from benchmarks.clips import repeated
from benchmarks.config import BenchmarkConfig
from benchmarks.tables import median, shown, table
from benchmarks.timing import Timing, spread, steady, tree_cpu_seconds, tree_memory_bytes
from pipeline.corpus.types import Corpus, IgnoredFiles
from pipeline.faces.detector import find_weights
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.ledger.units import Unit
from pipeline.preprocess.config import KIND, ExtractConfig, plan_config_of, versions
from pipeline.preprocess.detectors import resolved
from pipeline.preprocess.job import PreprocessActor
from pipeline.records.clips import Clip, clip_table
from pipeline.records.faces import Box, iou
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.cluster import start_ray
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.console import log_status
from pipeline.runtime.job import ActorSpec, Job, go_on
from pipeline.runtime.run import run
from pipeline.storage.remote import local_path
from pipeline.storage.spool import spooled

BASELINE_SECONDS = 1800.0  # it waits for ever where decord aborts
NUM_CLIPS = 48
ENDED_WELL = (State.DONE, State.NO_FACE)
PLAIN, TWO_PLAIN, ONE_ACTOR, TWO_ACTORS = "plain loop", "two plain loops", "one actor", "two actors"
TWO_THREADS = "two threads"
BASELINE = "baseline script"
MEASURED = (
    "clips_per_second",
    "core_seconds_per_clip",
    "job_core_seconds_per_clip",
    "cores_used",
    "cores_idle",
    "cores_stolen",
    "seconds_between_pieces",
    "seconds",
    "start_seconds",
    "total_seconds",
    "worker_peak_memory_bytes",
    "worker_shared_memory_bytes",
)


class TimedActor:
    """A `PreprocessActor` that also writes, for each unit, a `Timing` and its memory beside the ledger.

    Processes of the worker are the actor, the fork server and the sandboxed child; of the job, `job_pid` and all below
    it:
    the driver, which starts the plain loops or all of a local Ray.
    """

    def __init__(self, *, job_pid: int, **arguments: Any) -> None:
        self._job_pid = job_pid
        self._storage = Ledger(arguments["ledger_url"]).storage
        self._actor = PreprocessActor(**arguments)
        self.clip_ended = go_on

    def close(self) -> None:
        self._actor.close()

    def run(self, unit: Unit) -> dict[str, Any]:
        started = time.time()
        self._actor.clip_ended = self.clip_ended
        entry = self._actor.run(unit)
        machine = psutil.cpu_times()
        timing = {
            "worker": os.getpid(),
            "actor": id(self),
            "started": started,
            "num_clips": sum(row["state"] in ENDED_WELL for row in entry["outcomes"]),
            "cpu_seconds": tree_cpu_seconds(os.getpid()),
            "job_cpu_seconds": tree_cpu_seconds(self._job_pid),
            "idle_seconds": machine.idle + getattr(machine, "iowait", 0.0),
            "stolen_seconds": getattr(machine, "steal", 0.0),
            "memory_bytes": tree_memory_bytes(os.getpid()),
            "children_started": entry["facts"]["children_started"],
            "child_peak_memory_bytes": entry["facts"]["peak_child_memory_bytes"],
            "actor_memory_bytes": psutil.Process().memory_info().rss,
            "ended": time.time(),  # Noting takes some 25 ms: work of every contender, not a pause of Ray's.
        }
        self._storage.put(f"timings/{unit.unit_id}.json", json.dumps(timing).encode())
        return entry


def measure(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """The whole way: in one plain loop and two, on one and two actors of Ray, on two in threads of this process as
    `--no-ray` has them, and by the baseline script on two.

    Two plain loops against one are what this machine gives for a second core; what two actors gain less is Ray's.
    """
    clips = repeated(clips, folder / "repeated", num=config.num_clips or NUM_CLIPS)
    extract_config = resolved(
        ExtractConfig(frames_per_clip=config.frames_per_clip, detector_precision=config.detector_precision)
    )
    contenders = _contenders(clips, extract_config, config=config)
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(config.rounds):
        rounds.append({})
        for name, contender in contenders.items():
            log_status(f"    round {number + 1}: {name}")
            rounds[-1][name] = contender(folder / f"round-{number}-{name.replace(' ', '-')}")
    boxes = rounds[0][BASELINE]["boxes"]
    beside = Ledger(str(folder / f"round-0-{PLAIN.replace(' ', '-')}"))
    return {
        "num_clips": len(clips),
        "clips_per_shard": config.clips_per_shard,
        "frames_per_clip": config.frames_per_clip,
        "detector_precision": extract_config.detector_precision,
        "steady_state": "from the last worker's first end of a unit to the first worker's last; see Timing and steady",
        "ray_init_seconds": spread(
            each[name]["ray_init_seconds"] for each in rounds for name in (ONE_ACTOR, TWO_ACTORS)
        ),
        "contenders": {
            name: {
                **{key: spread(each[name].get(key) for each in rounds) for key in MEASURED},
                **({"num_clips": len(clips[: config.baseline_clips])} if name == BASELINE else {}),
            }
            for name in contenders
        },
        "ratios": _ratios(rounds),
        "boxes_beside_baseline": _compare_boxes(boxes, beside),
    }


def _contenders(
    clips: Sequence[Clip], extract_config: ExtractConfig, *, config: BenchmarkConfig
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """By name what runs the clips into a folder, and returns its figures."""

    def ours(run: Callable[[str], dict[str, float]], output: Path) -> dict[str, Any]:
        started = time.time()
        told = run(str(output))
        found = read_timings(Ledger(str(output)))
        found["start_seconds"] = found["first_started"] - started
        return {**found, **told, "total_seconds": time.time() - started}

    def plain(num_processes: int) -> Callable[[str], dict[str, float]]:
        def run(output: str) -> dict[str, float]:
            _plain_loops(clips, output, extract_config, config.clips_per_shard, num_processes=num_processes)
            return {}

        return run

    def by_actors(num_actors: int, *, no_ray: bool = False) -> Callable[[str], dict[str, float]]:
        pool = PoolConfig(actors=num_actors, clips_per_shard=config.clips_per_shard, no_ray=no_ray)
        return lambda output: run_timed(clips, output, extract_config, pool)

    def baseline(output: Path) -> dict[str, Any]:
        return _run_baseline(clips[: config.baseline_clips], output, num_frames=config.frames_per_clip, num_processes=2)

    return {
        PLAIN: lambda output: ours(plain(1), output),
        TWO_PLAIN: lambda output: ours(plain(2), output),
        ONE_ACTOR: lambda output: ours(by_actors(1), output),
        TWO_ACTORS: lambda output: ours(by_actors(2), output),
        TWO_THREADS: lambda output: ours(by_actors(2, no_ray=True), output),
        BASELINE: baseline,
    }


def _ratios(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What one contender had over another, within each round."""

    def ratios(key: str, over: str, under: str) -> dict[str, Any] | None:
        pairs = [(each[over].get(key), each[under].get(key)) for each in rounds]
        return spread(a / b for a, b in pairs if a is not None and b is not None)

    return {
        "one actor / plain loop, clips/s": ratios("clips_per_second", ONE_ACTOR, PLAIN),
        "one actor / plain loop, core-seconds of the worker": ratios("core_seconds_per_clip", ONE_ACTOR, PLAIN),
        "one actor / plain loop, core-seconds with Ray": ratios("job_core_seconds_per_clip", ONE_ACTOR, PLAIN),
        "two plain loops / one, clips/s": ratios("clips_per_second", TWO_PLAIN, PLAIN),
        "two actors / one actor, clips/s": ratios("clips_per_second", TWO_ACTORS, ONE_ACTOR),
        "two actors / two plain loops, clips/s": ratios("clips_per_second", TWO_ACTORS, TWO_PLAIN),
        "two threads / two plain loops, clips/s": ratios("clips_per_second", TWO_THREADS, TWO_PLAIN),
        "two actors / baseline, clips/s": ratios("clips_per_second", TWO_ACTORS, BASELINE),
        "baseline / two actors, core-seconds": ratios("job_core_seconds_per_clip", BASELINE, TWO_ACTORS),
    }


def _plain_loops(
    clips: Sequence[Clip], output: str, config: ExtractConfig, clips_per_shard: int, *, num_processes: int
) -> None:
    """The units of the same plan without Ray, shared out evenly among fresh processes, as actors are."""
    options = {"kind": KIND, "config": plan_config_of(config), "versions": versions()}
    snapshot, _ = plan_clips(Ledger(output), clip_table(clips), clips_per_shard=clips_per_shard, **options)
    units = list(snapshot.pending())
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_plain_loop, args=(units[first::num_processes], output, config, os.getpid()))
        for first in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a plain loop failed; its error is above")


def _plain_loop(units: Sequence[Unit], output: str, config: ExtractConfig, job_pid: int) -> None:
    """One unit after the other, by the same actor without Ray."""
    actor = TimedActor(job_pid=job_pid, ledger_url=output, config=config, limits=PoolConfig().limits)
    for unit in units:
        actor.run(unit)


def run_timed(
    clips: Sequence[Clip],
    output: str,
    config: ExtractConfig,
    pool: PoolConfig,
    *,
    actor: Callable[..., TimedActor] = TimedActor,
) -> dict[str, float]:
    """The units by `run`, as `preprocess` calls it; how long Ray took to start, where it is needed, is timed apart."""
    started = time.perf_counter()
    if not pool.no_ray:
        start_ray()
    seconds = time.perf_counter() - started
    spec = ActorSpec(build=partial(actor, config=config, limits=pool.limits, job_pid=os.getpid()))
    job = Job(
        kind=KIND, plan_config=plan_config_of(config), plan_defaults={}, versions=versions(), build_actor=lambda _: spec
    )
    rows = spooled(clip_table(clips))
    corpus = Corpus(layout="folder", root="", description=f"{len(clips)} clips", rows=rows, ignored=IgnoredFiles())
    run(job, lambda: corpus, output, config=pool)
    return {"ray_init_seconds": seconds}


def read_timings(ledger: Ledger) -> dict[str, Any]:
    """The steady state and the memory of a run by `TimedActor`."""
    rows = [json.loads(data) for data in ledger.storage.read_many(list(ledger.storage.sizes("timings"))).values()]
    names = {field.name for field in fields(Timing)}
    timings = [Timing(**{name: row[name] for name in names}) for row in rows]
    children_started: dict[tuple[int, int], int] = {}
    for row in rows:
        actor = row["worker"], row["actor"]
        children_started[actor] = max(row["children_started"], children_started.get(actor, 0))
    return {
        **(steady(timings) or {}),
        "first_started": min(timing.started for timing in timings),
        "children_started": sum(children_started.values()),
        "worker_peak_memory_bytes": max(row["child_peak_memory_bytes"] + row["actor_memory_bytes"] for row in rows),
        "worker_shared_memory_bytes": max(row["memory_bytes"] for row in rows),
    }


def _run_baseline(clips: Sequence[Clip], output: Path, *, num_frames: int, num_processes: int) -> dict[str, Any]:
    paths = [local_path(clip.url) or "" for clip in clips]
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("baseline.py")),
        "--output",
        str(output),
        "--weights",
        str(find_weights()),
    ]
    command += ["--num-frames", str(num_frames), "--num-processes", str(num_processes), "--", *paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.time()
    try:
        ended = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=BASELINE_SECONDS
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise UsageError(f"the baseline script did not get through these clips ({error}); give others") from error
    total_seconds = time.time() - started
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    timings = [
        Timing(num_clips=1, **{name: row[name] for name in ("worker", "started", "ended", "cpu_seconds")})
        for row in rows
    ]
    return {
        **(steady(timings) or {}),
        "start_seconds": min(timing.started for timing in timings) - started,
        "total_seconds": total_seconds,
        "worker_peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "boxes": {
            clip.clip_id: {int(index): box for index, box in row["boxes"].items()}
            for clip, row in zip(clips, rows, strict=True)
        },
    }


def _compare_boxes(baseline: Mapping[str, Mapping[int, Sequence[int]]], ledger: Ledger) -> dict[str, Any]:
    """The baseline's boxes beside ours, by clip and frame."""
    ours: dict[tuple[str, int], tuple[int, ...]] = {}
    for shard in ledger.shards(KIND):
        table = pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"])))
        for row in table.select(["clip_id", "frame_index", "box"]).to_pylist():
            ours[row["clip_id"], row["frame_index"]] = tuple(row["box"].values())
    theirs = {(clip, index): tuple(box) for clip, boxes in baseline.items() for index, box in boxes.items()}
    both = [key for key in theirs if key in ours]
    return {
        "baseline": len(theirs),
        "ours_too": len(both),
        "only_ours": sum(clip in baseline and (clip, index) not in theirs for clip, index in ours),
        "equal": sum(theirs[key] == ours[key] for key in both),
        "mean_iou": statistics.fmean(iou(Box(*theirs[key]), Box(*ours[key])) for key in both) if both else None,
    }


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The contenders, a row each, and their ratios round by round."""
    return [_contender_table(part), _ratio_table(part)]


def _contender_table(part: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            shown(row["clips_per_second"], 2),
            shown(row["core_seconds_per_clip"], 2),
            shown(row["job_core_seconds_per_clip"], 2),
            median(row["cores_idle"], digits=2),
            median(row["seconds_between_pieces"], digits=2),
            *(median(row[key], scale=2**-20) for key in ("worker_peak_memory_bytes", "worker_shared_memory_bytes")),
            *(median(row[key]) for key in ("start_seconds", "total_seconds")),
        ]
        for name, row in part["contenders"].items()
    ]
    columns = (
        "steady state",
        "clips/s",
        "core-s a clip",
        "with Ray",
        "idle cores",
        "between s",
        "peak MiB",
        "PSS MiB",
        "start s",
        "total s",
    )
    title = (
        f"Preprocess: {part['num_clips']} clips of {part['frames_per_clip']} frames, dlib-cnn "
        f"{part['detector_precision']}; baseline {part['contenders'][BASELINE]['num_clips']} clips; "
        f"ray.init {shown(part['ray_init_seconds'], 1)} s"
    )
    return table(title, columns, rows)


def _ratio_table(part: Mapping[str, Any]) -> Table:
    boxes = part["boxes_beside_baseline"]
    iou = "-" if boxes["mean_iou"] is None else f"{boxes['mean_iou']:.3f}"
    rows = [[name, shown(ratio, 3)] for name, ratio in part["ratios"].items()]
    rows.append(["boxes: of the baseline's, found / equal / mean IoU", f"{boxes['ours_too']} of {boxes['baseline']}"])
    rows[-1][1] += f" / {boxes['equal']} / {iou}"
    return table("Preprocess, round by round", ("ratio", "median (min–max)"), rows)
