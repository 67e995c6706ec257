"""How the clips of a night are read: as the data of the model was, but for which frames and faces are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.ledger.ledger import Ledger, differences
from pipeline.preprocess.config import ExtractConfig, extract_config_of, plan_defaults, why_not_cut
from pipeline.records.evolution import MAY_CHANGE
from pipeline.records.vocabulary import UsageError
from pipeline.score.config import ScoreConfig

# Of a clip that is longer than its model's data: 8 frames of an hour are one of 7 minutes.
MIN_SAMPLE_FPS = 2.0


# Settings that decide how hard is looked and which faces are kept; none changes the crop that a model gets.
EFFORT = ("upsample", "retry_upsample", "detect_every", "whole_every", "min_face_px", "min_sharpness", "max_yaw")


def reading_config(config: ScoreConfig, info: Mapping[str, Any]) -> ExtractConfig:
    """How clips are read for this model: as its checkpoint says, but for what the config asks.

    info: of the checkpoint (`read_checkpoint_info`). Raises UsageError where the two do not go together.
    """
    saved = info["config"]["preprocessing"]
    if not isinstance(saved, dict) or "detector" not in saved:
        raise UsageError(f"checkpoint {config.checkpoint} does not say how its examples were made; train it again")
    values = {**saved, "faces": config.faces, "boxes": config.boxes, "detector_weights": config.detector_weights}
    asked = {name: getattr(config, name) for name in EFFORT if getattr(config, name) is not None}
    if asked.get("upsample") and "retry_upsample" not in asked:
        asked["retry_upsample"] = False  # It has nothing left to do.
    if asked.get("whole_every", 1) > 1:
        asked.setdefault("detect_every", 1)  # One of the two saves the looks; the other is the model's.
    if asked.get("detect_every", 1) > 1:
        asked.setdefault("whole_every", 1)
    if asked.get("retry_upsample") and "upsample" not in asked:
        asked["upsample"] = 0
    try:
        found = extract_config_of({**values, **asked, **_sampling(config, saved)})
    except ValueError as error:
        raise UsageError(f"checkpoint {config.checkpoint}, or a flag beside it: {error}") from None
    if config.segment_seconds and (fault := why_not_cut(found)):
        raise UsageError(f"the clips of checkpoint {config.checkpoint} are read in another way: {fault}")
    return found


def _sampling(config: ScoreConfig, saved: Mapping[str, Any]) -> dict[str, Any]:
    if config.sample_fps is not None:
        return {"sample_fps": config.sample_fps, "every_frame": False, "min_sample_fps": 0.0}
    if config.every_frame:
        return {"sample_fps": None, "every_frame": True, "min_sample_fps": 0.0}
    if config.frames_per_clip is not None:
        return {
            "frames_per_clip": config.frames_per_clip,
            "sample_fps": None,
            "every_frame": False,
            "min_sample_fps": 0.0,
        }
    saved_fps = saved.get("min_sample_fps", 0.0)
    return {"min_sample_fps": max(MIN_SAMPLE_FPS, saved_fps) if isinstance(saved_fps, int | float) else saved_fps}


def read_otherwise(ledger: Ledger, plan_config: Mapping[str, Any]) -> list[str]:
    """A line where clips are read otherwise than when the output began, which its older labels keep; else none."""
    if not ledger.is_planned:
        return []
    saved = {**plan_defaults(), **ledger.run_info()["config"]}
    names = [name for name in sorted(MAY_CHANGE["labels"]) if name in saved and name in plan_config]
    changed = differences({name: saved[name] for name in names}, {name: plan_config[name] for name in names})
    return [f"read otherwise than when this output began: {changed}; what has a label keeps it"] if changed else []
