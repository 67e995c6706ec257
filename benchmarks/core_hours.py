"""What CAER would cost by the figures measured: results in, core-hours out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.decode import EVERY_FRAME
from benchmarks.tables import table

CAER_NUM_CLIPS = 13_201
CAER_NUM_FRAMES = 1_107_877


def core_hours(seconds: float, count: int) -> float:
    """Hours of one core for `count` things of `seconds` each."""
    return seconds * count / 3600


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


def core_hours_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The core-hours, a row each."""

    def hours(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    cells = [
        [row["of"], row["frames"], hours(row["detect"]), hours(row["decode"]), hours(row["total"])] for row in rows
    ]
    title = f"Core-hours for CAER: {CAER_NUM_CLIPS:,} clips, {CAER_NUM_FRAMES:,} frames"
    return table(title, ("of", "frames", "detect", "decode", "total"), cells)
