"""Detection: one frame on one thread by every detector, beside the limit that a matrix product sets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.clips import middle_frames
from benchmarks.config import BenchmarkConfig
from benchmarks.parity import seen
from benchmarks.tables import median, shown, table
from benchmarks.timing import one_thread, seconds_of, spread
from pipeline.faces.detector import build_detector, find_weights
from pipeline.faces.dlib_cnn import tile_levels
from pipeline.faces.dlib_weights import read_weights
from pipeline.faces.processor import cpu_has_bf16_convolutions, cpu_has_int8
from pipeline.records.clips import Clip
from pipeline.records.faces import Face

FRAME_WIDTH, FRAME_HEIGHT = 712, 400  # CAER's
GEMM_SIZES = (1024, 2048)
REFERENCE = "dlib-cnn-reference"
DETECTORS = {  # name: (detector, precision, calls a round)
    "dlib-cnn fp32": ("dlib-cnn", "fp32", 5),
    "dlib-cnn bf16": ("dlib-cnn", "bf16", 5),
    "dlib-cnn int8": ("dlib-cnn", "int8", 5),
    REFERENCE: (REFERENCE, "auto", 1),  # 2 s a call
    "dlib-hog": ("dlib-hog", "auto", 5),
}
PRODUCTS = ("sgemm of PyTorch", "sgemm of NumPy", "bf16 of PyTorch")
PARTS_OF_CNN = {"tile": "make_tile", "net": "score_tile"}  # the rest of a call is the decoding of boxes


def measure(clips: Sequence[Clip], _folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Every detector on one frame and one thread, and as the limit the fastest matrix product of the same rounds."""
    frame = seen(middle_frames(clips[:1])[0], size=(FRAME_WIDTH, FRAME_HEIGHT), is_grey=False)
    with one_thread():
        return _measure(frame, rounds=config.rounds)


def _measure(frame: np.ndarray, *, rounds: int) -> dict[str, Any]:
    contenders: dict[str, tuple[Callable[[], Any], int]] = {}
    inside: dict[str, dict[str, list[float]]] = {}
    found: dict[str, list[Face]] = {}
    for name, (detector_name, precision, calls) in DETECTORS.items():
        if (precision == "int8" and not cpu_has_int8()) or (precision == "bf16" and not cpu_has_bf16_convolutions()):
            continue
        detector = build_detector(detector_name, precision=precision, device="cpu")
        found[name] = detector.detect_faces([frame])[0]  # also loads, plans and compiles
        if detector_name == "dlib-cnn":
            inside[name] = {part: _timed_method(detector, method) for part, method in PARTS_OF_CNN.items()}
        contenders[name] = (lambda detector=detector: detector.detect_faces([frame]), calls)
    for size in GEMM_SIZES:
        for kind, product in _products(size).items():
            contenders[f"{kind} {size}"] = (product, 5)

    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (call, calls) in contenders.items():
            taken[name] += [seconds_of(call) for _ in range(calls)]

    peaks = {
        kind: max(2 * size**3 / cpu for size in GEMM_SIZES for cpu, _ in taken[f"{kind} {size}"]) for kind in PRODUCTS
    }
    best = {"fp32": max(peaks["sgemm of PyTorch"], peaks["sgemm of NumPy"]), "bf16": peaks["bf16 of PyTorch"]}
    macs = net_macs(height=FRAME_HEIGHT, width=FRAME_WIDTH)
    reference_ms = 1000 * statistics.median(cpu for cpu, _ in taken[REFERENCE])
    rows = {}
    for name, faces in found.items():
        cpu_ms = spread(1000 * cpu for cpu, _ in taken[name])
        assert cpu_ms
        row: dict[str, Any] = {"cpu_ms": cpu_ms, "wall_ms": spread(1000 * wall for _, wall in taken[name])}
        row["times_dlib"] = reference_ms / cpu_ms["median"]
        row["num_faces"] = len(faces)
        row["same_boxes_as_dlib"] = [face.box for face in faces] == [face.box for face in found[REFERENCE]]
        if name in inside:
            # The warm-up ran before the methods were timed, so these are the calls of the rounds alone.
            parts = {part: 1000 * statistics.median(seconds) for part, seconds in inside[name].items()}
            parts["boxes"] = cpu_ms["median"] - sum(parts.values())
            row["parts_cpu_ms"] = parts
            if peak := best.get(DETECTORS[name][1]):  # PyTorch has no product of bytes to compare with.
                bound_ms = 1000 * 2 * macs / peak
                row |= {"bound_ms": bound_ms, "share_of_bound": bound_ms / cpu_ms["median"]}
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


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The detectors, a row each."""
    peaks = ", ".join(f"{kind} {gflops:.0f} GFLOP/s" for kind, gflops in part["peak_gflops"].items())
    rows = []
    for name, row in part["detectors"].items():
        inside = row.get("parts_cpu_ms", {})
        rows.append(
            [
                name,
                shown(row["cpu_ms"], 1),
                median(row["wall_ms"]),
                " + ".join(f"{inside[key]:.1f}" for key in ("tile", "net", "boxes")) if inside else "-",
                f"{row['bound_ms']:.1f}" if "bound_ms" in row else "-",
                f"{row['share_of_bound']:.0%} ({row['net_share_of_bound']:.0%})" if "bound_ms" in row else "-",
                f"{row['times_dlib']:.1f}",
                f"{row['num_faces']} {'=' if row['same_boxes_as_dlib'] else '≠'}",
            ]
        )
    columns = ("detector", "CPU ms", "wall", "tile+net+boxes", "bound", "of bound (net)", "× dlib", "faces")
    return [table(f"Detect: {part['frame']}, {part['gmac']:.2f} GMAC; {peaks}", columns, rows)]
