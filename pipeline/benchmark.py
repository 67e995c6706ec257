"""Measurements on this machine: clips in, `benchmark.json` and tables out.

Everything is side by side: in each round every contender runs once, so that a change of the machine's load meets all
of them. A figure is a median over the rounds with its lowest and highest. CPU seconds are those of the processes that
did the work; wall seconds are told beside them where waiting or spreading matters.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.corpus import Corpus, local_path, read_corpus
from pipeline.detection import build_detector, find_weights
from pipeline.detection.dlib_cnn import tile_levels
from pipeline.detection.dlib_weights import read_weights
from pipeline.extract import IMAGE_SUFFIXES, ExtractConfig
from pipeline.fence import Fence, FenceError
from pipeline.ledger import Ledger, Unit
from pipeline.pool import PoolConfig, run_corpus, say, start_ray
from pipeline.preprocess import KIND, PreprocessActor, plan_config_of, resolved, versions
from pipeline.records import Clip, Face, UsageError
from pipeline.storage import Storage
from pipeline.synthetic import FACELESS_PATH, make_corpus
from pipeline.video import Sampling, open_clip

PARTS = ("detect", "decode", "preprocess", "all")
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
CAER_NUM_CLIPS = 13_201
CAER_NUM_FRAMES = 1_107_877
FRAME_WIDTH, FRAME_HEIGHT = 712, 400  # CAER's
GEMM_SIZES = (1024, 2048)
REFERENCE = "dlib-cnn-reference"
DETECTORS = {  # name: (detector, precision, calls a round)
    "dlib-cnn fp32": ("dlib-cnn", "fp32", 5),
    "dlib-cnn bf16": ("dlib-cnn", "bf16", 5),
    REFERENCE: (REFERENCE, "auto", 1),  # 2 s a call
    "dlib-hog": ("dlib-hog", "auto", 5),
}
EVERY = Sampling(frames_per_clip=None, every_frame=True)
ENCODINGS = {  # name: (codec, options)
    "xvid-b-frames.avi": ("mpeg4", {"b": "2000000", "g": "5", "bf": "2"}),
    "h264-open-groups.mp4": (
        "libx264",
        {"preset": "veryfast", "x264-params": "keyint=6:open-gop=1:bframes=2:b-adapt=0"},
    ),
    "h264.ts": ("libx264", {"preset": "veryfast", "g": "6"}),
}
BASELINE_SECONDS = 1800.0  # it waits for ever where decord aborts


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measures detection, decoding and preprocess beside what they replace, on this machine."""

    part: str
    """detect (one frame on one core), decode (clips), preprocess (the whole way, and Ray's share), or all."""
    output: str = "build/benchmark"
    """Folder of benchmark.json; a path or any fsspec URL."""
    clips: str | None = None
    """Videos to measure on (folder, manifest, glob or file; local); default: a small SYNTHETIC corpus of 712x400."""
    rounds: int = 3
    """Times that every contender runs (count)."""
    frames_per_clip: int = 8
    """Frames sampled from each clip (count)."""
    num_clips: int = 20
    """Most clips that are used (count)."""
    clips_per_shard: int = 2
    """Clips in one unit of work of preprocess (count); with fewer than 3 units an actor there is no steady state."""
    baseline_clips: int = 4
    """Clips that the baseline script does in a round (count); dlib's own CNN takes 2 s a frame."""
    detector_precision: str = "auto"
    """Arithmetic of dlib-cnn in preprocess: fp32, bf16, or auto (bf16 where the processor has it)."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}; give one of {', '.join(PARTS)}")
        for name in ("rounds", "frames_per_clip", "num_clips", "clips_per_shard", "baseline_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more")


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the part asked for; writes benchmark.json and returns what it holds."""
    storage = Storage(config.output)
    results: dict[str, Any] = {"machine": machine(), "settings": asdict(config)}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, Fence(build_decode_work, {}) as fence:
        source = config.clips
        if source is None:
            say("making a SYNTHETIC corpus")
            source = str(Path(folder) / "corpus")
            make_corpus(source, clips_per_class=(3, 0, 0))
            (Path(source) / FACELESS_PATH).unlink()
        clips = usable_clips(source, fence, most=config.num_clips)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "detect": lambda: measure_detect(one_frame(clips[0], fence), rounds=config.rounds),
            "decode": lambda: measure_decode(
                clips if config.clips else [*clips, *other_encodings(clips, Path(folder))], fence, config=config
            ),
            "preprocess": lambda: measure_preprocess(clips, Path(folder), config=config),
        }
        for part, measure in parts.items():
            if config.part in (part, "all"):
                say(f"{part}: {config.rounds} rounds")
                before = os.getloadavg()
                results[part] = {**measure(), "load_average": {"before": before[0], "after": os.getloadavg()[0]}}
    results["core_hours"] = corpus_core_hours(results)
    storage.put("benchmark.json", (json.dumps(results, indent=1) + "\n").encode())
    say(f"output: {storage.path('benchmark.json')}")
    return results


# Arithmetic ----------------------------------------------------------------------------------------------------------


def spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Median, lowest, highest and all of the values that are not None; None if none is left."""
    kept = [value for value in values if value is not None]
    if not kept:
        return None
    return {"median": statistics.median(kept), "min": min(kept), "max": max(kept), "values": kept}


def core_hours(seconds: float, count: int) -> float:
    """Hours of one core for `count` things of `seconds` each."""
    return seconds * count / 3600


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One finished piece of work. started, ended: seconds since 1970. worker: process id.

    cpu_seconds: what the worker's processes had used when it ended; job_cpu_seconds: all processes of the job.
    """

    worker: int
    started: float
    ended: float
    num_clips: int
    cpu_seconds: float
    job_cpu_seconds: float | None = None


def steady(timings: Sequence[Timing]) -> dict[str, float] | None:
    """Clips a second and core-seconds a clip while every worker was busy; None if that was never.

    From the moment when the last worker ended its first piece, so that imports, models and first frames are past,
    until the first worker ended its last one, so that nobody waits at the end. Within a piece progress is even.
    """
    workers: dict[int, list[Timing]] = {}
    for timing in sorted(timings, key=lambda timing: timing.ended):
        workers.setdefault(timing.worker, []).append(timing)
    begin = max(pieces[0].ended for pieces in workers.values())
    end = min(pieces[-1].ended for pieces in workers.values())
    if end <= begin:
        return None

    def gained(pieces: Sequence[Timing], amounts: Sequence[float]) -> float:
        at_begin, at_end = np.interp([begin, end], [piece.ended for piece in pieces], amounts)
        return float(at_end - at_begin)

    groups = list(workers.values())
    num_clips = sum(gained(group, np.cumsum([piece.num_clips for piece in group]).tolist()) for group in groups)
    cpu_seconds = sum(gained(group, [piece.cpu_seconds for piece in group]) for group in groups)
    pieces = sorted(timings, key=lambda timing: timing.ended)
    job_cpu = [piece.job_cpu_seconds for piece in pieces if piece.job_cpu_seconds is not None]
    job_cpu_seconds = gained(pieces, job_cpu) if len(job_cpu) == len(pieces) else cpu_seconds
    return {
        "clips_per_second": num_clips / (end - begin),
        "core_seconds_per_clip": cpu_seconds / num_clips,
        "job_core_seconds_per_clip": job_cpu_seconds / num_clips,
        "seconds": end - begin,
    }


def net_macs(*, height: int, width: int) -> int:
    """Multiplications of the CNN for one frame: those of its tile, padding and all."""
    _, rows, columns = tile_levels(height, width)
    macs = 0
    for layer in read_weights(find_weights()).layers:
        kernel = layer.weight.shape[-1]
        rows = (rows + 2 * layer.padding - kernel) // layer.stride + 1
        columns = (columns + 2 * layer.padding - kernel) // layer.stride + 1
        macs += rows * columns * layer.weight.size
    return macs


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, flags that matter, cores, memory, load, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": told.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{told.get('cpu family', '?')}/{told.get('model', '?')}",
        "flags": [flag for flag in FLAGS if flag in told.get("flags", "").split()],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "versions": versions(),
    }


# Clips ---------------------------------------------------------------------------------------------------------------


def usable_clips(source: str, fence: Fence, *, most: int) -> list[Clip]:
    """Up to `most` local videos of the input that decode. Raises UsageError if there is none."""
    clips = []
    for clip in read_corpus(source, split_fractions=None).clips:
        if clip.path.lower().endswith(IMAGE_SUFFIXES):
            continue
        if local_path(clip.url) is None:
            raise UsageError(f"--clips: {clip.url} is not on this machine; copy the clips here first")
        with contextlib.suppress(FenceError):
            _decode(fence, "frame", clip, num_frames=1)
            clips.append(clip)
        if len(clips) == most:
            break
    if not clips:
        raise UsageError(f"--clips: no video at {source} decodes; give others, or leave it out")
    return clips


def other_encodings(clips: Sequence[Clip], folder: Path, *, num_clips: int = 3) -> list[Clip]:
    """The first clips again in common forms in which seeking by packets goes astray."""
    made = folder / "encodings"
    made.mkdir()
    for number, clip in enumerate(clips[:num_clips]):
        frames = [frame.image for frame in open_clip(local_path(clip.url) or "", EVERY)]
        for name, (codec, options) in ENCODINGS.items():
            with av.open(str(made / f"{number}-{name}"), "w") as container:
                stream: Any = container.add_stream(codec, rate=20, options=options)
                stream.height, stream.width = frames[0].shape[:2]
                stream.pix_fmt = "yuv420p"
                for pixels in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode(None))
    return list(read_corpus(str(made), split_fractions=None).clips)


def one_frame(clip: Clip, fence: Fence) -> np.ndarray:
    """The middle frame of a clip in CAER's size: (400, 712, 3) uint8 RGB."""
    image = _decode(fence, "frame", clip, num_frames=1)["image"]
    return np.array(Image.fromarray(image).resize((FRAME_WIDTH, FRAME_HEIGHT), Image.Resampling.BILINEAR))


# Detection -----------------------------------------------------------------------------------------------------------


def measure_detect(frame: np.ndarray, *, rounds: int) -> dict[str, Any]:
    """Every detector on one frame and one thread, and as the limit the fastest matrix product of the same rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure_detect(frame, rounds=rounds)
    finally:
        torch.set_num_threads(threads)


def _measure_detect(frame: np.ndarray, *, rounds: int) -> dict[str, Any]:
    contenders: dict[str, tuple[Callable[[], Any], int]] = {}
    inside: dict[str, dict[str, list[float]]] = {}
    found: dict[str, list[Face]] = {}
    for name, (detector_name, precision, calls) in DETECTORS.items():
        detector = build_detector(detector_name, precision=precision, device="cpu")
        found[name] = detector.detect_faces([frame])[0]  # also loads, plans and compiles
        if detector_name == "dlib-cnn":
            inside[name] = {part: _timed_method(detector, method) for part, method in _PARTS_OF_CNN.items()}
        contenders[name] = (lambda detector=detector: detector.detect_faces([frame]), calls)
    for size in GEMM_SIZES:
        for kind, product in _products(size).items():
            contenders[f"{kind} {size}"] = (product, 5)

    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (call, calls) in contenders.items():
            taken[name] += [_seconds_of(call) for _ in range(calls)]

    peaks = {
        kind: max(2 * size**3 / cpu for size in GEMM_SIZES for cpu, _ in taken[f"{kind} {size}"]) for kind in PRODUCTS
    }
    best = {"fp32": max(peaks["sgemm of PyTorch"], peaks["sgemm of NumPy"]), "bf16": peaks["bf16 of PyTorch"]}
    macs = net_macs(height=FRAME_HEIGHT, width=FRAME_WIDTH)
    reference_ms = 1000 * statistics.median(cpu for cpu, _ in taken[REFERENCE])
    rows = {}
    for name in DETECTORS:
        cpu_ms = spread(1000 * cpu for cpu, _ in taken[name])
        assert cpu_ms
        row: dict[str, Any] = {"cpu_ms": cpu_ms, "wall_ms": spread(1000 * wall for _, wall in taken[name])}
        row["times_dlib"] = reference_ms / cpu_ms["median"]
        row["num_faces"] = len(found[name])
        row["same_boxes_as_dlib"] = [face.box for face in found[name]] == [face.box for face in found[REFERENCE]]
        if name in inside:
            # The warm-up ran before the methods were timed, so these are the calls of the rounds alone.
            parts = {part: 1000 * statistics.median(seconds) for part, seconds in inside[name].items()}
            parts["boxes"] = cpu_ms["median"] - sum(parts.values())
            bound_ms = 1000 * 2 * macs / best[DETECTORS[name][1]]
            row |= {"parts_cpu_ms": parts, "bound_ms": bound_ms, "share_of_bound": bound_ms / cpu_ms["median"]}
            row["net_share_of_bound"] = bound_ms / parts["net"]
        rows[name] = row
    return {
        "frame": f"{FRAME_WIDTH}x{FRAME_HEIGHT}, upsample 0, one thread",
        "gmac": macs / 1e9,
        "peak_gflops": {kind: peak / 1e9 for kind, peak in peaks.items()},
        "detectors": rows,
    }


def _products(size: int) -> dict[str, Callable[[], Any]]:
    """A product of two square matrices by each library: MKL's in PyTorch does not reach every processor's limit."""
    a, b, out = (torch.rand(size, size) for _ in range(3))
    half = [each.bfloat16() for each in (a, b, out)]
    return {
        "sgemm of PyTorch": lambda: torch.mm(a, b, out=out),
        "sgemm of NumPy": lambda: np.matmul(a.numpy(), b.numpy(), out=out.numpy()),
        "bf16 of PyTorch": lambda: torch.mm(half[0], half[1], out=half[2]),
    }


PRODUCTS = ("sgemm of PyTorch", "sgemm of NumPy", "bf16 of PyTorch")
_PARTS_OF_CNN = {"tile": "make_tile", "net": "score_tile"}  # the rest of a call is the decoding of boxes


def _timed_method(thing: Any, name: str) -> list[float]:
    """Let a method note the CPU seconds of its calls in the list returned."""
    method, seconds = getattr(thing, name), []

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        value = method(*arguments)
        seconds.append(time.process_time() - started)
        return value

    setattr(thing, name, timed)
    return seconds


def _seconds_of(call: Callable[[], Any]) -> tuple[float, float]:
    """(CPU, wall) seconds of one call in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


# Decoding ------------------------------------------------------------------------------------------------------------

# Mean levels of 255 by which another frame must be nearer: the two FFmpegs convert colours a little differently.
NEARER = 0.25


def measure_decode(clips: Sequence[Clip], fence: Fence, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Our decoding and decord's over the clips: CPU seconds, and frames that are not the one they should be.

    Each decode runs in the fence, since decord aborts on some files; the seconds are the child's, without the pipe.
    """
    num_frames = config.frames_per_clip
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in _TIMED}
    rows: dict[str, dict[str, Any]] = {}
    without_reference: dict[str, str] = {}
    for clip in clips:
        try:
            reference = _decode(fence, "reference", clip, num_frames=num_frames)["small"]
        except FenceError as error:
            without_reference[clip.path] = f"{error.reason}: {error.detail}"
            continue
        row: dict[str, Any] = {"num_frames": len(reference), "decoders": {}}
        rows[clip.path] = row
        for way in _TIMED:
            try:
                found = _decode(fence, way, clip, num_frames=num_frames)
            except FenceError as error:
                row["decoders"][way] = {"failed": f"{error.reason}: {error.detail}"}
                continue
            pairs = zip(found["indexes"], found["small"], strict=True)
            wrong = sum(is_wrong(image, index, reference=reference) for index, image in pairs)
            chosen = {key: found[key] for key in ("decoder", "decoder_reason") if key in found}
            row["decoders"][way] = {"num_sampled": len(found["indexes"]), "num_wrong": wrong, **chosen}
    # Only clips that every way can read are timed, so that the sums are of the same work.
    failed = {path for path, row in rows.items() if any("failed" in each for each in row["decoders"].values())}
    timed = [clip for clip in clips if clip.path in rows and clip.path not in failed]
    for _ in range(config.rounds):
        seconds: dict[str, dict[str, float]] = {way: {"cpu_seconds": 0.0, "wall_seconds": 0.0} for way in _TIMED}
        for clip in timed:
            for way in _TIMED:
                found = _decode(fence, way, clip, num_frames=num_frames)
                for key in seconds[way]:
                    seconds[way][key] += found[key]
        for way in _TIMED:
            taken[way].append(seconds[way])
    total_frames = sum(rows[clip.path]["num_frames"] for clip in timed)

    def summary(way: str) -> dict[str, Any]:
        ended = [row["decoders"][way] for row in rows.values()]
        whole = [each for each in ended if "failed" not in each]
        per_clip = max(len(timed), 1) / 1000
        return {
            "cpu_ms_per_clip": spread(each["cpu_seconds"] / per_clip for each in taken[way]),
            "wall_ms_per_clip": spread(each["wall_seconds"] / per_clip for each in taken[way]),
            "cpu_ms_per_frame_of_clip": spread(
                1000 * each["cpu_seconds"] / max(total_frames, 1) for each in taken[way]
            ),
            "num_sampled": sum(each["num_sampled"] for each in whole),
            "num_wrong": sum(each["num_wrong"] for each in whole),
            "clips_with_wrong_frames": sum(each["num_wrong"] > 0 for each in whole),
            "clips_failed": len(ended) - len(whole),
        }

    return {
        "num_clips": len(clips),
        "num_clips_timed": len(timed),
        "num_frames_timed": total_frames,
        "frames_per_clip": num_frames,
        "ways": {way: summary(way) for way in _TIMED},
        "clips": rows,
        "without_reference": without_reference,
    }


def is_wrong(image: np.ndarray, index: int, *, reference: np.ndarray) -> bool:
    """Whether a small image (h, w, 3), told to be frame `index` of the reference (N, h, w, 3), is another frame.

    A frame that equals its neighbours, as in a still scene, is not wrong.
    """
    if index >= len(reference) or image.shape != reference.shape[1:]:
        return True
    apart = np.abs(reference.astype(np.int16) - image.astype(np.int16)).mean(axis=(1, 2, 3))
    return bool(apart[index] > apart.min() + NEARER)


def _small(image: np.ndarray) -> np.ndarray:
    return image[::8, ::8].copy()


def _decord_frames(path: Path, num_frames: int) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    """As one would write it: ask decord for the frames by their numbers."""
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    indexes = Sampling(frames_per_clip=num_frames).choose(np.arange(len(reader))).tolist()
    return indexes, list(reader.get_batch(indexes).asnumpy()), {}


def _our_frames(path: Path, num_frames: int | None) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    decoded = open_clip(path, Sampling(frames_per_clip=num_frames, every_frame=num_frames is None))
    frames = [(frame.frame_index, frame.image if num_frames else _small(frame.image)) for frame in decoded]
    told = {"decoder": decoded.report.decoder, "decoder_reason": decoded.report.decoder_reason}
    return [index for index, _ in frames], [image for _, image in frames], told


def _every_frame(path: Path, _num_frames: int) -> tuple[list[int], list[np.ndarray], dict[str, Any]]:
    return _our_frames(path, None)


EVERY_FRAME = "auto, every frame"
_TIMED = {"auto": _our_frames, "decord": _decord_frames, EVERY_FRAME: _every_frame}


def _sequential(path: Path) -> Iterator[np.ndarray]:
    """Every frame, small, by the plainest use of PyAV: the truth about which frame is which."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        for frame in container.decode(stream):
            yield _small(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def build_decode_work() -> Callable[..., Generator[Any, None, dict[str, Any]]]:
    """The fenced child's work: a task (way, path, num_frames) to the seconds it took and small copies of its frames."""

    def work(task: Mapping[str, Any], stage: Callable[[str], None]) -> Generator[Any, None, dict[str, Any]]:
        way, path, num_frames = task["way"], task["path"], task["num_frames"]
        stage(way)
        yield from ()
        if way == "reference":
            return {"small": np.stack(list(_sequential(path)))}
        if way == "frame":
            return {"image": _our_frames(path, 1)[1][0]}
        cpu, wall = time.process_time(), time.perf_counter()
        indexes, images, told = _TIMED[way](path, num_frames)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        small = images if way == EVERY_FRAME else [_small(image) for image in images]
        return {"indexes": indexes, "small": small, "cpu_seconds": cpu, "wall_seconds": wall, **told}

    return work


def _decode(fence: Fence, way: str, clip: Clip, *, num_frames: int) -> dict[str, Any]:
    return fence.run({"way": way, "path": Path(local_path(clip.url) or ""), "num_frames": num_frames})[1]


# Preprocess ----------------------------------------------------------------------------------------------------------


class TimedActor:
    """A `PreprocessActor` that also writes, for each unit, a `Timing` and its memory beside the ledger.

    Processes of the worker are the actor, the fork server and the fenced child; of the job, `job_pid` (the driver) and
    all below it, which is all of a local Ray.
    """

    def __init__(self, *, job_pid: int, **arguments: Any) -> None:
        self._job_pid = job_pid
        self._storage = Ledger(arguments["ledger_url"]).storage
        self._actor = PreprocessActor(**arguments)

    def run(self, unit: Unit) -> dict[str, Any]:
        started = time.time()
        entry = self._actor.run(unit)
        ended = time.time()
        timing = {
            "worker": os.getpid(),
            "started": started,
            "ended": ended,
            "num_clips": len(unit.clips),
            "cpu_seconds": _tree_cpu_seconds(os.getpid()),
            "job_cpu_seconds": _tree_cpu_seconds(self._job_pid),
            "memory_bytes": _tree_memory_bytes(os.getpid()),
            "child_peak_memory_bytes": entry["facts"]["peak_child_memory_bytes"],
            "actor_memory_bytes": psutil.Process().memory_info().rss,
        }
        self._storage.put(f"timings/{unit.unit_id}.json", json.dumps(timing).encode())
        return entry


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _tree_cpu_seconds(pid: int) -> float:
    """User and system seconds of a process and all below it that live."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _tree_memory_bytes(pid: int) -> int:
    """Proportional memory of a process and all below it: pages that they share count once."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total


def measure_preprocess(clips: Sequence[Clip], folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """The whole way: in a plain loop, on one and two actors of Ray, and by the baseline script on two processes."""
    extract_config = resolved(
        ExtractConfig(frames_per_clip=config.frames_per_clip, detector_precision=config.detector_precision)
    )
    for_baseline = clips[: config.baseline_clips]

    def ours(run: Callable[[str], dict[str, float]], output: Path) -> dict[str, Any]:
        started = time.time()
        told = run(str(output))
        return {**_read_timings(Ledger(str(output)), started), **told, "total_seconds": time.time() - started}

    def plain(output: str) -> dict[str, float]:
        _in_own_process(_plain_loop, list(clips), output, extract_config, config.clips_per_shard)
        return {}

    def on_ray(num_actors: int) -> Callable[[str], dict[str, float]]:
        pool = PoolConfig(actors=num_actors, clips_per_shard=config.clips_per_shard)
        return lambda output: _run_on_ray(clips, output, extract_config, pool)

    def baseline(output: Path) -> dict[str, Any]:
        return _run_baseline(for_baseline, output, num_frames=config.frames_per_clip, num_processes=2)

    contenders: dict[str, Callable[[Path], dict[str, Any]]] = {
        PLAIN: lambda output: ours(plain, output),
        ONE_ACTOR: lambda output: ours(on_ray(1), output),
        TWO_ACTORS: lambda output: ours(on_ray(2), output),
        BASELINE: baseline,
    }
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(config.rounds):
        rounds.append({})
        for name, contender in contenders.items():
            say(f"    round {number + 1}: {name}")
            rounds[-1][name] = contender(folder / f"round-{number}-{name.replace(' ', '-')}")
    boxes = rounds[0][BASELINE]["boxes"]
    summaries: dict[str, dict[str, Any]] = {
        name: {key: spread(each[name].get(key) for each in rounds) for key in _MEASURED} for name in contenders
    }
    summaries[BASELINE]["num_clips"] = len(for_baseline)

    def ratios(key: str, over: str, under: str) -> dict[str, Any] | None:
        pairs = [(each[over].get(key), each[under].get(key)) for each in rounds]
        return spread(a / b for a, b in pairs if a is not None and b is not None)

    return {
        "num_clips": len(clips),
        "clips_per_shard": config.clips_per_shard,
        "frames_per_clip": config.frames_per_clip,
        "detector_precision": extract_config.detector_precision,
        "steady_state": "from the last worker's first end of a unit to the first worker's last; see Timing and steady",
        "ray_init_seconds": spread(
            each[name]["ray_init_seconds"] for each in rounds for name in (ONE_ACTOR, TWO_ACTORS)
        ),
        "contenders": summaries,
        "ratios": {
            "one actor / plain loop, clips/s": ratios("clips_per_second", ONE_ACTOR, PLAIN),
            "one actor / plain loop, core-seconds of the worker": ratios("core_seconds_per_clip", ONE_ACTOR, PLAIN),
            "one actor / plain loop, core-seconds with Ray": ratios("job_core_seconds_per_clip", ONE_ACTOR, PLAIN),
            "two actors / one actor, clips/s": ratios("clips_per_second", TWO_ACTORS, ONE_ACTOR),
            "two actors / baseline, clips/s": ratios("clips_per_second", TWO_ACTORS, BASELINE),
            "baseline / two actors, core-seconds": ratios("job_core_seconds_per_clip", BASELINE, TWO_ACTORS),
        },
        "boxes_beside_baseline": _compare_boxes(boxes, Ledger(str(folder / f"round-0-{PLAIN.replace(' ', '-')}"))),
    }


PLAIN, ONE_ACTOR, TWO_ACTORS, BASELINE = "plain loop", "one actor", "two actors", "baseline script"
_MEASURED = (
    "clips_per_second",
    "core_seconds_per_clip",
    "job_core_seconds_per_clip",
    "seconds",
    "start_seconds",
    "total_seconds",
    "worker_peak_memory_bytes",
    "worker_shared_memory_bytes",
)


def _in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Run it in a fresh process, as an actor is: what this process has imported and started is not counted."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}; its error is above")


def _plain_loop(clips: list[Clip], output: str, config: ExtractConfig, clips_per_shard: int) -> None:
    """The units of the same plan, one after the other, by the same actor without Ray."""
    ledger = Ledger(output)
    ledger.plan(clips, kind=KIND, config=plan_config_of(config), versions=versions(), clips_per_shard=clips_per_shard)
    actor = TimedActor(job_pid=os.getpid(), ledger_url=output, config=config, limits=PoolConfig().limits)
    for unit in ledger.pending_units():
        actor.run(unit)


def _run_on_ray(clips: Sequence[Clip], output: str, config: ExtractConfig, pool: PoolConfig) -> dict[str, float]:
    """The same by `run_corpus`, as `preprocess` calls it; how long Ray took to start is timed apart."""
    started = time.perf_counter()
    start_ray()
    seconds = time.perf_counter() - started
    run_corpus(
        Corpus(layout="folder", root="", description=f"{len(clips)} clips", clips=tuple(clips), ignored=()),
        output,
        kind=KIND,
        plan_config=plan_config_of(config),
        versions=versions(),
        actor=TimedActor,
        arguments={"config": config, "limits": pool.limits, "job_pid": os.getpid()},
        config=pool,
    )
    return {"ray_init_seconds": seconds}


def _read_timings(ledger: Ledger, started: float) -> dict[str, Any]:
    rows = [json.loads(data) for data in ledger.storage.read_many(list(ledger.storage.sizes("timings"))).values()]
    names = {field.name for field in fields(Timing)}
    timings = [Timing(**{name: row[name] for name in names}) for row in rows]
    return {
        **(steady(timings) or {}),
        "start_seconds": min(timing.started for timing in timings) - started,
        "worker_peak_memory_bytes": max(row["child_peak_memory_bytes"] + row["actor_memory_bytes"] for row in rows),
        "worker_shared_memory_bytes": max(row["memory_bytes"] for row in rows),
    }


def _run_baseline(clips: Sequence[Clip], output: Path, *, num_frames: int, num_processes: int) -> dict[str, Any]:
    paths = [local_path(clip.url) or "" for clip in clips]
    command = [sys.executable, "-m", "pipeline.baseline", "--output", str(output), "--weights", str(find_weights())]
    command += ["--num-frames", str(num_frames), "--num-processes", str(num_processes), "--", *paths]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
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
        "mean_iou": statistics.fmean(_iou(theirs[key], ours[key]) for key in both) if both else None,
    }


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inner / (areas - inner)


# CAER's cost ---------------------------------------------------------------------------------------------------------


def corpus_core_hours(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Core-hours of one core for CAER, computed from the measured seconds: 8 frames of each clip, and every frame.

    Decoding is in sequence, so its cost goes with the frames of the clips and not with those sampled; it is counted
    where it was measured. The last row is the whole job as measured, with crops, shards and Ray.
    """
    ways = results.get("decode", {}).get("ways", {})

    def decode_hours(way: str) -> float | None:
        measured = ways.get(way, {}).get("cpu_ms_per_frame_of_clip")
        return core_hours(measured["median"] / 1000, CAER_NUM_FRAMES) if measured else None

    rows = []
    for name, row in results.get("detect", {}).get("detectors", {}).items():
        seconds = row["cpu_ms"]["median"] / 1000
        for what, num_frames, way in (
            ("8 frames a clip", 8 * CAER_NUM_CLIPS, "auto"),
            ("every frame", CAER_NUM_FRAMES, EVERY_FRAME),
        ):
            detect, decode = core_hours(seconds, num_frames), decode_hours(way)
            total = detect + (decode or 0.0)
            rows.append({"of": name, "frames": what, "detect": detect, "decode": decode, "total": total})
    part = results.get("preprocess", {"contenders": {}})
    for name, row in part["contenders"].items():
        if measured := row["job_core_seconds_per_clip"]:
            total = core_hours(measured["median"], CAER_NUM_CLIPS)
            what = f"{part['frames_per_clip']} frames a clip"
            rows.append({"of": f"preprocess, {name}", "frames": what, "detect": None, "decode": None, "total": total})
    return rows


# Tables --------------------------------------------------------------------------------------------------------------


def print_tables(results: Mapping[str, Any]) -> None:
    """Print the machine and a table for each part measured."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    told = results["machine"]
    console.print(
        f"{told['cpu']}, family/model {told['cpu_family_model']}, {told['cores']} cores, {told['memory_gib']} GiB, "
        f"{' '.join(told['flags'])}; load {told['load_average']:.2f}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in told["versions"].items()))
    for part, table in (("detect", _detect_table), ("decode", _decode_table), ("preprocess", _preprocess_table)):
        if part in results:
            console.print(table(results[part]))
            load = results[part]["load_average"]
            console.print(f"load average {load['before']:.2f} before, {load['after']:.2f} after")
    if "decode" in results:
        console.print(_reason_table(results["decode"]))
    if "preprocess" in results:
        console.print(_ratio_table(results["preprocess"]))
    if results["core_hours"]:
        console.print(_core_hours_table(results["core_hours"]))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _detect_table(part: Mapping[str, Any]) -> Table:
    peaks = ", ".join(f"{kind} {gflops:.0f} GFLOP/s" for kind, gflops in part["peak_gflops"].items())
    rows = []
    for name, row in part["detectors"].items():
        inside = row.get("parts_cpu_ms", {})
        rows.append(
            [
                name,
                _shown(row["cpu_ms"], 1),
                _median(row["wall_ms"]),
                " + ".join(f"{inside[key]:.1f}" for key in ("tile", "net", "boxes")) if inside else "-",
                f"{row['bound_ms']:.1f}" if inside else "-",
                f"{row['share_of_bound']:.0%} ({row['net_share_of_bound']:.0%})" if inside else "-",
                f"{row['times_dlib']:.1f}",
                f"{row['num_faces']} {'=' if row['same_boxes_as_dlib'] else '≠'}",
            ]
        )
    columns = ("detector", "CPU ms", "wall", "tile+net+boxes", "bound", "of bound (net)", "× dlib", "faces")
    return _table(f"Detect: {part['frame']}, {part['gmac']:.2f} GMAC; {peaks}", columns, rows)


def _decode_table(part: Mapping[str, Any]) -> Table:
    rows = [
        [
            way,
            _shown(row["cpu_ms_per_clip"], 1),
            _shown(row["wall_ms_per_clip"], 1),
            f"{row['num_wrong']} of {row['num_sampled']}",
            str(row["clips_with_wrong_frames"]),
            str(row["clips_failed"]),
        ]
        for way, row in part["ways"].items()
    ]
    columns = ("decoder", "CPU ms a clip", "wall ms a clip", "wrong frames", "clips with wrong", "clips failed")
    title = (
        f"Decode: {part['frames_per_clip']} frames of {part['num_clips']} clips; timed on {part['num_clips_timed']} "
        f"({part['num_frames_timed']} frames)"
    )
    return _table(title, columns, rows)


def _reason_table(part: Mapping[str, Any]) -> Table:
    """decord's wrong frames by what auto says of the clip."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["clips"].values():
        reason = row["decoders"]["auto"].get("decoder_reason", "failed")
        groups.setdefault(reason, []).append(row["decoders"]["decord"])
    rows = []
    for reason, ended in groups.items():
        wrong, sampled = (sum(each.get(key, 0) for each in ended) for key in ("num_wrong", "num_sampled"))
        rows.append([reason, str(len(ended)), f"{wrong} of {sampled}", str(sum("failed" in each for each in ended))])
    columns = ("what auto says of the clip", "clips", "decord's wrong frames", "decord failed")
    return _table("Decode: why auto chose as it did", columns, rows)


def _preprocess_table(part: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            _shown(row["clips_per_second"], 2),
            _shown(row["core_seconds_per_clip"], 2),
            _shown(row["job_core_seconds_per_clip"], 2),
            *(_median(row[key], scale=2**-20) for key in ("worker_peak_memory_bytes", "worker_shared_memory_bytes")),
            *(_median(row[key]) for key in ("start_seconds", "total_seconds")),
        ]
        for name, row in part["contenders"].items()
    ]
    columns = ("steady state", "clips/s", "core-s a clip", "with Ray", "peak MiB", "PSS MiB", "start s", "total s")
    title = (
        f"Preprocess: {part['num_clips']} clips of {part['frames_per_clip']} frames, dlib-cnn "
        f"{part['detector_precision']}; baseline {part['contenders'][BASELINE]['num_clips']} clips; "
        f"ray.init {_shown(part['ray_init_seconds'], 1)} s"
    )
    return _table(title, columns, rows)


def _ratio_table(part: Mapping[str, Any]) -> Table:
    boxes = part["boxes_beside_baseline"]
    iou = "-" if boxes["mean_iou"] is None else f"{boxes['mean_iou']:.3f}"
    rows = [[name, _shown(ratio, 3)] for name, ratio in part["ratios"].items()]
    rows.append(["boxes: of the baseline's, found / equal / mean IoU", f"{boxes['ours_too']} of {boxes['baseline']}"])
    rows[-1][1] += f" / {boxes['equal']} / {iou}"
    return _table("Preprocess, round by round", ("ratio", "median (min–max)"), rows)


def _core_hours_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    def hours(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    cells = [
        [row["of"], row["frames"], hours(row["detect"]), hours(row["decode"]), hours(row["total"])] for row in rows
    ]
    title = f"Core-hours for CAER: {CAER_NUM_CLIPS:,} clips, {CAER_NUM_FRAMES:,} frames"
    return _table(title, ("of", "frames", "detect", "decode", "total"), cells)


def _shown(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}–{value['max']:.{digits}f})"


def _median(value: Mapping[str, Any] | None, *, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value['median']:.0f}"
