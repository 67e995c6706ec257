"""Poison: what broken clips cost the good ones, in a made corpus with more and more of them."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.table import Table

from benchmarks.config import BenchmarkConfig
from benchmarks.preprocess import ENDED_WELL, TimedActor, read_timings, run_timed
from benchmarks.tables import table
from pipeline.corpus.read import read_corpus
from pipeline.ledger.ledger import Ledger
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import resolved
from pipeline.preprocess.sandboxed import build_work
from pipeline.records.clips import Clip
from pipeline.runtime.config import PoolConfig
from pipeline.runtime.console import log_status
from pipeline.sandbox.limits import SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.remote import local_path

NUM_CLIPS = 400
NUM_ACTORS = 2
KINDS = ("crash", "hang", "memory", "undecodable")
CRASH = "-crash."  # in the name of a clip that shall crash its child
# The network's layers of one 4096x4096 frame take more than 2 GiB; those of 712x400, with PyTorch, some 400 MiB.
MAX_WORKER_MEMORY_MIB = 1024
SIDE_PX = 4096  # the largest that is decoded
NUM_MEMORY_FRAMES = 4
MIN_SECONDS_PER_FRAME = 0.0015  # of decoding a still frame of that size; under 4 ms measured


def measure(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Good clips a second and core-seconds for each, on two actors of Ray, by the share of poison among the clips.

    The clips that hang, blow the memory or do not decode are files that do so by themselves. No file is known that
    crashes the decoders behind the checks of `video`: there a decodable clip meets a segmentation fault in the child
    when it begins to decode.
    """
    extract_config = resolved(
        ExtractConfig(frames_per_clip=config.frames_per_clip, detector_precision=config.detector_precision)
    )
    pool = PoolConfig(
        actors=NUM_ACTORS,
        clips_per_shard=config.clips_per_shard,
        clip_timeout=config.poison_timeout,
        max_worker_memory=MAX_WORKER_MEMORY_MIB,
    )
    sources = folder / "poison-sources"
    sources.mkdir()
    good = []
    for number, clip in enumerate(clips):
        copy = sources / f"{number}{Path(clip.path).suffix}"
        good.append(Path(shutil.copyfile(local_path(clip.url) or "", copy)))
    poison = make_poison(sources, good[0], config=config)
    num = config.num_clips or NUM_CLIPS
    rows = []
    for share in config.poison_shares:
        num_poison = round(share * num)
        log_status(f"    {num_poison} of {num} clips are poison")
        corpus, output = folder / f"poison-{share}", folder / f"poison-{share}-output"
        link_corpus(corpus, good, poison, num=num, num_poison=num_poison)
        run_timed(
            list(read_corpus(str(corpus), split_fractions=None).clips),
            str(output),
            extract_config,
            pool,
            actor=PoisonedActor,
        )
        ledger = Ledger(str(output))
        outcomes = list(ledger.snapshot().outcomes())
        reasons = Counter(row.reason for row in outcomes if row.state not in ENDED_WELL)
        lost = [row for row in outcomes if row.state not in ENDED_WELL and "-good." in row.path]
        rows.append(
            {
                "share": share,
                "num_poison": num_poison,
                "num_ended_well": sum(row.state in ENDED_WELL for row in outcomes),
                "good_lost": [f"{row.path}: {row.reason}" for row in lost],
                "reasons": dict(sorted(reasons.items())),
                **read_timings(ledger),
            }
        )
    return {
        "num_clips": num,
        "frames_per_clip": config.frames_per_clip,
        "clips_per_shard": config.clips_per_shard,
        "clip_timeout_seconds": config.poison_timeout,
        "max_worker_memory_mib": MAX_WORKER_MEMORY_MIB,
        "shares": rows,
    }


def make_poison(folder: Path, good: Path, *, config: BenchmarkConfig) -> dict[str, Path]:
    """A file of each of `KINDS`."""
    text = folder / "undecodable.mp4"
    text.write_bytes(good.read_bytes()[:4096])  # its index, or most of its first frame, is gone
    # Before the first frame that is sampled lie 1/2 of the frames between two: enough to pass the timeout.
    num_stalling = math.ceil(2 * config.frames_per_clip * config.poison_timeout / MIN_SECONDS_PER_FRAME)
    return {
        "crash": good,
        "hang": _write_still(folder / "hang.avi", num_frames=num_stalling),
        "memory": _write_still(folder / "memory.avi", num_frames=NUM_MEMORY_FRAMES),
        "undecodable": text,
    }


def _write_still(path: Path, *, num_frames: int) -> Path:
    """A grey clip of the largest frames that are decoded; its frames after the second are copies of that packet."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=20, options={"g": "300"})
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        frame = av.VideoFrame.from_ndarray(np.full((SIDE_PX, SIDE_PX, 3), 90, np.uint8), format="rgb24")
        packets = [*stream.encode(frame), *stream.encode(frame), *stream.encode(None)]
        for number in range(num_frames):
            packet: Any = av.Packet(bytes(packets[min(number, 1)]))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 20), number == 0
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


def link_corpus(folder: Path, good: Sequence[Path], poison: Mapping[str, Path], *, num: int, num_poison: int) -> None:
    """`num` clips, `num_poison` of them poison, each kind in turn and evenly among the others."""
    folder.mkdir()
    num_linked = 0
    for number in range(num):
        if (number + 1) * num_poison // num > num_linked:
            kind = KINDS[num_linked % len(KINDS)]
            source = poison[kind]
            num_linked += 1
        else:
            kind, source = "good", good[number % len(good)]
        os.link(source, folder / f"{number:06d}-{kind}{source.suffix}")


class PoisonedActor(TimedActor):
    """A `TimedActor` whose child crashes at the clips that are named so."""

    def __init__(self, *, config: ExtractConfig, limits: SandboxLimits, **arguments: Any) -> None:
        super().__init__(config=config, limits=limits, **arguments)
        sandbox = Sandbox(build_crashing, {"config": config}, limits=limits, preload=("torch", "decord", "av"))
        self._actor._extractor.sandbox = sandbox


def build_crashing(config: ExtractConfig) -> Callable[..., Generator[dict[str, Any], None, dict[str, Any]]]:
    """The sandboxed child's work, with a segmentation fault where a clip named so begins to decode."""
    work = build_work(config)

    def crashing(task: dict[str, Any], stage: Callable[[str], None]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        def staged(name: str) -> None:
            stage(name)
            if name == "decode" and CRASH in task["clip"].path:
                ctypes.string_at(0)

        return (yield from work(task, staged))

    return crashing


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The shares, a row each."""
    first = part["shares"][0]

    def shown(row: Mapping[str, Any], name: str) -> str:
        if row.get(name) is None:
            return "-"
        compared = f" ({row[name] / first[name]:.2f})" if first.get(name) else ""
        return f"{row[name]:.2f}{compared}"

    def cost(row: Mapping[str, Any]) -> str:
        rate, without = row.get("clips_per_second"), first.get("clips_per_second")
        if not row["num_poison"] or not rate or not without:
            return "-"
        slower_seconds = row["num_ended_well"] * (1 / rate - 1 / without)
        return f"{NUM_ACTORS * slower_seconds / row['num_poison']:.1f}"

    rows = [
        [
            f"{row['share']:.0%}",
            str(row["num_ended_well"]),
            str(len(row["good_lost"])),
            ", ".join(f"{count} {reason}" for reason, count in row["reasons"].items()) or "-",
            shown(row, "clips_per_second"),
            shown(row, "job_core_seconds_per_clip"),
            cost(row),
            str(row["children_started"]),
        ]
        for row in part["shares"]
    ]
    title = (
        f"Poison: {part['num_clips']} clips, {part['frames_per_clip']} frames each, two actors; clip timeout "
        f"{part['clip_timeout_seconds']:g} s, memory {part['max_worker_memory_mib']} MiB; in brackets against the first"
    )
    columns = ("poison", "ended well", "good lost", "not done", "good clips/s", "core-s a good clip")
    columns += ("actor-s a poison clip", "children")
    return [table(title, columns, rows)]
