"""A night's figures beside those of the nights before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.ledger.ledger import Ledger
from pipeline.records.documents import parse_json
from pipeline.records.vocabulary import EMOTIONS

DRIFT_NIGHTS = 7


# Fewer nights have no spread, fewer clips no shares: 30 clips differ by 0.15 by chance alone.
MIN_NIGHTS, MIN_CLIPS = 3, 30


SPREADS = 3.0


# What a figure may move by in any case.
FLOORS = {"emotions": 0.15, "mean_entropy": 0.15, "face_rate": 0.1, "decode_integrity": 0.02}
_RECORD = re.compile(r"nights/(\d{4}-\d\d-\d\d)\.json")
_NAMES = {"day", "clips", "labelled_clips", "core_seconds", *FLOORS}


def unit_facts(shares: np.ndarray, entropies: np.ndarray, *, day: str) -> dict[str, Any]:
    """What one unit adds to its night. shares: (clips with a face, classes), of their faces; entropies: (faces,), in
    nats."""
    return {
        "day": day,
        "labelled_clips": len(shares),
        "emotion_share_sums": shares.sum(axis=0).tolist(),
        "faces": len(entropies),
        "entropy_sum": float(entropies.sum()),
    }


def night_record(sums: Mapping[str, Any], *, classes: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """The figures of one night, as they are stored in nights/, from a row of the query `night_figures`.

    classes: of the model, in their order.

    emotions: mean over the clips with a face of the share of their faces whose most probable emotion it is.
    mean_entropy: over the faces, nats. face_rate: share of the sampled frames with a face. decode_integrity: mean over
    the clips where it is known. Each is None where there is nothing to count.
    """
    num_labelled, num_faces, num_frames = sums["labelled_clips"], sums["faces"], sums["frames"]
    shares = [each / num_labelled for each in sums["emotion_share_sums"]] if num_labelled else None
    return {
        "day": sums["day"],
        "clips": sums["clips"],
        "labelled_clips": num_labelled,
        "frames": num_frames,
        "faces": num_faces,
        "core_seconds": round(sums["core_seconds"], 3),
        "emotions": dict(zip(classes, shares, strict=True)) if shares else None,
        "mean_entropy": sums["entropy_sum"] / num_faces if num_faces else None,
        "face_rate": 1 - sums["faceless_frames"] / num_frames if num_frames else None,
        "decode_integrity": sums["decode_integrity"],
    }


def read_nights(ledger: Ledger, *, until: str = "9999-12-31") -> list[dict[str, Any]]:
    """The records of the last 8 nights up to that day, oldest first; without those that cannot be read, which the end
    of the next night makes again."""
    days = [match[1] for name in ledger.storage.sizes("nights") if (match := _RECORD.fullmatch(name))]
    names = [f"nights/{day}.json" for day in days if day <= until][-DRIFT_NIGHTS - 1 :]
    records = map(_record_of, ledger.storage.read_many(names).values())
    return [record for record in records if record is not None]


def _record_of(data: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(data, "it")
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.keys() >= _NAMES else None


def drift(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tonight's figures against those of earlier nights, and a line for each that jumped.

    A figure jumps where it is further from the mean of the earlier nights than 3 of their standard deviations and than
    its floor (`FLOORS`). For the emotions the distance is the total variation (half the sum of the absolute
    differences of the shares), and the spread the root mean square of the earlier nights' own distances. Nights of
    fewer than 30 clips with a face are not compared, nor is anything before there are 3.
    """
    usable = [night for night in earlier if night["labelled_clips"] >= MIN_CLIPS]
    found: dict[str, Any] = {"nights": len(usable), "figures": {}, "warnings": []}
    if len(usable) < MIN_NIGHTS or tonight["labelled_clips"] < MIN_CLIPS:
        return found
    for name, floor in FLOORS.items():
        if tonight[name] is None or any(night[name] is None for night in usable):
            continue
        names = list(tonight[name]) if isinstance(tonight[name], Mapping) else []
        values = np.array([_vector(night[name], names) for night in usable])  # (nights, 1 or classes)
        mean, now = values.mean(axis=0), _vector(tonight[name], names)
        distance = _distance(now, mean)
        limit = max(floor, SPREADS * float(np.sqrt(np.mean([_distance(value, mean) ** 2 for value in values]))))
        found["figures"][name] = {
            "tonight": tonight[name],
            "before": dict(zip(names, mean.tolist(), strict=True)) if names else float(mean[0]),
            "distance": distance,
            "limit": limit,
            "jumped": distance > limit,
        }
        if distance > limit:
            found["warnings"].append(
                _jump(name, now, mean, names, distance=distance, limit=limit, num_nights=len(usable))
            )
    return found


def _vector(value: Any, names: Sequence[str]) -> np.ndarray:
    return np.array([value.get(name, 0.0) for name in names] if isinstance(value, Mapping) else [value], np.float64)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum() / (2 if len(a) > 1 else 1))


def _jump(
    name: str,
    now: np.ndarray,
    mean: np.ndarray,
    names: Sequence[str],
    *,
    distance: float,
    limit: float,
    num_nights: int,
) -> str:
    if len(now) == 1:
        what = f"{name} is {now[0]:.3f}, {mean[0]:.3f}"
    else:
        index = int(np.abs(now - mean).argmax())
        what = f"the share of {names[index]} is {now[index]:.2f}, {mean[index]:.2f}"
    return f"drift: {what} in {num_nights} nights before (distance {distance:.3f}, limit {limit:.3f})"
