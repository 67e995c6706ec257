"""Seconds and memory: what contenders took in, medians, steady state and resident sizes out.

Everything is side by side: in each round every contender runs once, so that a change of the machine's load meets all
of them. A figure is a median over the rounds with its lowest and highest. CPU seconds are those of the processes that
did the work; wall seconds are told beside them where waiting or spreading matters.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import psutil
import torch

T = TypeVar("T")


def spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Median, lowest, highest and all of the values that are not None; None if none is left."""
    kept = [value for value in values if value is not None]
    if not kept:
        return None
    return {"median": statistics.median(kept), "min": min(kept), "max": max(kept), "values": kept}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One finished piece of work. started, ended: seconds since 1970. worker: process id. actor: which of its threads,
    where there are several.

    cpu_seconds: what the worker's processes had used when it ended; job_cpu_seconds: all processes of the job;
    idle_seconds and stolen_seconds: what the machine's cores had idled, and a hypervisor had taken, by then.
    """

    worker: int
    started: float
    ended: float
    num_clips: int
    cpu_seconds: float
    job_cpu_seconds: float | None = None
    idle_seconds: float | None = None
    stolen_seconds: float | None = None
    actor: int = 0


def steady(timings: Sequence[Timing]) -> dict[str, float | None] | None:
    """Clips a second, core-seconds a clip and where the cores went while every worker was busy; None if that was never.

    From the moment when the last worker ended its first piece, so that imports, models and first frames are past,
    until the first worker ended its last one, so that nobody waits at the end. Within a piece progress is even.
    """
    actors: dict[tuple[int, int], list[Timing]] = {}
    workers: dict[int, list[Timing]] = {}
    for timing in sorted(timings, key=lambda timing: timing.ended):
        actors.setdefault((timing.worker, timing.actor), []).append(timing)
        workers.setdefault(timing.worker, []).append(timing)
    begin = max(pieces[0].ended for pieces in actors.values())
    end = min(pieces[-1].ended for pieces in actors.values())
    if end <= begin:
        return None

    def gained(pieces: Sequence[Timing], amounts: Sequence[float]) -> float:
        at_begin, at_end = np.interp([begin, end], [piece.ended for piece in pieces], amounts)
        return float(at_end - at_begin)

    groups = list(actors.values())
    num_clips = sum(gained(group, np.cumsum([piece.num_clips for piece in group]).tolist()) for group in groups)
    cpu_seconds = sum(gained(group, [piece.cpu_seconds for piece in group]) for group in workers.values())
    pieces = sorted(timings, key=lambda timing: timing.ended)

    def of_all(name: str) -> float | None:
        noted = [getattr(piece, name) for piece in pieces]
        return None if None in noted else gained(pieces, noted)

    def cores(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / (end - begin)

    job_cpu_seconds = of_all("job_cpu_seconds")
    if job_cpu_seconds is None:
        job_cpu_seconds = cpu_seconds
    between = [later.started - earlier.ended for group in groups for earlier, later in pairwise(group)]
    return {
        "clips_per_second": num_clips / (end - begin),
        "core_seconds_per_clip": cpu_seconds / num_clips,
        "job_core_seconds_per_clip": job_cpu_seconds / num_clips,
        "cores_used": cores(job_cpu_seconds),
        "cores_idle": cores(of_all("idle_seconds")),
        "cores_stolen": cores(of_all("stolen_seconds")),
        "seconds_between_pieces": statistics.median(between),
        "seconds": end - begin,
    }


def seconds_of(call: Callable[[], Any]) -> tuple[float, float]:
    """(CPU, wall) seconds of one call in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread of this process for as long as the block runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def sampled(look: Callable[[], T], *, every_seconds: float) -> Iterator[list[T]]:
    """What a thread of this process sees, some time after the beginning and again and again until the block ends."""
    samples: list[T] = []
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(every_seconds):
            samples.append(look())

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def tree_cpu_seconds(pid: int) -> float:
    """User and system seconds of a process and all below it, those included that ended and were waited for."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def tree_memory_bytes(pid: int) -> int:
    """Proportional memory of a process and all below it: pages that they share count once."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total
